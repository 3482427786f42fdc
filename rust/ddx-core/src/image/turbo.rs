//! JPEG pixels through libjpeg-turbo, a third faster than `zune-jpeg`; a build must ask for it, because it needs nasm.
//!
//! It takes the common files that it decodes without a word: colours as YCbCr, and grey. CMYK and whatever it warns of
//! or refuses is left to `zune-jpeg`, so that a build with it refuses no file that another accepts.

use std::cell::RefCell;

use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};
use zune_core::colorspace::ColorSpace;

thread_local! {
    static DECODER: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

/// The pixels as RGB; None where the other decoder has to see to it. `width` and `height` are within the limits.
pub(super) fn decode(bytes: &[u8], width: usize, height: usize, colours: ColorSpace) -> Option<Vec<u8>> {
    DECODER.with_borrow_mut(|decoder| {
        if decoder.is_none() {
            *decoder = Decompressor::new().ok();
        }
        let decoder = decoder.as_mut()?;
        let header = decoder.read_header(bytes).ok()?;
        // The two must agree on what the numbers mean: not every file says it.
        let agreed = matches!(
            (header.colorspace, colours),
            (Colorspace::YCbCr, ColorSpace::YCbCr) | (Colorspace::Gray, ColorSpace::Luma)
        );
        if !agreed || (header.width, header.height) != (width, height) {
            return None;
        }
        let (pitch, format) = (width * 3, PixelFormat::RGB);
        let mut pixels = vec![0; pitch * height];
        decoder.decompress(bytes, Image { pixels: &mut pixels[..], width, pitch, height, format }).ok()?;
        Some(pixels)
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

    #[test]
    fn colours_and_grey_are_taken() {
        let [colours, grey] = [jpeg(ColorType::Rgb, 3), jpeg(ColorType::Luma, 1)];
        for (bytes, space) in [(colours, ColorSpace::YCbCr), (grey, ColorSpace::Luma)] {
            assert_eq!(decode(&bytes, 32, 24, space).unwrap().len(), 32 * 24 * 3);
        }
    }

    #[test]
    fn what_is_doubtful_is_left_to_the_other_decoder() {
        let bytes = jpeg(ColorType::Rgb, 3);
        assert!(decode(&bytes, 24, 32, ColorSpace::YCbCr).is_none());
        assert!(decode(&bytes, 32, 24, ColorSpace::RGB).is_none());
        let cut = [&bytes[..bytes.len() / 2], &[0xff, 0xd9]].concat();
        assert!(decode(&cut, 32, 24, ColorSpace::YCbCr).is_none());
        assert!(decode(&jpeg(ColorType::Cmyk, 4), 32, 24, ColorSpace::CMYK).is_none());
    }
}
