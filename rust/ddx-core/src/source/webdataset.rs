//! `WebDataset` tars: neighbouring members of one name are a row, told apart by their extensions.
//!
//! Nothing is unpacked. Images are read where they lie, by the threads that decode them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tar::Archive;

use super::columns::{find_caption, join};
use super::{Cells, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source, Value};
use crate::image::EXTENSIONS;
use crate::{Error, Result};

const TEXT_EXTENSIONS: [&str; 3] = ["txt", "caption", "text"];
/// Longer texts and JSON members are not read.
const LONGEST_TEXT: u64 = 4 << 20;
/// What comes before a member's bytes: its header, and those of a long name.
const LONGEST_HEADERS: u64 = 1 << 20;
/// Members are padded to whole blocks.
const BLOCK: u64 = 512;

/// One tar.
pub(super) struct TarFile {
    path: PathBuf,
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
    pub fn open(path: &Path, choice: &ColumnChoice) -> Result<Self> {
        let (mut offsets, mut broken, mut key) = (Vec::new(), None, None);
        let (mut extensions, mut json_names) = (BTreeSet::new(), Vec::new());
        for member in members(path, 0)? {
            let member = match member {
                Ok(member) => member,
                Err(reason) if offsets.is_empty() => return Err(Error::NotATar { path: path.to_owned(), reason }),
                Err(reason) => {
                    broken = Some(reason);
                    break;
                }
            };
            if key.as_ref() != Some(&member.key) {
                offsets.push(member.begin);
                key = Some(member.key.clone());
            }
            if json_names.is_empty() && member.extension == "json" {
                json_names = read_json(path, &member).keys().cloned().collect();
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
        Ok(Self { path: path.to_owned(), offsets, broken, captions, image, key, json_names })
    }

    /// The members of each row from `first` on.
    fn samples(&self, first: u64) -> Result<impl Iterator<Item = Vec<Member>> + Send> {
        let mut all = members(&self.path, self.offsets.get(first as usize).copied().unwrap_or(0))?.peekable();
        Ok(std::iter::from_fn(move || {
            let Some(Ok(member)) = all.next() else { return None };
            let mut sample = vec![member];
            while let Some(Ok(member)) = all.next_if(|next| next.as_ref().is_ok_and(|next| next.key == sample[0].key)) {
                sample.push(member);
            }
            Some(sample)
        }))
    }

    fn row(&self, sample: &[Member]) -> Row {
        let with = |extension: &str| sample.iter().find(|member| member.extension == extension);
        let image = match &self.image {
            Some(extension) => with(extension),
            None => sample.iter().find(|member| EXTENSIONS.contains(&member.extension.as_str())),
        };
        let json = || with("json").map(|member| read_json(&self.path, member)).unwrap_or_default();
        let caption = |member: &CaptionMember| {
            let text = match member {
                CaptionMember::Extension(extension) => {
                    with(extension).map(|member| String::from_utf8_lossy(&read(&self.path, member)).into_owned())
                }
                CaptionMember::JsonField(name) => Value::from_json(json().get(name)).text(),
            };
            text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let captions = self.captions.iter().map(caption).collect();
        let key = self.key.as_ref().and_then(|name| Value::from_json(json().get(name)).text());
        let range =
            |member: &Member| ImageRef::Range { path: self.path.clone(), offset: member.offset, length: member.length };
        Row { key: key.or_else(|| Some(sample[0].key.clone())), captions, image: image.map(range), checksum: None }
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
        let samples = self.samples(range.start)?.map(|sample| self.row(&sample));
        let whole = (self.offsets.len() as u64).saturating_sub(range.start) as usize;
        Ok(Box::new(samples.take(whole).chain(self.broken_row()).take(num).map(Ok)))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let find = |name: &String| {
            let exact = self.json_names.iter().find(|found| *found == name);
            exact.or_else(|| self.json_names.iter().find(|found| found.eq_ignore_ascii_case(name))).cloned().ok_or_else(
                || Error::NoSuchColumn {
                    path: self.path.clone(),
                    column: name.clone(),
                    columns: self.json_names.join(", "),
                },
            )
        };
        let names: Vec<String> = columns.iter().map(find).collect::<Result<_>>()?;
        let nothing = self.broken.as_ref().map(|_| Ok(vec![Value::Null; names.len()]));
        let samples = self.samples(0)?.take(self.offsets.len());
        Ok(Box::new(
            samples
                .map(move |sample| {
                    let json = sample.iter().find(|member| member.extension == "json");
                    let object = json.map(|member| read_json(&self.path, member)).unwrap_or_default();
                    Ok(names.iter().map(|name| Value::from_json(object.get(name))).collect())
                })
                .chain(nothing),
        ))
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

/// A file within the tar.
struct Member {
    /// Its name up to the first dot after the last slash: what a row's members share.
    key: String,
    /// What follows that dot, in lower case.
    extension: String,
    /// Where its headers begin, those of a long name included.
    begin: u64,
    /// Where its bytes begin.
    offset: u64,
    length: u64,
}

/// The files of a tar from an offset on; an item is an error when the rest cannot be read.
fn members(
    path: &Path,
    start: u64,
) -> Result<impl Iterator<Item = std::result::Result<Member, String>> + Send + use<>> {
    let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
    let size = file.metadata().map_err(|error| Error::io(path, error))?.len();
    file.seek(SeekFrom::Start(start)).map_err(|error| Error::io(path, error))?;
    let (mut next, mut failed) = (start, false);
    Ok(std::iter::from_fn(move || {
        while !failed {
            let found = read_member(&mut file, next, size)?;
            let (member, after) = match found {
                Ok(found) => found,
                Err(reason) => {
                    failed = true;
                    return Some(Err(reason));
                }
            };
            next = after;
            if let Some(member) = member {
                return Some(Ok(member));
            }
        }
        None
    }))
}

type Found = std::result::Result<(Option<Member>, u64), String>;

/// The member whose headers begin at `begin`, or `None` for a folder or link; and where the next one begins.
fn read_member(file: &mut File, begin: u64, size: u64) -> Option<Found> {
    if begin >= size {
        return Some(Err("cut short: the archive has no end".to_owned()));
    }
    if let Err(error) = file.seek(SeekFrom::Start(begin)) {
        return Some(Err(error.to_string()));
    }
    // A long name is read at once, however long its header says it is.
    let headers = (&mut *file).take(LONGEST_HEADERS);
    let mut archive = Archive::new(BufReader::with_capacity(2 * BLOCK as usize, headers));
    let entry = match archive.entries().map(|mut entries| entries.next()) {
        Ok(None) => return None,
        Ok(Some(Ok(entry))) => entry,
        Ok(Some(Err(error))) | Err(error) => return Some(Err(error.to_string())),
    };
    let kind = entry.header().entry_type();
    // A file with holes is longer than what is stored of it.
    let stored = if kind.is_gnu_sparse() { entry.header().entry_size() } else { Ok(entry.size()) };
    let (offset, length) = match stored {
        Ok(length) => (begin + entry.raw_file_position(), length),
        Err(error) => return Some(Err(error.to_string())),
    };
    if offset.saturating_add(length) > size {
        return Some(Err(format!("cut short: a member of {length} bytes at {offset}, and the file has {size}")));
    }
    let after = offset + length.div_ceil(BLOCK) * BLOCK;
    if !kind.is_file() {
        return Some(Ok((None, after)));
    }
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let folder = name.rfind('/').map_or(0, |slash| slash + 1);
    let (stem, extension) = name[folder..].split_once('.').unwrap_or((&name[folder..], ""));
    let member = Member {
        key: format!("{}{stem}", &name[..folder]),
        extension: extension.to_ascii_lowercase(),
        begin,
        offset,
        length,
    };
    Some(Ok((Some(member), after)))
}

fn read(path: &Path, member: &Member) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(member.offset))?;
        let mut bytes = Vec::new();
        file.take(member.length).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // What cannot be read is a caption that is not there, and the row says so.
    if member.length > LONGEST_TEXT { Vec::new() } else { read().unwrap_or_default() }
}

fn read_json(path: &Path, member: &Member) -> Map<String, Json> {
    match serde_json::from_slice(&read(path, member)) {
        Ok(Json::Object(object)) => object,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
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
        let tar = TarFile::open(&path, &ColumnChoice::default()).unwrap();
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
        let tar = TarFile::open(&path, &choice).unwrap();
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
            let tar = TarFile::open(&path, &ColumnChoice::default()).unwrap();
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
        let error = TarFile::open(&path, &ColumnChoice::default()).err().unwrap();
        assert!(matches!(error, Error::NotATar { .. }), "{error}");
        let (_folder, path) = tar(&[("1.jpg", b"x"), ("1.cls", b"3")]);
        let error = TarFile::open(&path, &ColumnChoice::default()).err().unwrap();
        assert!(error.to_string().contains("cls, jpg"), "{error}");
    }
}
