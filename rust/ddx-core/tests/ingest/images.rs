//! Pictures of every kind become upright RGB; broken ones an error.

use std::io::Cursor;

use ddx_core::image::{Format, ImageError, Picture, decode, read_header, sniff};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

const MANY: u64 = 1_000_000;

/// A smooth picture: JPEG keeps it to a few levels.
pub fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90]))
}

pub fn jpeg(pixels: &RgbImage) -> Vec<u8> {
    encode_jpeg(pixels.as_raw(), pixels.dimensions(), ColorType::Rgb, &|_| ())
}

fn encode_jpeg(
    samples: &[u8],
    (width, height): (u32, u32),
    colour: ColorType,
    settings: &dyn Fn(&mut Encoder<&mut Vec<u8>>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 95);
    settings(&mut encoder);
    encoder.encode(samples, width as u16, height as u16, colour).unwrap();
    bytes
}

fn encode(pixels: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    pixels.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn open(bytes: &[u8]) -> Result<Picture, ImageError> {
    decode(bytes, &read_header(bytes, MANY)?)
}

fn assert_close(picture: &Picture, expected: &RgbImage, tolerance: u8) {
    assert_eq!((picture.width, picture.height), expected.dimensions());
    let furthest = picture.rgb.iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest <= Some(tolerance), "off by {furthest:?}");
}

#[test]
fn lossless_formats_come_back_exactly() {
    let pixels = gradient(40, 30);
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
        assert_close(&open(&encode(pixels.clone(), format)).unwrap(), &pixels, 0);
    }
}

#[test]
fn jpeg_is_decoded_baseline_and_progressive() {
    let pixels = gradient(61, 47);
    assert_close(&open(&jpeg(&pixels)).unwrap(), &pixels, 12);
    let progressive = |encoder: &mut Encoder<&mut Vec<u8>>| encoder.set_progressive(true);
    let bytes = encode_jpeg(pixels.as_raw(), pixels.dimensions(), ColorType::Rgb, &progressive);
    assert_close(&open(&bytes).unwrap(), &pixels, 12);
}

#[test]
fn a_jpeg_may_have_a_scan_for_each_component() {
    // With Huffman tables of its own the encoder writes each component by itself.
    for factor in [SamplingFactor::F_1_1, SamplingFactor::F_2_1, SamplingFactor::F_1_2, SamplingFactor::F_2_2] {
        for (width, height) in [(61, 47), (64, 48), (17, 90)] {
            let settings = |encoder: &mut Encoder<&mut Vec<u8>>| {
                encoder.set_optimized_huffman_tables(true);
                encoder.set_sampling_factor(factor);
            };
            let pixels = gradient(width, height);
            let bytes = encode_jpeg(pixels.as_raw(), pixels.dimensions(), ColorType::Rgb, &settings);
            assert_eq!(bytes.windows(2).filter(|it| *it == [0xff, 0xda]).count(), 3);
            assert_close(&open(&bytes).unwrap(), &pixels, 24);
        }
    }
}

