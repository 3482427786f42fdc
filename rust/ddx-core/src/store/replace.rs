//! A part that is done gives way to a new one without a moment at which neither counts.
//!
//! The new files are written below `_ddx/next/<part>/`, then a record of them, and only then are they renamed into
//! place. Whoever opens the store next finishes what was recorded and throws away what was not.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::writer::write_json;
use super::{Commit, atomic};
use crate::error::{Error, Result};

const NEXT_FOLDER: &str = "_ddx/next";
const RECORD_EXTENSION: &str = "json";

/// Where a part's new files are written.
pub(super) fn folder(root: &Path, part: u64) -> PathBuf {
    root.join(NEXT_FOLDER).join(part.to_string())
}

/// The record that they are all there: the part's next commit record.
pub(super) fn record(root: &Path, part: u64) -> PathBuf {
    folder(root, part).with_extension(RECORD_EXTENSION)
}

/// Finishes every replacement that was recorded, also one that another process is finishing right now.
pub(super) fn finish_all(root: &Path) -> Result<()> {
    let next = root.join(NEXT_FOLDER);
    let entries = match fs::read_dir(&next) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&next, error)),
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|name| name == RECORD_EXTENSION) {
            finish(root, &path)?;
        }
    }
    Ok(())
}

/// Removes what an attempt left that was stopped before its record.
pub(super) fn clear(root: &Path, part: u64) -> Result<()> {
    let folder = folder(root, part);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::write(&folder, error)),
        _ => Ok(()),
    }
}

/// Puts the files of a record in place, then the record itself.
pub(super) fn finish(root: &Path, record: &Path) -> Result<()> {
    let text = match fs::read(record) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()), // another process was faster
        Err(error) => return Err(Error::io(record, error)),
    };
    let commit: Commit = serde_json::from_slice(&text)
        .map_err(|error| Error::Damaged { path: record.to_owned(), reason: error.to_string() })?;
    put_in_place(root, &commit)?;
    clear(root, commit.part)?;
    match fs::remove_file(record) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::write(record, error)),
        _ => {}
    }
    let _ = fs::remove_dir(root.join(NEXT_FOLDER)); // goes when nobody else's part is in it
    Ok(())
}

fn put_in_place(root: &Path, commit: &Commit) -> Result<()> {
    let from = folder(root, commit.part);
    for path in commit.files.keys() {
        let target = root.join(path);
        if let Some(parent) = target.parent() {
            atomic::create_folder(parent)?;
        }
        match fs::rename(from.join(path), &target) {
            // An earlier attempt has moved it already.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::write(&target, error)),
            _ => atomic::sync_folder(&target)?,
        }
    }
    let value = serde_json::to_value(commit).map_err(|error| Error::store(error.to_string(), None))?;
    write_json(&root.join(Commit::path(commit.part)), &value)
}
