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
}

impl Commit {
    /// Place of a part's record inside the store.
    #[must_use]
    pub fn path(part: u64) -> String {
        format!("{COMMIT_FOLDER}/{part}")
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
