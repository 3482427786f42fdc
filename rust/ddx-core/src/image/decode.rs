//! One door to all decoders: size before allocation, panics caught, colours in sRGB, orientation undone.

use image::metadata::Orientation;

#[cfg(feature = "avif")]
use super::avif;
use super::colour::to_srgb;
use super::sniff::{Format, sniff};
use super::{ImageError, Picture, Stored, jpeg, raster};
use crate::panics::caught;

/// What is known before a pixel is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format.
    pub format: Format,
    /// Width as stored, before orientation.
    pub width: u32,
    /// Height as stored, before orientation.
    pub height: u32,
}

impl Header {
    /// Pixels as stored.
    #[must_use]
    pub fn num_pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// Reads the header alone.
///
/// # Errors
/// If the bytes are no image, of an unsupported format, broken, or of more than `max_pixels` pixels.
pub fn read_header(bytes: &[u8], max_pixels: u64) -> Result<Header, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = sniff(bytes).ok_or_else(|| ImageError::NotAnImage(first_bytes(bytes)))?;
    let (width, height) = guarded(|| match format {
        Format::Jpeg => jpeg::dimensions(bytes),
        Format::Png | Format::WebP | Format::Gif | Format::Bmp | Format::Tiff => raster::dimensions(bytes, format),
        #[cfg(feature = "avif")]
        Format::Avif => avif::dimensions(bytes),
        #[cfg(not(feature = "avif"))]
        Format::Avif => Err(ImageError::LeftOut {
            format: "AVIF",
            reason: "this build has no decoder for them (the cargo feature `avif`)",
        }),
        Format::Other(name) => Err(ImageError::Unsupported(name)),
    })?;
    if width == 0 || height == 0 {
        return Err(ImageError::Decode(format!("the header says {width}x{height}")));
    }
    let header = Header { format, width, height };
    if header.num_pixels() > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, max_pixels });
    }
    Ok(header)
}

/// Decodes to upright 8-bit sRGB: grey and CMYK converted, 16 bits scaled, transparency over white, ICC profiles applied,
/// first frame only.
///
/// # Errors
/// If the bytes are broken or cut short.
pub fn decode(bytes: &[u8], header: &Header) -> Result<Picture, ImageError> {
    guarded(|| {
        let Stored { mut picture, orientation, profile, is_grey } = match header.format {
            Format::Jpeg => jpeg::decode(bytes)?,
            #[cfg(feature = "avif")]
            Format::Avif => avif::decode(bytes, header.width, header.height)?,
            format => raster::decode(bytes, format)?,
        };
        if let Some(profile) = profile {
            to_srgb(&mut picture.rgb, &profile, is_grey);
        }
        upright(picture, orientation)
    })
}

/// Runs a decoder; its panic becomes an error of this one image.
fn guarded<T>(decoder: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    caught(decoder).unwrap_or_else(|message| Err(ImageError::Decode(format!("the decoder {message}"))))
}

fn upright(picture: Picture, orientation: Orientation) -> Result<Picture, ImageError> {
    if orientation == Orientation::NoTransforms {
        return Ok(picture);
    }
    let Picture { width, height, rgb } = picture;
    let pixels = image::RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| ImageError::Decode(format!("the decoder gave too few pixels for {width}x{height}")))?;
    let mut pixels = image::DynamicImage::ImageRgb8(pixels);
    pixels.apply_orientation(orientation);
    let (width, height) = (pixels.width(), pixels.height());
    Ok(Picture { width, height, rgb: pixels.into_bytes() })
}

fn first_bytes(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(16)].escape_ascii().to_string()
}
