//! AVIF through `rav1d`, the Rust port of `dav1d`.

mod container;
mod planes;

use re_rav1d::dav1d::{Decoder, Error as DecoderError, Picture as Frame, PlanarImageComponent as Plane, Settings};

use super::{ImageError, Picture, Stored};
use container::Container;
use planes::{over_white, to_rgb};

fn failed(reason: impl std::fmt::Display) -> ImageError {
    ImageError::Decode(format!("AVIF: {reason}"))
}

pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let container = Container::read(bytes).map_err(failed)?;
    Ok((container.width, container.height))
}

pub(super) fn decode(bytes: &[u8], width: u32, height: u32) -> Result<Stored, ImageError> {
    let container = Container::read(bytes).map_err(failed)?;
    let frame = decode_frame(&container.picture, width, height)?;
    let mut rgb = to_rgb(&frame, container.colours).map_err(failed)?;
    if let Some(alpha) = &container.alpha {
        over_white(&mut rgb, &decode_frame(alpha, width, height)?);
    }
    let Container { orientation, profile, .. } = container;
    Ok(Stored { picture: Picture { width, height, rgb }, orientation, profile, is_grey: false })
}

/// The first frame, which must have the size that the container says.
fn decode_frame(bytes: &[u8], width: u32, height: u32) -> Result<Frame, ImageError> {
    let mut settings = Settings::new();
    // Pictures are decoded side by side already.
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_all_layers(false);
    settings.set_frame_size_limit(width.saturating_mul(height));
    let mut decoder = Decoder::with_settings(&settings).map_err(failed)?;
    let frame = match decoder.send_data(bytes.to_vec(), None, None, None) {
        Ok(()) | Err(DecoderError::Again) => decoder.get_picture(),
        Err(error) => Err(error),
    };
    let frame = frame.map_err(failed)?;
    if (frame.width(), frame.height()) != (width, height) {
        return Err(failed(format!("a frame of {}x{} for {width}x{height}", frame.width(), frame.height())));
    }
    Ok(frame)
}

/// The bits of a sample, and the rows of a plane, of so many samples each.
fn samples(frame: &Frame, plane: Plane, width: usize) -> (u32, impl Fn(usize) -> Vec<u16>) {
    let bits = frame.bits_per_component().map_or(8, |bits| bits.0 as u32);
    let (stride, bytes) = (frame.stride(plane) as usize, frame.plane(plane));
    let row = move |row: usize| -> Vec<u16> {
        let row = &bytes[row * stride..];
        if bits == 8 {
            row[..width].iter().map(|sample| u16::from(*sample)).collect()
        } else {
            row[..2 * width].as_chunks().0.iter().map(|sample| u16::from_ne_bytes(*sample)).collect()
        }
    };
    (bits, row)
}
