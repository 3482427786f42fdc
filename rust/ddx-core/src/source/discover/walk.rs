//! All that lies in a folder on a disk, but for what is no input: stores, and what links lead to a second time.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use super::left_out::LeftOut;
use super::{file_kind, is_input};
use crate::image::EXTENSIONS;
use crate::{Error, Result};

/// What only the root of a Zarr group or array has, or a store of which only the pictures are fetched.
const OF_ZARR: [&str; 5] = ["zarr.json", ".zgroup", ".zarray", ".zmetadata", "_ddx"];

/// Whether an entry of a folder tells that it is a store.
pub(super) fn is_of_zarr(name: &str) -> bool {
    OF_ZARR.contains(&name)
}

/// Whether a folder is a store, or another group or array of Zarr.
pub(super) fn is_zarr(folder: &Path) -> bool {
    OF_ZARR.iter().any(|name| folder.join(name).exists())
}

/// What was found below a folder, in the order of paths.
#[derive(Default)]
pub(super) struct Walk {
    pub files: Vec<PathBuf>,
    pub left_out: LeftOut,
    /// Every file, also one that is hidden, and its size.
    all: BTreeMap<PathBuf, u64>,
    visited: HashSet<PathBuf>,
    links: Vec<PathBuf>,
}

impl Walk {
    /// Walks through a folder and those in it. Links to folders are followed, once what is there without them is seen.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn through(folder: &Path, apart: &[PathBuf]) -> Result<Self> {
        let mut walk = Self::default();
        walk.visited.extend(apart.iter().filter_map(|path| path.canonicalize().ok()));
        let root = folder.canonicalize().map_err(|error| Error::io(folder, error))?;
        walk.visited.retain(|apart| !root.starts_with(apart));
        let apart = walk.visited.clone();
        walk.enter(folder, root)?;
        while !walk.links.is_empty() {
            walk.links.sort();
            for link in std::mem::take(&mut walk.links) {
                match link.canonicalize() {
                    Ok(target) if walk.visited.contains(&target) && !apart.contains(&target) => {
                        walk.left_out.add("links to folders that are read anyway", None);
                    }
                    Ok(target) => walk.folder(&link, target)?,
                    Err(error) => return Err(Error::io(&link, error)),
                }
            }
        }
        walk.files.sort();
        Ok(walk)
    }

    /// What tells the contents of the folder from others: names and sizes.
    pub fn listing(&self, folder: &Path) -> String {
        self.all.iter().fold(String::new(), |mut text, (path, size)| {
            let _ = write!(text, "{}:{size};", path.strip_prefix(folder).unwrap_or(path).display());
            text
        })
    }

    /// A folder within another.
    fn folder(&mut self, path: &Path, target: PathBuf) -> Result<()> {
        if is_zarr(path) {
            self.left_out.add("stores", None);
            return Ok(());
        }
        if self.visited.contains(&target) {
            self.left_out.add("workspaces", None);
            return Ok(());
        }
        self.enter(path, target)
    }

    fn enter(&mut self, folder: &Path, target: PathBuf) -> Result<()> {
        self.visited.insert(target);
        let failed = |error| Error::io(folder, error);
        let mut entries: Vec<DirEntry> =
            std::fs::read_dir(folder).map_err(failed)?.collect::<std::io::Result<_>>().map_err(failed)?;
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if kind.is_dir() && is_hidden {
                self.left_out.add("hidden folders", None);
            } else if kind.is_dir() {
                let target = path.canonicalize().map_err(|error| Error::io(&path, error))?;
                self.folder(&path, target)?;
            } else if kind.is_symlink() && path.is_dir() {
                self.links.push(path);
            } else {
                self.file(path, is_hidden);
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, is_hidden: bool) {
        if let Ok(found) = path.metadata()
            && found.is_file()
        {
            self.all.insert(path.clone(), found.len());
        }
        if is_hidden || (file_kind(&path).is_some() && !is_input(&path)) {
            if file_kind(&path).is_some() || super::has_extension(&path, &EXTENSIONS) {
                self.left_out.add("hidden files", None);
            }
        } else {
            self.files.push(path);
        }
    }
}
