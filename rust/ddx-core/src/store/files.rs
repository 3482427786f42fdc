//! Open files, never more than a bounded number of them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps the files used last open: a large store has more shards than a process may have descriptors.
#[derive(Debug)]
pub(super) struct FileCache<Key> {
    capacity: usize,
    entries: Mutex<Entries<Key>>,
}

#[derive(Debug)]
struct Entries<Key> {
    clock: u64,
    files: HashMap<Key, (Arc<File>, u64)>,
}

impl<Key: Copy + Eq + std::hash::Hash> FileCache<Key> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::new(Entries { clock: 0, files: HashMap::new() }) }
    }

    /// The open file of `key`, at `path()` if it has to be opened.
    pub(super) fn open<P: AsRef<Path>>(&self, key: Key, path: impl FnOnce() -> P) -> io::Result<Arc<File>> {
        {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.clock += 1;
            let now = entries.clock;
            if let Some((file, used)) = entries.files.get_mut(&key) {
                *used = now;
                return Ok(Arc::clone(file));
            }
        }
        let file = Arc::new(File::open(path())?); // not under the lock: a network file system takes its time
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.files.len() >= self.capacity {
            // Half at once, so that the search costs little per file.
            let mut times: Vec<u64> = entries.files.values().map(|&(_, used)| used).collect();
            times.sort_unstable();
            let median = times[times.len() / 2];
            entries.files.retain(|_, &mut (_, used)| used > median);
        }
        let now = entries.clock;
        entries.files.insert(key, (Arc::clone(&file), now));
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_open_files_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = FileCache::new(4);
        for key in 0..20 {
            let path = folder.path().join(key.to_string());
            std::fs::write(&path, b"x").unwrap();
            cache.open(key, || path).unwrap();
            assert!(cache.entries.lock().unwrap().files.len() <= 4);
        }
        cache.open(19, || "not opened again").unwrap();
        assert!(cache.open(0, || "not there").is_err());
    }
}
