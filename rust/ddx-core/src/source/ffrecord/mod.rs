//! `FFRecord` files of High-Flyer: samples one after the other, each with its checksum, which is verified.
//!
//! The format says nothing of what is in a sample. Read here are pickled dicts (or tuples) of an encoded image, text
//! and numbers, and folders that `ffrecord.pack_folder` packed. No pickle is run.

mod packed;
mod pickle;
mod sample;
mod table;

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_schema::Schema;
use bytes::Bytes;

use super::caption::{Captions, Cell, blank};
use super::columns::{Columns, find_columns, some_of};
use super::place::{Place, Reader, beside};
use super::{Cells, Charset, Checksum, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::{Error, Result};
use packed::PackedFolder;
use pickle::Pickled;
use sample::{caption, fields, schema_field, text, value};
use table::{Failure, Table};

/// Samples that are looked at to find the columns: the first may be damaged.
const SAMPLES_LOOKED_AT: u64 = 100;

/// One file.
pub(super) struct FfrecordFile {
    place: Place,
    table: Table,
    content: Content,
    charset: Charset,
}

enum Content {
    /// `places`: the captions of a row in each of their columns; `longest`: the longest list of them.
    Samples {
        names: Vec<String>,
        columns: Columns,
        places: Vec<usize>,
        longest: usize,
    },
    Folder(PackedFolder),
}

type Fields = Vec<(String, Pickled)>;

impl FfrecordFile {
    /// Reads the head and one sample.
    ///
    /// # Errors
    /// If the file is none, its samples are not of the kinds above, or a column is missing.
    pub fn open(place: Place, choice: &ColumnChoice) -> Result<Self> {
        let mut reader = place.open()?;
        let table = Table::read(&place, &mut reader)?;
        let content = match PackedFolder::open(&place, &table, &mut reader, choice)? {
            Some(folder) => Content::Folder(folder),
            None => samples(&place, &table, &mut reader, choice)?,
        };
        Ok(Self { place, table, content, charset: choice.charset })
    }

    fn row(&self, reader: &mut Reader, number: u64) -> Result<Row> {
        let path = &self.place.path;
        let row = match &self.content {
            Content::Folder(folder) => folder.row(path, &self.table, reader, number),
            Content::Samples { names, columns, places, .. } => {
                let sample =
                    self.table.sample(path, reader, number).and_then(|it| fields(it).map_err(Failure::Damaged));
                sample.map(|fields| self.row_of(&fields, names, columns, places))
            }
        };
        match row {
            Ok(row) => Ok(row),
            Err(Failure::Unreachable(error)) => Err(error),
            Err(Failure::Damaged(reason)) => Ok(Row::broken(self.num_captions(), reason)),
        }
    }

    fn row_of(&self, fields: &Fields, names: &[String], columns: &Columns, places: &[usize]) -> Row {
        let field = |index: usize| fields.iter().find(|(name, _)| *name == names[index]).map(|(_, value)| value);
        let text_of = |index: usize| field(index).and_then(text);
        let image = match columns.image_kind {
            ImageKind::Bytes => field(columns.image).and_then(image_bytes).map(ImageRef::Bytes),
            ImageKind::Caption => Some(ImageRef::Caption),
            ImageKind::Url => text_of(columns.image).map(ImageRef::Url),
            ImageKind::Path => text_of(columns.image).map(|path| ImageRef::Path(beside(&self.place.path, &path))),
        };
        let mut captions = Captions::default();
        for (&index, &places) in columns.captions.iter().zip(places) {
            captions.push(field(index).map_or(Cell::Null, |found| caption(found, self.charset)), places);
        }
        let (captions, caption_fault) = captions.finish(blank);
        Row {
            key: columns.key.and_then(text_of),
            captions,
            caption_fault,
            image,
            checksum: columns.checksum.and_then(text_of).as_deref().and_then(Checksum::parse),
        }
    }
}

/// The bytes of an image, of a list the first.
fn image_bytes(field: &Pickled) -> Option<Bytes> {
    match field {
        Pickled::Bytes(bytes) => (!bytes.is_empty()).then(|| bytes.clone()),
        Pickled::List(list) => list.items.iter().find_map(image_bytes),
        _ => None,
    }
}

/// Finds the columns by the first sample that can be read.
fn samples(place: &Place, table: &Table, reader: &mut Reader, choice: &ColumnChoice) -> Result<Content> {
    let mut reason = None;
    for index in 0..table.num().min(SAMPLES_LOOKED_AT) {
        let found =
            table.sample(&place.path, reader, index).and_then(|sample| fields(sample).map_err(Failure::Damaged));
        match found {
            Ok(found) => {
                let schema = Schema::new(found.iter().map(schema_field).collect::<Vec<_>>());
                let columns = find_columns(&place.path, &schema, choice)?;
                let names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
                let longest = longest_lists(place, table, reader, &names, &columns, &schema)?;
                let most = choice.max_captions;
                let places = longest.iter().map(|&longest| longest.min(most.unwrap_or(longest))).collect();
                let longest = longest.into_iter().max().unwrap_or(1);
                return Ok(Content::Samples { names, columns, places, longest });
            }
            Err(Failure::Unreachable(error)) => return Err(error),
            Err(Failure::Damaged(why)) => reason = reason.or(Some(why)),
        }
    }
    let reason = reason.unwrap_or_else(|| "it has no samples".to_owned());
    Err(Error::NotFfrecord { path: place.path.clone(), reason })
}

/// The most captions that a sample has in each column of them; all samples are read if a column holds lists.
fn longest_lists(
    place: &Place,
    table: &Table,
    reader: &mut Reader,
    names: &[String],
    columns: &Columns,
    schema: &Schema,
) -> Result<Vec<usize>> {
    let mut longest = vec![1; columns.captions.len()];
    if columns.captions.iter().all(|&index| !schema.field(index).data_type().is_nested()) {
        return Ok(longest);
    }
    for index in 0..table.num() {
        let sample = match table.sample(&place.path, reader, index) {
            Ok(sample) => sample,
            Err(Failure::Unreachable(error)) => return Err(error),
            Err(Failure::Damaged(_)) => continue,
        };
        let Ok(found) = fields(sample) else { continue };
        for (longest, &column) in longest.iter_mut().zip(&columns.captions) {
            let list = found.iter().find(|(name, _)| *name == names[column]);
            if let Some((_, Pickled::List(list))) = list {
                *longest = list.items.len().max(*longest);
            }
        }
    }
    Ok(longest)
}

impl Source for FfrecordFile {
    fn num_rows(&self) -> u64 {
        match &self.content {
            Content::Folder(folder) => folder.num_rows(),
            Content::Samples { .. } => self.table.num(),
        }
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let mut reader = self.place.open()?;
        Ok(Box::new(range.map(move |number| self.row(&mut reader, number))))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let no_column = |name: &str, columns: String| Error::NoSuchColumn {
            path: self.place.path.clone(),
            column: name.to_owned(),
            columns,
        };
        let Content::Samples { names, .. } = &self.content else {
            let captions_only = "(a packed folder has captions in .txt files only)".to_owned();
            return match columns.first() {
                Some(column) => Err(no_column(column, captions_only)),
                None => Ok(Box::new((0..self.num_rows()).map(|_| Ok(Vec::new())))),
            };
        };
        let exact = |name: &String| names.iter().find(|found| *found == name);
        let find = |name: &String| {
            let found = exact(name).or_else(|| names.iter().find(|found| found.eq_ignore_ascii_case(name)));
            found.cloned().ok_or_else(|| no_column(name, some_of(names)))
        };
        let wanted: Vec<String> = columns.iter().map(find).collect::<Result<_>>()?;
        let mut reader = self.place.open()?;
        let nothing = vec![Value::Null; wanted.len()];
        Ok(Box::new((0..self.num_rows()).map(move |number| {
            let sample = match self.table.sample(&self.place.path, &mut reader, number) {
                Ok(sample) => sample,
                Err(Failure::Damaged(_)) => return Ok(nothing.clone()),
                Err(Failure::Unreachable(error)) => return Err(error),
            };
            let Ok(fields) = fields(sample) else { return Ok(nothing.clone()) };
            let cell =
                |name: &String| fields.iter().find(|(found, _)| found == name).map_or(Value::Null, |it| value(&it.1));
            Ok(wanted.iter().map(cell).collect())
        })))
    }

    fn num_captions(&self) -> usize {
        match &self.content {
            Content::Folder(folder) => folder.num_captions(),
            Content::Samples { places, .. } => places.iter().sum(),
        }
    }

    fn longest_list(&self) -> usize {
        if let Content::Samples { longest, .. } = &self.content { *longest } else { 1 }
    }

    fn image_kind(&self) -> ImageKind {
        match &self.content {
            Content::Folder(_) => ImageKind::Bytes,
            Content::Samples { columns, .. } => columns.image_kind,
        }
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        match &self.content {
            Content::Folder(folder) => folder.columns(),
            Content::Samples { names, columns, .. } => columns.names(|index| names[index].clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples as `ffrecord.FileWriter` writes them.
    fn write(samples: &[Vec<u8>]) -> Vec<u8> {
        let num = samples.len() as u64;
        let mut head = num.to_le_bytes().to_vec();
        head.extend(samples.iter().flat_map(|sample| crc32fast::hash(sample).to_le_bytes()));
        let mut at = 12 + 12 * num;
        for sample in samples {
            head.extend(at.to_le_bytes());
            at += sample.len() as u64;
        }
        [crc32fast::hash(&head).to_le_bytes().to_vec(), head, samples.concat()].concat()
    }

    fn counted(code: u8, bytes: &[u8]) -> Vec<u8> {
        [&[code][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
    }

    /// A dict of bytes (as `B`), text (`X`) and small integers (`K`).
    fn pickled(items: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut bytes = b"\x80\x04}(".to_vec();
        for (name, code, value) in items {
            bytes.extend(counted(b'X', name.as_bytes()));
            bytes.extend(if *code == b'K' { vec![b'K', value[0]] } else { counted(*code, value) });
        }
        [bytes, b"u.".to_vec()].concat()
    }

    fn open(bytes: &[u8]) -> Result<(tempfile::TempDir, FfrecordFile)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ffr");
        std::fs::write(&path, bytes).unwrap();
        FfrecordFile::open(Place::new(&path), &ColumnChoice::default()).map(|file| (folder, file))
    }

    fn rows(file: &FfrecordFile, range: Range<u64>) -> Vec<Row> {
        file.rows(range).unwrap().map(Result::unwrap).collect()
    }

    const JPEG: &[u8] = b"\xff\xd8\xff\xe0 and so on";

    fn dicts() -> Vec<Vec<u8>> {
        let dict = |row: u8| {
            let caption = format!(" a dog {row}");
            pickled(&[("jpg", b'B', JPEG), ("txt", b'B', caption.as_bytes()), ("width", b'K', &[row])])
        };
        (0..5).map(dict).collect()
    }

    #[test]
    fn dicts_are_rows_from_any_row_on() {
        let (_folder, file) = open(&write(&dicts())).unwrap();
        let all = rows(&file, 0..5);
        assert_eq!(all[3].captions, [Some("a dog 3".to_owned())]);
        assert_eq!(all[3].image, Some(ImageRef::Bytes(JPEG.into())));
        for start in 0..5 {
            assert_eq!(rows(&file, start..5), all[start as usize..]);
        }
        let cells: Vec<_> = file.cells(&["Width".to_owned()]).unwrap().map(Result::unwrap).collect();
        assert_eq!(cells[4], [Value::Number(4.0)]);
        assert!(file.cells(&["height".to_owned()]).err().unwrap().to_string().contains("jpg, txt, width"));
    }

    #[test]
    fn tuples_are_told_apart_by_what_is_in_them() {
        let tuple = [&b"\x80\x04"[..], &counted(b'X', b"a cat"), &counted(b'B', JPEG), b"\x86."].concat();
        let (_folder, file) = open(&write(&[tuple])).unwrap();
        let row = rows(&file, 0..1).remove(0);
        assert_eq!((row.captions, row.image), (vec![Some("a cat".to_owned())], Some(ImageRef::Bytes(JPEG.into()))));
    }

    #[test]
    fn a_packed_folder_is_images_with_their_captions() {
        let name = |text: &str| counted(b'X', text.as_bytes());
        let inner =
            [&b"}("[..], &name("1.jpg"), b"K\x00", &name("1.txt"), b"K\x01", &name("2.PNG"), b"K\x02u"].concat();
        let meta = [&b"piouhjgbr\x80\x04}("[..], &name("deep"), &inner, &name("notes.md"), b"K\x03u."].concat();
        let samples = [JPEG.to_vec(), b"a bird\n".to_vec(), b"\x89PNG".to_vec(), b"notes".to_vec(), meta];
        let (_folder, file) = open(&write(&samples)).unwrap();
        assert_eq!(file.num_rows(), 2);
        let all = rows(&file, 0..2);
        assert_eq!((all[0].key.as_deref(), all[0].captions[0].as_deref()), (Some("deep/1"), Some("a bird")));
        assert_eq!((all[1].key.as_deref(), all[1].captions[0].as_deref()), (Some("deep/2"), None));
        assert_eq!(all[0].image, Some(ImageRef::Bytes(JPEG.into())));
    }

    #[test]
    fn damage_costs_the_samples_that_it_hits() {
        let whole = write(&dicts());
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for (bytes, broken) in [(flipped, vec![4]), (whole[..whole.len() - 100].to_vec(), vec![3, 4])] {
            let (_folder, file) = open(&bytes).unwrap();
            let is_broken = |row: &Row| matches!(row.image, Some(ImageRef::Broken(_)));
            let found: Vec<_> = (0..).zip(rows(&file, 0..5)).filter(|(_, row)| is_broken(row)).map(|it| it.0).collect();
            assert_eq!(found, broken);
        }
    }

    #[test]
    fn what_is_none_or_would_be_run_is_refused() {
        let whole = write(&dicts());
        let refused = |bytes: &[u8]| open(bytes).err().unwrap().to_string();
        assert!(refused(&whole[..8]).contains("too short"));
        assert!(refused(&whole[..40]).contains("no room"));
        let mut head = whole.clone();
        head[20] ^= 1;
        assert!(refused(&head).contains("checksum of its head"));
        let run = [&b"\x80\x04cPIL.Image\nopen\n"[..], &counted(b'B', JPEG), b"\x85R."].concat();
        let error = open(&write(&[run])).err().unwrap();
        assert!(
            error.to_string().contains("PIL.Image.open") && error.hint().unwrap().contains("pack_folder"),
            "{error}"
        );
        assert!(refused(&write(&[JPEG.to_vec()])).contains("no caption column among: image"));
        assert!(refused(&write(&[b"hello".to_vec()])).contains("neither a pickle nor an image"));
        assert!(refused(&write(&[])).contains("no samples"));
    }
}
