//! A folder of images, each with its caption in a text file of the same name beside it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Cells, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::{Error, Result};

const CAPTION_EXTENSIONS: [&str; 2] = ["txt", "caption"];
/// Longer text files are no captions.
const LONGEST_CAPTION: u64 = 1 << 20;

/// The images of one folder and of those in it.
pub(super) struct ImageFolder {
    path: PathBuf,
    images: Vec<PathBuf>,
    /// The extensions of the captions, if the user named some.
    captions: Vec<String>,
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
        Ok(Self { path: path.to_owned(), images, captions })
    }

    fn row(&self, image: &Path) -> Row {
        let key = image.with_extension("");
        let key = key.strip_prefix(&self.path).unwrap_or(&key).to_string_lossy().into_owned();
        let read = |extension: &str| read_caption(&image.with_extension(extension));
        let captions = if self.captions.is_empty() {
            vec![CAPTION_EXTENSIONS.into_iter().find_map(read)]
        } else {
            self.captions.iter().map(|extension| read(extension)).collect()
        };
        Row { key: Some(key), captions, image: Some(ImageRef::Path(image.to_owned())), checksum: None }
    }
}

fn no_column(path: &Path, column: &str) -> Error {
    let columns = "(a folder of images has captions in .txt files only)".to_owned();
    Error::NoSuchColumn { path: path.to_owned(), column: column.to_owned(), columns }
}

fn read_caption(path: &Path) -> Option<String> {
    if std::fs::metadata(path).ok()?.len() > LONGEST_CAPTION {
        return None;
    }
    let bytes = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_start_matches('\u{feff}').trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl Source for ImageFolder {
    fn num_rows(&self) -> u64 {
        self.images.len() as u64
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let images = &self.images[range.start as usize..range.end as usize];
        Ok(Box::new(images.iter().map(|image| Ok(self.row(image)))))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        match columns.first() {
            Some(column) => Err(no_column(&self.path, column)),
            None => Ok(Box::new(self.images.iter().map(|_| Ok(Vec::<Value>::new())))),
        }
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
