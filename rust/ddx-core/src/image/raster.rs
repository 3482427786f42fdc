//! PNG, WebP, GIF and BMP through the `image` crate.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
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
        Format::Jpeg | Format::Other(_) => unreachable!("not a format of this module: {format:?}"),
    })
}

fn failed(format: Format, error: &image::ImageError) -> ImageError {
    ImageError::Decode(format!("{format:?}: {error}"))
}

pub(super) fn dimensions(bytes: &[u8], format: Format) -> Result<(u32, u32), ImageError> {
    open(bytes, format).map(|decoder| decoder.dimensions()).map_err(|error| failed(format, &error))
}

pub(super) fn decode(bytes: &[u8], format: Format) -> Result<(Picture, Orientation), ImageError> {
    let decode = || -> ImageResult<_> {
        let mut decoder = open(bytes, format)?;
        let (width, height) = decoder.dimensions();
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
