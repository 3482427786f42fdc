//! A parquet file: any range of rows, a few of them in memory at a time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, ListArray, RecordBatch, StructArray};
use arrow_cast::cast;
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowGroups, RowSelection,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::schema::types::SchemaDescriptor;

use super::caption::{Captions, Cell, blank};
use super::columns::{Columns, find_columns, some_of};
use super::pages::CheckedGroups;
use super::place::{Place, beside};
use super::raw_text::without_text;
use super::{Cells, Charset, Checksum, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::objects::ObjectError;
use crate::panics::caught;
use crate::{Error, Result};

/// Rows of URLs or paths that are decoded at a time.
const TEXT_ROWS_AT_A_TIME: usize = 1024;
/// Rows of embedded images that are decoded at a time: an image can have many megabytes.
const IMAGE_ROWS_AT_A_TIME: usize = 8;

/// One parquet file.
pub(super) struct ParquetFile {
    place: Place,
    num_rows: u64,
    metadata: ArrowReaderMetadata,
    /// The file's columns, texts as bytes: one that is not UTF-8 would cost all rows that are decoded with it.
    raw: SchemaDescriptor,
    columns: Columns,
    charset: Charset,
    /// The captions of a row in each of their columns.
    places: Vec<usize>,
    longest_list: usize,
}

impl ParquetFile {
    /// Reads the footer and finds the columns.
    ///
    /// # Errors
    /// If the file is no parquet, or a column is missing.
    pub fn open(place: Place, choice: &ColumnChoice) -> Result<Self> {
        let path = &place.path;
        let metadata = readable(path, || read_footer(&place))?;
        let columns = find_columns(path, metadata.schema(), choice)?;
        let num_rows = num_rows(path, &metadata)?;
        let raw = without_text(metadata.parquet_schema()).map_err(|error| unreadable(path, &error))?;
        let charset = choice.charset;
        let mut file = Self { place, num_rows, metadata, raw, columns, charset, places: Vec::new(), longest_list: 1 };
        for &column in &file.columns.captions {
            let longest = file.longest_list_of(column)?;
            file.longest_list = file.longest_list.max(longest);
            file.places.push(longest.min(choice.max_captions.unwrap_or(longest)));
        }
        Ok(file)
    }

    /// The most captions that a row has in a column; one that has lists is read for it.
    fn longest_list_of(&self, column: usize) -> Result<usize> {
        let mut longest = 1;
        if self.metadata.schema().field(column).data_type().is_nested() {
            for batch in self.read(&(0..self.num_rows), [column], TEXT_ROWS_AT_A_TIME)? {
                let batch = batch?;
                let lists = batch.column_by_name(self.column_name(column)).and_then(|array| array.as_list_opt::<i32>());
                let lengths = lists.map(|lists| lists.offsets().lengths().max().unwrap_or(0));
                longest = longest.max(lengths.unwrap_or(0));
            }
        }
        Ok(longest)
    }

    /// Batches of a range of rows, with these of the top-level columns.
    fn read(
        &self,
        range: &Range<u64>,
        columns: impl IntoIterator<Item = usize>,
        batch_size: usize,
    ) -> Result<Batches<'_>> {
        let (path, handle) = (&self.place.path, self.place.open()?);
        let (groups, skip) = row_groups(&self.metadata, range.start, range.end);
        let groups = CheckedGroups { reader: Arc::new(handle), metadata: Arc::clone(self.metadata.metadata()), groups };
        let wanted = skip as usize..skip as usize + (range.end - range.start) as usize;
        let build = || {
            let selection = RowSelection::from_consecutive_ranges(std::iter::once(wanted), groups.num_rows());
            let levels = parquet_to_arrow_field_levels(&self.raw, ProjectionMask::roots(&self.raw, columns), None)?;
            ParquetRecordBatchReader::try_new_with_row_groups(&levels, &groups, batch_size, Some(selection))
        };
        let reader = readable(path, || build().map_err(|error| unreadable(path, &error)))?;
        Ok(Batches { path, reader: Some(reader) })
    }

    /// The cells of these columns, row by row.
    fn cells_of(&self, batch: &RecordBatch, indexes: &[usize]) -> Vec<Result<Vec<Value>>> {
        let columns: Vec<Vec<Value>> = indexes
            .iter()
            .map(|&index| match batch.column_by_name(self.column_name(index)) {
                Some(array) => values(array),
                None => vec![Value::Null; batch.num_rows()],
            })
            .collect();
        (0..batch.num_rows()).map(|row| Ok(columns.iter().map(|column| column[row].clone()).collect())).collect()
    }

    fn column_name(&self, index: usize) -> &str {
        self.metadata.schema().field(index).name()
    }
}

