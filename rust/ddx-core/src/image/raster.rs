//! PNG, WebP, GIF, BMP and TIFF through the `image` crate.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::error::{LimitError, LimitErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageResult, Limits};

use super::colour::to_rgb;
use super::{Format, ImageError, Picture, Stored, exif, png};

/// What a decoder may allocate for a picture of so many pixels: eight bytes each at most, twice, and tables.
fn limits(num_pixels: u64, format: Format) -> Limits {
    // The decoder of TIFF takes the rest for each of several things, and its tables are short.
    let tables = if format == Format::Tiff { 4 << 20 } else { 64 << 20 };
    let mut limits = Limits::default();
    limits.max_alloc = Some(num_pixels * 16 + tables);
    limits
}

type Decoder<'a> = Box<dyn ImageDecoder + 'a>;

fn open(bytes: &[u8], format: Format) -> ImageResult<Decoder<'_>> {
    let reader = Cursor::new(bytes);
    Ok(match format {
        // A colour profile is decompressed with the header.
        Format::Png => Box::new(PngDecoder::with_limits(reader, limits(0, format))?),
        Format::WebP => Box::new(WebPDecoder::new(reader)?),
        Format::Gif => Box::new(GifDecoder::new(reader)?),
        Format::Bmp => Box::new(BmpDecoder::new(reader)?),
        Format::Tiff if !tables_fit(bytes) => {
            return Err(image::ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory)));
        }
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

/// The chunks of a `WebP`, and those of its frames: name, place and length of the content, which may end behind the file.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], usize, usize)> {
    let mut at = 12;
    std::iter::from_fn(move || {
        let (name, rest) = bytes.get(at..)?.split_first_chunk()?;
        let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        let content = at + 8;
        // Behind its place in the picture a frame has chunks of its own.
        at = if name == b"ANMF" { content + 16 } else { content + length.next_multiple_of(2) };
        Some((name, content, length))
    })
}

/// Whether no lossy frame of a `WebP` says that it is larger than the picture: the decoder makes room for one, and
/// fills it, before it compares the two.
fn frames_fit(bytes: &[u8], width: u32, height: u32) -> bool {
    // Three bytes, a signature of three, and 14 bits each.
    let side = |from: usize| bytes.get(from..from + 2).map_or(0, |it| u16::from_le_bytes([it[0], it[1]]) & 0x3fff);
    let mut frames = chunks(bytes).filter(|(name, ..)| *name == b"VP8 ");
    frames.all(|(_, at, _)| u32::from(side(at + 6)) <= width && u32::from(side(at + 8)) <= height)
}

/// Whether the profile and the other metadata of a `WebP` end in the file: the decoder makes room for all that they claim.
fn metadata_fit(bytes: &[u8]) -> bool {
    let mut metadata = chunks(bytes).filter(|(name, ..)| [b"ICCP", b"EXIF", b"XMP "].contains(name));
    metadata.all(|(_, at, length)| length <= bytes.len().saturating_sub(at))
}

/// Whether no table of a TIFF says that it is longer than the file: the decoder makes room for its values before it
/// reads them.
fn tables_fit(bytes: &[u8]) -> bool {
    let number = |at: usize, length: usize| -> Option<usize> {
        let digits = bytes.get(at..at.checked_add(length)?)?;
        let fold = |value: usize, digit: &u8| value << 8 | usize::from(*digit);
        Some(if bytes[0] == b'I' { digits.iter().rev().fold(0, fold) } else { digits.iter().fold(0, fold) })
    };
    let Some(first) = number(4, 4) else { return true };
    let entries = (0..number(first, 2).unwrap_or(0)).map_while(|entry| {
        let at = first + 2 + 12 * entry;
        let width = match number(at + 2, 2)? {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => 1,
        };
        Some(width * number(at + 4, 4)?)
    });
    entries.into_iter().all(|length| length <= bytes.len())
}

pub(super) fn decode(bytes: &[u8], format: Format) -> Result<Stored, ImageError> {
    let bytes = if format == Format::Png { png::ended(bytes) } else { Cow::Borrowed(bytes) };
    let decode = || -> ImageResult<_> {
        let mut decoder = open(&bytes, format)?;
        let (width, height) = decoder.dimensions();
        if format == Format::WebP && !frames_fit(&bytes, width, height) {
            return Err(image::ImageError::Limits(LimitError::from_kind(LimitErrorKind::DimensionError)));
        }
        decoder.set_limits(limits(u64::from(width) * u64::from(height), format))?;
        // Metadata that cannot be read is metadata that is not there.
        let (mut orientation, mut profile) = (Orientation::NoTransforms, None);
        if format != Format::WebP || metadata_fit(&bytes) {
            orientation = match decoder.exif_metadata() {
                Ok(Some(block)) => exif::orientation(&block),
                _ => decoder.orientation().unwrap_or(orientation),
            };
            profile = decoder.icc_profile().unwrap_or(None);
        }
        let is_grey = !decoder.color_type().has_color();
        Ok((DynamicImage::from_decoder(decoder)?, orientation, profile, is_grey))
    };
    let (pixels, orientation, profile, is_grey) = decode().map_err(|error| failed(format, &error))?;
    let (width, height) = (pixels.width(), pixels.height());
    Ok(Stored { picture: Picture { width, height, rgb: to_rgb(pixels) }, orientation, profile, is_grey })
}
