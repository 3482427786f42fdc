//! Brightness and colour differences to RGB.

use re_rav1d::dav1d::pixel::YUVRange;
use re_rav1d::dav1d::{Picture as Frame, PixelLayout, PlanarImageComponent as Plane};

use super::samples;

/// Matrix coefficients of ITU-T H.273.
const IDENTITY: u16 = 0;
const UNSPECIFIED: u16 = 2;

/// 8-bit RGB; `colours` are the matrix and the range that the container names, else the frame's own count.
pub(super) fn to_rgb(frame: &Frame, colours: Option<(u16, bool)>) -> Result<Vec<u8>, String> {
    let own = || (frame.matrix_coefficients() as u16, frame.color_range() == YUVRange::Full);
    let (matrix, is_full) = colours.unwrap_or_else(own);
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let (bits, brightness) = samples(frame, Plane::Y, width);
    let scale = Scale::new(bits, is_full);
    let mut rgb = Vec::with_capacity(3 * width * height);
    let (halved_x, halved_y) = match frame.pixel_layout() {
        PixelLayout::I400 => {
            for row in 0..height {
                rgb.extend(brightness(row).into_iter().flat_map(|sample| [to_byte(scale.brightness(sample)); 3]));
            }
            return Ok(rgb);
        }
        PixelLayout::I420 => (true, true),
        PixelLayout::I422 => (true, false),
        PixelLayout::I444 => (false, false),
    };
    let (red, blue) = weights(matrix)?;
    let green = 1.0 - red - blue;
    let half = |length: usize, halved| if halved { length.div_ceil(2) } else { length };
    let (_, blues) = samples(frame, Plane::U, half(width, halved_x));
    let (_, reds) = samples(frame, Plane::V, half(width, halved_x));
    for row in 0..height {
        let colour_row = if halved_y { row / 2 } else { row };
        let (bright_row, blue_row, red_row) = (brightness(row), blues(colour_row), reds(colour_row));
        for (column, &sample) in bright_row.iter().enumerate() {
            let at = if halved_x { column / 2 } else { column };
            let bright = scale.brightness(sample);
            if matrix == IDENTITY {
                // Green, blue and red themselves.
                let others = [red_row[at], blue_row[at]].map(|sample| scale.brightness(sample));
                rgb.extend([others[0], bright, others[1]].map(to_byte));
                continue;
            }
            let reddish = bright + 2.0 * (1.0 - red) * scale.difference(red_row[at]);
            let bluish = bright + 2.0 * (1.0 - blue) * scale.difference(blue_row[at]);
            let greenish = (bright - red * reddish - blue * bluish) / green;
            rgb.extend([reddish, greenish, bluish].map(to_byte));
        }
    }
    Ok(rgb)
}

/// Lays the picture over white where it is transparent.
pub(super) fn over_white(rgb: &mut [u8], alpha: &Frame) {
    let (width, height) = (alpha.width() as usize, alpha.height() as usize);
    let (bits, opacity) = samples(alpha, Plane::Y, width);
    let scale = Scale::new(bits, alpha.color_range() == YUVRange::Full);
    for (row, pixels) in (0..height).zip(rgb.chunks_exact_mut(3 * width)) {
        for (sample, pixel) in opacity(row).into_iter().zip(pixels.as_chunks_mut::<3>().0) {
            let opacity = scale.brightness(sample).clamp(0.0, 1.0);
            *pixel = pixel.map(|value| to_byte(f32::from(value) / 255.0 * opacity + 1.0 - opacity));
        }
    }
}

/// The weights of red and blue in the brightness.
fn weights(matrix: u16) -> Result<(f32, f32), String> {
    match matrix {
        IDENTITY => Ok((0.0, 0.0)),
        1 => Ok((0.2126, 0.0722)),
        // What encoders mean who say nothing.
        UNSPECIFIED | 5 | 6 => Ok((0.299, 0.114)),
        4 => Ok((0.30, 0.11)),
        7 => Ok((0.212, 0.087)),
        9 => Ok((0.2627, 0.0593)),
        other => Err(format!("colours by matrix {other} are not understood")),
    }
}

fn to_byte(value: f32) -> u8 {
    (value * 255.0 + 0.5) as u8 // saturates
}

/// Samples to numbers: brightness between 0 and 1, differences between -1/2 and 1/2.
struct Scale {
    black: f32,
    brightness: f32,
    middle: f32,
    difference: f32,
}

impl Scale {
    fn new(bits: u32, is_full: bool) -> Self {
        let (one, most) = ((1 << (bits - 8)) as f32, ((1 << bits) - 1) as f32);
        let middle = (1 << (bits - 1)) as f32;
        if is_full {
            Self { black: 0.0, brightness: most, middle, difference: most }
        } else {
            Self { black: 16.0 * one, brightness: 219.0 * one, middle, difference: 224.0 * one }
        }
    }

    fn brightness(&self, sample: u16) -> f32 {
        (f32::from(sample) - self.black) / self.brightness
    }

    fn difference(&self, sample: u16) -> f32 {
        (f32::from(sample) - self.middle) / self.difference
    }
}
