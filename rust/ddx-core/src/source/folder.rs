//! A folder of images, each with its caption in a text file of the same name beside it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::caption::{CaptionFault, Captions, Cell, Charset};
use super::{Cells, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::objects::{ObjectError, is_object, read_all};
use crate::{Error, Result};

pub(super) const CAPTION_EXTENSIONS: [&str; 2] = ["txt", "caption"];
/// Longer text files are no captions.
const LONGEST_CAPTION: u64 = 1 << 20;
/// Images of a store whose captions are asked for at the same time.
const ROWS_AT_A_TIME: usize = 64;

/// The images of one folder and of those in it.
pub(super) struct ImageFolder {
    path: PathBuf,
    images: Vec<PathBuf>,
    /// The extensions of the captions, if the user named some.
    captions: Vec<String>,
    charset: Charset,
}

impl ImageFolder {
    /// Takes the sorted images below `path`.
    ///
    /// # Errors
    /// If a column is named that a folder cannot have.
    pub fn new(path: &Path, images: Vec<PathBuf>, choice: &ColumnChoice) -> Result<Self> {
        if let Some(column) = [&choice.url, &choice.image, &choice.path, &choice.key].into_iter().flatten().next() {
            return Err(no_column(path, column));
        }
        let captions = choice.captions.iter().map(|name| name.trim_start_matches('.').to_owned()).collect();
        Ok(Self { path: path.to_owned(), images, captions, charset: choice.charset })
    }

    fn extensions(&self) -> (Vec<&str>, bool) {
        extensions(&self.captions)
    }

    fn row(&self, image: &Path, texts: Vec<Cell>) -> Row {
        let key = image.with_extension("");
        let key = key.strip_prefix(&self.path).unwrap_or(&key).to_string_lossy().into_owned();
        let (captions, caption_fault) = gather(texts, &self.extensions(), image);
        Row { key: Some(key), captions, caption_fault, image: Some(ImageRef::Path(image.to_owned())), checksum: None }
    }

    fn read_row(&self, image: &Path) -> Row {
        let read = |extension: &&str| read_caption(&image.with_extension(extension), self.charset);
        self.row(image, self.extensions().0.iter().map(read).collect())
    }

    /// Rows of a store, whose captions are asked for together.
    fn fetch_rows(&self, images: &[PathBuf]) -> Vec<Result<Row>> {
        let extensions = self.extensions().0;
        let captions = |image: &PathBuf| extensions.iter().map(|it| image.with_extension(it)).collect::<Vec<_>>();
        let texts = read_all(images.iter().flat_map(captions).collect(), LONGEST_CAPTION);
        let row = |(image, texts): (&PathBuf, &[std::result::Result<Option<Bytes>, ObjectError>])| {
            let mut captions = Vec::with_capacity(texts.len());
            for text in texts {
                match text {
                    Ok(Some(text)) => captions.push(Cell::bytes(text, self.charset)),
                    Ok(None) => captions.push(Cell::Null),
                    Err(error) => return Err(Error::object(image, error.clone())),
                }
            }
            Ok(self.row(image, captions))
        };
        images.iter().zip(texts.chunks(extensions.len())).map(row).collect()
    }
}

/// The extensions of captions, those that the user named or the usual ones, and whether the first that is there counts.
pub(super) fn extensions(named: &[String]) -> (Vec<&str>, bool) {
    match named {
        [] => (CAPTION_EXTENSIONS.to_vec(), true),
        named => (named.iter().map(String::as_str).collect(), false),
    }
}

/// The captions of a row of the texts beside its image; of one place the first that is there.
pub(super) fn gather(
    texts: Vec<Cell>,
    (extensions, first_counts): &(Vec<&str>, bool),
    image: &Path,
) -> (Vec<Option<String>>, Option<CaptionFault>) {
    let mut captions = Captions::default();
    if *first_counts {
        captions.push(Cell::List(texts), 1);
    } else {
        for text in texts {
            captions.push(text, 1);
        }
    }
    captions.finish(|| {
        let stem = image.file_stem().unwrap_or_default().to_string_lossy();
        let names: Vec<String> = extensions.iter().map(|extension| format!("{stem}.{extension}")).collect();
        format!("no text in {} beside the image", names.join(" or "))
    })
}

pub(super) fn no_column(path: &Path, column: &str) -> Error {
    let columns = "(a folder of images has captions in .txt files only)".to_owned();
    Error::NoSuchColumn { path: path.to_owned(), column: column.to_owned(), columns }
}

fn read_caption(path: &Path, charset: Charset) -> Cell {
    let unreadable = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound => Cell::Null,
        _ => Cell::Fault(CaptionFault::Unreadable(format!("{}: {error}", path.display()))),
    };
    match std::fs::metadata(path) {
        Err(error) => return unreadable(&error),
        Ok(found) if !found.is_file() => return Cell::Null, // a pipe would block for ever
        Ok(found) if found.len() > LONGEST_CAPTION => {
            let reason = format!("{} has more than {LONGEST_CAPTION} bytes", path.display());
            return Cell::Fault(CaptionFault::TooLong(reason));
        }
        Ok(_) => {}
    }
    match std::fs::read(path) {
        Ok(bytes) => Cell::bytes(&bytes, charset),
        Err(error) => unreadable(&error),
    }
}

impl Source for ImageFolder {
    fn num_rows(&self) -> u64 {
        self.images.len() as u64
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let images = &self.images[range.start as usize..range.end as usize];
        if is_object(&self.path) {
            return Ok(Box::new(images.chunks(ROWS_AT_A_TIME).flat_map(|images| self.fetch_rows(images))));
        }
        Ok(Box::new(images.iter().map(|image| Ok(self.read_row(image)))))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        match columns.first() {
            Some(column) => Err(no_column(&self.path, column)),
            None => Ok(Box::new(self.images.iter().map(|_| Ok(Vec::<Value>::new())))),
        }
    }

    fn num_captions(&self) -> usize {
        self.captions.len().max(1)
    }

    fn image_kind(&self) -> ImageKind {
        ImageKind::Path
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        let caption =
            if self.captions.is_empty() { CAPTION_EXTENSIONS[0].to_owned() } else { self.captions.join(", ") };
        BTreeMap::from([("caption", caption), ("image", "file".to_owned()), ("key", "path".to_owned())])
    }
}
