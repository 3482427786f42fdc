//! JPEG through `zune-jpeg`, and the pixels of most files through libjpeg-turbo in a build that has it.

use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::{ImageError, Picture};

/// The format's own limit on a side; the pixel limit is checked by the caller.
const MAX_SIDE: usize = 65_535;

fn decoder(bytes: &[u8]) -> JpegDecoder<ZCursor<&[u8]>> {
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        // Browsers and libjpeg draw slightly broken files; one that is cut short is refused below.
        .set_strict_mode(false)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    JpegDecoder::new_with_options(ZCursor::new(bytes), options)
}

fn failed(error: &DecodeErrors) -> ImageError {
    ImageError::Decode(format!("JPEG: {error:?}"))
}

pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let mut decoder = decoder(bytes);
    decoder.decode_headers().map_err(|error| failed(&error))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| ImageError::Decode("JPEG: no frame header".to_owned()))?;
    Ok((width as u32, height as u32))
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Picture, Orientation), ImageError> {
    if !has_end_marker(bytes) {
        // The decoder would fill the missing rows with grey.
        return Err(ImageError::Decode("JPEG: cut short (no end marker)".to_owned()));
    }
    let mut decoder = decoder(bytes);
    decoder.decode_headers().map_err(|error| failed(&error))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| ImageError::Decode("JPEG: no frame header".to_owned()))?;
    #[cfg(feature = "libjpeg-turbo")]
    let fast = decoder.input_colorspace().and_then(|colours| super::turbo::decode(bytes, width, height, colours));
    #[cfg(not(feature = "libjpeg-turbo"))]
    let fast = None;
    let rgb = fast.map_or_else(|| decoder.decode(), Ok).map_err(|error| failed(&error))?;
    if rgb.len() != width * height * 3 {
        return Err(ImageError::Decode(format!("JPEG: {} bytes decoded for {width}x{height}", rgb.len())));
    }
    let is_rgb = matches!(decoder.input_colorspace(), Some(ColorSpace::YCbCr | ColorSpace::RGB));
    let profile = if is_rgb { decoder.icc_profile() } else { None };
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let picture = Picture { width: width as u32, height: height as u32, rgb, profile };
    Ok((picture, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Whether an end-of-image marker follows the start of the first scan.
fn has_end_marker(bytes: &[u8]) -> bool {
    let find = |marker: [u8; 2]| bytes.windows(2).rposition(|window| window == marker);
    let scan = start_of_scan(bytes);
    scan.is_some() && find([0xff, 0xd9]) > scan
}

/// Walks the segments from the start of the image to the first scan.
fn start_of_scan(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        match bytes.get(at..at + 2)? {
            [0xff, 0xda] => return Some(at),
            [0xff, 0xff] => at += 1, // fill bytes
            [0xff, 0x01 | 0xd0..=0xd8] => at += 2,
            [0xff, _] => {
                let length = bytes.get(at + 2..at + 4)?;
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
            _ => at += 1, // stray bytes between segments
        }
    }
}
