//! What the segments of a JPEG say: its size, its colours, its metadata, and what its scans hold.

use memchr::memchr;

use super::ImageError;

const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;
const HUFFMAN_TABLES: u8 = 0xc4;

/// What the samples of a pixel mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// One kind of sample.
struct Component {
    id: u8,
    /// Samples across and down, relative to those of the others.
    sampling: (u8, u8),
    /// A bit for each of the 64 coefficients that the scans give to the last bit.
    coefficients: u64,
}

/// A JPEG without its pixels.
pub(super) struct Layout<'a> {
    pub width: u16,
    pub height: u16,
    pub colours: Colours,
    /// The block of APP1.
    pub exif: Option<&'a [u8]>,
    is_progressive: bool,
    components: Vec<Component>,
    num_scans: usize,
    has_huffman_tables: bool,
    has_end: bool,
    profile: Vec<&'a [u8]>,
}

impl<'a> Layout<'a> {
    /// Reads all segments up to the end of the image, or to the first scan alone.
    ///
    /// # Errors
    /// If there is no frame, or one of a kind that is not decoded.
    pub fn read(bytes: &'a [u8], header_alone: bool) -> Result<Self, ImageError> {
        let mut frame = None;
        let (mut is_jfif, mut adobe, mut exif, mut profile) = (false, None, None, Vec::new());
        let (mut num_scans, mut has_huffman_tables, mut has_end) = (0, false, false);
        for (marker, content) in segments(bytes) {
            match marker {
                0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf if frame.is_none() => {
                    frame = Some(Frame::read(marker, content)?);
                }
                HUFFMAN_TABLES => has_huffman_tables = true,
                START_OF_SCAN => {
                    let frame = frame.as_mut().ok_or_else(|| failed("a scan before the frame"))?;
                    if header_alone {
                        break;
                    }
                    num_scans += 1;
                    frame.note_scan(content);
                }
                END_OF_IMAGE => has_end = true,
                0xe0 => is_jfif |= content.starts_with(b"JFIF\0"),
                0xe1 if content.starts_with(b"Exif\0\0") => exif = exif.or(Some(content)),
                0xe2 => profile.extend(content.strip_prefix(b"ICC_PROFILE\0")),
                0xee if content.starts_with(b"Adobe") => adobe = content.get(11).copied().or(adobe),
                _ => {}
            }
        }
        let Frame { is_progressive, width, height, components } = frame.ok_or_else(|| failed("no frame header"))?;
        let ids: Vec<u8> = components.iter().map(|component| component.id).collect();
        let colours = colours(&ids, is_jfif, adobe)?;
        Ok(Self {
            width,
            height,
            colours,
            exif,
            is_progressive,
            components,
            num_scans,
            has_huffman_tables,
            has_end,
            profile,
        })
    }

    /// Refuses a file that is cut short: what is missing would be drawn as grey or as a blur.
    pub fn check_complete(&self) -> Result<(), ImageError> {
        if !self.has_end {
            return Err(failed("cut short (no end marker)"));
        }
        if self.components.iter().any(|component| component.coefficients != u64::MAX) {
            return Err(failed("cut short (its scans leave something out)"));
        }
        Ok(())
    }

    /// Whether `zune-jpeg` decodes it right: it takes for granted that the first component has the most samples, that
    /// a sequential frame has one scan, and that no encoder leaves its Huffman tables to the decoder.
    pub fn is_usual(&self) -> bool {
        let across = self.components.iter().map(|component| component.sampling.0);
        let down = self.components.iter().map(|component| component.sampling.1);
        let mut factors = across.clone().chain(down.clone());
        factors.all(u8::is_power_of_two)
            && across.max() == Some(self.components[0].sampling.0)
            && down.max() == Some(self.components[0].sampling.1)
            && (self.is_progressive || self.num_scans == 1)
            && self.has_huffman_tables
    }

