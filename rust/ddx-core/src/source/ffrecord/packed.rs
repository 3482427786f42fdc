//! A folder that `ffrecord.pack_folder` packed: files as they were, and their names in the last sample.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::pickle::{Pickled, unpickle};
use super::table::{Failure, Table};
use crate::image::EXTENSIONS;
use crate::source::caption::Cell;
use crate::source::folder::{CAPTION_EXTENSIONS, extensions, gather, no_column};
use crate::source::place::{Place, Reader};
use crate::source::{Charset, ColumnChoice, ImageRef, Row};
use crate::{Error, Result};

const MAGIC: &[u8] = b"piouhjgbr";
/// Steps to read the names of millions of files.
const STEPS: usize = 16_000_000;

pub(super) struct PackedFolder {
    /// Name without its ending, sample of the image, samples of the captions.
    images: Vec<(String, u64, Vec<Option<u64>>)>,
    /// The extensions of the captions, if the user named some.
    captions: Vec<String>,
    charset: Charset,
}

impl PackedFolder {
    /// `None` if the last sample holds no names.
    pub fn open(place: &Place, table: &Table, reader: &mut Reader, choice: &ColumnChoice) -> Result<Option<Self>> {
        let Some(last) = table.num().checked_sub(1) else { return Ok(None) };
        let mut names = match table.sample(&place.path, reader, last) {
            Ok(sample) if sample.starts_with(MAGIC) => sample,
            Ok(_) | Err(Failure::Damaged(_)) => return Ok(None),
            Err(Failure::Unreachable(error)) => return Err(error),
        };
        if let Some(column) = [&choice.url, &choice.image, &choice.path, &choice.key].into_iter().flatten().next() {
            return Err(no_column(&place.path, column));
        }
        let refused = |reason: String| Error::NotFfrecord { path: place.path.clone(), reason };
        let mut files = HashMap::new();
        collect(&unpickle(names.split_off(MAGIC.len()), STEPS).map_err(refused)?, "", last, &mut files);
        let captions: Vec<String> =
            choice.captions.iter().map(|name| name.trim_start_matches('.').to_owned()).collect();
        let mut images = Vec::new();
        for (name, index) in &files {
            let Some((stem, extension)) = name.rsplit_once('.') else { continue };
            if EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()) {
                let caption = |extension: &str| files.get(&format!("{stem}.{extension}")).copied();
                let captions = extensions(&captions).0.into_iter().map(caption).collect();
                images.push((stem.to_owned(), *index, captions));
            }
        }
        images.sort();
        Ok(Some(Self { images, captions, charset: choice.charset }))
    }

    pub fn num_rows(&self) -> u64 {
        self.images.len() as u64
    }

    pub fn num_captions(&self) -> usize {
        self.captions.len().max(1)
    }

    pub fn columns(&self) -> BTreeMap<&'static str, String> {
        let caption =
            if self.captions.is_empty() { CAPTION_EXTENSIONS[0].to_owned() } else { self.captions.join(", ") };
        BTreeMap::from([("caption", caption), ("image", "file".to_owned()), ("key", "path".to_owned())])
    }

    pub fn row(
        &self,
        path: &Path,
        table: &Table,
        reader: &mut Reader,
        number: u64,
    ) -> std::result::Result<Row, Failure> {
        let (key, image, captions) = &self.images[number as usize];
        let mut texts = Vec::with_capacity(captions.len());
        for caption in captions {
            texts.push(match caption {
                Some(index) => Cell::bytes(&table.sample(path, reader, *index)?, self.charset),
                None => Cell::Null,
            });
        }
        // The key has no ending any more, and what is behind a dot in it is not one.
        let (captions, caption_fault) = gather(texts, &extensions(&self.captions), Path::new(&format!("{key}.")));
        let image = Some(ImageRef::Bytes(table.sample(path, reader, *image)?));
        Ok(Row { key: Some(key.clone()), captions, caption_fault, image, checksum: None })
    }
}

/// The samples of all files by name: a folder is a dict, a file the number of its sample, below `end`.
fn collect(folder: &Pickled, prefix: &str, end: u64, files: &mut HashMap<String, u64>) {
    let Pickled::Dict(dict) = folder else { return };
    for (name, inside) in &dict.items {
        let Some(name) = name.text() else { continue };
        match inside {
            Pickled::Int(index) => {
                if let Some(index) = u64::try_from(*index).ok().filter(|index| *index < end) {
                    files.insert(format!("{prefix}{name}"), index);
                }
            }
            inside => collect(inside, &format!("{prefix}{name}/"), end, files),
        }
    }
}
