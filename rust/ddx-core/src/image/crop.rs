//! Cover-and-crop to a wanted size with antialiased Lanczos3, in sRGB and with a float crop box: what VAEs were trained on.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions};

use super::{ImageError, Picture, Size};
use crate::panics::caught;

/// A rectangle of the upright source, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CropBox {
    /// Distance from the left edge.
    pub left: f64,
    /// Distance from the upper edge.
    pub top: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// The largest centred rectangle of the source with the aspect ratio of `size`.
///
/// # Errors
/// If the source would have to be enlarged by more than `max_upscale`.
pub fn cover_crop(width: u32, height: u32, size: Size, max_upscale: f64) -> Result<CropBox, ImageError> {
    let (source_width, source_height) = (f64::from(width), f64::from(height));
    let (wanted_width, wanted_height) = (f64::from(size.width), f64::from(size.height));
    let scale = (source_width / wanted_width).min(source_height / wanted_height); // source pixels a wanted one
    if scale * max_upscale < 1.0 {
        return Err(ImageError::TooSmall { width, height, size });
    }
    // Not beyond the source, whatever the rounding.
    let crop_width = (wanted_width * scale).min(source_width);
    let crop_height = (wanted_height * scale).min(source_height);
    Ok(CropBox {
        left: (source_width - crop_width) / 2.0,
        top: (source_height - crop_height) / 2.0,
        width: crop_width,
        height: crop_height,
    })
}

/// Resizes pictures, keeping its buffers from one to the next. One a thread.
#[derive(Default)]
pub struct Resizer {
    inner: fast_image_resize::Resizer,
}

impl Resizer {
    /// The `crop` of a picture as [`Size::num_bytes`] bytes of sRGB.
    ///
    /// # Errors
    /// If the crop box is outside the picture, which is a bug.
    pub fn resize(&mut self, picture: Picture, crop: &CropBox, size: Size) -> Result<Vec<u8>, ImageError> {
        caught(|| self.resize_or_panic(picture, crop, size))
            .unwrap_or_else(|message| Err(ImageError::Decode(format!("resize: {message}"))))
    }

    fn resize_or_panic(&mut self, picture: Picture, crop: &CropBox, size: Size) -> Result<Vec<u8>, ImageError> {
        let Picture { width, height, rgb } = picture;
        let failed = |error: &dyn std::fmt::Display| ImageError::Decode(format!("resize: {error}"));
        let source = ImageRef::new(width, height, &rgb, PixelType::U8x3).map_err(|error| failed(&error))?;
        let mut target = Image::new(size.width, size.height, PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).crop(
            crop.left,
            crop.top,
            crop.width,
            crop.height,
        );
        self.inner.resize(&source, &mut target, &options).map_err(|error| failed(&error))?;
        Ok(target.into_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crop_is_centred_and_may_start_between_pixels() {
        let crop = cover_crop(641, 480, Size::square(64), 1.0).unwrap();
        assert_eq!(crop, CropBox { left: 80.5, top: 0.0, width: 480.0, height: 480.0 });
        let crop = cover_crop(640, 480, Size { width: 96, height: 48 }, 1.0).unwrap();
        assert_eq!(crop, CropBox { left: 0.0, top: 80.0, width: 640.0, height: 320.0 });
    }

    #[test]
    fn nothing_is_enlarged_silently() {
        assert!(matches!(cover_crop(64, 63, Size::square(64), 1.0), Err(ImageError::TooSmall { .. })));
        assert!(cover_crop(64, 64, Size::square(64), 1.0).is_ok());
        assert!(cover_crop(32, 48, Size::square(64), 2.0).is_ok());
        // The rectangle that is cut out must be as large as the wanted one.
        assert!(matches!(cover_crop(64, 64, Size { width: 80, height: 40 }, 1.0), Err(ImageError::TooSmall { .. })));
    }

    #[test]
    fn a_picture_of_the_right_size_is_copied() {
        let rgb: Vec<u8> = (0..4 * 4 * 3).collect();
        let picture = Picture { width: 4, height: 4, rgb: rgb.clone() };
        let crop = cover_crop(4, 4, Size::square(4), 1.0).unwrap();
        assert_eq!(Resizer::default().resize(picture, &crop, Size::square(4)).unwrap(), rgb);
    }
}