impl Source for ParquetFile {
    fn num_rows(&self) -> u64 {
        self.num_rows
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let columns = &self.columns;
        let others = [Some(columns.image), columns.key, columns.checksum].into_iter().flatten();
        let wanted = columns.captions.iter().copied().chain(others);
        let batch_size = match columns.image_kind {
            ImageKind::Bytes => IMAGE_ROWS_AT_A_TIME,
            ImageKind::Url | ImageKind::Path | ImageKind::Caption => TEXT_ROWS_AT_A_TIME,
        };
        let batches = self.read(&range, wanted, batch_size)?;
        Ok(Box::new(batches.flat_map(move |batch| -> Rows<'_> {
            match batch {
                Ok(batch) => Box::new((0..batch.num_rows()).map(move |row| Ok(read_row(self, &batch, row)))),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        })))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let fields = self.metadata.schema().fields();
        let index = |name: &String| {
            let exact = fields.iter().position(|field| field.name() == name);
            exact.or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name))).ok_or_else(|| {
                let columns = some_of(fields.iter().map(|field| field.name()));
                Error::NoSuchColumn { path: self.place.path.clone(), column: name.clone(), columns }
            })
        };
        let indexes: Vec<usize> = columns.iter().map(index).collect::<Result<_>>()?;
        let batches = self.read(&(0..self.num_rows), indexes.iter().copied(), TEXT_ROWS_AT_A_TIME)?;
        Ok(Box::new(batches.flat_map(move |batch| match batch {
            Ok(batch) => self.cells_of(&batch, &indexes),
            Err(error) => vec![Err(error)],
        })))
    }

    fn num_captions(&self) -> usize {
        self.places.iter().sum()
    }

    fn longest_list(&self) -> usize {
        self.longest_list
    }

    fn image_kind(&self) -> ImageKind {
        self.columns.image_kind
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        self.columns.names(|index| self.column_name(index).to_owned())
    }
}

fn read_footer(place: &Place) -> Result<ArrowReaderMetadata> {
    let file = place.open()?;
    // The Arrow schema that some writers embed can name types (extension, view) that say nothing about images.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ArrowReaderMetadata::load(&file, options).map_err(|error| unreadable(&place.path, &error))
}

fn unreadable(path: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    match ObjectError::behind(error) {
        Some(error) => Error::object(path, error),
        None => no_parquet(path, error.to_string()),
    }
}

fn no_parquet(path: &Path, reason: String) -> Error {
    Error::NotParquet { path: path.to_owned(), reason }
}

/// Runs the parquet reader, which panics on some damaged files.
fn readable<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(read).unwrap_or_else(|message| Err(no_parquet(path, format!("the reader {message}"))))
}

/// The rows of a file, of which a damaged footer can claim any number.
fn num_rows(path: &Path, metadata: &ArrowReaderMetadata) -> Result<u64> {
    let metadata = metadata.metadata();
    let claimed = metadata.file_metadata().num_rows();
    let groups = metadata.row_groups().iter();
    let sum =
        groups.map(|group| u64::try_from(group.num_rows()).ok()).try_fold(0_u64, |sum, rows| sum.checked_add(rows?));
    match sum {
        Some(sum) if u64::try_from(claimed) == Ok(sum) => Ok(sum),
        _ => Err(no_parquet(path, format!("its footer counts {claimed} rows, its row groups others"))),
    }
}

/// The row groups that hold a range of a file's rows, and how many rows of the first of them come before it.
fn row_groups(metadata: &ArrowReaderMetadata, start: u64, end: u64) -> (Vec<usize>, u64) {
    let (mut groups, mut skip, mut first) = (Vec::new(), 0, 0);
    for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
        let next = first + group.num_rows() as u64;
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

/// What is read of a range; after an error nothing comes.
struct Batches<'a> {
    path: &'a Path,
    reader: Option<ParquetRecordBatchReader>,
}

impl Iterator for Batches<'_> {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let next = || reader.next().transpose().map_err(|error| unreadable(self.path, &error));
        let batch = readable(self.path, next).transpose();
        if !matches!(batch, Some(Ok(_))) {
            self.reader = None;
        }
        batch
    }
}

