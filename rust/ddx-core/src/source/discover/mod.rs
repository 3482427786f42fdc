//! Files, patterns and folders to a list of files of known kinds.

mod bucket;
mod left_out;
mod walk;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::list::ListFormat;
use super::place::Place;
use crate::image::EXTENSIONS;
use crate::objects::is_object;
use crate::{Error, Result};
use left_out::LeftOut;
use walk::{Walk, is_zarr};

/// Pictures of formats that no decoder is here for.
const OTHER_PICTURES: [&str; 22] = [
    "heic", "heif", "jxl", "jp2", "j2k", "jpx", "svg", "psd", "ico", "tga", "exr", "hdr", "ppm", "cr2", "cr3", "nef",
    "arw", "dng", "raf", "orf", "rw2", "pef",
];
/// What lies beside images and belongs to them: captions, and what img2dataset writes.
const BESIDE_IMAGES: [&str; 3] = ["txt", "caption", "json"];

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
    /// Names and sizes of all that lies in a folder of images on a disk.
    pub listing: Option<String>,
}

impl Found {
    fn local(path: PathBuf, kind: FileKind) -> Self {
        Self { place: Place::new(path), kind, identity: None, listing: None }
    }
}

/// The files that `sources` name: each a file, a pattern, or a folder (searched recursively), on a disk or in a store
/// of objects; the files of one
/// pattern or folder are sorted by path, so that the order of rows is the same on every machine.
///
/// A folder that holds several kinds gives the first of: tars, ffrecord files, parquet files, lists, images. Beside the tars of
/// img2dataset lie parquet files with the same rows, and beside a list that names images, those images.
///
/// Of the folders `apart` and of stores nothing is taken, unless a source names a place in one. The second value says
/// what else was left out, a text a folder.
///
/// # Errors
/// If a name matches nothing, or a file is of no known kind.
pub(super) fn discover(sources: &[String], apart: &[PathBuf]) -> Result<(Vec<Found>, Vec<String>)> {
    let (mut files, mut notes) = (Vec::new(), Vec::new());
    for source in sources {
        if is_object(Path::new(source)) {
            files.append(&mut bucket::discover(source, &mut notes)?);
            continue;
        }
        for path in expand(source, apart)? {
            if path.is_dir() {
                files.append(&mut in_folder(path, apart, &mut notes)?);
            } else {
                let kind = file_kind(&path).ok_or_else(|| Error::UnknownKind(path.clone()))?;
                files.push(Found::local(path, kind));
            }
        }
    }
    if files.is_empty() {
        return Err(Error::NothingUsable("an empty list of sources".to_owned()));
    }
    Ok((files, notes))
}

/// One name to the files and folders that it means.
fn expand(source: &str, apart: &[PathBuf]) -> Result<Vec<PathBuf>> {
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
        let unknown = files.iter().find(|path| path.is_file() && file_kind(path).is_none()).cloned();
        let mut passed = Passed::new(&pattern, apart);
        // What lies beside data and is none (reports, licences) is not meant by a star, nor is what is in a store.
        files.retain(|path| (path.is_dir() || file_kind(path).is_some()) && passed.may_hold_input(path));
        if files.is_empty() {
            return Err(unknown.map_or_else(|| Error::NoSuchFile(pattern.clone()), Error::UnknownKind));
        }
        files.sort();
        found.append(&mut files);
    }
    Ok(found)
}

/// The folders that a pattern went through, and whether there is input in them.
struct Passed {
    /// What of the pattern has no wild sign: the user named it.
    named: PathBuf,
    apart: Vec<PathBuf>,
    known: HashMap<PathBuf, bool>,
}

impl Passed {
    fn new(pattern: &str, apart: &[PathBuf]) -> Self {
        let is_plain = |part: &Path| !part.to_string_lossy().contains(['*', '?', '[']);
        let named = Path::new(pattern).ancestors().find(|part| is_plain(part)).unwrap_or(Path::new("")).to_owned();
        let within = named.canonicalize().unwrap_or_default();
        let apart = apart.iter().filter_map(|path| path.canonicalize().ok()).filter(|it| !within.starts_with(it));
        Self { apart: apart.collect(), named, known: HashMap::new() }
    }

