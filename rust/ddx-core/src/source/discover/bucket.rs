//! The same in a store of objects, which has names with slashes but no folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use sha2::{Digest, Sha256};

use super::left_out::LeftOut;
use super::walk::is_of_zarr;
use super::{Contents, FileKind, Found, braces, contents, file_kind, is_input};
use crate::image::EXTENSIONS;
use crate::objects::{Listing, Object, list};
use crate::source::place::Place;
use crate::{Error, Result};

const WILD: [char; 3] = ['*', '?', '['];

/// What one name means: an object, a pattern, or a folder. Names with the signs of a pattern are always one.
pub(super) fn discover(source: &str, notes: &mut Vec<String>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for name in braces(source) {
        found.append(&mut if name.contains(WILD) { matching(&name, notes)? } else { named(&name, notes)? });
    }
    Ok(found)
}

fn named(name: &str, notes: &mut Vec<String>) -> Result<Vec<Found>> {
    let path = Path::new(name);
    if !name.ends_with('/')
        && let Some(object) = Object::find(path).map_err(|error| Error::object(path, error))?
    {
        return Ok(vec![file(object)?]);
    }
    let listing = listed(path, true)?;
    if listing.objects.is_empty() {
        return Err(Error::NoSuchFile(name.to_owned()));
    }
    in_folder(path, listing.objects, notes)
}

fn file(object: Object) -> Result<Found> {
    let kind = file_kind(&object.path).ok_or_else(|| Error::UnknownKind(object.path.clone()))?;
    let identity = Some(object.identity());
    Ok(Found { place: Place::object(object), kind, identity, listing: None })
}

fn matching(name: &str, notes: &mut Vec<String>) -> Result<Vec<Found>> {
    let no_such = || Error::NoSuchFile(name.to_owned());
    let pattern = Pattern::new(name.trim_end_matches('/')).map_err(|_| no_such())?;
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
    let matches = |path: &Path| path.to_str().is_some_and(|path| pattern.matches_with(path, options));
    let wild = name.find(WILD).unwrap_or(name.len());
    let folder = Path::new(&name[..name[..wild].rfind('/').map_or(0, |slash| slash + 1)]);
    // Only the last part is usually wild: then one level is listed, and not all that is below.
    let deep = name[wild..].trim_end_matches('/').contains('/');
    let Listing { mut objects, mut folders } = listed(folder, deep)?;
    let mut found = Vec::new();
    outside_stores(folder, &mut objects);
    for object in &objects {
        if matches(&object.path) && file_kind(&object.path).is_some() {
            found.push(file(object.clone())?);
        }
        folders.extend(object.path.ancestors().skip(1).filter(|above| matches(above)).map(Path::to_owned));
    }
    folders.retain(|folder| matches(folder));
    folders.sort();
    folders.dedup();
    for folder in folders {
        found.append(&mut in_folder(&folder, listed(&folder, true)?.objects, notes)?);
    }
    found.sort_by(|a, b| a.place.path.cmp(&b.place.path));
    if found.is_empty() { Err(no_such()) } else { Ok(found) }
}

fn listed(folder: &Path, deep: bool) -> Result<Listing> {
    list(folder, deep).map_err(|error| Error::object(folder, error))
}

fn in_folder(folder: &Path, mut objects: Vec<Object>, notes: &mut Vec<String>) -> Result<Vec<Found>> {
    let mut left_out = LeftOut::default();
    for store in outside_stores(folder, &mut objects) {
        if store == folder {
            return Err(Error::IsStore(store));
        }
        left_out.add("stores", None);
    }
    let starts_with_dot = |part: &OsStr| part.to_string_lossy().starts_with('.');
    objects.retain(|object| {
        let path = object.path.strip_prefix(folder).unwrap_or(&object.path);
        let is_table = file_kind(path).is_some();
        let is_hidden = path.iter().any(starts_with_dot) || (is_table && !is_input(path));
        if is_hidden && (is_table || super::has_extension(path, &EXTENSIONS)) {
            left_out.add("hidden files", None);
        }
        !is_hidden
    });
    let paths: Vec<PathBuf> = objects.iter().map(|object| object.path.clone()).collect();
    match contents(folder, paths, left_out, notes)? {
        Contents::Files(files) => {
            let is_taken = |object: &Object| files.binary_search_by(|(path, _)| path.cmp(&object.path)).is_ok();
            objects.into_iter().filter(is_taken).map(file).collect()
        }
        Contents::Images(images) => {
            let kind = FileKind::ImageFolder(images);
            let identity = Some(digest(folder, &objects));
            Ok(vec![Found { place: Place::new(folder), kind, identity, listing: None }])
        }
    }
}

