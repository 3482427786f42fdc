//! Lists of URLs or paths: CSV, TSV and JSON lines. A first pass counts the rows and notes where every so-manieth begins.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_schema::{DataType, Field, Schema};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value as Json};

use super::columns::{Columns, find_columns};
use super::{Cells, Checksum, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::{Error, Result};

/// Rows between two noted places: what a jump into the middle reads too much of, at most.
const ROWS_A_MARK: u64 = 1024;
/// Rows that are looked at to find the columns of JSON lines.
const ROWS_LOOKED_AT: usize = 100;
/// A row longer than this is no row of a list.
const LONGEST_LINE: u64 = 16 << 20;

/// How the fields of a row are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListFormat {
    /// Commas; a field may be quoted.
    Csv,
    /// Tabs; quotes mean themselves, as in Conceptual Captions.
    Tsv,
    /// A JSON object a line.
    Jsonl,
}

/// One list.
pub(super) struct ListFile {
    path: PathBuf,
    format: ListFormat,
    names: Vec<String>,
    columns: Columns,
    /// Offset of row 0, row `ROWS_A_MARK`, and so on.
    marks: Vec<u64>,
    num_rows: u64,
}

impl ListFile {
    /// Reads the file once.
    ///
    /// # Errors
    /// If it cannot be read, or has no columns for captions and images.
    pub fn open(path: &Path, format: ListFormat, choice: &ColumnChoice) -> Result<Self> {
        let (names, data_at) = match format {
            ListFormat::Jsonl => (json_names(path)?, 0),
            ListFormat::Csv | ListFormat::Tsv => header(path, format)?,
        };
        let fields: Vec<Field> = names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
        let columns = find_columns(path, &Schema::new(fields), choice)?;
        let (mut marks, mut num_rows) = (Vec::new(), 0);
        let mut reader = Reader::open(path, format, data_at)?;
        loop {
            let at = reader.offset();
            if reader.next()?.is_none() {
                break;
            }
            if num_rows % ROWS_A_MARK == 0 {
                marks.push(at);
            }
            num_rows += 1;
        }
        Ok(Self { path: path.to_owned(), format, names, columns, marks, num_rows })
    }

    fn lines_from(&self, row: u64) -> Result<Reader> {
        let mark = row / ROWS_A_MARK;
        // A list without rows has no marks either.
        let start = self.marks.get(mark as usize).copied().unwrap_or(0);
        let mut reader = Reader::open(&self.path, self.format, start)?;
        for _ in mark * ROWS_A_MARK..row {
            reader.next()?;
        }
        Ok(reader)
    }

    fn row(&self, line: &Line) -> Row {
        let cell = |index: usize| line.text(&self.names, index);
        let image = match line {
            Line::Broken(reason) => Some(ImageRef::Broken(reason.clone())),
            _ => cell(self.columns.image).map(|text| match self.columns.image_kind {
                ImageKind::Path => ImageRef::Path(self.path.parent().unwrap_or(Path::new("")).join(text)),
                ImageKind::Url | ImageKind::Bytes => ImageRef::Url(text),
            }),
        };
        Row {
            key: self.columns.key.and_then(cell),
            captions: self.columns.captions.iter().map(|&index| cell(index)).collect(),
            image,
            checksum: self.columns.checksum.and_then(cell).as_deref().and_then(Checksum::parse),
        }
    }
}

impl Source for ListFile {
    fn num_rows(&self) -> u64 {
        self.num_rows
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let mut reader = self.lines_from(range.start)?;
        Ok(Box::new(range.map_while(move |_| reader.next().map(|line| line.map(|line| self.row(&line))).transpose())))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let missing = |name: &str| Error::NoSuchColumn {
            path: self.path.clone(),
            column: name.to_owned(),
            columns: self.names.join(", "),
        };
        let index = |name: &String| {
            let exact = self.names.iter().position(|found| found == name);
            exact
                .or_else(|| self.names.iter().position(|found| found.eq_ignore_ascii_case(name)))
                .ok_or_else(|| missing(name))
        };
        let indexes: Vec<usize> = columns.iter().map(index).collect::<Result<_>>()?;
        let mut reader = self.lines_from(0)?;
        Ok(Box::new((0..self.num_rows).map_while(move |_| {
            let line = reader.next().transpose()?;
            Some(line.map(|line| indexes.iter().map(|&index| line.value(&self.names, index)).collect()))
        })))
    }

    fn image_kind(&self) -> ImageKind {
        self.columns.image_kind
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        self.columns.names(|index| self.names[index].clone())
    }
}

/// One row as it was read.
enum Line {
    Fields(ByteRecord),
    Object(Map<String, Json>),
    /// It could not be read, but the next one can.
    Broken(String),
}

impl Line {
    fn value(&self, names: &[String], index: usize) -> Value {
        match self {
            Self::Fields(record) => record.get(index).map_or(Value::Null, |field| {
                let text = String::from_utf8_lossy(field);
                let text = text.trim();
                if text.is_empty() { Value::Null } else { Value::Text(text.to_owned()) }
            }),
            Self::Object(object) => Value::from_json(object.get(&names[index])),
            Self::Broken(_) => Value::Null,
        }
    }