    fn may_hold_input(&mut self, path: &Path) -> bool {
        let below = path.ancestors().take_while(|above| *above != self.named);
        let folders: Vec<&Path> = below.filter(|above| above.is_dir()).collect();
        folders.into_iter().all(|folder| {
            let apart = &self.apart;
            *self.known.entry(folder.to_owned()).or_insert_with(|| {
                !is_zarr(folder) && folder.canonicalize().is_ok_and(|target| !apart.contains(&target))
            })
        })
    }
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

fn in_folder(folder: PathBuf, apart: &[PathBuf], notes: &mut Vec<String>) -> Result<Vec<Found>> {
    if is_zarr(&folder) {
        return Err(Error::IsStore(folder));
    }
    let mut walk = Walk::through(&folder, apart)?;
    Ok(match contents(&folder, std::mem::take(&mut walk.files), walk.left_out.clone(), notes)? {
        Contents::Files(files) => files.into_iter().map(|(path, kind)| Found::local(path, kind)).collect(),
        Contents::Images(images) => {
            let listing = Some(walk.listing(&folder));
            vec![Found { listing, ..Found::local(folder, FileKind::ImageFolder(images)) }]
        }
    })
}

/// What the rows of a folder are read from.
enum Contents {
    Files(Vec<(PathBuf, FileKind)>),
    Images(Vec<PathBuf>),
}

/// Chooses among all that lies in a folder; `notes` gets a line about what is left out.
fn contents(folder: &Path, all: Vec<PathBuf>, mut left_out: LeftOut, notes: &mut Vec<String>) -> Result<Contents> {
    let rank = |kind: &FileKind| match kind {
        FileKind::Tar => 0,
        FileKind::Ffrecord => 1,
        FileKind::Parquet => 2,
        FileKind::List(_) | FileKind::ImageFolder(_) => 3,
    };
    let best = all.iter().filter_map(|path| file_kind(path)).map(|kind| rank(&kind)).min();
    let (mut files, mut images) = (Vec::new(), Vec::new());
    for path in all {
        match file_kind(&path) {
            Some(kind) if Some(rank(&kind)) == best => files.push((path, kind)),
            Some(_) => left_out.add("files beside those that are read", Some(&path)),
            None if has_extension(&path, &OTHER_PICTURES) => {
                left_out.add("pictures of formats that are not read", Some(&path));
            }
            None if has_extension(&path, &EXTENSIONS) => images.push(path),
            None if has_extension(&path, &BESIDE_IMAGES) => {}
            None => left_out.add("files of other kinds", Some(&path)),
        }
    }
    // Beside a table lie the images that it names; a tar has its own.
    if best.is_some_and(|rank| rank < 2) {
        for path in &images {
            left_out.add("files beside those that are read", Some(path));
        }
    }
    let is_table = best.is_some();
    if !is_table && images.is_empty() {
        let more = if left_out.is_empty() { String::new() } else { format!(", only {left_out}") };
        return Err(Error::NothingUsable(format!("{}{more}", folder.display())));
    }
    if !left_out.is_empty() {
        notes.push(format!("left out of {}: {left_out}", folder.display()));
    }
    Ok(if is_table { Contents::Files(files) } else { Contents::Images(images) })
}

/// Whether a table is one of rows: `_metadata.parquet`, or what lies in `_temporary`, is not.
fn is_input(path: &Path) -> bool {
    let is_special = |part: Option<&std::ffi::OsStr>| part.is_some_and(|name| name.to_string_lossy().starts_with('_'));
    !is_special(path.file_name()) && !is_special(path.parent().and_then(Path::file_name))
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
        Ok(discover(&sources, &[])?.0.into_iter().map(name).collect())
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
        let (found, _) = discover(&[folder.path().join("i").to_string_lossy().into_owned()], &[]).unwrap();
        assert_eq!(found[0].kind, FileKind::ImageFolder(vec![folder.path().join("i/b/c.PNG")]));
    }

