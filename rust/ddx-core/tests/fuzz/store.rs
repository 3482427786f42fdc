//! Stores: metadata, records, small arrays, shards.

use std::fs::File;
use std::path::Path;

use ddx_core::store::{
    BatchReader, Commit, LATENTS, LENGTH, OFFSET, POOLED, ReaderOptions, RowArray, StoreWriter, TOKENS, shard,
};

use crate::harness::Target;
use crate::made::write_store;
use crate::mutate::Random;

const MAX_MIB: usize = 64;

fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec!["zarr.json".to_owned()];
    names.extend((0..3).map(Commit::path));
    for array in [LATENTS, TOKENS, OFFSET, LENGTH, POOLED] {
        let axes = std::fs::read_dir(root.join(array)).unwrap();
        let shards = axes.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.extend(shards.filter(|name| name.starts_with("c.")).map(|name| format!("{array}/{name}")));
    }
    names.sort();
    // The metadata say most: half of the damage is theirs.
    names.extend(std::iter::repeat_n("zarr.json".to_owned(), 15));
    names.into_iter().map(|name| (name.clone(), std::fs::read(root.join(name)).unwrap())).collect()
}

/// The checksums of the index and, where the shard is one chunk, of that.
fn repair(name: &str, bytes: &mut [u8]) {
    let (chunks, whole) = match name.split("/c.").next() {
        Some(TOKENS) => (8, false),
        Some(LATENTS | POOLED) => (4, false),
        Some(OFFSET | LENGTH) => (1, true),
        _ => return,
    };
    let Some(index) = bytes.len().checked_sub(16 * chunks + 4) else { return };
    let seal = |bytes: &mut [u8]| {
        if let Some((content, checksum)) = bytes.split_last_chunk_mut::<4>() {
            *checksum = crc32c::crc32c(content).to_le_bytes();
        }
    };
    seal(&mut bytes[index..]);
    if whole {
        seal(&mut bytes[..index]);
    }
}

fn read(root: &Path, random: &mut Random) -> Result<(), String> {
    let said = |error: ddx_core::Error| error.to_string().replace(root.to_str().unwrap(), "");
    let writer = StoreWriter::open(root, "print").map_err(said)?;
    let committed = writer.committed(0..3);
    let verify = random.below(2) == 0;
    let mut ended = if committed.len() == 3 { Ok(()) } else { Err("a part does not count".to_owned()) };
    let options =
        ReaderOptions { batch_size: 6, seed: 3, position: 0, rank: 0, world: 1, prefetch: 2, threads: 2, verify };
    let mut reader = BatchReader::open(root, &options).map_err(said)?;
    for _ in 0..4 {
        match reader.next_batch() {
            Ok(batch) => {
                let bytes = reader.store().row_bytes(batch.bucket, RowArray::Latents).unwrap();
                assert_eq!(batch.latents.len(), 6 * bytes);
            }
            Err(error) => {
                let error = said(error);
                assert!(!error.contains("the reader stopped"), "a thread died: {error}");
                ended = Err(error);
                break;
            }
        }
    }
    ended
}

#[test]
fn store() {
    let folder = tempfile::tempdir().unwrap();
    write_store(folder.path());
    let words: [&[u8]; 5] = [b"18446744073709551615", b"\"float16\"", b"\"int64\"", b"null", b", 4294967296"];
    let target = Target { name: "store", files: files(folder.path()), words: &words, repair, max_mib: MAX_MIB };
    target.fuzz(|path, random| {
        // The folder of the store is the one that holds the metadata of its root.
        let root = path.ancestors().find(|folder| folder.join("_ddx").is_dir()).unwrap();
        read(root, random)
    });
}

#[test]
fn shard_index() {
    let mut bytes = Vec::new();
    shard::write(&mut bytes, 4, 3, Some(&[0, 3]), b"abcxyz").unwrap();
    let files = vec![("latents/c.0.0.0".to_owned(), bytes)];
    let target = Target { name: "shard_index", files, words: &[], repair, max_mib: MAX_MIB };
    target.fuzz(|path, _| {
        let file = File::open(path).unwrap();
        let offsets = shard::read_index(&file, 4, 3).map_err(|error| error.to_string())?;
        let length = file.metadata().unwrap().len();
        assert!(offsets.iter().all(|&offset| offset == shard::ABSENT || offset + 7 <= length));
        Ok(())
    });
}
