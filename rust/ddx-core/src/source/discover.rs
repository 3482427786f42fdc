//! Files, patterns and folders to a list of parquet files.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The parquet files that `sources` name: each a file, a pattern, or a folder (searched recursively); the files of one
/// pattern or folder are sorted by path, so that the order of rows is the same on every machine.
///
/// # Errors
/// If a name matches nothing.
pub fn parquet_files(sources: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in sources {
        let path = Path::new(source);
        if path.is_file() {
            files.push(path.to_owned());
        } else if path.is_dir() {
            let mut found = Vec::new();
            collect_folder(path, &mut found)?;
            if found.is_empty() {
                return Err(Error::NoParquet(source.clone()));
            }
            found.sort();
            files.append(&mut found);
        } else {
            files.append(&mut expand_pattern(source)?);
        }
    }
    if files.is_empty() {
        return Err(Error::NoParquet("an empty list of sources".to_owned()));
    }
    Ok(files)
}

fn collect_folder(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        let path = entry.path();
        // A link to a folder is not followed: it may lead back up.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_folder(&path, found)?;
        } else if is_parquet(&path) {
            found.push(path);
        }
    }
    Ok(())
}

fn is_parquet(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']));
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    !hidden && matches!(extension.as_deref(), Some("parquet" | "parq" | "pq"))
}

fn expand_pattern(pattern: &str) -> Result<Vec<PathBuf>> {
    if !pattern.contains(['*', '?', '[']) {
        return Err(Error::NoSuchFile(pattern.to_owned()));
    }
    let matches = glob::glob(pattern).map_err(|_| Error::NoSuchFile(pattern.to_owned()))?;
    let mut files: Vec<PathBuf> = matches.filter_map(std::result::Result::ok).filter(|path| path.is_file()).collect();
    if files.is_empty() {
        return Err(Error::NoSuchFile(pattern.to_owned()));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_patterns_and_files_are_sorted_and_hidden_files_skipped() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for name in ["2.parquet", "1.PARQUET", "b/0.pq", "_metadata.parquet", "notes.txt"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let root = folder.path().to_string_lossy().into_owned();
        let names = |sources: &[String]| -> Vec<String> {
            let files = parquet_files(sources).unwrap();
            files.iter().map(|path| path.strip_prefix(&root).unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(std::slice::from_ref(&root)), ["1.PARQUET", "2.parquet", "b/0.pq"]);
        assert_eq!(
            names(&[format!("{root}/2.parquet"), format!("{root}/?.*")]),
            ["2.parquet", "1.PARQUET", "2.parquet"]
        );
        let missing = parquet_files(&[format!("{root}/nothing.parquet")]).unwrap_err();
        assert!(missing.to_string().contains("nothing.parquet"), "{missing}");
    }
}
