//! `WebDataset` tars: neighbouring members of one name are a row, told apart by their extensions.
//!
//! Nothing is unpacked. Images are read where they lie, by the threads that decode them.

mod member;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use serde_json::Map;

use super::columns::{find_caption, join};
use super::place::{Place, Reader};
use super::{Cells, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::image::EXTENSIONS;
use crate::objects::ObjectError;
use crate::{Error, Result};
use member::{Member, Members, Stop, read, read_json};

const TEXT_EXTENSIONS: [&str; 3] = ["txt", "caption", "text"];

/// One tar.
pub(super) struct TarFile {
    place: Place,
    /// Where each row's first member begins.
    offsets: Vec<u64>,
    /// Why the tar cannot be read to its end; this is one more row.
    broken: Option<String>,
    captions: Vec<CaptionMember>,
    image: Option<String>,
    key: Option<String>,
    json_names: Vec<String>,
}

/// Where a row's caption is.
enum CaptionMember {
    Extension(String),
    JsonField(String),
}

impl TarFile {
    /// Reads the members' headers and the first row's JSON.
    ///
    /// # Errors
    /// If the file cannot be opened, is no tar, or has no captions.
    pub fn open(place: Place, choice: &ColumnChoice) -> Result<Self> {
        let path = &place.path;
        let (mut offsets, mut broken, mut key) = (Vec::new(), None, None);
        let (mut extensions, mut json_names) = (BTreeSet::new(), Vec::new());
        let mut members = Members::open(&place, 0)?;
        while let Some(member) = members.next() {
            let member = match member {
                Ok(member) => member,
                Err(Stop::Unreachable(error)) => return Err(error),
                Err(Stop::Damaged(reason)) if offsets.is_empty() => {
                    return Err(Error::NotATar { path: path.to_owned(), reason });
                }
                Err(Stop::Damaged(reason)) => {
                    broken = Some(reason);
                    break;
                }
            };
            if key.as_ref() != Some(&member.key) {
                offsets.push(member.begin);
                key = Some(member.key.clone());
            }
            if json_names.is_empty() && member.extension == "json" {
                let json = read_json(&mut members.reader, &member).map_err(|error| Error::object(path, error))?;
                json_names = json.keys().cloned().collect();
            }
            extensions.insert(member.extension);
        }
        let members = extensions.iter().cloned().chain(json_names.iter().cloned()).collect::<Vec<_>>().join(", ");
        if let Some(column) = [&choice.url, &choice.path].into_iter().flatten().next() {
            return Err(Error::NoSuchColumn { path: path.to_owned(), column: column.clone(), columns: members });
        }
        let image = choice.image.as_ref().map(|name| name.trim_start_matches('.').to_ascii_lowercase());
        let has_image = match &image {
            Some(extension) => extensions.contains(extension),
            None => EXTENSIONS.iter().any(|extension| extensions.contains(*extension)),
        };
        if !has_image && !offsets.is_empty() {
            return Err(Error::NoImageColumn { path: path.to_owned(), columns: members });
        }
        let captions = caption_members(path, choice, &extensions, &json_names, members)?;
        let key = choice.key.clone();
        Ok(Self { place, offsets, broken, captions, image, key, json_names })
    }

    /// The members of each row from `first` on.
    fn samples(&self, first: u64) -> Result<Samples> {
        let start = self.offsets.get(first as usize).copied().unwrap_or(0);
        Ok(Samples { members: Members::open(&self.place, start)?, ahead: None })
    }

    fn row(&self, sample: &[Member], reader: &mut Reader) -> std::result::Result<Row, ObjectError> {
        let with = |extension: &str| sample.iter().find(|member| member.extension == extension);
        let image = match &self.image {
            Some(extension) => with(extension),
            None => sample.iter().find(|member| EXTENSIONS.contains(&member.extension.as_str())),
        };
        let needs_json = self.key.is_some() || self.captions.iter().any(|it| matches!(it, CaptionMember::JsonField(_)));
        let json = match with("json").filter(|_| needs_json) {
            Some(member) => read_json(reader, member)?,
            None => Map::new(),
        };
        let mut captions = Vec::with_capacity(self.captions.len());
        for caption in &self.captions {
            let text = match caption {
                CaptionMember::Extension(extension) => match with(extension) {
                    Some(member) => Some(String::from_utf8_lossy(&read(reader, member)?).into_owned()),
                    None => None,
                },
                CaptionMember::JsonField(name) => Value::from_json(json.get(name)).text(),
            };
            captions.push(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()));
        }
        let key = self.key.as_ref().and_then(|name| Value::from_json(json.get(name)).text());
        let range = |member: &Member| ImageRef::Range {
            path: self.place.path.clone(),
            offset: member.offset,
            length: member.length,
        };
        Ok(Row { key: key.or_else(|| Some(sample[0].key.clone())), captions, image: image.map(range), checksum: None })
    }

    fn broken_row(&self) -> Option<Row> {
        let reason = self.broken.clone()?;
        Some(Row {
            key: None,
            captions: vec![None; self.captions.len()],
            image: Some(ImageRef::Broken(reason)),
            checksum: None,
        })
    }
}

