//! Where rows come from: a caption and an image that is a URL, bytes, or a file.
//!
//! A [`Source`] has a fixed number of rows in a fixed order and can be read from any row on, so that a part of the
//! store is always the same rows, and a resumed run reads only what it still needs. Parquet is the first kind; another
//! kind of input is another implementation of the trait.

mod columns;
mod discover;
mod parquet;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;

pub use columns::{ColumnChoice, ImageKind};
pub use parquet::ParquetSource;

use crate::Result;

/// One row of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The row's name: its key column, or else its number in nine digits.
    pub key: String,
    /// The caption, trimmed; `None` when it is null or blank.
    pub caption: Option<String>,
    /// Where the image is; `None` when the cell is null or empty.
    pub image: Option<ImageRef>,
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
}

/// Rows in the order of the source; an item is an error when the rest of the range cannot be read.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row>> + Send + 'a>;

/// A fixed sequence of rows with access to any range.
pub trait Source: Send + Sync {
    /// How many rows there are.
    fn num_rows(&self) -> u64;

    /// The rows of a range, read lazily: memory does not grow with its length.
    ///
    /// # Errors
    /// If the files behind the source cannot be opened.
    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>>;

    /// What the images of this source are.
    fn image_kind(&self) -> ImageKind;

    /// The column that plays each role: `caption`, `image`, and `key` where there is one.
    fn columns(&self) -> BTreeMap<&'static str, String>;
}
