//! Files, patterns and folders to a list of files of known kinds.

mod bucket;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::list::ListFormat;
use super::place::Place;
use crate::image::EXTENSIONS;
use crate::objects::is_object;
use crate::{Error, Result};

/// What a file is, by its name.
#[derive(Debug, PartialEq)]
pub(super) enum FileKind {
    Parquet,
    List(ListFormat),
    Tar,
    Ffrecord,
    /// A folder, and the images in it and below.
    ImageFolder(Vec<PathBuf>),
}

#[derive(Debug)]
pub(super) struct Found {
    pub place: Place,
    pub kind: FileKind,
    /// What tells the contents of an object or of a folder of a store from others.
    pub identity: Option<String>,
}

impl Found {
    fn local(path: PathBuf, kind: FileKind) -> Self {
        Self { place: Place::new(path), kind, identity: None }
    }
}

/// The files that `sources` name: each a file, a pattern, or a folder (searched recursively), on a disk or in a store
/// of objects; the files of one
/// pattern or folder are sorted by path, so that the order of rows is the same on every machine.
///
/// A folder that holds several kinds gives the first of: tars, ffrecord files, parquet files, lists, images. Beside the tars of
/// img2dataset lie parquet files with the same rows, and beside a list that names images, those images.
///
/// # Errors
/// If a name matches nothing, or a file is of no known kind.
pub(super) fn discover(sources: &[String]) -> Result<Vec<Found>> {
    let mut files = Vec::new();
    for source in sources {
        if is_object(Path::new(source)) {
            files.append(&mut bucket::discover(source)?);
            continue;
        }
        for path in expand(source)? {
            if path.is_dir() {
                files.append(&mut in_folder(path)?);
            } else {
                let kind = file_kind(&path).ok_or_else(|| Error::UnknownKind(path.clone()))?;
                files.push(Found::local(path, kind));
            }
        }
    }
    if files.is_empty() {
        return Err(Error::NothingUsable("an empty list of sources".to_owned()));
    }
    Ok(files)
}

/// One name to the files and folders that it means.
fn expand(source: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(source);
    if path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for pattern in braces(source) {
        if Path::new(&pattern).exists() {
            found.push(PathBuf::from(pattern));
            continue;
        }
        if !pattern.contains(['*', '?', '[']) {
            return Err(Error::NoSuchFile(pattern));
        }
        let matches = glob::glob(&pattern).map_err(|_| Error::NoSuchFile(pattern.clone()))?;
        let mut files: Vec<PathBuf> = matches.filter_map(std::result::Result::ok).collect();
        // What lies beside data and is none (reports, licences) is not meant by a star.
        files.retain(|path| path.is_dir() || file_kind(path).is_some());
        if files.is_empty() {
            return Err(Error::NoSuchFile(pattern));
        }
        files.sort();
        found.append(&mut files);
    }
    Ok(found)
}

/// `{00..12}` to its numbers, as `WebDataset` writes its shards; the first number's digits give the width.
fn braces(source: &str) -> Vec<String> {
    let range = || -> Option<Vec<String>> {
        let (before, rest) = source.split_once('{')?;
        let (inside, after) = rest.split_once('}')?;
        let (first, last) = inside.split_once("..")?;
        let width = first.len();
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some((first..=last).flat_map(|number| braces(&format!("{before}{number:0width$}{after}"))).collect())
    };
    range().unwrap_or_else(|| vec![source.to_owned()])
}

fn in_folder(folder: PathBuf) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    collect(&folder, &mut all)?;
    all.sort();
    Ok(match contents(&folder, all)? {
        Contents::Files(files) => files.into_iter().map(|(path, kind)| Found::local(path, kind)).collect(),
        Contents::Images(images) => vec![Found::local(folder, FileKind::ImageFolder(images))],
    })
}

/// What the rows of a folder are read from.
enum Contents {
    Files(Vec<(PathBuf, FileKind)>),
    Images(Vec<PathBuf>),
}