#[test]
fn a_jpeg_that_leaves_something_out_or_is_of_another_kind_is_refused() {
    let pixels = gradient(40, 24);
    let progressive = |encoder: &mut Encoder<&mut Vec<u8>>| encoder.set_progressive(true);
    let separate = |encoder: &mut Encoder<&mut Vec<u8>>| encoder.set_optimized_huffman_tables(true);
    for settings in [&progressive as &dyn Fn(&mut Encoder<&mut Vec<u8>>), &separate] {
        let bytes = encode_jpeg(pixels.as_raw(), pixels.dimensions(), ColorType::Rgb, settings);
        let last_scan = bytes.windows(2).rposition(|it| it == [0xff, 0xda]).unwrap();
        let error = open(&[&bytes[..last_scan], &[0xff, 0xd9]].concat()).unwrap_err();
        assert!(error.to_string().contains("its scans leave something out"), "{error}");
    }
    let bytes = jpeg(&pixels);
    let frame = bytes.windows(4).position(|it| it == [0xff, 0xc0, 0, 17]).unwrap();
    for (offset, value, name) in [(1, 0xc9, "arithmetic-coded"), (1, 0xc3, "lossless"), (4, 12, "other than 8 bits")] {
        let mut other = bytes.clone();
        other[frame + offset] = value;
        let error = open(&other).unwrap_err();
        assert!(matches!(error, ImageError::Unsupported(_)) && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_png_without_its_end_is_whole_if_its_pixels_are() {
    let pixels = gradient(40, 24);
    let bytes = encode(pixels.clone(), ImageFormat::Png);
    for cut in 1..=12 {
        assert_close(&open(&bytes[..bytes.len() - cut]).unwrap(), &pixels, 0);
    }
    assert!(open(&bytes[..bytes.len() - 20]).is_err());
}

#[test]
fn grey_cmyk_sixteen_bits_and_transparency_become_rgb() {
    let grey = GrayImage::from_fn(16, 8, |x, _| Luma([x as u8 * 10]));
    let expected = RgbImage::from_fn(16, 8, |x, _| Rgb([x as u8 * 10; 3]));
    assert_close(&open(&encode(grey.clone(), ImageFormat::Png)).unwrap(), &expected, 0);
    let bytes = encode_jpeg(grey.as_raw(), grey.dimensions(), ColorType::Luma, &|_| ());
    assert_close(&open(&bytes).unwrap(), &expected, 6);

    let sixteen: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_fn(16, 8, |x, _| Luma([x as u16 * 2570]));
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        assert_close(&open(&encode(sixteen.clone(), format)).unwrap(), &expected, 0);
    }

    let transparent = RgbaImage::from_fn(8, 8, |x, _| if x < 4 { Rgba([9, 8, 7, 0]) } else { Rgba([9, 8, 7, 255]) });
    let expected = RgbImage::from_fn(8, 8, |x, _| if x < 4 { Rgb([255; 3]) } else { Rgb([9, 8, 7]) });
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Tiff] {
        assert_close(&open(&encode(transparent.clone(), format)).unwrap(), &expected, 0);
    }

    // 40 % cyan ink on a page that is otherwise white.
    let ink: Vec<u8> = [102, 0, 0, 0].repeat(64);
    let bytes = encode_jpeg(&ink, (8, 8), ColorType::Cmyk, &|_| ());
    assert_close(&open(&bytes).unwrap(), &RgbImage::from_pixel(8, 8, Rgb([153, 255, 255])), 4);
}

#[test]
fn orientation_is_undone() {
    let pixels = gradient(40, 24);
    // A TIFF header with one entry: orientation 6, turn right by 90 degrees.
    let exif: &[u8] = &[
        b'E', b'x', b'i', b'f', 0, 0, b'M', b'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0,
        0, 0,
    ];
    let settings = |encoder: &mut Encoder<&mut Vec<u8>>| encoder.add_app_segment(1, exif.to_vec()).unwrap();
    let bytes = encode_jpeg(pixels.as_raw(), pixels.dimensions(), ColorType::Rgb, &settings);
    let header = read_header(&bytes, MANY).unwrap();
    assert_eq!((header.width, header.height), (40, 24));
    assert_close(&decode(&bytes, &header).unwrap(), &image::imageops::rotate90(&pixels), 12);
}

/// [`gradient`] of 64 x 48 pixels, which nothing here could encode.
#[cfg(feature = "avif")]
const AVIF: &str = "00000020667479706176696600000000617669666d6966316d6961664d413142000000eb6d657461000000000000002168646c72\
    000000000000000070696374000000000000000000000000000000000e7069746d0000000000010000001e696c6f630000000044\
    00000100010000000100000113000001f10000002869696e660000000000010000001a696e666502000000000100006176303143\
    6f6c6f72000000006a697072700000004b6970636f00000014697370650000000000000040000000300000001070697869000000\
    00030808080000000c6176314381000c0000000013636f6c726e636c780001000d0006800000001769706d610000000000000001\
    00010401028304000001f96d64617412000a0918157fbda2021a0d0832e1031101aa4000790000dd6d5bd66824b5f417deff17a6\
    5e056bf0ffb0642918b91666b406f2f14279646f52342e29944c6241ef069fd0b3d388953e109ee42fb64d9044a65f727f0d6574\
    00e0c0d71238ba0de1f3cc27ed875e7c9981c88f2fa9a6d567e9dcfc4c4e0ad1526338ed2e2320b5d5afce4df9156da48678dfa5\
    d97b334177cec91da3bf76e80e116e6e2ac520c519bdbd2ad6d20bc646d1e00219e33c1ca065f2928be5588c53fbaea91c4ab129\
    1052adf87e774ae992910edd89394fdabff057985abe60ec4331b9c7d838a9397188a791551ba8b42a4809d5539e40676320f256\
    93333da79cc4541c36917377ca0586144e1855a54cd23441f7255e82778a4d5bd90b3c68deb38fb4c4aeb543b8878889ec1ec374\
    3b432ebd84c39c5b9bb67cdaab7d596e4d63301f0c7a10b8e3b0efde573082510cec9422c1cc4e790c59a357245c0aa28da5864d\
    88ec24505cec36e95cf73430500f619cd06d87df3fc473c97d7f02708c7ada0d0b4a42dcad2da334af9ed1c1455a7d757781b8a9\
    5539664ecc47cc4378829ce1678e36cf446a7870019a7a8211c698b3d7ed1feca8d138420992fa116e69113a4f5f152fe679dc3c\
    75d8627b5c75924253beb25a40156184d1f72926dbce8c0ead4a2fd092be9ed364a59a0a72ec0023a05d204e";

#[cfg(feature = "avif")]
#[test]
fn avif_is_decoded_and_turned() {
    let mut bytes: Vec<u8> =
        AVIF.as_bytes().chunks(2).map(|it| u8::from_str_radix(str::from_utf8(it).unwrap(), 16).unwrap()).collect();
    let expected = gradient(64, 48);
    assert_close(&open(&bytes).unwrap(), &expected, 14);
    let average = |found: &Picture, expected: &RgbImage| {
        let differences = found.rgb.iter().zip(expected.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
        differences.sum::<f64>() / expected.as_raw().len() as f64
    };
    assert!(average(&open(&bytes).unwrap(), &expected) < 2.0);
    // The size that the container says counts before anything is decoded, and must be that of the frame.
    let error = read_header(&bytes, 64 * 48 - 1).unwrap_err();
    assert_eq!(error, ImageError::TooManyPixels { width: 64, height: 48, max_pixels: 64 * 48 - 1 });
    let size = bytes.windows(4).position(|window| window == b"ispe").unwrap() + 8;
    bytes[size + 3] = 63;
    assert!(matches!(open(&bytes), Err(ImageError::Decode(_))));
}

#[cfg(not(feature = "avif"))]
#[test]
fn a_build_without_avif_says_so() {
    let error = open(b"\0\0\0\x20ftypavif\0\0\0\0").unwrap_err();
    assert!(error.to_string().contains("this build has no decoder"), "{error}");
}

#[test]
fn what_is_no_picture_is_named() {
    assert_eq!(open(b"").unwrap_err(), ImageError::Empty);
    let page = open(b"<html>not found</html>").unwrap_err();
    assert_eq!(page, ImageError::NotAnImage("<html>not found<".to_owned()));
    assert_eq!(open(b"\xff\x0a........").unwrap_err(), ImageError::Unsupported("JPEG XL"));
    assert_eq!(sniff(b"\0\0\0\x20ftypavif"), Some(Format::Avif));
    assert_eq!(sniff(b"BM is how this text starts"), None);
}

#[test]
fn a_file_that_is_cut_short_is_refused_at_any_length() {
    let pixels = gradient(64, 64);
    for bytes in [jpeg(&pixels), encode(pixels.clone(), ImageFormat::Png), encode(pixels.clone(), ImageFormat::WebP)] {
        assert!(open(&bytes).is_ok());
        for percent in [1, 5, 20, 50, 80, 95] {
            let short = &bytes[..bytes.len() * percent / 100];
            assert!(open(short).is_err(), "{:?} cut to {percent} %", sniff(&bytes));
        }
    }
}
