//! Parquet files as a [`Source`]: any range of rows, a few rows in memory at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};

use super::columns::{Columns, find_columns};
use super::discover::parquet_files;
use super::{ColumnChoice, ImageKind, ImageRef, Row, Rows, Source};
use crate::{Error, Result};

/// Rows of URLs or paths that are decoded at a time.
const TEXT_ROWS_AT_A_TIME: usize = 1024;
/// Rows of embedded images that are decoded at a time: an image can have many megabytes.
const IMAGE_ROWS_AT_A_TIME: usize = 8;

/// Several parquet files, one after the other.
pub struct ParquetSource {
    files: Vec<ParquetFile>,
    num_rows: u64,
    image_kind: ImageKind,
}

struct ParquetFile {
    path: PathBuf,
    first_row: u64,
    metadata: ArrowReaderMetadata,
    columns: Columns,
}

impl ParquetSource {
    /// Opens the files that `sources` name and finds their columns; only the footers are read.
    ///
    /// # Errors
    /// If a name matches nothing, a file is no parquet, a column is missing, or there is no row at all.
    pub fn open(sources: &[String], choice: &ColumnChoice) -> Result<Self> {
        let mut files: Vec<ParquetFile> = Vec::new();
        let mut num_rows = 0;
        for path in parquet_files(sources)? {
            let metadata = read_footer(&path)?;
            let columns = find_columns(&path, metadata.schema(), choice)?;
            let rows = metadata.metadata().file_metadata().num_rows().max(0) as u64;
            files.push(ParquetFile { path, first_row: num_rows, metadata, columns });
            num_rows += rows;
        }
        if num_rows == 0 {
            return Err(Error::NoRows(sources.join(", ")));
        }
        let image_kind = files[0].columns.image_kind;
        Ok(Self { files, num_rows, image_kind })
    }
}

impl Source for ParquetSource {
    fn num_rows(&self) -> u64 {
        self.num_rows
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let end = range.end.min(self.num_rows);
        let mut pieces = Vec::new();
        for (index, file) in self.files.iter().enumerate() {
            let file_end = self.files.get(index + 1).map_or(self.num_rows, |next| next.first_row);
            let piece = range.start.max(file.first_row)..end.min(file_end);
            if !piece.is_empty() {
                pieces.push((file, piece));
            }
        }
        // A file is opened when its first row is asked for, and closed before the next one.
        Ok(Box::new(pieces.into_iter().flat_map(|(file, piece)| match FileRows::open(file, piece) {
            Ok(rows) => Box::new(rows) as Rows<'_>,
            Err(error) => Box::new(std::iter::once(Err(error))) as Rows<'_>,
        })))
    }

    fn image_kind(&self) -> ImageKind {
        self.image_kind
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        let file = &self.files[0];
        let name = |index: usize| file.metadata.schema().field(index).name().clone();
        let mut columns =
            BTreeMap::from([("caption", name(file.columns.caption)), ("image", name(file.columns.image))]);
        if let Some(key) = file.columns.key {
            columns.insert("key", name(key));
        }
        columns
    }
}

fn read_footer(path: &Path) -> Result<ArrowReaderMetadata> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    // The Arrow schema that some writers embed can name types (extension, view) that say nothing about images.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ArrowReaderMetadata::load(&file, options).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::NotParquet { path: path.to_owned(), reason: error.to_string() }
}

/// The rows of a range of one file.
struct FileRows<'a> {
    file: &'a ParquetFile,
    reader: ParquetRecordBatchReader,
    /// The batch at hand and the next row in it.
    batch: Option<(RecordBatch, usize)>,
    next_row: u64,
    failed: bool,
}

impl<'a> FileRows<'a> {
    fn open(file: &'a ParquetFile, range: Range<u64>) -> Result<Self> {
        let handle = File::open(&file.path).map_err(|error| Error::io(&file.path, error))?;
        let (groups, skip) = row_groups(&file.metadata, range.start - file.first_row, range.end - file.first_row);
        let columns = &file.columns;
        let wanted = [Some(columns.caption), Some(columns.image), columns.key].into_iter().flatten();
        let mask = ProjectionMask::roots(file.metadata.parquet_schema(), wanted);
        let batch_size = match columns.image_kind {
            ImageKind::Bytes => IMAGE_ROWS_AT_A_TIME,
            ImageKind::Url | ImageKind::Path => TEXT_ROWS_AT_A_TIME,
        };
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(handle, file.metadata.clone())
            .with_row_groups(groups)
            .with_projection(mask)
            .with_batch_size(batch_size)
            .with_offset(skip as usize)
            .with_limit((range.end - range.start) as usize)
            .build()
            .map_err(|error| unreadable(&file.path, &error))?;
        Ok(Self { file, reader, batch: None, next_row: range.start, failed: false })
    }
}

