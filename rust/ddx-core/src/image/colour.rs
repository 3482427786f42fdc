//! Everything to 8-bit sRGB.

use image::DynamicImage;
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Any pixel type to RGB: grey repeated, 16 bits rounded to 8, transparency over white.
pub(super) fn to_rgb(pixels: DynamicImage) -> Vec<u8> {
    match pixels {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageLuma8(pixels) => repeat_grey(pixels.as_raw()),
        DynamicImage::ImageLuma16(pixels) => repeat_grey(&to_8_bits(pixels.as_raw())),
        DynamicImage::ImageRgb16(pixels) => to_8_bits(pixels.as_raw()),
        DynamicImage::ImageLumaA8(pixels) => over_white::<2>(pixels.as_raw()),
        DynamicImage::ImageRgba8(pixels) => over_white::<4>(pixels.as_raw()),
        DynamicImage::ImageLumaA16(pixels) => over_white::<2>(&to_8_bits(pixels.as_raw())),
        DynamicImage::ImageRgba16(pixels) => over_white::<4>(&to_8_bits(pixels.as_raw())),
        other => over_white::<4>(other.into_rgba8().as_raw()),
    }
}

fn to_8_bits(samples: &[u16]) -> Vec<u8> {
    // 65535 = 255 * 257, so this is the nearest value.
    samples.iter().map(|&sample| ((u32::from(sample) + 128) / 257) as u8).collect()
}

pub(super) fn repeat_grey(grey: &[u8]) -> Vec<u8> {
    grey.iter().flat_map(|&sample| [sample; 3]).collect()
}

/// Cyan, magenta, yellow and black on white, as an Adobe program without a profile shows them.
pub(super) fn inks_to_rgb(inks: &[u8]) -> Vec<u8> {
    let light = |ink: u8, black: u8| ((u32::from(255 - ink) * u32::from(255 - black) + 127) / 255) as u8;
    inks.as_chunks::<4>().0.iter().flat_map(|&[c, m, y, k]| [light(c, k), light(m, k), light(y, k)]).collect()
}

/// `CHANNELS` is 2 (grey and alpha) or 4 (RGB and alpha).
fn over_white<const CHANNELS: usize>(samples: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(samples.len() / CHANNELS * 3);
    for pixel in samples.chunks_exact(CHANNELS) {
        let alpha = u32::from(pixel[CHANNELS - 1]);
        for channel in 0..3 {
            let colour = u32::from(pixel[if CHANNELS == 2 { 0 } else { channel }]);
            rgb.push(((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
        }
    }
    rgb
}

/// Brings pixels from the space of their ICC profile into sRGB, in place; a profile that is broken or for other pixels
/// than these changes nothing.
pub(super) fn to_srgb(rgb: &mut [u8], profile: &[u8], is_grey: bool) {
    let Ok(source) = ColorProfile::new_from_slice(profile) else { return };
    let (space, layout) =
        if is_grey { (DataColorSpace::Gray, Layout::Gray) } else { (DataColorSpace::Rgb, Layout::Rgb) };
    if source.color_space != space {
        return;
    }
    let (target, options) = (ColorProfile::new_srgb(), TransformOptions::default());
    let Ok(transform) = source.create_transform_8bit(layout, &target, Layout::Rgb, options) else { return };
    let transform = |from: &[u8], to: &mut [u8]| transform.transform(from, to).is_ok();
    if is_grey {
        let (greys, mut table) = ((0..=255).collect::<Vec<u8>>(), [0; 3 * 256]);
        if transform(&greys, &mut table) {
            for pixel in rgb.as_chunks_mut::<3>().0 {
                *pixel = table.as_chunks().0[usize::from(pixel[0])];
            }
        }
    } else if !is_identity(transform) {
        let mut buffer = [0; 3 << 12];
        for piece in rgb.chunks_mut(buffer.len()) {
            let converted = &mut buffer[..piece.len()];
            if transform(piece, converted) {
                piece.copy_from_slice(converted);
            }
        }
    }
}

/// Whether a conversion leaves colours as they are, but for rounding: most profiles are those of sRGB itself.
fn is_identity(transform: impl Fn(&[u8], &mut [u8]) -> bool) -> bool {
    let levels = || (0..=255_u8).step_by(17);
    let reds = levels().flat_map(|red| levels().map(move |green| (red, green)));
    let colours: Vec<u8> = reds.flat_map(|(red, green)| levels().flat_map(move |blue| [red, green, blue])).collect();
    let mut converted = vec![0; colours.len()];
    transform(&colours, &mut converted) && colours.iter().zip(&converted).all(|(a, b)| a.abs_diff(*b) <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_round_to_the_nearest_of_eight() {
        assert_eq!(to_8_bits(&[0, 128, 129, 257, 32_767, 65_535]), [0, 0, 1, 1, 127, 255]);
    }

    #[test]
    fn transparency_lies_over_white() {
        assert_eq!(
            over_white::<4>(&[10, 20, 30, 0, 10, 20, 30, 255, 0, 0, 0, 128]),
            [255, 255, 255, 10, 20, 30, 127, 127, 127]
        );
        assert_eq!(over_white::<2>(&[0, 0, 7, 255]), [255, 255, 255, 7, 7, 7]);
    }

    #[test]
    fn a_wide_gamut_is_brought_into_srgb() {
        let profile = ColorProfile::new_display_p3().encode().unwrap();
        let mut rgb = [200, 100, 50, 128, 128, 128];
        to_srgb(&mut rgb, &profile, false);
        // Computed from the primaries: (200, 100, 50) of Display P3 lies at (215, 93, 31) in sRGB.
        for (found, expected) in rgb.iter().zip([215, 93, 31, 128, 128, 128]) {
            assert!(found.abs_diff(expected) <= 1, "{rgb:?}");
        }
        let mut same = [1, 2, 3];
        to_srgb(&mut same, b"no profile", false);
        assert_eq!(same, [1, 2, 3]);
    }
}
