//! The format by its first bytes; names and Content-Type lie.

/// A format that the first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Decoded by `zune-jpeg` and `jpeg-decoder`.
    Jpeg,
    /// Decoded by `image`.
    Png,
    /// Decoded by `image`.
    WebP,
    /// Decoded by `image`, first frame.
    Gif,
    /// Decoded by `image`.
    Bmp,
    /// Decoded by `image`, first page; only where it is asked for.
    Tiff,
    /// Decoded by `rav1d`, first frame; only in a build with the feature `avif`.
    Avif,
    /// Recognised so that the status can name it.
    Other(&'static str),
}

/// Recognises a format, or `None`.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<Format> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some(Format::Jpeg),
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
        // A BMP's two letters start many a text; its header size (40 to 124, or 12) does not.
        [b'B', b'M', _, _, _, _, _, _, _, _, _, _, _, _, 12 | 40..=124, 0, 0, 0, ..] => Some(Format::Bmp),
        [b'I', b'I', 0x2a, 0, ..] | [b'M', b'M', 0, 0x2a, ..] => Some(Format::Tiff),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => iso_brand(brand),
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', b' ', ..] => Some(Format::Other("JPEG XL")),
        [0, 0, 0, 0x0c, b'j', b'P', b' ', b' ', ..] => Some(Format::Other("JPEG 2000")),
        [0, 0, 1, 0, count, 0, ..] if *count > 0 => Some(Format::Other("ICO")),
        _ => is_svg(bytes).then_some(Format::Other("SVG")),
    }
}

fn iso_brand(brand: &[u8]) -> Option<Format> {
    match brand.get(..4)? {
        b"avif" | b"avis" => Some(Format::Avif),
        b"heic" | b"heix" | b"mif1" | b"msf1" | b"hevc" => Some(Format::Other("HEIF")),
        _ => None,
    }
}

fn is_svg(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(512)];
    start.trim_ascii_start().starts_with(b"<") && start.windows(4).any(|window| window == b"<svg")
}