    /// The images of a folder by their names below it, and what is said of the rest.
    fn images(folder: &tempfile::TempDir, apart: &[&str]) -> (Vec<String>, Vec<String>) {
        let apart: Vec<PathBuf> = apart.iter().map(|name| folder.path().join(name)).collect();
        let (found, notes) = discover(&[folder.path().to_string_lossy().into_owned()], &apart).unwrap();
        let FileKind::ImageFolder(images) = &found[0].kind else { panic!("{found:?}") };
        let name = |path: &PathBuf| path.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned();
        let root = folder.path().display().to_string();
        (images.iter().map(name).collect(), notes.iter().map(|note| note.replace(&root, "it")).collect())
    }

    #[test]
    fn what_is_not_taken_of_a_folder_is_counted_by_reason() {
        let folder = folder_of(&[
            "_DSC0001.JPG",
            "_DSC0001.txt",
            "_raw/2.jpg",
            "3.HEIC",
            "4.heic",
            "5.cr2",
            "notes.md",
            "._1.jpg",
            ".DS_Store",
            ".trash/1.jpg",
            "_meta.parquet",
        ]);
        let (images, notes) = images(&folder, &[]);
        assert_eq!(images, ["_DSC0001.JPG", "_raw/2.jpg"]);
        let expected = "left out of it: files of other kinds: 1 (.md 1), hidden files: 2, hidden folders: 1, \
                        pictures of formats that are not read: 3 (.heic 2, .cr2 1)";
        assert_eq!(notes, [expected]);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_are_followed_once() {
        use std::os::unix::fs::symlink;
        let folder = folder_of(&["b/1.jpg"]);
        let elsewhere = folder_of(&["2.jpg", "deep/3.jpg"]);
        symlink(elsewhere.path(), folder.path().join("a")).unwrap();
        symlink(elsewhere.path(), folder.path().join("c")).unwrap();
        symlink(folder.path(), folder.path().join("b/up")).unwrap();
        symlink(folder.path(), elsewhere.path().join("deep/back")).unwrap();
        let (images, notes) = images(&folder, &[]);
        assert_eq!(images, ["a/2.jpg", "a/deep/3.jpg", "b/1.jpg"]);
        assert_eq!(notes, ["left out of it: links to folders that are read anyway: 3"]);
    }

    #[test]
    fn no_store_is_entered_unless_it_is_named() {
        let all = ["1.jpg", "runs/data/a.zarr/zarr.json", "runs/data/a.zarr/rows.parquet", "runs/samples/2.png"];
        let folder = folder_of(&[&all[..], &["old.zarr/.zgroup", "old.zarr/3.png", "f/_ddx/4.jpg"]].concat());
        let (found, notes) = images(&folder, &[]);
        assert_eq!(found, ["1.jpg", "runs/samples/2.png"]);
        assert_eq!(notes, ["left out of it: stores: 3"]);
        let (found, notes) = images(&folder, &["runs", "elsewhere"]);
        assert_eq!(found, ["1.jpg"]);
        assert_eq!(notes, ["left out of it: stores: 2, workspaces: 1"]);
        assert!(matches!(names(&folder, &["**/*.parquet"]), Err(Error::NoSuchFile(_))));
        assert!(matches!(names(&folder, &["runs/data/*"]), Err(Error::NoSuchFile(_))));
        let store = folder.path().join("runs/data/a.zarr").to_string_lossy().into_owned();
        assert!(matches!(discover(&[store], &[]), Err(Error::IsStore(_))));
        assert_eq!(names(&folder, &["runs/data/a.zarr/rows.parquet"]).unwrap().len(), 1);
    }
}
