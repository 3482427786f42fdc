//! The head of a file: how many samples, where they begin, what they hash to.
//!
//! ```text
//! crc32 of the rest of the head: u32 | samples: u64 | crc32 of each: u32 … | where each begins: u64 … | samples …
//! ```
//!
//! Everything is little-endian; a sample ends where the next one begins, the last with the file.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bytes::{Buf, Bytes};

use crate::source::place::{Place, Reader};
use crate::{Error, Result};

/// Longer samples are not read.
const LONGEST_SAMPLE: u64 = 256 << 20;
const HEAD: u64 = 12;
const ENTRY: u64 = 12;

pub(super) struct Table {
    checksums: Vec<u32>,
    /// One more than there are samples.
    offsets: Vec<u64>,
    size: u64,
}

/// A sample cannot be read.
pub(super) enum Failure {
    /// It is damaged, for this reason; the next one may not be.
    Damaged(String),
    /// The file is not to be had.
    Unreachable(Error),
}

impl Table {
    pub fn read(place: &Place, reader: &mut Reader) -> Result<Self> {
        let path = &place.path;
        let size = reader.size().map_err(|error| Error::io(path, error))?;
        let refused = |reason: &str| Error::NotFfrecord { path: path.clone(), reason: reason.to_owned() };
        let mut head = read_at(path, reader, 0, HEAD.min(size))?;
        if head.len() < HEAD as usize {
            return Err(refused("it is too short"));
        }
        let mut hash = crc32fast::Hasher::new();
        let (checksum, count) = (head.get_u32_le(), head.clone());
        hash.update(&count);
        let num = head.get_u64_le();
        let Some(length) = num.checked_mul(ENTRY).filter(|length| *length <= size - HEAD) else {
            return Err(refused("it has no room for as many samples as it says"));
        };
        let mut table = read_at(path, reader, HEAD, length)?;
        hash.update(&table);
        if table.len() as u64 != length || hash.finalize() != checksum {
            return Err(refused("the checksum of its head does not match"));
        }
        let checksums = (0..num).map(|_| table.get_u32_le()).collect();
        let offsets: Vec<u64> = (0..num).map(|_| table.get_u64_le()).chain([size.max(HEAD + length)]).collect();
        // Of a file that is cut short the last samples are missing, and the end is before their beginning.
        let whole = offsets.partition_point(|offset| *offset <= size);
        if offsets[0] < HEAD + length || !offsets[..whole].is_sorted() {
            return Err(refused("its samples do not lie one after the other"));
        }
        Ok(Self { checksums, offsets, size })
    }

    pub fn num(&self) -> u64 {
        self.checksums.len() as u64
    }

    /// A sample that hashes to what it should.
    pub fn sample(&self, path: &Path, reader: &mut Reader, index: u64) -> std::result::Result<Bytes, Failure> {
        let damaged = |reason: &str| Failure::Damaged(format!("sample {index}: {reason}"));
        let at = index as usize;
        let (start, end) = (self.offsets[at], self.offsets[at + 1].min(self.size));
        let length = end.checked_sub(start).ok_or_else(|| damaged("the file is cut short"))?;
        if length > LONGEST_SAMPLE {
            return Err(damaged(&format!("it has more than {LONGEST_SAMPLE} bytes")));
        }
        let bytes = read_at(path, reader, start, length).map_err(Failure::Unreachable)?;
        if crc32fast::hash(&bytes) != self.checksums[at] {
            return Err(damaged("its checksum does not match"));
        }
        Ok(bytes)
    }
}

fn read_at(path: &Path, reader: &mut Reader, start: u64, length: u64) -> Result<Bytes> {
    let mut bytes = Vec::new();
    let read = reader.seek(SeekFrom::Start(start)).and_then(|_| reader.take(length).read_to_end(&mut bytes));
    read.map_err(|error| Error::io(path, error))?;
    Ok(bytes.into())
}
