//! JPEG: `zune-jpeg` for the usual files, `jpeg-decoder` for those that it draws wrong, and libjpeg-turbo for most in a
//! build that has it.

mod layout;
#[cfg(feature = "libjpeg-turbo")]
mod turbo;

use image::metadata::Orientation;
use jpeg_decoder::ColorTransform;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::colour::{inks_to_rgb, repeat_grey};
use super::{ImageError, Picture, Stored, exif};
use layout::{Colours, Layout};

/// The format's own limit on a side; the pixel limit is checked by the caller.
const MAX_SIDE: usize = 65_535;

pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let layout = Layout::read(bytes, true)?;
    Ok((u32::from(layout.width), u32::from(layout.height)))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Stored, ImageError> {
    let layout = Layout::read(bytes, false)?;
    layout.check_complete()?;
    #[cfg(feature = "libjpeg-turbo")]
    let fast = turbo::decode(bytes, &layout);
    #[cfg(not(feature = "libjpeg-turbo"))]
    let fast = None;
    let rgb = match fast.or_else(|| usual(bytes, &layout)) {
        Some(rgb) => rgb,
        None => any(bytes, &layout),
    };
    let (width, height) = (u32::from(layout.width), u32::from(layout.height));
    let rgb = rgb.map_err(|reason| ImageError::Decode(format!("JPEG: {reason}")))?;
    if rgb.len() as u64 != 3 * u64::from(width) * u64::from(height) {
        return Err(ImageError::Decode(format!("JPEG: {} bytes decoded for {width}x{height}", rgb.len())));
    }
    let orientation = layout.exif.map_or(Orientation::NoTransforms, exif::orientation);
    // Inks are converted without their profile.
    let profile = if matches!(layout.colours, Colours::Cmyk | Colours::Ycck) { None } else { layout.profile() };
    let is_grey = layout.colours == Colours::Grey;
    Ok(Stored { picture: Picture { width, height, rgb }, orientation, profile, is_grey })
}

type Pixels = Result<Vec<u8>, String>;

/// Through `zune-jpeg`, the faster; None for a file that it would draw wrong.
fn usual(bytes: &[u8], layout: &Layout) -> Option<Pixels> {
    if !layout.is_usual() {
        return None;
    }
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        // Browsers and libjpeg draw slightly broken files.
        .set_strict_mode(false)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    if let Err(error) = decoder.decode_headers() {
        return Some(Err(format!("{error:?}")));
    }
    let colours = match decoder.input_colorspace()? {
        ColorSpace::Luma => Colours::Grey,
        ColorSpace::RGB => Colours::Rgb,
        ColorSpace::YCbCr => Colours::YCbCr,
        ColorSpace::CMYK => Colours::Cmyk,
        ColorSpace::YCCK => Colours::Ycck,
        _ => return None,
    };
    // Where the markers contradict each other it has its own opinion.
    (colours == layout.colours).then(|| decoder.decode().map_err(|error| format!("{error:?}")))
}

/// Through `jpeg-decoder`, which takes any order of scans and any sampling factors.
fn any(bytes: &[u8], layout: &Layout) -> Pixels {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.set_color_transform(match layout.colours {
        Colours::Grey => ColorTransform::Grayscale,
        Colours::Rgb => ColorTransform::RGB,
        Colours::YCbCr => ColorTransform::YCbCr,
        Colours::Cmyk => ColorTransform::CMYK,
        Colours::Ycck => ColorTransform::YCCK,
    });
    let samples = decoder.decode().map_err(|error| error.to_string())?;
    Ok(match layout.colours {
        Colours::Grey => repeat_grey(&samples),
        Colours::Rgb | Colours::YCbCr => samples,
        Colours::Cmyk | Colours::Ycck => inks_to_rgb(&samples),
    })
}
