//! Chunks that have been read before, from the page cache without a system call.
//!
//! A chunk is read from its file at first, so that a failing disk and a damaged byte are errors, and from a map of the
//! shard from then on, which takes half as long. Reading a map of a file that has been cut short ends the process with
//! a signal; shards never are: they are written whole, and replaced by renaming another file over them, which leaves
//! the map what it was. A store that memory does not hold is not mapped: its chunks leave the page cache again, and a
//! page fault fetches what a single read fetches in several pieces, with neighbours that nobody asked for.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memmap2::Mmap;

use super::shard::ABSENT;

/// Where a chunk starts in its shard, and whether this process has read it.
#[derive(Debug)]
pub(super) struct Place(AtomicU64);

/// Marks a start; no file is that long.
const READ: u64 = 1 << 63;

impl Place {
    pub(super) fn new(start: u64) -> Self {
        Self(AtomicU64::new(start & !READ))
    }

    pub(super) fn start(&self) -> u64 {
        self.0.load(Relaxed) & !READ
    }

    pub(super) fn is_there(&self) -> bool {
        self.start() != ABSENT & !READ
    }

    pub(super) fn was_read(&self) -> bool {
        self.0.load(Relaxed) & READ != 0
    }

    /// Notes that the chunk was read, and is what was written.
    pub(super) fn set_read(&self) {
        self.0.fetch_or(READ, Relaxed);
    }
}

/// The places of one shard, and its map if it has one.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) of: Vec<Place>,
    map: Option<Mmap>,
}

impl Places {
    /// Without a map where the file system has none, or the process has all that it may have.
    pub(super) fn new(starts: impl IntoIterator<Item = u64>, file: Option<&File>) -> Self {
        // SAFETY: the bytes are those of a file that nobody writes to (see above), and are only ever read.
        let map = file.and_then(|file| unsafe { Mmap::map(file) }.ok());
        Self { of: starts.into_iter().map(Place::new).collect(), map }
    }

    /// The bytes from the start of a place, if it has been read and there is a map.
    pub(super) fn mapped(&self, place: &Place, bytes: usize) -> Option<&[u8]> {
        let map = self.map.as_ref().filter(|_| place.was_read())?;
        map.get(place.start() as usize..)?.get(..bytes)
    }
}

/// Whether the page cache can be expected to keep so many bytes: half of the machine's memory.
pub(super) fn stays_cached(bytes: u64) -> bool {
    // SAFETY: asks for two numbers.
    let [pages, page] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    // An unknown number is -1.
    bytes <= (pages.max(0) as u64).saturating_mul(page.max(0) as u64) / 2
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_read_is_mapped_and_stays_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let [path, next] = ["shard", "next"].map(|name| folder.path().join(name));
        fs::write(&path, b"abcdefg").unwrap();
        let places = Places::new([3, 5, ABSENT], Some(&File::open(&path).unwrap()));
        assert_eq!(places.mapped(&places.of[0], 2), None);
        places.of[0].set_read();
        assert_eq!(places.mapped(&places.of[0], 2), Some(&b"de"[..]));
        assert_eq!((places.of[0].start(), places.of[1].was_read()), (3, false));
        assert_eq!(places.mapped(&places.of[0], 5), None, "behind the end");
        assert_eq!([0, 1, 2].map(|number: usize| places.of[number].is_there()), [true, true, false]);
        fs::write(&next, b"x").unwrap();
        fs::rename(next, path).unwrap();
        assert_eq!(places.mapped(&places.of[0], 2), Some(&b"de"[..]));
    }

    #[test]
    fn without_a_map_everything_is_read_from_the_file() {
        let places = Places::new([0], None);
        places.of[0].set_read();
        assert_eq!(places.mapped(&places.of[0], 1), None);
        assert!(stays_cached(1) && !stays_cached(u64::MAX));
    }
}
