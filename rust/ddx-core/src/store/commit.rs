//! The record that makes a part count.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Folder of the commit records inside a store.
pub const COMMIT_FOLDER: &str = "_ddx/commit";

/// Written last, and itself atomically: its part's files are all in place when it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Number of the part.
    pub part: u64,
    /// Its first row.
    pub first_row: u64,
    /// Its rows, failed ones included.
    pub rows: u64,
    /// Rows that have latents and text.
    pub ok: u64,
    /// Failed rows by reason.
    pub failed: BTreeMap<String, u64>,
    /// Digest of everything that shapes the bytes.
    pub fingerprint: String,
    /// Size in bytes of every file of the part, by its path inside the store.
    pub files: BTreeMap<String, u64>,
    /// crc32c of those files that do not check themselves, as shards do; records of old stores have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checksums: BTreeMap<String, u32>,
}

impl Commit {
    /// Place of a part's record inside the store.
    #[must_use]
    pub fn path(part: u64) -> String {
        format!("{COMMIT_FOLDER}/{part}")
    }

    /// Numbers of the parts among `0..num_parts` that have a record, ascending.
    #[must_use]
    pub fn recorded(store: &Path, num_parts: u64) -> Vec<u64> {
        let Ok(files) = fs::read_dir(store.join(COMMIT_FOLDER)) else { return Vec::new() };
        let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
        let mut parts: Vec<u64> = names
            .filter_map(|name| name.parse().ok().filter(|part: &u64| part.to_string() == name))
            .filter(|&part| part < num_parts && store.join(Self::path(part)).is_file())
            .collect();
        parts.sort_unstable();
        parts
    }

    /// The record of a part, if there is a readable one.
    #[must_use]
    pub fn read(store: &Path, part: u64) -> Option<Self> {
        let text = fs::read(store.join(Self::path(part))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether the part is done: the fingerprint is equal, and every file has its size.
    #[must_use]
    pub fn holds(&self, store: &Path, fingerprint: &str) -> bool {
        self.fingerprint == fingerprint
            && self.files.iter().all(|(path, &size)| fs::metadata(store.join(path)).is_ok_and(|it| it.len() == size))
    }
}
