//! Decoders and the resizer behind them.

use std::path::Path;

use ddx_core::image::{ImageError, Resizer, Size, cover_crop, decode, read_header};

use crate::harness::{Target, unrepaired};
use crate::pictures;

const MAX_PIXELS: u64 = 1 << 20;
/// Two pictures of eight bytes a pixel, and tables.
const MAX_MIB: usize = 160;

/// From the bytes to the square, as an ingest does it.
fn read(path: &Path, resizer: &mut Resizer) -> Result<(), String> {
    let bytes = std::fs::read(path).unwrap();
    let header = read_header(&bytes, MAX_PIXELS).map_err(|error| match error {
        ImageError::NotAnImage(_) => "no image".to_owned(),
        error => error.to_string(),
    })?;
    assert!(header.num_pixels() <= MAX_PIXELS);
    let picture = decode(&bytes, &header).map_err(|error| error.to_string())?;
    let (width, height) = (picture.width, picture.height);
    // The memory that pictures may take is counted by the header.
    assert!(
        [(width, height), (height, width)].contains(&(header.width, header.height)),
        "{width}x{height}: {header:?}"
    );
    assert_eq!(picture.rgb.len() as u64, 3 * header.num_pixels());
    let crop = cover_crop(width, height, Size::square(24), 1e9).map_err(|error| error.to_string())?;
    let square = resizer.resize(picture, &crop, Size::square(24)).map_err(|error| error.to_string())?;
    assert_eq!(square.len(), 24 * 24 * 3);
    Ok(())
}

fn fuzz(name: &'static str, files: Vec<(String, Vec<u8>)>, words: &[&[u8]], repair: fn(&str, &mut [u8])) {
    let mut resizer = Resizer::default();
    Target { name, files, words, repair, max_mib: MAX_MIB }.fuzz(|path, _| read(path, &mut resizer));
}

/// The checksum of every chunk.
fn repair_png(_name: &str, bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let end = at + 8 + length;
        if bytes.len() < end + 4 {
            return;
        }
        let crc = pictures::crc32(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
        at = end + 4;
    }
}

#[test]
fn jpeg() {
    let words: [&[u8]; 10] = [
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xd0",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xdb",
        b"\xff\xdd\0\x04\0\0",
        b"\xff\xdc\0\x04\0\x0d",
    ];
    fuzz("jpeg", pictures::jpegs(), &words, unrepaired);
}

#[test]
fn png() {
    let words: [&[u8]; 6] =
        [b"\0\0\0\0IEND\xae\x42\x60\x82", b"\0\0\0\x04acTL", b"\0\0\0\x1afcTL", b"IDAT", b"iCCP", b"\0\0\0\x01tRNS"];
    fuzz("png", pictures::pngs(), &words, repair_png);
}

#[test]
fn webp() {
    let words: [&[u8]; 7] = [b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"];
    fuzz("webp", pictures::webps(), &words, unrepaired);
}

#[test]
fn gif() {
    let words: [&[u8]; 4] = [b"\x21\xf9\x04\x01\0\0\0\0", b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0", b"\x2c", b"\x3b"];
    fuzz("gif", pictures::gifs(), &words, unrepaired);
}

#[test]
fn bmp() {
    fuzz("bmp", pictures::bmps(), &[b"\0\0", b"\0\x02\x01\x01", b"\0\x01"], unrepaired);
}

#[test]
fn tiff() {
    let words: [&[u8]; 6] =
        [b"\x01\x03\x01\0", b"\x12\x01", b"\x11\x01\x04\0", b"\x73\x87\x07\0", b"\x42\x01", b"\x03\x01\x05\0"];
    fuzz("tiff", pictures::tiffs(), &words, unrepaired);
}

#[cfg(feature = "avif")]
#[test]
fn avif() {
    let words: [&[u8]; 8] = [b"irot", b"imir", b"auxl", b"idat", b"prof", b"nclx", b"grid", b"\x12\0\x0a"];
    fuzz("avif", pictures::avifs(), &words, unrepaired);
}

#[test]
fn profile() {
    let words: [&[u8]; 11] = [
        b"rTRC",
        b"rXYZ",
        b"wtpt",
        b"A2B0",
        b"mft1",
        b"mft2",
        b"mAB ",
        b"curv\0\0\0\0",
        b"para\0\0\0\0",
        b"cicp",
        b"chad",
    ];
    let target =
        Target { name: "profile", files: pictures::profiles(), words: &words, repair: unrepaired, max_mib: MAX_MIB };
    let rgb: Vec<u8> = (0..16 * 16 * 3).map(|byte| byte as u8).collect();
    target.fuzz(|path, _| {
        let bytes = pictures::with_profile(&rgb, 16, std::fs::read(path).unwrap());
        let header = read_header(&bytes, MAX_PIXELS).map_err(|error| error.to_string())?;
        let picture = decode(&bytes, &header).map_err(|error| error.to_string())?;
        assert_eq!(picture.rgb.len(), rgb.len());
        if picture.rgb == rgb { Err("a profile that changes nothing".to_owned()) } else { Ok(()) }
    });
}
