//! Files that appear whole or not at all, whenever the process or the machine stops.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file through a temporary one in the same folder: data to disk, rename, then the folder's entry to disk.
///
/// The temporary name is fixed by the file's, so that what a killed writer left is overwritten by the next one.
/// Returns the size in bytes.
///
/// # Errors
/// When the disk refuses; the temporary file is removed, and an older file of that name is untouched.
pub fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<u64> {
    let temporary = temporary_path(path);
    let size = write_temporary(&temporary, fill).and_then(|size| fs::rename(&temporary, path).map(|()| size)).map_err(
        |source| {
            // Best effort: the disk may be full or gone, and the first error is the one to report.
            let _ = fs::remove_file(&temporary);
            Error::write(path, source)
        },
    )?;
    sync_folder(path)?;
    Ok(size)
}

/// Gives a file a second name, or copies it where the file system does not allow that. Returns the size in bytes.
///
/// # Errors
/// When the source cannot be read or the disk refuses.
pub fn link(source: &Path, path: &Path) -> Result<u64> {
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
    }
    let temporary = temporary_path(path);
    let _ = fs::remove_file(&temporary); // of a killed writer
    if fs::hard_link(source, &temporary).is_err() {
        return copy(source, path);
    }
    fs::rename(&temporary, path).map_err(|error| Error::write(path, error))?;
    let _ = fs::remove_file(&temporary); // renaming one name of a file to another one does nothing
    sync_folder(path)?;
    fs::metadata(path).map(|file| file.len()).map_err(|error| Error::io(path, error))
}

/// Copies a file. Returns the size in bytes.
///
/// # Errors
/// When the source cannot be read or the disk refuses.
pub fn copy(source: &Path, path: &Path) -> Result<u64> {
    let mut file = File::open(source).map_err(|error| Error::io(source, error))?;
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
    }
    write(path, |out| io::copy(&mut file, out).map(|_| ()))
}

/// Creates a folder and its parents, each made durable in its parent.
///
/// # Errors
/// When the disk refuses.
pub fn create_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::write(path, source)),
        _ => sync_folder(path),
    }
}

fn write_temporary(temporary: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
    fill(&mut out)?;
    out.flush()?;
    out.get_ref().sync_data()?;
    Ok(out.get_ref().metadata()?.len())
}

fn temporary_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// A rename is durable once its folder is.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(|source| Error::write(parent, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        write(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write(&path, |out| {
            out.write_all(b"half of the ne")?;
            Err(io::Error::from_raw_os_error(28))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_leavings_of_a_killed_writer_are_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        fs::write(temporary_path(&path), b"much longer than what comes").unwrap();
        assert_eq!(write(&path, |out| out.write_all(b"new")).unwrap(), 3);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
