//! The rows of a list one after the other, from an offset on.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value as Json};

use super::ListFormat;
use super::encoding::Encoded;
use crate::source::caption::Cell;
use crate::source::place;
use crate::source::{Charset, Value};
use crate::{Error, Result};

/// A row longer than this is no row of a list.
pub(super) const LONGEST_LINE: u64 = 16 << 20;

/// One row as it was read; in a `damaged` one U+FFFD stands for what could not be read.
pub(super) enum Line {
    Fields {
        record: ByteRecord,
        damaged: bool,
    },
    Object {
        object: Map<String, Json>,
        damaged: bool,
    },
    /// It could not be read, but the next one can.
    Broken(String),
}

impl Line {
    pub fn value(&self, names: &[String], index: usize) -> Value {
        match self {
            Self::Fields { record, .. } => record.get(index).map_or(Value::Null, |field| {
                let text = String::from_utf8_lossy(field);
                let text = text.trim();
                if text.is_empty() { Value::Null } else { Value::Text(text.to_owned()) }
            }),
            Self::Object { object, .. } => Value::from_json(object.get(&names[index])),
            Self::Broken(_) => Value::Null,
        }
    }

    /// The cell as text, trimmed; `None` when it is absent or blank. Of a list it is the first that is text.
    pub fn text(&self, names: &[String], index: usize) -> Option<String> {
        let value = match self {
            Self::Object { object, .. } => match object.get(&names[index]) {
                Some(Json::Array(items)) => Value::from_json(items.iter().find(|item| item.is_string())),
                other => Value::from_json(other),
            },
            _ => self.value(names, index),
        };
        let text = value.text()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The cell as captions.
    pub fn caption(&self, names: &[String], index: usize, charset: Charset) -> Cell {
        match self {
            Self::Fields { record, damaged } => match record.get(index) {
                Some(field) if *damaged => Cell::text(&String::from_utf8_lossy(field), true),
                Some(field) => Cell::bytes(field, charset),
                None => Cell::Null,
            },
            Self::Object { object, damaged } => Cell::json(object.get(&names[index]), *damaged),
            Self::Broken(_) => Cell::Null,
        }
    }

    /// How many captions a cell may hold.
    pub fn num_captions(&self, name: &str) -> usize {
        match self {
            Self::Object { object, .. } => object.get(name).and_then(Json::as_array).map_or(1, Vec::len),
            Self::Fields { .. } | Self::Broken(_) => 1,
        }
    }
}

/// Rows one after the other from an offset on.
pub(super) struct Reader {
    path: PathBuf,
    start: u64,
    charset: Charset,
    damaged: bool,
    kind: ReaderKind,
}

enum ReaderKind {
    Fields(Box<csv::Reader<Limited>>),
    Lines { file: BufReader<place::Reader>, read: u64 },
}

impl Reader {
    pub fn open(list: &Encoded, format: ListFormat, start: u64) -> Result<Self> {
        let path = &list.place.path;
        let mut file = list.place.open()?;
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
        Ok(Self { path: path.to_owned(), start, charset: list.charset, damaged: list.damaged, kind })
    }

    /// Where the next row begins.
    pub fn offset(&self) -> u64 {
        self.start
            + match &self.kind {
                ReaderKind::Fields(reader) => reader.position().byte(),
                ReaderKind::Lines { read, .. } => *read,
            }
    }

    pub fn next(&mut self) -> Result<Option<Line>> {
        let path = &self.path;
        match &mut self.kind {
            ReaderKind::Fields(reader) => {
                reader.get_mut().left = LONGEST_LINE;
                let mut record = ByteRecord::new();
                let found = reader.read_byte_record(&mut record).map_err(|error| failed(path, from_csv(error)))?;
                Ok(found.then_some(Line::Fields { record, damaged: self.damaged }))
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
                    return Ok(Some(parse_object(&line, self.charset, self.damaged)));
                }
            },
        }
    }
}

/// A file of which only so much is read for one row: a quote that is never closed would take in all of it.
struct Limited {
    file: place::Reader,
    left: u64,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(too_long());
        }
        let num = (&mut self.file).take(self.left).read(buffer)?;
        self.left -= num as u64;
        Ok(num)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a row of more than {LONGEST_LINE} bytes"))
}

fn from_csv(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        kind => io::Error::new(io::ErrorKind::InvalidData, format!("{kind:?}")),
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::NotAList { path: path.to_owned(), reason: error.to_string() },
        _ => Error::io(path, error),
    }
}

fn parse_object(line: &[u8], charset: Charset, damaged: bool) -> Line {
    // What another field holds in bytes that are no text is no matter to the caption.
    let (text, damaged) = match charset.decode(line) {
        Ok(text) => (text, damaged),
        Err(_) => (String::from_utf8_lossy(line), true),
    };
    match serde_json::from_str(&text) {
        Ok(Json::Object(object)) => Line::Object { object, damaged },
        Ok(_) => Line::Broken("the line is no JSON object".to_owned()),
        Err(error) => Line::Broken(format!("not JSON: {error}")),
    }
}
