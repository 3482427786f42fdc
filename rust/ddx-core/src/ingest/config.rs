//! The settings of an ingest.

use crate::fetch::FetchConfig;
use crate::image::Size;
use crate::source::ImageKind;
use crate::{Error, Result};

/// What to make of the rows, and within which limits.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// What pictures are cut to: the one whose aspect ratio is nearest to theirs.
    pub sizes: Vec<Size>,
    /// Rows of a part.
    pub part_rows: u64,
    /// Pictures of a batch.
    pub batch_size: usize,
    /// Rows between the reader and the caller: what is fetched and decoded ahead.
    pub prefetch_rows: usize,
    /// Decoding threads.
    pub decode_threads: usize,
    /// Pixels that a picture may have.
    pub max_pixels: u64,
    /// How much a picture may be enlarged; 1 is not at all.
    pub max_upscale: f64,
    /// Whether TIFF is decoded.
    pub tiff: bool,
    /// Whether bytes are held against the checksums that the input gives.
    pub verify_checksums: bool,
    /// Encoded bytes in memory at a time.
    pub byte_budget: usize,
    /// Decoded pixels in memory at a time.
    pub pixel_budget: u64,
    /// The limits of fetching.
    pub fetch: FetchConfig,
}

/// Finished pictures that may wait for an earlier row.
const PREFETCH_BYTES: usize = 512 << 20;

impl IngestConfig {
    /// How many rows to be ahead: behind a server that takes a minute to fail, hundreds of others should be done
    /// meanwhile; local pictures only have to keep the decoders busy.
    #[must_use]
    pub fn default_prefetch_rows(kind: ImageKind, sizes: &[Size], batch_size: usize) -> usize {
        let at_least = 4 * batch_size + 64;
        match kind {
            ImageKind::Url => {
                let image_bytes = sizes.iter().map(|size| size.num_bytes()).max().unwrap_or(0);
                (PREFETCH_BYTES / image_bytes.max(1)).clamp(at_least, at_least.max(4096))
            }
            ImageKind::Bytes | ImageKind::Path | ImageKind::Caption => at_least,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<()> {
        let at_least_one = [
            ("sizes", self.sizes.iter().map(|size| u64::from(size.width.min(size.height))).min().unwrap_or(0)),
            ("part_rows", self.part_rows),
            ("batch_size", self.batch_size as u64),
            ("prefetch_rows", self.prefetch_rows as u64),
            ("decode_threads", self.decode_threads as u64),
            ("max_pixels", self.max_pixels),
            ("concurrency", self.fetch.concurrency as u64),
            ("per_host", self.fetch.per_host as u64),
            ("max_body_bytes", self.fetch.max_body_bytes as u64),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                return Err(Error::Setting { name, value: value.to_string(), wanted: "at least 1".to_owned() });
            }
        }
        if !(self.max_upscale >= 1.0 && self.max_upscale.is_finite()) {
            let (name, value) = ("max_upscale", self.max_upscale.to_string());
            return Err(Error::Setting { name, value, wanted: "at least 1".to_owned() });
        }
        Ok(())
    }
}
