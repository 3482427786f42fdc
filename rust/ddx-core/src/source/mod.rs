//! Where rows come from: a caption, and an image that is a URL, bytes, or a file, or that the caption stands for.
//!
//! A [`Source`] has a fixed number of rows in a fixed order and can be read from any row on, so that a part of the
//! store is always the same rows, and a resumed run reads only what it still needs. Each kind of file is an
//! implementation of the trait; [`Input`] strings them together and [`select`] leaves rows out.

mod caption;
mod checksum;
mod columns;
mod discover;
mod ffrecord;
mod filter;
mod folder;
mod input;
mod list;
mod pages;
mod parquet;
mod place;
mod raw_text;
mod select;
mod value;
mod webdataset;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;

pub use caption::{CaptionFault, Charset};
pub use checksum::{Checksum, sha256};
pub use columns::{ColumnChoice, ImageKind};
pub use input::Input;
pub use select::{Selection, pick, select};
pub use value::Value;

use crate::Result;

/// One row of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The row's name; `None` where the input has none, and its number stands for it.
    pub key: Option<String>,
    /// The captions, trimmed, as many as the source's rows have places for; `None` where there is none.
    pub captions: Vec<Option<String>>,
    /// Why the captions cannot be used, or that there is none.
    pub caption_fault: Option<CaptionFault>,
    /// Where the image is; `None` when the cell is null or empty.
    pub image: Option<ImageRef>,
    /// What the image's bytes must hash to, if the input says so.
    pub checksum: Option<Checksum>,
}

impl Row {
    /// A row that cannot be read.
    fn broken(num_captions: usize, reason: String) -> Self {
        let image = Some(ImageRef::Broken(reason));
        Self { key: None, captions: vec![None; num_captions], caption_fault: None, image, checksum: None }
    }
}

/// What a row without a name is called.
#[must_use]
pub fn numbered(row: u64) -> String {
    format!("{row:09}")
}

/// Where a row's image is.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageRef {
    /// To be fetched.
    Url(String),
    /// Embedded in the row, still encoded.
    Bytes(Bytes),
    /// A local file.
    Path(PathBuf),
    /// Bytes within a local file, such as a member of a tar.
    Range {
        /// The file.
        path: PathBuf,
        /// Where they begin.
        offset: u64,
        /// How many they are.
        length: u64,
    },
    /// Nowhere: it is to be drawn from the caption.
    Caption,
    /// The row itself cannot be read, for this reason.
    Broken(String),
}

/// Rows in the order of the source; an item is an error when the rest of the range cannot be read.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row>> + Send + 'a>;

/// The cells of some columns, row by row; an item is an error when the rest cannot be read.
pub type Cells<'a> = Box<dyn Iterator<Item = Result<Vec<Value>>> + Send + 'a>;

/// A fixed sequence of rows with access to any range.
pub trait Source: Send + Sync {
    /// How many rows there are.
    fn num_rows(&self) -> u64;

    /// The rows of a range, read lazily: memory does not grow with its length.
    ///
    /// # Errors
    /// If the files behind the source cannot be opened.
    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>>;

    /// The cells of the named columns in every row, for filters; no image is read.
    ///
    /// # Errors
    /// If a column is missing, or the files behind the source cannot be opened.
    fn cells(&self, columns: &[String]) -> Result<Cells<'_>>;

    /// The captions that a row has places for.
    fn num_captions(&self) -> usize;

    /// The longest list of captions, of which `num_captions` may be fewer; 1 where there are no lists.
    fn longest_list(&self) -> usize {
        1
    }

    /// What the images of this source are.
    fn image_kind(&self) -> ImageKind;

    /// The column that plays each role: `caption`, `image`, and `key` where there is one.
    fn columns(&self) -> BTreeMap<&'static str, String>;
}