    /// The ICC profile, which comes in numbered pieces; None if one is missing.
    pub fn profile(&self) -> Option<Vec<u8>> {
        let mut pieces: Vec<(u8, u8, &[u8])> =
            self.profile.iter().map_while(|it| Some((*it.first()?, *it.get(1)?, &it[2..]))).collect();
        pieces.sort_by_key(|(number, ..)| *number);
        let is_whole = (1..)
            .zip(&pieces)
            .all(|(expected, (number, of, _))| *number == expected && usize::from(*of) == self.profile.len());
        (is_whole && pieces.len() == self.profile.len() && !pieces.is_empty())
            .then(|| pieces.iter().flat_map(|(.., piece)| *piece).copied().collect())
    }
}

struct Frame {
    is_progressive: bool,
    width: u16,
    height: u16,
    components: Vec<Component>,
}

impl Frame {
    fn read(marker: u8, content: &[u8]) -> Result<Self, ImageError> {
        match marker {
            0xc0..=0xc2 => {}
            0xc3 => return Err(ImageError::Unsupported("lossless JPEG")),
            0xc9 | 0xca => return Err(ImageError::Unsupported("arithmetic-coded JPEG")),
            _ => return Err(ImageError::Unsupported("hierarchical and arithmetic-coded lossless JPEG")),
        }
        let [precision, a, b, c, d, num, rest @ ..] = content else { return Err(failed("a short frame header")) };
        if *precision != 8 {
            return Err(ImageError::Unsupported("JPEG of other than 8 bits a sample"));
        }
        let component = |it: &[u8; 3]| Component { id: it[0], sampling: (it[1] >> 4, it[1] & 15), coefficients: 0 };
        let components: Vec<_> = rest.as_chunks().0.iter().take(usize::from(*num)).map(component).collect();
        if components.len() != usize::from(*num) {
            return Err(failed("a short frame header"));
        }
        Ok(Self {
            is_progressive: marker == 0xc2,
            width: u16::from_be_bytes([*c, *d]),
            height: u16::from_be_bytes([*a, *b]),
            components,
        })
    }

    fn note_scan(&mut self, header: &[u8]) {
        let Some((num, rest)) = header.split_first() else { return };
        let Some((scanned, [first, last, bits, ..])) = rest.split_at_checked(2 * usize::from(*num)) else { return };
        let coefficients = match (self.is_progressive, first <= last && *last < 64) {
            (false, _) => u64::MAX,
            // The lower half is the place of the last bit that the scan gives.
            (true, true) if bits % 16 == 0 => u64::MAX >> (63 - (last - first)) << first,
            (true, _) => 0,
        };
        for scanned in scanned.as_chunks::<2>().0 {
            for component in self.components.iter_mut().filter(|component| component.id == scanned[0]) {
                component.coefficients |= coefficients;
            }
        }
    }
}

/// As libjpeg tells colours apart, so that a file looks as it does elsewhere.
fn colours(ids: &[u8], is_jfif: bool, adobe: Option<u8>) -> Result<Colours, ImageError> {
    match (ids.len(), adobe) {
        (1, _) => Ok(Colours::Grey),
        (3, _) if is_jfif => Ok(Colours::YCbCr),
        (3, Some(0)) => Ok(Colours::Rgb),
        (3, None) if ids == b"RGB" => Ok(Colours::Rgb),
        (3, _) => Ok(Colours::YCbCr),
        (4, None | Some(0)) => Ok(Colours::Cmyk),
        (4, _) => Ok(Colours::Ycck),
        (num, _) => Err(failed(&format!("{num} components"))),
    }
}

/// The markers with their content, up to the end of the image; what lies between the segments is skipped.
fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[memchr(0xff, rest)?..];
            match *rest.get(1)? {
                0xff => rest = &rest[1..],                   // fill bytes
                0..=0xbf | 0xd0..=0xd8 => rest = &rest[2..], // samples, restarts and the start of the image
                END_OF_IMAGE => {
                    rest = &[];
                    return Some((END_OF_IMAGE, rest));
                }
                marker => {
                    let length = usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?])).max(2);
                    let content = rest.get(4..2 + length)?;
                    rest = &rest[2 + length..];
                    return Some((marker, content));
                }
            }
        }
    })
}

fn failed(reason: &str) -> ImageError {
    ImageError::Decode(format!("JPEG: {reason}"))
}
