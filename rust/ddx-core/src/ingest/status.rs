//! How a row ended.

use std::borrow::Cow;

use crate::fetch::FetchError;
use crate::image::{CropBox, ImageError};
use crate::source::CaptionFault;

/// How a row ended; [`slug`](RowStatus::slug) is what the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowStatus {
    /// It has an image.
    Ok,
    /// No caption, or a blank one.
    NoCaption,
    /// A caption whose bytes are no text.
    CaptionEncoding,
    /// A caption that is neither text nor a list of texts.
    CaptionType,
    /// No URL, bytes or path.
    NoImage,
    /// Its file cannot be read at this row.
    UnreadableSource,
    /// No such file or object.
    MissingFile,
    /// A file or object that cannot be read.
    UnreadableFile,
    /// Not an http(s) address.
    BadUrl,
    /// An address inside our own network, or a link-local one.
    RefusedAddress,
    /// No such host.
    Dns,
    /// No connection.
    Connect,
    /// Too slow.
    Timeout,
    /// The connection broke.
    Reset,
    /// A status other than 2xx.
    Http(u16),
    /// Redirects without end.
    Redirects,
    /// Its owner does not want it used.
    OptedOut,
    /// More bytes than allowed.
    TooLarge,
    /// No bytes.
    Empty,
    /// Other bytes than those that the data set names by their hash.
    WrongChecksum,
    /// Bytes of something else.
    NotAnImage,
    /// A format without a decoder.
    UnsupportedFormat,
    /// More pixels than allowed.
    TooManyPixels,
    /// It would have to be enlarged.
    TooSmall,
    /// Broken or cut short.
    Decode,
}

impl RowStatus {
    /// The name in the store: `ok`, or the reason.
    #[must_use]
    pub fn slug(self) -> Cow<'static, str> {
        let slug = match self {
            Self::Http(code) => return Cow::Owned(format!("http_{code}")),
            Self::Ok => "ok",
            Self::NoCaption => "no_caption",
            Self::CaptionEncoding => "caption_encoding",
            Self::CaptionType => "caption_type",
            Self::NoImage => "no_image",
            Self::UnreadableSource => "unreadable_source",
            Self::MissingFile => "missing_file",
            Self::UnreadableFile => "unreadable_file",
            Self::BadUrl => "bad_url",
            Self::RefusedAddress => "refused_address",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Redirects => "redirects",
            Self::OptedOut => "opted_out",
            Self::TooLarge => "too_large",
            Self::Empty => "empty",
            Self::WrongChecksum => "wrong_checksum",
            Self::NotAnImage => "not_an_image",
            Self::UnsupportedFormat => "unsupported_format",
            Self::TooManyPixels => "too_many_pixels",
            Self::TooSmall => "too_small",
            Self::Decode => "decode",
        };
        Cow::Borrowed(slug)
    }
}

impl CaptionFault {
    /// The status of a row whose caption cannot be used, and the reason.
    pub(super) fn status(&self) -> (RowStatus, &str) {
        match self {
            Self::Absent(reason) => (RowStatus::NoCaption, reason),
            Self::Encoding(reason) => (RowStatus::CaptionEncoding, reason),
            Self::NotText(reason) => (RowStatus::CaptionType, reason),
            Self::Unreadable(reason) => (RowStatus::UnreadableFile, reason),
            Self::TooLong(reason) => (RowStatus::TooLarge, reason),
        }
    }
}

impl From<&FetchError> for RowStatus {
    fn from(error: &FetchError) -> Self {
        match error {
            FetchError::BadUrl(_) | FetchError::Scheme(_) => Self::BadUrl,
            FetchError::RefusedAddress { .. } => Self::RefusedAddress,
            FetchError::Dns { .. } => Self::Dns,
            FetchError::Connect(_) => Self::Connect,
            FetchError::Timeout(_) => Self::Timeout,
            FetchError::Reset(_) | FetchError::Closed => Self::Reset,
            FetchError::Status { status, .. } => Self::Http(*status),
            FetchError::Redirects(_) => Self::Redirects,
            FetchError::OptedOut(_) => Self::OptedOut,
            FetchError::TooLarge(_) => Self::TooLarge,
            FetchError::Gzip(_) => Self::Decode,
            FetchError::NoObject(_) => Self::MissingFile,
            FetchError::Object(_) => Self::UnreadableFile,
        }
    }
}

impl From<&ImageError> for RowStatus {
    fn from(error: &ImageError) -> Self {
        match error {
            ImageError::Empty => Self::Empty,
            ImageError::NotAnImage(_) => Self::NotAnImage,
            ImageError::Unsupported(_) | ImageError::LeftOut { .. } => Self::UnsupportedFormat,
            ImageError::TooManyPixels { .. } => Self::TooManyPixels,
            ImageError::TooSmall { .. } => Self::TooSmall,
            ImageError::Decode(_) => Self::Decode,
        }
    }
}

/// What is kept of a row, whether it has an image or not.
#[derive(Clone, Debug)]
pub struct RowRecord {
    /// The row's name.
    pub key: String,
    /// Its captions, empty where one is blank; none at all for a row that could not be read.
    pub captions: Vec<String>,
    /// Its image's URL or file; empty if the bytes are in the row.
    pub source: String,
    /// How it ended.
    pub status: RowStatus,
    /// The reason in words; empty if ok.
    pub detail: String,
    /// Width of the upright source; 0 if unknown.
    pub width: u32,
    /// Height of the upright source; 0 if unknown.
    pub height: u32,
    /// What was cut out of it.
    pub crop: CropBox,
    /// SHA-256 of the encoded bytes; `None` if there were none.
    pub sha256: Option<[u8; 32]>,
}

impl RowRecord {
    /// A row that is yet to succeed or fail.
    pub(super) fn new(key: String, captions: Vec<Option<String>>) -> Self {
        Self {
            key,
            captions: captions.into_iter().map(Option::unwrap_or_default).collect(),
            source: String::new(),
            status: RowStatus::Ok,
            detail: String::new(),
            width: 0,
            height: 0,
            crop: CropBox::default(),
            sha256: None,
        }
    }

    pub(super) fn failed(mut self, status: RowStatus, detail: &dyn std::fmt::Display) -> Self {
        self.status = status;
        self.detail = detail.to_string();
        self
    }
}
