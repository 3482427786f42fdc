//! Small files that say they are large.

use std::io::Cursor;

use ddx_core::image::{ImageError, decode, read_header};
use ddx_core::source::{ColumnChoice, Input};
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::harness::alone;
use crate::memory::peak_of;
use crate::pictures::{crc32, webps};

const MIB: usize = 1 << 20;

#[test]
fn a_header_refuses_before_anything_is_allocated() {
    let _guard = alone();
    // 60000 x 60000 pixels in a file of a few bytes.
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(&[7; 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
    bytes[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    let (read, peak) = peak_of(|| read_header(&bytes, 1_000_000));
    let refused = ImageError::TooManyPixels { width: 60_000, height: 60_000, max_pixels: 1_000_000 };
    assert_eq!(read.unwrap_err(), refused);
    assert!(peak < MIB, "{} MiB", peak / MIB);
}

#[test]
fn a_profile_is_decompressed_to_a_bounded_size() {
    let _guard = alone();
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(vec![0; 256 * MIB]).unwrap();
    encoder.write_image(&[7; 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
    let bytes = bytes.into_inner();
    assert!(bytes.len() < 2 * MIB);
    let (read, peak) = peak_of(|| read_header(&bytes, 1).and_then(|header| decode(&bytes, &header)));
    assert_eq!(read.unwrap().rgb, [7; 3]);
    assert!(peak < 200 * MIB, "{} MiB", peak / MIB);
}

#[test]
fn a_frame_larger_than_its_picture_is_refused() {
    let _guard = alone();
    let (_, mut bytes) = webps().pop().unwrap();
    let at = bytes.windows(3).position(|window| window == [0x9d, 0x01, 0x2a]).unwrap();
    bytes[at + 3..at + 7].fill(0xff);
    let (read, peak) = peak_of(|| read_header(&bytes, 1000).and_then(|header| decode(&bytes, &header)));
    assert!(read.is_err());
    assert!(peak < MIB, "{} MiB", peak / MIB);
}

#[test]
fn a_profile_longer_than_its_file_is_not_read() {
    let _guard = alone();
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = WebPEncoder::new_lossless(&mut bytes);
    encoder.set_icc_profile(vec![7; 100]).unwrap();
    encoder.write_image(&[7; 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
    let mut bytes = bytes.into_inner();
    let at = bytes.windows(4).position(|window| window == b"ICCP").unwrap();
    bytes[at + 4..at + 8].copy_from_slice(&(200 * MIB as u32).to_le_bytes());
    let (_, peak) = peak_of(|| read_header(&bytes, 1000).and_then(|header| decode(&bytes, &header)));
    assert!(peak < MIB, "{} MiB", peak / MIB);
}

#[test]
fn a_long_name_in_a_tar_is_not_read_whole() {
    let _guard = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tar");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(200 * MIB as u64);
    header.set_cksum();
    std::fs::write(&path, header.as_bytes()).unwrap();
    // The name itself is a hole in the file.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(201 * MIB as u64).unwrap();
    let sources = [path.to_str().unwrap().to_owned()];
    let (opened, peak) = peak_of(|| Input::open(&sources, &ColumnChoice::default()));
    assert!(opened.is_err());
    assert!(peak < 10 * MIB, "{} MiB", peak / MIB);
}