    /// The cell as text, trimmed; `None` when it is absent or blank.
    fn text(&self, names: &[String], index: usize) -> Option<String> {
        let text = self.value(names, index).text()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Rows one after the other from an offset on.
struct Reader {
    path: PathBuf,
    start: u64,
    kind: ReaderKind,
}

enum ReaderKind {
    Fields(Box<csv::Reader<Limited>>),
    Lines { file: BufReader<File>, read: u64 },
}

impl Reader {
    fn open(path: &Path, format: ListFormat, start: u64) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
        file.seek(SeekFrom::Start(start)).map_err(|error| Error::io(path, error))?;
        let kind = match format {
            ListFormat::Jsonl => ReaderKind::Lines { file: BufReader::new(file), read: 0 },
            ListFormat::Csv | ListFormat::Tsv => {
                let mut builder = ReaderBuilder::new();
                // A row with too few or too many fields is that row's problem.
                builder.has_headers(false).flexible(true);
                if format == ListFormat::Tsv {
                    builder.delimiter(b'\t').quoting(false);
                }
                ReaderKind::Fields(Box::new(builder.from_reader(Limited { file, left: 0 })))
            }
        };
        Ok(Self { path: path.to_owned(), start, kind })
    }

    /// Where the next row begins.
    fn offset(&self) -> u64 {
        self.start
            + match &self.kind {
                ReaderKind::Fields(reader) => reader.position().byte(),
                ReaderKind::Lines { read, .. } => *read,
            }
    }

    fn next(&mut self) -> Result<Option<Line>> {
        let path = &self.path;
        match &mut self.kind {
            ReaderKind::Fields(reader) => {
                reader.get_mut().left = LONGEST_LINE;
                let mut record = ByteRecord::new();
                let found = reader.read_byte_record(&mut record).map_err(|error| failed(path, error.into()))?;
                Ok(found.then_some(Line::Fields(record)))
            }
            ReaderKind::Lines { file, read } => loop {
                let mut line = Vec::new();
                let num =
                    file.take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|error| Error::io(path, error))?;
                *read += num as u64;
                if num == 0 {
                    return Ok(None);
                }
                if num as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
                    return Err(failed(path, too_long()));
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(parse_object(&line)));
                }
            },
        }
    }
}

/// A file of which only so much is read for one row: a quote that is never closed would take in all of it.
struct Limited {
    file: File,
    left: u64,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(too_long());
        }
        let num = (&self.file).take(self.left).read(buffer)?;
        self.left -= num as u64;
        Ok(num)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a row of more than {LONGEST_LINE} bytes"))
}

fn failed(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::NotAList { path: path.to_owned(), reason: error.to_string() },
        _ => Error::io(path, error),
    }
}

fn parse_object(line: &[u8]) -> Line {
    match serde_json::from_slice(line) {
        Ok(Json::Object(object)) => Line::Object(object),
        Ok(_) => Line::Broken("the line is no JSON object".to_owned()),
        Err(error) => Line::Broken(format!("not JSON: {error}")),
    }
}

/// The keys of the first objects, in the order in which they appear.
fn json_names(path: &Path) -> Result<Vec<String>> {
    let mut reader = Reader::open(path, ListFormat::Jsonl, 0)?;
    let mut names: Vec<String> = Vec::new();
    let mut broken = None;
    for _ in 0..ROWS_LOOKED_AT {
        match reader.next()? {
            Some(Line::Object(object)) => {
                let new: Vec<String> = object.keys().filter(|key| !names.contains(key)).cloned().collect();
                names.extend(new);
            }
            Some(Line::Broken(reason)) => broken = broken.or(Some(reason)),
            Some(Line::Fields(_)) | None => break,
        }
    }
    match broken {
        Some(reason) if names.is_empty() => Err(Error::NotAList { path: path.to_owned(), reason }),
        _ => Ok(names),
    }
}