fn read_row(file: &ParquetFile, batch: &RecordBatch, index: usize) -> Row {
    let column = |root: usize| batch.column_by_name(file.column_name(root));
    let mut captions = Captions::default();
    for (&root, &places) in file.columns.captions.iter().zip(&file.places) {
        captions.push(column(root).map_or(Cell::Null, |array| caption_at(array, index, file.charset)), places);
    }
    let (captions, caption_fault) = captions.finish(blank);
    let key = file.columns.key.and_then(|root| column(root).and_then(|array| key_at(array, index)));
    let image = column(file.columns.image).and_then(|array| image_at(file, array, index));
    let checksum = file.columns.checksum.and_then(|root| column(root).and_then(|array| text_at(array, index)));
    Row { key, captions, caption_fault, image, checksum: checksum.as_deref().and_then(Checksum::parse) }
}

/// A column for filters: numbers of any kind, text, booleans; everything else is null.
fn values(array: &ArrayRef) -> Vec<Value> {
    let rows = 0..array.len();
    let there = |row: usize, value: &dyn Fn() -> Value| if array.is_null(row) { Value::Null } else { value() };
    if let Some(flags) = array.as_boolean_opt() {
        return rows.map(|row| there(row, &|| Value::Bool(flags.value(row)))).collect();
    }
    if array.data_type().is_numeric()
        && let Ok(numbers) = cast(array, &DataType::Float64)
    {
        let numbers = numbers.as_primitive::<Float64Type>();
        return rows.map(|row| there(row, &|| Value::Number(numbers.value(row)))).collect();
    }
    rows.map(|row| text_at(array, row).map_or(Value::Null, Value::Text)).collect()
}

/// A cell of captions.
fn caption_at(array: &ArrayRef, index: usize, charset: Charset) -> Cell {
    if array.is_null(index) {
        return Cell::Null;
    }
    if let Some(lists) = array.as_list_opt::<i32>() {
        let items = lists.value(index);
        return Cell::List((0..items.len()).map(|item| caption_at(&items, item, charset)).collect());
    }
    array.as_binary_opt::<i32>().map_or(Cell::Null, |texts| Cell::bytes(texts.value(index), charset))
}

/// The text of a cell, trimmed; `None` when null, blank or no text.
fn text_at(array: &ArrayRef, index: usize) -> Option<String> {
    let bytes = array.as_binary_opt::<i32>().filter(|texts| !texts.is_null(index))?.value(index);
    let text = String::from_utf8_lossy(bytes);
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
    let bytes = array.as_binary_opt::<i32>().filter(|cells| !cells.is_null(index))?.value(index);
    (!bytes.is_empty()).then(|| Bytes::copy_from_slice(bytes))
}

/// The image of a cell, of a list the first.
fn image_at(file: &ParquetFile, array: &ArrayRef, index: usize) -> Option<ImageRef> {
    if let Some(lists) = array.as_list_opt::<i32>() {
        return first_image(file, lists, index);
    }
    match file.columns.image_kind {
        ImageKind::Caption => Some(ImageRef::Caption),
        ImageKind::Url => text_at(array, index).map(ImageRef::Url),
        ImageKind::Path => text_at(array, index).map(|path| ImageRef::Path(beside(&file.place.path, &path))),
        ImageKind::Bytes => match array.as_struct_opt() {
            Some(cell) if !cell.is_null(index) => struct_image(file, cell, index),
            Some(_) => None,
            None => bytes_at(array, index).map(ImageRef::Bytes),
        },
    }
}

fn first_image(file: &ParquetFile, lists: &ListArray, index: usize) -> Option<ImageRef> {
    if file.columns.image_kind == ImageKind::Caption {
        return Some(ImageRef::Caption);
    }
    let items = (!lists.is_null(index)).then(|| lists.value(index))?;
    (0..items.len()).find_map(|item| image_at(file, &items, item))
}

/// `struct{bytes, path}`, as the `datasets` library writes it: the path counts where there are no bytes.
fn struct_image(file: &ParquetFile, cell: &StructArray, index: usize) -> Option<ImageRef> {
    let bytes = cell.column_by_name("bytes").and_then(|array| bytes_at(array, index));
    let path = || cell.column_by_name("path").and_then(|array| text_at(array, index));
    bytes.map(ImageRef::Bytes).or_else(|| path().map(|path| ImageRef::Path(beside(&file.place.path, &path))))
}
