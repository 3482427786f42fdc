//! One shard: the inner chunks that exist, each with its crc32c, then the index with its own.
//!
//! Zarr's `sharding_indexed` codec with `bytes` and `crc32c` inside and the index at the end. The index holds an
//! offset and a size for every inner chunk; both are 2^64 - 1 for a chunk that is absent.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Bytes that `crc32c` appends.
pub const CHECKSUM_BYTES: usize = 4;

/// Offset and size of a chunk that is not there.
pub const ABSENT: u64 = u64::MAX;

/// Writes a shard of `chunks_per_shard` chunks of which those numbered `ids` exist (None: the first ones), their
/// contents one after another in `data`.
///
/// # Errors
/// When the output refuses, or ids and data do not match.
pub fn write(
    out: &mut impl Write,
    chunks_per_shard: usize,
    chunk_bytes: usize,
    ids: Option<&[u32]>,
    data: &[u8],
) -> io::Result<()> {
    let num_chunks = data.len() / chunk_bytes;
    if !data.len().is_multiple_of(chunk_bytes)
        || num_chunks > chunks_per_shard
        || ids.is_some_and(|ids| ids.len() != num_chunks || ids.iter().any(|&id| id as usize >= chunks_per_shard))
    {
        return Err(io::Error::other(format!(
            "{} bytes in chunks of {chunk_bytes} do not match {:?} chunk numbers of {chunks_per_shard}",
            data.len(),
            ids.map(<[u32]>::len)
        )));
    }
    let mut index = vec![ABSENT; 2 * chunks_per_shard];
    let stored_bytes = (chunk_bytes + CHECKSUM_BYTES) as u64;
    for (position, chunk) in data.chunks_exact(chunk_bytes).enumerate() {
        out.write_all(chunk)?;
        out.write_all(&crc32c::crc32c(chunk).to_le_bytes())?;
        let id = ids.map_or(position, |ids| ids[position] as usize);
        index[2 * id] = position as u64 * stored_bytes;
        index[2 * id + 1] = stored_bytes;
    }
    let index: Vec<u8> = index.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    out.write_all(&index)?;
    out.write_all(&crc32c::crc32c(&index).to_le_bytes())
}

/// Reads the offset of every inner chunk of a shard, [`ABSENT`] for those that are not there.
///
/// # Errors
/// When the file is too short, its index fails its checksum, or a chunk lies outside or has another size.
pub fn read_index(file: &File, chunks_per_shard: usize, chunk_bytes: usize) -> io::Result<Vec<u64>> {
    let length = file.metadata()?.len();
    let index_bytes = 16 * chunks_per_shard;
    let Some(start) = length.checked_sub((index_bytes + CHECKSUM_BYTES) as u64) else {
        return Err(corrupt(format!("{length} bytes are too few for its index")));
    };
    let mut bytes = vec![0; index_bytes + CHECKSUM_BYTES];
    file.read_exact_at(&mut bytes, start)?;
    let index = checked(&bytes).ok_or_else(|| corrupt("its index fails its checksum".into()))?;
    let stored_bytes = (chunk_bytes + CHECKSUM_BYTES) as u64;
    index
        .chunks_exact(16)
        .map(|entry| {
            let (offset, size) = (little_endian(&entry[..8]), little_endian(&entry[8..]));
            let absent = offset == ABSENT && size == ABSENT;
            if absent || (size == stored_bytes && offset.checked_add(size).is_some_and(|end| end <= start)) {
                Ok(offset)
            } else {
                Err(corrupt(format!("a chunk of {size} bytes at {offset}, where {stored_bytes} bytes are expected")))
            }
        })
        .collect()
}

/// The contents of a stored chunk or index without the checksum at its end; None when it does not match.
#[must_use]
pub fn checked(stored: &[u8]) -> Option<&[u8]> {
    let (content, checksum) = stored.split_last_chunk::<CHECKSUM_BYTES>()?;
    (crc32c::crc32c(content).to_le_bytes() == *checksum).then_some(content)
}

/// The error of a file whose bytes are not what was written.
#[must_use]
pub fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(ids: Option<&[u32]>, data: &[u8]) -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        write(&mut File::create(&path).unwrap(), 4, 3, ids, data).unwrap();
        (folder, File::open(path).unwrap())
    }

    #[test]
    fn absent_chunks_take_no_room_but_their_index_entries() {
        let (_folder, file) = shard(Some(&[0, 3]), b"abcxyz");
        assert_eq!(file.metadata().unwrap().len(), 2 * 7 + 4 * 16 + 4);
        assert_eq!(read_index(&file, 4, 3).unwrap(), [0, ABSENT, ABSENT, 7]);
    }

    #[test]
    fn chunks_without_numbers_are_the_first() {
        let (_folder, file) = shard(None, b"abcxyz");
        assert_eq!(read_index(&file, 4, 3).unwrap(), [0, 7, ABSENT, ABSENT]);
        let mut stored = [0; 7];
        file.read_exact_at(&mut stored, 7).unwrap();
        assert_eq!(checked(&stored), Some(&b"xyz"[..]));
        stored[1] ^= 1;
        assert_eq!(checked(&stored), None);
    }

    #[test]
    fn a_shard_without_chunks_is_an_index() {
        let (_folder, file) = shard(None, b"");
        assert_eq!(read_index(&file, 4, 3).unwrap(), [ABSENT; 4]);
    }

    #[test]
    fn a_cut_file_is_corrupt() {
        let (folder, file) = shard(None, b"abcxyz");
        let length = file.metadata().unwrap().len();
        File::options().write(true).open(folder.path().join("shard")).unwrap().set_len(length - 1).unwrap();
        assert_eq!(read_index(&file, 4, 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn numbers_that_do_not_match_the_data_are_refused() {
        assert!(write(&mut Vec::new(), 4, 3, Some(&[0]), b"abcxyz").is_err());
        assert!(write(&mut Vec::new(), 4, 3, Some(&[0, 4]), b"abcxyz").is_err());
        assert!(write(&mut Vec::new(), 1, 3, None, b"abcxyz").is_err());
    }
}
