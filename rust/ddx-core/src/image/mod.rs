//! Encoded bytes to an RGB picture of the size that a teacher wants, without trusting the bytes.

#[cfg(feature = "avif")]
mod avif;
mod colour;
mod crop;
mod decode;
mod exif;
mod jpeg;
mod png;
mod raster;
mod size;
mod sniff;

use image::metadata::Orientation;

pub use crop::{CropBox, Resizer, cover_crop};
pub use decode::{Header, decode, read_header};
pub use size::Size;
pub use sniff::{Format, sniff};

/// What the names of images end in, in lower case.
pub const EXTENSIONS: [&str; 11] = ["jpg", "jpeg", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif"];

/// 8-bit sRGB in C order, upright.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub rgb: Vec<u8>,
}

/// What a decoder gives: a picture as stored, and what is still to be done to it.
struct Stored {
    picture: Picture,
    orientation: Orientation,
    /// The ICC profile of its colours.
    profile: Option<Vec<u8>>,
    /// Whether the profile is one for grey.
    is_grey: bool,
}

/// Why a picture cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("no bytes")]
    Empty,
    /// No known signature.
    #[error("starts with {0}")]
    NotAnImage(String),
    /// A known format without a decoder.
    #[error("{0} images are not supported")]
    Unsupported(&'static str),
    /// A format that this run or this build leaves out.
    #[error("{format} images are left out: {reason}")]
    LeftOut {
        /// The format.
        format: &'static str,
        /// What would take them in.
        reason: &'static str,
    },
    /// The header states more pixels than allowed.
    #[error("{width}x{height} is more than {max_pixels} pixels")]
    TooManyPixels {
        /// Stated width.
        width: u32,
        /// Stated height.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// It would have to be enlarged more than allowed.
    #[error("{width}x{height} is smaller than {size}")]
    TooSmall {
        /// Width after orientation.
        width: u32,
        /// Height after orientation.
        height: u32,
        /// What is wanted.
        size: Size,
    },
    /// Broken, cut short, or beyond the decoder.
    #[error("{0}")]
    Decode(String),
}
