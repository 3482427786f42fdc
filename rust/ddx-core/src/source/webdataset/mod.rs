//! `WebDataset` tars: members of one name are a row, told apart by their extensions.
//!
//! Nothing is unpacked. Images are read where they lie, by the threads that decode them.

mod caption;
mod index;
mod member;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Map;

use super::caption::{Captions, Cell};
use super::columns::{join, some_of};
use super::place::{Place, Reader};
use super::{Cells, Charset, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::image::EXTENSIONS;
use crate::objects::ObjectError;
use crate::{Error, Result};
use caption::{CaptionMember, caption_members};
use index::{Index, Samples};
use member::{Dot, Member, read, read_json};

/// One tar.
pub(super) struct TarFile {
    place: Place,
    index: Index,
    captions: Vec<CaptionMember>,
    image: Option<String>,
    key: Option<String>,
    charset: Charset,
}

impl TarFile {
    /// Reads the members' headers and the first row's JSON; all of it if its captions are lists.
    ///
    /// # Errors
    /// If the file cannot be opened, is no tar, or has no images or captions.
    pub fn open(place: Place, choice: &ColumnChoice) -> Result<Self> {
        let found = Self::open_by(place.clone(), choice, Dot::First);
        match found {
            // Names with dots make an extension of half the name; then their files go by the last dot.
            Err(Error::NoImageColumn { .. } | Error::NoCaptionColumn { .. }) => {
                match Self::open_by(place, choice, Dot::Last) {
                    Ok(file) if file.index.num_rows() < file.index.num_members() as u64 => Ok(file),
                    Ok(_) | Err(Error::NoImageColumn { .. } | Error::NoCaptionColumn { .. }) => found,
                    Err(error) => Err(error),
                }
            }
            found => found,
        }
    }

    fn open_by(place: Place, choice: &ColumnChoice, dot: Dot) -> Result<Self> {
        let index = Index::read(&place, dot, choice.charset)?;
        let path = &place.path;
        let members = some_of(index.extensions.iter().chain(&index.json_names));
        if let Some(column) = [&choice.url, &choice.path].into_iter().flatten().next() {
            return Err(Error::NoSuchColumn { path: path.to_owned(), column: column.clone(), columns: members });
        }
        let image = choice.image.as_ref().map(|name| name.trim_start_matches('.').to_ascii_lowercase());
        let has_image = match &image {
            Some(extension) => index.extensions.contains(extension),
            None => EXTENSIONS.iter().any(|extension| index.extensions.contains(*extension)),
        };
        if !has_image && index.num_rows() > 0 {
            return Err(Error::NoImageColumn { path: path.to_owned(), columns: members });
        }
        let captions = caption_members(&place, choice, &index, &members)?;
        Ok(Self { place, index, captions, image, key: choice.key.clone(), charset: choice.charset })
    }

    /// The members of each row from `first` on.
    fn samples(&self, first: u64) -> Result<Samples<'_>> {
        self.index.samples(&self.place, first)
    }

    fn row(&self, sample: &[Member], reader: &mut Reader) -> std::result::Result<Row, ObjectError> {
        let with = |extension: &str| sample.iter().find(|member| member.extension == extension);
        let image = match &self.image {
            Some(extension) => with(extension),
            None => sample.iter().find(|member| EXTENSIONS.contains(&member.extension.as_str())),
        };
        let needs_json = self.key.is_some() || self.captions.iter().any(CaptionMember::is_json);
        let (json, damaged) = match with("json").filter(|_| needs_json) {
            Some(member) => read_json(reader, member, self.charset)?,
            None => (Map::new(), false),
        };
        let mut captions = Captions::default();
        for caption in &self.captions {
            let cell = match caption {
                CaptionMember::Extension(extension) => match with(extension) {
                    Some(member) => read(reader, member)?.map_or_else(Cell::Fault, |it| Cell::bytes(&it, self.charset)),
                    None => Cell::Null,
                },
                CaptionMember::JsonField { name, .. } => Cell::json(json.get(name), damaged),
            };
            captions.push(cell, caption.places());
        }
        let (captions, caption_fault) = captions.finish(|| self.without_caption(sample));
        let key = self.key.as_ref().and_then(|name| Value::from_json(json.get(name)).text());
        let range = |member: &Member| ImageRef::Range {
            path: self.place.path.clone(),
            offset: member.offset,
            length: member.length,
        };
        let key = key.or_else(|| Some(sample[0].key.clone()));
        Ok(Row { key, captions, caption_fault, image: image.map(range), checksum: None })
    }

    /// What is said of a row that has no caption: what it has.
    fn without_caption(&self, sample: &[Member]) -> String {
        let wanted = join(self.captions.iter().map(CaptionMember::described));
        let found = some_of(sample.iter().map(|member| &member.extension));
        format!("no text in {wanted}; the members called {:?} are: {found}", sample[0].key)
    }

    fn broken_row(&self) -> Option<Row> {
        Some(Row::broken(self.num_captions(), self.index.broken.clone()?))
    }
}