/// Leaves out what lies in stores, and returns these; the folder itself if it is one.
fn outside_stores(folder: &Path, objects: &mut Vec<Object>) -> BTreeSet<PathBuf> {
    let mut stores = BTreeSet::new();
    for object in objects.iter() {
        let within = object.path.strip_prefix(folder).unwrap_or(&object.path);
        let parts: Vec<&OsStr> = within.iter().collect();
        if let Some(depth) = parts.iter().position(|part| is_of_zarr(&part.to_string_lossy())) {
            stores.insert(parts[..depth].iter().fold(folder.to_owned(), |path, part| path.join(part)));
        }
    }
    objects.retain(|object| !object.path.ancestors().skip(1).any(|above| stores.contains(above)));
    // What lies in a store's own groups is no store more.
    let inner = |store: &PathBuf| store.ancestors().skip(1).any(|above| stores.contains(above));
    stores.iter().filter(|store| !inner(store)).cloned().collect()
}

/// A hash of the names and contents of all that lies in a folder, captions too.
fn digest(folder: &Path, objects: &[Object]) -> String {
    let mut total = Sha256::new();
    for object in objects {
        let name = object.path.strip_prefix(folder).unwrap_or(&object.path);
        total.update(format!("{}:{};", name.display(), object.identity()));
    }
    total.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &tempfile::TempDir, source: &str) -> Result<Vec<String>> {
        let root = format!("file://{}/", folder.path().display());
        let name = |found: &Found| found.place.path.display().to_string().replace(&root, "");
        Ok(discover(&format!("{root}{source}"), &mut Vec::new())?.iter().map(name).collect())
    }

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        folder
    }

    #[test]
    fn objects_patterns_and_folders_are_found_as_on_a_disk() {
        let all = ["2.parquet", "1.PARQUET", "b/0.pq", "_meta.parquet", ".x/3.parquet", "notes.txt", "b/c/4.tar"];
        let folder = folder_of(&all);
        assert_eq!(names(&folder, "2.parquet").unwrap(), ["2.parquet"]);
        assert_eq!(names(&folder, "?.*").unwrap(), ["1.PARQUET", "2.parquet"]);
        assert_eq!(names(&folder, "b/").unwrap(), ["b/c/4.tar"]);
        assert_eq!(names(&folder, "b/*").unwrap(), ["b/0.pq", "b/c/4.tar"]);
        assert_eq!(names(&folder, "*/*.pq").unwrap(), ["b/0.pq"]);
        assert_eq!(names(&folder, "{2..2}.parquet").unwrap(), ["2.parquet"]);
        for missing in ["none.parquet", "none/", "*.csv", "{1..2}.tar"] {
            assert!(matches!(names(&folder, missing), Err(Error::NoSuchFile(_))), "{missing}");
        }
        assert!(matches!(names(&folder, "notes.txt"), Err(Error::UnknownKind(_))));
    }

    #[test]
    fn no_store_in_a_bucket_is_entered() {
        let all =
            ["1.jpg", "_2.jpg", "a.zarr/zarr.json", "a.zarr/rows.parquet", "a.zarr/text/zarr.json", "b/_ddx/3.parquet"];
        let folder = folder_of(&all);
        let mut notes = Vec::new();
        let found = discover(&format!("file://{}/", folder.path().display()), &mut notes).unwrap();
        let FileKind::ImageFolder(images) = &found[0].kind else { panic!("{found:?}") };
        assert_eq!(images.len(), 2);
        assert!(notes[0].ends_with(": stores: 2"), "{notes:?}");
        assert!(matches!(names(&folder, "*/*.parquet"), Err(Error::NoSuchFile(_))));
        assert!(matches!(names(&folder, "a.zarr"), Err(Error::IsStore(_))));
        assert_eq!(names(&folder, "a.zarr/rows.parquet").unwrap(), ["a.zarr/rows.parquet"]);
    }

    #[test]
    fn a_folder_of_images_is_known_by_names_and_contents() {
        let folder = folder_of(&["i/1.png", "i/1.txt", "i/.hidden/2.png", "i/deep/3.jpg"]);
        let identity = || {
            let found = discover(&format!("file://{}/i", folder.path().display()), &mut Vec::new()).unwrap();
            let FileKind::ImageFolder(images) = &found[0].kind else { panic!("{found:?}") };
            assert_eq!(images.len(), 2);
            found[0].identity.clone().unwrap()
        };
        let before = identity();
        assert_eq!(before, identity());
        std::fs::write(folder.path().join("i/1.txt"), "another caption").unwrap();
        assert_ne!(before, identity());
    }
}