impl Source for TarFile {
    fn num_rows(&self) -> u64 {
        self.offsets.len() as u64 + u64::from(self.broken.is_some())
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
        let whole = (self.offsets.len() as u64).saturating_sub(range.start) as usize;
        Ok(Box::new(rows.take(whole).chain(self.broken_row().map(Ok)).take(num)))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let find = |name: &String| {
            let exact = self.json_names.iter().find(|found| *found == name);
            exact.or_else(|| self.json_names.iter().find(|found| found.eq_ignore_ascii_case(name))).cloned().ok_or_else(
                || Error::NoSuchColumn {
                    path: self.place.path.clone(),
                    column: name.clone(),
                    columns: self.json_names.join(", "),
                },
            )
        };
        let names: Vec<String> = columns.iter().map(find).collect::<Result<_>>()?;
        let nothing = self.broken.as_ref().map(|_| Ok(vec![Value::Null; names.len()]));
        let mut samples = self.samples(0)?;
        let cells = std::iter::from_fn(move || {
            let sample = match samples.next()? {
                Ok(sample) => sample,
                Err(error) => return Some(Err(error)),
            };
            let json = sample.iter().find(|member| member.extension == "json");
            let object = json.map_or(Ok(Map::new()), |member| read_json(&mut samples.members.reader, member));
            let object = match object {
                Ok(object) => object,
                Err(error) => return Some(Err(Error::object(&self.place.path, error))),
            };
            Some(Ok(names.iter().map(|name| Value::from_json(object.get(name))).collect()))
        });
        Ok(Box::new(cells.take(self.offsets.len()).chain(nothing)))
    }

    fn image_kind(&self) -> ImageKind {
        ImageKind::Bytes
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        let caption = join(self.captions.iter().map(|member| match member {
            CaptionMember::Extension(extension) => extension.clone(),
            CaptionMember::JsonField(name) => format!("json: {name}"),
        }));
        let image = self.image.clone().unwrap_or_else(|| "any image".to_owned());
        let key = self.key.clone().unwrap_or_else(|| "name".to_owned());
        BTreeMap::from([("caption", caption), ("image", image), ("key", key)])
    }
}

/// Neighbouring members of one name, row by row; after an error nothing comes.
struct Samples {
    members: Members,
    /// The first member of the next row.
    ahead: Option<Member>,
}

impl Iterator for Samples {
    type Item = Result<Vec<Member>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut sample: Vec<Member> = self.ahead.take().into_iter().collect();
        loop {
            match self.members.next() {
                Some(Ok(member)) if sample.first().is_none_or(|first| first.key == member.key) => sample.push(member),
                Some(Err(Stop::Unreachable(error))) => return Some(Err(error)),
                next => {
                    self.ahead = next.and_then(std::result::Result::ok);
                    return (!sample.is_empty()).then_some(Ok(sample));
                }
            }
        }
    }
}

fn caption_members(
    path: &Path,
    choice: &ColumnChoice,
    extensions: &BTreeSet<String>,
    json_names: &[String],
    columns: String,
) -> Result<Vec<CaptionMember>> {
    let named = |name: &String| {
        let extension = name.trim_start_matches('.').to_ascii_lowercase();
        let field = || json_names.iter().find(|field| field.eq_ignore_ascii_case(name)).cloned();
        if extensions.contains(&extension) {
            return Ok(CaptionMember::Extension(extension));
        }
        field().map(CaptionMember::JsonField).ok_or_else(|| Error::NoSuchColumn {
            path: path.to_owned(),
            column: name.clone(),
            columns: columns.clone(),
        })
    };
    if !choice.captions.is_empty() {
        return choice.captions.iter().map(named).collect();
    }
    if let Some(extension) = TEXT_EXTENSIONS.iter().find(|extension| extensions.contains(**extension)) {
        return Ok(vec![CaptionMember::Extension((*extension).to_owned())]);
    }
    let field = find_caption(json_names).map(|index| CaptionMember::JsonField(json_names[index].clone()));
    field.map(|field| vec![field]).ok_or_else(|| Error::NoCaptionColumn { path: path.to_owned(), columns })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use super::*;

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