impl Source for TarFile {
    fn num_rows(&self) -> u64 {
        self.index.num_rows() + u64::from(self.index.broken.is_some())
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let num = (range.end - range.start) as usize;
        let mut samples = self.samples(range.start)?;
        let rows = std::iter::from_fn(move || {
            let row = match samples.next()? {
                Ok(sample) => self.row(&sample, &mut samples.members.reader),
                Err(error) => return Some(Err(error)),
            };
            Some(row.map_err(|error| Error::object(&self.place.path, error)))
        });
        Ok(Box::new(rows.chain(self.broken_row().map(Ok)).take(num)))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let json_names = &self.index.json_names;
        let find = |name: &String| {
            let exact = json_names.iter().find(|found| *found == name);
            exact.or_else(|| json_names.iter().find(|found| found.eq_ignore_ascii_case(name))).cloned().ok_or_else(
                || Error::NoSuchColumn {
                    path: self.place.path.clone(),
                    column: name.clone(),
                    columns: some_of(json_names),
                },
            )
        };
        let names: Vec<String> = columns.iter().map(find).collect::<Result<_>>()?;
        let nothing = self.index.broken.as_ref().map(|_| Ok(vec![Value::Null; names.len()]));
        let mut samples = self.samples(0)?;
        let cells = std::iter::from_fn(move || {
            let sample = match samples.next()? {
                Ok(sample) => sample,
                Err(error) => return Some(Err(error)),
            };
            let json = sample.iter().find(|member| member.extension == "json");
            let object = json
                .map_or(Ok((Map::new(), false)), |member| read_json(&mut samples.members.reader, member, self.charset));
            let (object, _) = match object {
                Ok(object) => object,
                Err(error) => return Some(Err(Error::object(&self.place.path, error))),
            };
            Some(Ok(names.iter().map(|name| Value::from_json(object.get(name))).collect()))
        });
        Ok(Box::new(cells.chain(nothing)))
    }

    fn num_captions(&self) -> usize {
        self.captions.iter().map(CaptionMember::places).sum()
    }

    fn longest_list(&self) -> usize {
        self.captions.iter().map(CaptionMember::longest).max().unwrap_or(1)
    }