/// The row groups that hold a range of a file's rows, and how many rows of the first of them come before it.
fn row_groups(metadata: &ArrowReaderMetadata, start: u64, end: u64) -> (Vec<usize>, u64) {
    let (mut groups, mut skip, mut first) = (Vec::new(), 0, 0);
    for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
        let next = first + group.num_rows().max(0) as u64;
        if first < end && next > start {
            if groups.is_empty() {
                skip = start.saturating_sub(first);
            }
            groups.push(index);
        }
        first = next;
    }
    (groups, skip)
}

impl Iterator for FileRows<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            if let Some((batch, index)) = &mut self.batch
                && *index < batch.num_rows()
            {
                let row = read_row(self.file, batch, *index, self.next_row);
                *index += 1;
                self.next_row += 1;
                return Some(Ok(row));
            }
            match self.reader.next()? {
                Ok(batch) => self.batch = Some((batch, 0)),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(unreadable(&self.file.path, &error)));
                }
            }
        }
    }
}

fn read_row(file: &ParquetFile, batch: &RecordBatch, index: usize, row: u64) -> Row {
    let schema = file.metadata.schema();
    let column = |root: usize| batch.column_by_name(schema.field(root).name());
    let caption = column(file.columns.caption).and_then(|array| text_at(array, index));
    let key = file.columns.key.and_then(|root| column(root).and_then(|array| key_at(array, index)));
    let image = column(file.columns.image).and_then(|array| image_at(file, array, index));
    Row { key: key.unwrap_or_else(|| format!("{row:09}")), caption, image }
}

/// The text of a cell, trimmed; `None` when null or blank.
fn text_at(array: &ArrayRef, index: usize) -> Option<String> {
    if array.is_null(index) {
        return None;
    }
    let text = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(index),
        DataType::LargeUtf8 => array.as_string::<i64>().value(index),
        DataType::Utf8View => array.as_string_view().value(index),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary_opt()?;
            return text_at(dictionary.values(), dictionary.normalized_keys()[index]);
        }
        _ => return None,
    };
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn key_at(array: &ArrayRef, index: usize) -> Option<String> {
    if array.is_null(index) {
        return None;
    }
    match array.data_type() {
        DataType::Int32 => Some(array.as_primitive::<Int32Type>().value(index).to_string()),
        DataType::Int64 => Some(array.as_primitive::<Int64Type>().value(index).to_string()),
        DataType::UInt32 => Some(array.as_primitive::<UInt32Type>().value(index).to_string()),
        DataType::UInt64 => Some(array.as_primitive::<UInt64Type>().value(index).to_string()),
        _ => text_at(array, index),
    }
}

fn bytes_at(array: &ArrayRef, index: usize) -> Option<Bytes> {
    if array.is_null(index) {
        return None;
    }
    let bytes = match array.data_type() {
        DataType::Binary => array.as_binary::<i32>().value(index),
        DataType::LargeBinary => array.as_binary::<i64>().value(index),
        DataType::BinaryView => array.as_binary_view().value(index),
        _ => return None,
    };
    (!bytes.is_empty()).then(|| Bytes::copy_from_slice(bytes))
}

fn image_at(file: &ParquetFile, array: &ArrayRef, index: usize) -> Option<ImageRef> {
    match file.columns.image_kind {
        ImageKind::Url => text_at(array, index).map(ImageRef::Url),
        ImageKind::Path => text_at(array, index).map(|path| ImageRef::Path(beside(&file.path, &path))),
        ImageKind::Bytes => match array.as_struct_opt() {
            Some(cell) if !cell.is_null(index) => struct_image(file, cell, index),
            Some(_) => None,
            None => bytes_at(array, index).map(ImageRef::Bytes),
        },
    }
}

/// `struct{bytes, path}`, as the `datasets` library writes it: the path counts where there are no bytes.
fn struct_image(file: &ParquetFile, cell: &StructArray, index: usize) -> Option<ImageRef> {
    let bytes = cell.column_by_name("bytes").and_then(|array| bytes_at(array, index));
    let path = || cell.column_by_name("path").and_then(|array| text_at(array, index));
    bytes.map(ImageRef::Bytes).or_else(|| path().map(|path| ImageRef::Path(beside(&file.path, &path))))
}

/// A relative path is meant from the folder that the parquet is in.
fn beside(parquet: &Path, path: &str) -> PathBuf {
    parquet.parent().unwrap_or(Path::new("")).join(path)
}
