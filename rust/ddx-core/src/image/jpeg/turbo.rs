//! JPEG pixels through libjpeg-turbo, a third faster than `zune-jpeg`; a build must ask for it, because it needs nasm.
//!
//! It takes the common files that it decodes without a word: colours as YCbCr, and grey. CMYK and whatever it warns of
//! or refuses is left to the others, so that a build with it refuses no file that another accepts.

use std::cell::RefCell;

use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

use super::Pixels;
use super::layout::{Colours, Layout};

thread_local! {
    static DECODER: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

/// The pixels as RGB; None where another decoder has to see to it.
pub(super) fn decode(bytes: &[u8], layout: &Layout) -> Option<Pixels> {
    let (width, height) = (usize::from(layout.width), usize::from(layout.height));
    DECODER.with_borrow_mut(|decoder| {
        if decoder.is_none() {
            *decoder = Decompressor::new().ok();
        }
        let decoder = decoder.as_mut()?;
        let header = decoder.read_header(bytes).ok()?;
        // The two must agree on what the numbers mean: not every file says it.
        let agreed = matches!(
            (header.colorspace, layout.colours),
            (Colorspace::YCbCr, Colours::YCbCr) | (Colorspace::Gray, Colours::Grey)
        );
        if !agreed || (header.width, header.height) != (width, height) {
            return None;
        }
        let (pitch, format) = (width * 3, PixelFormat::RGB);
        let mut pixels = vec![0; pitch * height];
        decoder.decompress(bytes, Image { pixels: &mut pixels[..], width, pitch, height, format }).ok()?;
        Some(Ok(pixels))
    })
}

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ColorType, Encoder};

    use super::*;

    fn jpeg(colour: ColorType, channels: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let samples: Vec<u8> = (0..32 * 24 * channels).map(|at| (at * 37 % 251) as u8).collect();
        Encoder::new(&mut bytes, 95).encode(&samples, 32, 24, colour).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Pixels> {
        decode(bytes, &Layout::read(bytes, false).unwrap())
    }

    #[test]
    fn colours_and_grey_are_taken() {
        for bytes in [jpeg(ColorType::Rgb, 3), jpeg(ColorType::Luma, 1)] {
            assert_eq!(read(&bytes).unwrap().unwrap().len(), 32 * 24 * 3);
        }
    }

    #[test]
    fn what_is_doubtful_is_left_to_the_other_decoders() {
        let bytes = jpeg(ColorType::Rgb, 3);
        let cut = [&bytes[..bytes.len() / 2], &[0xff, 0xd9]].concat();
        assert!(read(&cut).is_none());
        assert!(read(&jpeg(ColorType::Cmyk, 4)).is_none());
    }
}