    fn image_kind(&self) -> ImageKind {
        ImageKind::Bytes
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        let caption = join(self.captions.iter().map(|member| match member {
            CaptionMember::Extension(extension) => extension.clone(),
            CaptionMember::JsonField { name, .. } => format!("json: {name}"),
        }));
        let image = self.image.clone().unwrap_or_else(|| "any image".to_owned());
        let name = match self.index.dot {
            Dot::First => "name",
            Dot::Last => "name up to its last dot",
        };
        let key = self.key.clone().unwrap_or_else(|| name.to_owned());
        BTreeMap::from([("caption", caption), ("image", image), ("key", key)])
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use super::*;
    use crate::source::CaptionFault;

    fn tar(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap();
        (folder, path)
    }

    fn rows(tar: &TarFile, range: Range<u64>) -> Vec<Row> {
        tar.rows(range).unwrap().map(Result::unwrap).collect()
    }

    fn image_of(row: &Row) -> Vec<u8> {
        let Some(ImageRef::Range { path, offset, length }) = &row.image else { panic!("{row:?}") };
        std::fs::read(path).unwrap()[*offset as usize..(offset + length) as usize].to_vec()
    }

    #[test]
    fn neighbouring_members_are_rows_from_any_row_on() {
        let long = format!("{}/c.x", "folder".repeat(40));
        let files: Vec<(String, &[u8])> = vec![
            ("a.jpg".into(), b"image a"),
            ("a.txt".into(), b" caption a\n"),
            ("b.txt".into(), b"caption b"),
            ("b.json".into(), b"{}"),
            (format!("{long}.txt"), b"caption c"),
            (format!("{long}.PNG"), b"no"),
            (format!("{}.png", long.trim_end_matches(".x")), b"image c"),
        ];
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        let (_folder, path) = tar(&files);
        let tar = TarFile::open(Place::new(&path), &ColumnChoice::default()).unwrap();
        assert_eq!(tar.num_rows(), 3);
        let all = rows(&tar, 0..3);
        assert_eq!(image_of(&all[0]), b"image a");
        assert_eq!(all[0].captions[0].as_deref(), Some("caption a"));
        assert_eq!(all[1].image, None);
        assert_eq!(image_of(&all[2]), b"image c");
        assert!(all[2].key.as_ref().unwrap().ends_with("/c"));
        for start in 0..3 {
            assert_eq!(rows(&tar, start..3), all[start as usize..], "{start}");
        }
    }

    #[test]
    fn captions_come_from_json_where_there_is_no_text() {
        let (_folder, path) = tar(&[
            ("1.webp", b"x"),
            ("1.json", br#"{"caption": "from json", "width": 640, "uid": 7}"#),
            ("2.webp", b"y"),
            ("2.json", b"not json"),
        ]);
        let choice = ColumnChoice { key: Some("uid".to_owned()), ..ColumnChoice::default() };
        let tar = TarFile::open(Place::new(&path), &choice).unwrap();
        let all = rows(&tar, 0..2);
        assert_eq!((all[0].captions[0].as_deref(), all[0].key.as_deref()), (Some("from json"), Some("7")));
        assert_eq!((all[1].captions[0].as_deref(), all[1].key.as_deref()), (None, Some("2")));
        let cells: Vec<_> = tar.cells(&["Width".to_owned()]).unwrap().map(Result::unwrap).collect();
        assert_eq!(cells, [[Value::Number(640.0)], [Value::Null]]);
    }

    fn texts(rows: &[Row]) -> Vec<(&str, Option<&str>)> {
        rows.iter().map(|row| (row.key.as_deref().unwrap(), row.captions[0].as_deref())).collect()
    }

    #[test]
    fn members_that_are_not_neighbours_join_the_row_of_their_name() {
        let (_folder, path) = tar(&[
            ("1.jpg", b"image 1"),
            ("._1.jpg", b"of a Mac"),
            ("2.jpg", b"image 2"),
            ("1.txt", b"one"),
            ("README", b"no row"),
            ("1.json", b"{}"),
            ("2.txt", b"two"),
            ("1.jpg", b"another 1"),
            ("1.txt", b"another one"),
        ]);
        let tar = TarFile::open(Place::new(&path), &ColumnChoice::default()).unwrap();
        let all = rows(&tar, 0..tar.num_rows());
        assert_eq!(texts(&all), [("1", Some("one")), ("2", Some("two")), ("1", Some("another one"))]);
        let images: Vec<_> = all.iter().map(image_of).collect();
        assert_eq!(images, [&b"image 1"[..], b"image 2", b"another 1"]);
        for start in 0..3 {
            assert_eq!(rows(&tar, start..3), all[start as usize..], "{start}");
        }
    }

    #[test]
    fn names_with_dots_are_split_where_webdataset_does_or_else_at_the_last_one() {
        let (_folder, path) = tar(&[("a.jpg", b"x"), ("a.txt", b"one"), ("b.v2.jpg", b"y"), ("b.v2.txt", b"two")]);
        let all = {
            let tar = TarFile::open(Place::new(&path), &ColumnChoice::default()).unwrap();
            rows(&tar, 0..2)
        };
        assert_eq!(texts(&all), [("a", Some("one")), ("b", None)]);
        let Some(CaptionFault::Absent(reason)) = &all[1].caption_fault else { panic!("{all:?}") };
        assert!(reason.contains("v2.jpg, v2.txt"), "{reason}");

        let (_folder, path) =
            tar(&[("b.v1.jpg", b"x"), ("b.v1.txt", b"one"), ("b.v2.jpg", b"y"), ("b.v2.txt", b"two")]);
        let tar = TarFile::open(Place::new(&path), &ColumnChoice::default()).unwrap();
        assert_eq!(texts(&rows(&tar, 0..2)), [("b.v1", Some("one")), ("b.v2", Some("two"))]);
        assert!(tar.columns()["key"].contains("last dot"));
    }

    #[test]
    fn an_error_names_only_the_first_of_many_members() {
        let names: Vec<String> = (0..1000).map(|row| format!("a.{row}.jpg")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        let (_folder, path) = tar(&files);
        let error = TarFile::open(Place::new(&path), &ColumnChoice::default()).err().unwrap().to_string();
        assert!(error.len() < 1000 && error.contains("and 980 more"), "{error}");
    }

    #[test]
    fn lists_and_bytes_in_other_encodings_are_captions_too() {
        let (_folder, path) = tar(&[
            ("1.jpg", b"x"),
            ("1.json", br#"{"captions": ["a", "b"]}"#),
            ("2.jpg", b"y"),
            ("2.json", b"{\"captions\": [\"caf\xe9\"]}"),
            ("3.jpg", b"z"),
            ("3.json", b"\xef\xbb\xbf{\"captions\": \"c\"}"),
        ]);
        let tar = TarFile::open(Place::new(&path), &ColumnChoice::default()).unwrap();
        let all = rows(&tar, 0..3);
        assert_eq!(all[0].captions, ["a", "b"].map(|text| Some(text.to_owned())));
        assert!(matches!(all[1].caption_fault, Some(CaptionFault::Encoding(_))), "{:?}", all[1]);
        assert_eq!(all[2].captions, [Some("c".to_owned()), None]);
        let choice = ColumnChoice { charset: Charset::named("latin1").unwrap(), ..ColumnChoice::default() };
        let tar = TarFile::open(Place::new(&path), &choice).unwrap();
        assert_eq!(texts(&rows(&tar, 1..2)), [("2", Some("caf\u{e9}"))]);
    }

    #[test]
    fn a_tar_that_is_cut_short_gives_what_it_has_and_says_so() {
        let big = vec![7; 5000];
        let (_folder, path) = tar(&[("1.jpg", b"x"), ("1.txt", b"one"), ("2.txt", b"two"), ("2.jpg", &big)]);
        let bytes = std::fs::read(&path).unwrap();
        // In the padding after a member, in a header, within a member, between two of them.
        for length in [5 * 512 + 300, 6 * 512 + 100, 8 * 512, 4 * 512] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let tar = TarFile::open(Place::new(&path), &ColumnChoice::default()).unwrap();
            let all = rows(&tar, 0..tar.num_rows());
            assert_eq!(all.len() as u64, tar.num_rows());
            assert_eq!(all[0].captions[0].as_deref(), Some("one"));
            assert!(matches!(&all.last().unwrap().image, Some(ImageRef::Broken(_))), "{length}: {all:?}");
        }
    }

    #[test]
    fn what_is_no_tar_or_has_no_captions_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        std::fs::write(&path, "hello ".repeat(200)).unwrap();
        let error = TarFile::open(Place::new(&path), &ColumnChoice::default()).err().unwrap();
        assert!(matches!(error, Error::NotATar { .. }), "{error}");
        let (_folder, path) = tar(&[("1.jpg", b"x"), ("1.cls", b"3")]);
        let error = TarFile::open(Place::new(&path), &ColumnChoice::default()).err().unwrap();
        assert!(error.to_string().contains("cls, jpg"), "{error}");
    }
}
