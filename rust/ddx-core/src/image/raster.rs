//! PNG, WebP, GIF, BMP and TIFF through the `image` crate.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::error::{LimitError, LimitErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageResult, Limits};

use super::colour::to_rgb;
use super::{Format, ImageError, Picture};

/// What a decoder may allocate for a picture of so many pixels: eight bytes each at most, twice, and tables.
fn limits(num_pixels: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(num_pixels * 16 + (64 << 20));
    limits
}

type Decoder<'a> = Box<dyn ImageDecoder + 'a>;

fn open(bytes: &[u8], format: Format) -> ImageResult<Decoder<'_>> {
    let reader = Cursor::new(bytes);
    Ok(match format {
        // A colour profile is decompressed with the header.
        Format::Png => Box::new(PngDecoder::with_limits(reader, limits(0))?),
        Format::WebP => Box::new(WebPDecoder::new(reader)?),
        Format::Gif => Box::new(GifDecoder::new(reader)?),
        Format::Bmp => Box::new(BmpDecoder::new(reader)?),
        Format::Tiff => Box::new(TiffDecoder::new(reader)?),
        Format::Jpeg | Format::Avif | Format::Other(_) => unreachable!("not a format of this module: {format:?}"),
    })
}

fn failed(format: Format, error: &image::ImageError) -> ImageError {
    ImageError::Decode(format!("{format:?}: {error}"))
}

pub(super) fn dimensions(bytes: &[u8], format: Format) -> Result<(u32, u32), ImageError> {
    open(bytes, format).map(|decoder| decoder.dimensions()).map_err(|error| failed(format, &error))
}

/// Whether no lossy frame of a `WebP` says that it is larger than the picture: the decoder makes room for one, and
/// fills it, before it compares the two.
fn frames_fit(bytes: &[u8], width: u32, height: u32) -> bool {
    let mut at = 12;
    while let Some([name @ .., a, b, c, d]) = bytes.get(at..at + 8) {
        let content = at + 8;
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        at = content + length.next_multiple_of(2);
        match name {
            b"ANMF" => at = content + 16, // its chunks, behind its place
            // Three bytes, a signature of three, and 14 bits each.
            b"VP8 " => {
                let side = |from: usize| bytes.get(from..from + 2).map_or(0, |it| u16::from_le_bytes([it[0], it[1]]));
                if u32::from(side(content + 6) & 0x3fff) > width || u32::from(side(content + 8) & 0x3fff) > height {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

pub(super) fn decode(bytes: &[u8], format: Format) -> Result<(Picture, Orientation), ImageError> {
    let decode = || -> ImageResult<_> {
        let mut decoder = open(bytes, format)?;
        let (width, height) = decoder.dimensions();
        if format == Format::WebP && !frames_fit(bytes, width, height) {
            return Err(image::ImageError::Limits(LimitError::from_kind(LimitErrorKind::DimensionError)));
        }
        decoder.set_limits(limits(u64::from(width) * u64::from(height)))?;
        // Metadata that cannot be read is metadata that is not there.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let profile = if decoder.color_type().has_color() { decoder.icc_profile().unwrap_or(None) } else { None };
        let pixels = DynamicImage::from_decoder(decoder)?;
        Ok((pixels, orientation, profile))
    };
    let (pixels, orientation, profile) = decode().map_err(|error| failed(format, &error))?;
    let (width, height) = (pixels.width(), pixels.height());
    Ok((Picture { width, height, rgb: to_rgb(pixels), profile }, orientation))
}