/// The names of the columns, and where the first row begins.
///
/// Conceptual Captions has no header: a first row that holds an address is one of the data, and columns are then
/// called `url` and `caption` (if there are two), or by their number.
fn header(path: &Path, format: ListFormat) -> Result<(Vec<String>, u64)> {
    let mut reader = Reader::open(path, format, 0)?;
    let Some(Line::Fields(first)) = reader.next()? else { return Ok((Vec::new(), 0)) };
    let fields: Vec<String> = first.iter().map(|field| String::from_utf8_lossy(field).trim().to_owned()).collect();
    let is_address = |field: &str| field.starts_with("http://") || field.starts_with("https://");
    let Some(address) = fields.iter().position(|field| is_address(field)) else {
        let mut names = fields;
        if let Some(name) = names.first_mut() {
            *name = name.trim_start_matches('\u{feff}').to_owned();
        }
        return Ok((names, reader.offset()));
    };
    let name = |index: usize| match index {
        _ if index == address => "url".to_owned(),
        _ if fields.len() == 2 => "caption".to_owned(),
        _ => format!("column_{}", index + 1),
    };
    Ok(((0..fields.len()).map(name).collect(), 0))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn list(name: &str, text: &str) -> Result<(tempfile::TempDir, ListFile)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let format = match path.extension().and_then(|name| name.to_str()) {
            Some("csv") => ListFormat::Csv,
            Some("tsv") => ListFormat::Tsv,
            _ => ListFormat::Jsonl,
        };
        ListFile::open(&path, format, &ColumnChoice::default()).map(|list| (folder, list))
    }

    fn rows(list: &ListFile, range: Range<u64>) -> Vec<Row> {
        list.rows(range).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn any_range_of_any_format_is_the_same_rows() {
        let (mut csv, mut tsv, mut jsonl) = ("TEXT,URL\n".to_owned(), String::new(), String::new());
        for row in 0..2500 {
            writeln!(csv, "\"a \"\"{row}\"\",\nb\",http://x/{row}").unwrap();
            writeln!(tsv, "a \"{row}\t http://x/{row}").unwrap();
            writeln!(jsonl, "{{\"url\": \"http://x/{row}\", \"caption\": \"a {row}\"}}\n").unwrap();
        }
        for (name, text) in [("x.csv", csv), ("x.tsv", tsv), ("x.jsonl", jsonl)] {
            let (_folder, list) = list(name, &text).unwrap();
            assert_eq!(list.num_rows(), 2500, "{name}");
            let all = rows(&list, 0..2500);
            for (row, found) in all.iter().enumerate() {
                assert_eq!(found.image, Some(ImageRef::Url(format!("http://x/{row}"))), "{name}");
                assert!(found.captions[0].as_ref().unwrap().contains(&row.to_string()), "{name}: {found:?}");
            }
            for start in [0, 1, 1023, 1024, 1025, 2047, 2048, 2499] {
                assert_eq!(rows(&list, start..start + 1), all[start as usize..=start as usize], "{name} {start}");
            }
            assert_eq!(rows(&list, 1000..2500), all[1000..]);
        }
    }

    #[test]
    fn a_list_without_a_header_is_known_by_its_addresses() {
        let (_folder, list) = list("cc3m.tsv", "a dog\thttp://x/1.jpg\na cat\thttp://x/2.jpg\n").unwrap();
        assert_eq!(list.num_rows(), 2);
        assert_eq!(list.columns()["image"], "url");
        assert_eq!(rows(&list, 0..1)[0].captions[0].as_deref(), Some("a dog"));
    }

    #[test]
    fn paths_are_meant_from_the_folder_of_the_list() {
        let (folder, list) = list("metadata.csv", "file_name,text\na/b.png,a cat\n,a dog\n").unwrap();
        let found = rows(&list, 0..2);
        assert_eq!(found[0].image, Some(ImageRef::Path(folder.path().join("a/b.png"))));
        assert_eq!(found[1].image, None);
    }

    #[test]
    fn a_broken_line_costs_its_row_alone() {
        let text = "{\"url\": \"http://x/0\", \"text\": \"a\"}\n{\"url\":\n{\"url\": \"http://x/2\", \"text\": 3}\n";
        let (_folder, list) = list("x.jsonl", text).unwrap();
        let found = rows(&list, 0..3);
        assert!(matches!(&found[1].image, Some(ImageRef::Broken(reason)) if reason.contains("JSON")), "{found:?}");
        assert_eq!(found[2].captions[0].as_deref(), Some("3"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(list("x.jsonl", "hello\n").err().unwrap().to_string().contains("not JSON"));
        let error = list("x.csv", "a,b\n1,2\n").err().unwrap();
        assert_eq!(error.to_string().split(": ").last(), Some("a, b"), "{error}");
    }

    #[test]
    fn a_row_without_an_end_is_refused() {
        let text = format!("url,text\nhttp://x/1,a\nhttp://x/2,\"{}", "b,\n".repeat(LONGEST_LINE as usize / 2));
        for name in ["x.csv", "x.jsonl"] {
            let text = if name == "x.csv" { text.clone() } else { text.replace('\n', " ") };
            let error = list(name, &text).err().unwrap();
            assert!(error.to_string().contains("a row of more than"), "{name}: {error}");
        }
    }

    #[test]
    fn a_list_without_rows_has_no_cells() {
        let (_folder, list) = list("x.csv", "url,text,width\n").unwrap();
        assert_eq!(list.cells(&["width".to_owned()]).unwrap().count(), 0);
    }

    #[test]
    fn cells_are_found_by_name_in_any_case() {
        let (_folder, list) = list("x.csv", "url,text,Width\nhttp://x/1,a,640\nhttp://x/2,b,\n").unwrap();
        let cells: Vec<_> = list.cells(&["width".to_owned()]).unwrap().map(Result::unwrap).collect();
        assert_eq!(cells, [[Value::Text("640".to_owned())], [Value::Null]]);
        assert!(list.cells(&["height".to_owned()]).err().unwrap().to_string().contains("height"));
    }
}
