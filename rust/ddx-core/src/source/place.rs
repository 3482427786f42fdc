//! A file that rows are read from: on a disk, or an object in a store.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::objects::{Object, ObjectReader, is_object};
use crate::{Error, Result};

/// Where a file or a folder of images is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub path: PathBuf,
    object: Option<Object>,
    /// What is read in its stead: the text of a file in another encoding.
    text: Option<Bytes>,
}

impl Place {
    /// A file or folder on a disk, or a folder in a store.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), object: None, text: None }
    }

    pub fn object(object: Object) -> Self {
        Self { path: object.path.clone(), object: Some(object), text: None }
    }

    /// The same place, with this text where its own bytes were.
    pub fn with_text(&self, text: String) -> Self {
        Self { text: Some(Bytes::from(text)), ..self.clone() }
    }

    /// Opens it anew, at its beginning.
    pub fn open(&self) -> Result<Reader> {
        Ok(match (&self.text, &self.object) {
            (Some(text), _) => Reader::Text(Cursor::new(text.clone())),
            (None, Some(object)) => Reader::Object(ObjectReader::new(object.clone())),
            (None, None) => Reader::File(File::open(&self.path).map_err(|error| Error::io(&self.path, error))?),
        })
    }
}

/// A path in a table: relative to the folder of the table's own file, or an address.
pub(super) fn beside(table: &Path, path: &str) -> PathBuf {
    if is_object(Path::new(path)) {
        return PathBuf::from(path);
    }
    table.parent().unwrap_or(Path::new("")).join(path)
}

/// An open file.
pub(super) enum Reader {
    File(File),
    Object(ObjectReader),
    Text(Cursor<Bytes>),
}

impl Reader {
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Object(object) => Ok(object.size()),
            Self::Text(text) => Ok(text.get_ref().len() as u64),
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Object(object) => object.read(buffer),
            Self::Text(text) => text.read(buffer),
        }
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Object(object) => object.seek(to),
            Self::Text(text) => text.seek(to),
        }
    }
}

impl Length for Reader {
    fn len(&self) -> u64 {
        self.size().unwrap_or(0)
    }
}

impl ChunkReader for Reader {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Box<dyn Read>> {
        Ok(match self {
            Self::File(file) => Box::new(file.get_read(start)?),
            Self::Object(object) => Box::new(BufReader::new(object.from(start))),
            Self::Text(text) => text.get_ref().get_read(start).map(Box::new)?,
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        match self {
            Self::File(file) => file.get_bytes(start, length),
            Self::Object(object) => object.bytes_at(start, length).map_err(ParquetError::from),
            Self::Text(text) => text.get_ref().get_bytes(start, length),
        }
    }
}
