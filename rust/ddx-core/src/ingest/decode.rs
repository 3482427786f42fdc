//! The decoding threads: encoded bytes to a picture of the wanted size.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use super::{Outcome, PIXEL_PIECE, RowRecord, RowStatus, Shared};
use crate::fetch::{Body, FetchError};
use crate::image::{Format, ImageError, Resizer, cover_crop, decode, read_header, sniff};
use crate::source::{Checksum, sha256};

/// A row on its way to a decoder.
pub(super) struct Job {
    pub sequence: u64,
    pub record: RowRecord,
    /// What the bytes must hash to.
    pub checksum: Option<Checksum>,
    pub payload: Payload,
}

/// The bytes of a row, or where they are.
pub(super) enum Payload {
    /// It failed already.
    None,
    Body(Body),
    /// A local file, or so many bytes from an offset in it.
    File {
        path: PathBuf,
        within: Option<(u64, u64)>,
    },
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    results: Sender<Outcome>,
    resizer: Resizer,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, jobs: Receiver<Job>, results: Sender<Outcome>) -> Self {
        Self { shared, jobs, results, resizer: Resizer::default() }
    }

    pub fn run(mut self) {
        while let Ok(Job { sequence, record, checksum, payload }) = self.jobs.recv() {
            if self.shared.is_closed() {
                return;
            }
            let (record, image) = match payload {
                Payload::None => (record, None),
                Payload::Body(body) => self.decode(record, checksum, body),
                Payload::File { path, within } => match self.read_file(&path, within) {
                    Ok(bytes) => self.decode(record, checksum, Body { bytes, budget: None }),
                    Err((status, detail)) => (record.failed(status, &detail), None),
                },
            };
            if self.results.send(Outcome { sequence, record, image }).is_err() {
                return;
            }
        }
    }

    fn read_file(&self, path: &Path, within: Option<(u64, u64)>) -> Result<Bytes, (RowStatus, String)> {
        let failed = |error: &std::io::Error| match error.kind() {
            ErrorKind::NotFound => (RowStatus::MissingFile, format!("{}: no such file", path.display())),
            _ => (RowStatus::UnreadableFile, format!("{}: {error}", path.display())),
        };
        // A pipe would block for ever at the open.
        if !std::fs::metadata(path).map_err(|error| failed(&error))?.is_file() {
            return Err((RowStatus::UnreadableFile, format!("{}: not a file", path.display())));
        }
        let limit = self.shared.config.fetch.max_body_bytes;
        let mut bytes = Vec::new();
        let mut file = File::open(path).map_err(|error| failed(&error))?;
        let (offset, length) = within.unwrap_or((0, u64::MAX));
        file.seek(SeekFrom::Start(offset)).map_err(|error| failed(&error))?;
        file.take(length.min(limit as u64 + 1)).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        if bytes.len() > limit {
            return Err((RowStatus::TooLarge, FetchError::TooLarge(limit).to_string()));
        }
        Ok(Bytes::from(bytes))
    }

    fn decode(
        &mut self,
        mut record: RowRecord,
        checksum: Option<Checksum>,
        body: Body,
    ) -> (RowRecord, Option<Vec<u8>>) {
        let config = &self.shared.config;
        self.shared.stats.bytes.fetch_add(body.bytes.len() as u64, Ordering::Relaxed);
        if !body.bytes.is_empty() {
            let digest = sha256(&body.bytes);
            record.sha256 = Some(digest);
            if checksum.is_some_and(|expected| !expected.matches(&body.bytes, &digest)) {
                let detail = "the bytes are not those that the checksum in the input was taken of";
                return (record.failed(RowStatus::WrongChecksum, &detail), None);
            }
        }
        if sniff(&body.bytes) == Some(Format::Tiff) && !config.tiff {
            let error = ImageError::LeftOut { format: "TIFF", reason: "they are decoded with --tiff only" };
            return (record.failed(RowStatus::from(&error), &error), None);
        }
        let header = match read_header(&body.bytes, config.max_pixels) {
            Ok(header) => header,
            Err(error) => return (record.failed(RowStatus::from(&error), &error), None),
        };
        (record.width, record.height) = (header.width, header.height);
        // The shorter side is the same after orientation: too small is known before anything is decoded.
        if let Err(error) = cover_crop(header.width, header.height, config.resolution, config.max_upscale) {
            return (record.failed(RowStatus::from(&error), &error), None);
        }
        let pieces = header.num_pixels().div_ceil(PIXEL_PIECE);
        let permit = self.shared.handle.block_on(self.shared.pixels.acquire_many(pieces as u32));
        let Ok(_permit) = permit else {
            return (record.failed(RowStatus::from(&FetchError::Closed), &FetchError::Closed), None);
        };
        self.shared.stats.pixels.fetch_add(header.num_pixels(), Ordering::Relaxed);
        let resized = decode(&body.bytes, &header).and_then(|picture| {
            drop(body); // its share of the byte budget is free while we resize
            (record.width, record.height) = (picture.width, picture.height);
            record.crop = cover_crop(picture.width, picture.height, config.resolution, config.max_upscale)?;
            self.resizer.resize(picture, &record.crop, config.resolution)
        });
        match resized {
            Ok(image) => (record, Some(image)),
            Err(error) => (record.failed(RowStatus::from(&error), &error), None),
        }
    }
}