/// Chooses among all that lies in a folder.
fn contents(folder: &Path, mut all: Vec<PathBuf>) -> Result<Contents> {
    let rank = |kind: &FileKind| match kind {
        FileKind::Tar => 0,
        FileKind::Ffrecord => 1,
        FileKind::Parquet => 2,
        FileKind::List(_) | FileKind::ImageFolder(_) => 3,
    };
    let mut known: Vec<_> = all.iter().filter_map(|path| file_kind(path).map(|kind| (path.clone(), kind))).collect();
    if let Some(best) = known.iter().map(|(_, kind)| rank(kind)).min() {
        known.retain(|(_, kind)| rank(kind) == best);
        return Ok(Contents::Files(known));
    }
    all.retain(|path| has_extension(path, &EXTENSIONS));
    if all.is_empty() {
        return Err(Error::NothingUsable(folder.display().to_string()));
    }
    Ok(Contents::Images(all))
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        let path = entry.path();
        let is_hidden = is_hidden(&entry.file_name());
        // A link to a folder is not followed: it may lead back up.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if !is_hidden {
                collect(&path, found)?;
            }
        } else if !is_hidden {
            found.push(path);
        }
    }
    Ok(())
}

fn is_hidden(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(['.', '_'])
}

fn file_kind(path: &Path) -> Option<FileKind> {
    let is = |names: &[&str]| has_extension(path, names);
    if is(&["parquet", "parq", "pq"]) {
        Some(FileKind::Parquet)
    } else if is(&["tar"]) {
        Some(FileKind::Tar)
    } else if is(&["ffr", "ffrecord"]) {
        Some(FileKind::Ffrecord)
    } else if is(&["csv"]) {
        Some(FileKind::List(ListFormat::Csv))
    } else if is(&["tsv"]) {
        Some(FileKind::List(ListFormat::Tsv))
    } else if is(&["jsonl", "ndjson"]) {
        Some(FileKind::List(ListFormat::Jsonl))
    } else {
        None
    }
}

fn has_extension(path: &Path, names: &[&str]) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| names.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with empty files of these names.
    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        folder
    }

    fn names(folder: &tempfile::TempDir, sources: &[&str]) -> Result<Vec<String>> {
        let sources: Vec<String> =
            sources.iter().map(|source| folder.path().join(source).to_string_lossy().into_owned()).collect();
        let name = |found: Found| found.place.path.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned();
        Ok(discover(&sources)?.into_iter().map(name).collect())
    }

    #[test]
    fn folders_patterns_and_files_are_sorted_and_hidden_files_skipped() {
        let folder = folder_of(&["2.parquet", "1.PARQUET", "b/0.pq", "_metadata.parquet", ".x/3.parquet", "notes.txt"]);
        assert_eq!(names(&folder, &[""]).unwrap(), ["1.PARQUET", "2.parquet", "b/0.pq"]);
        assert_eq!(names(&folder, &["2.parquet", "?.*"]).unwrap(), ["2.parquet", "1.PARQUET", "2.parquet"]);
        let missing = names(&folder, &["nothing.parquet"]).unwrap_err();
        assert!(missing.to_string().contains("nothing.parquet"), "{missing}");
        let unknown = names(&folder, &["notes.txt"]).unwrap_err();
        assert!(unknown.to_string().contains("notes.txt") && unknown.hint().unwrap().contains("tar"), "{unknown}");
    }

    #[test]
    fn shards_are_named_by_a_range_of_numbers() {
        let folder = folder_of(&["00008.tar", "00009.tar", "00010.tar", "00011.tar"]);
        assert_eq!(names(&folder, &["{00009..00010}.tar"]).unwrap(), ["00009.tar", "00010.tar"]);
        let missing = names(&folder, &["{00010..00012}.tar"]).unwrap_err();
        assert!(missing.to_string().contains("00012.tar"), "{missing}");
    }

    #[test]
    fn tars_win_over_the_parquet_files_beside_them_and_lists_over_the_images_they_name() {
        let folder = folder_of(&["0.tar", "0.parquet", "0_stats.json", "lists/m.jsonl", "lists/a.jpg", "i/b/c.PNG"]);
        assert_eq!(names(&folder, &[""]).unwrap(), ["0.tar"]);
        assert_eq!(names(&folder, &["lists"]).unwrap(), ["lists/m.jsonl"]);
        let found = discover(&[folder.path().join("i").to_string_lossy().into_owned()]).unwrap();
        assert_eq!(found[0].kind, FileKind::ImageFolder(vec![folder.path().join("i/b/c.PNG")]));
    }
}
