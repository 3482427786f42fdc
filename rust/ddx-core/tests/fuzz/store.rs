//! Stores: metadata, records, small arrays, shards.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use ddx_core::store::{
    ArraySpec, BatchReader, Commit, DataType, LATENTS, LENGTH, OFFSET, POOLED, Part, ReaderOptions, RowArray,
    ShardData, StoreWriter, TOKENS, shard,
};
use serde_json::{Map, json};

use crate::harness::Target;
use crate::mutate::Random;

const ROWS: u64 = 10;
const PART_ROWS: u64 = 4;
const CAPACITY: u64 = PART_ROWS * 8;
const MAX_MIB: usize = 64;

fn array(path: &str, shape: &[u64], shard_rows: u64, chunk_rows: u64, data_type: DataType) -> ArraySpec {
    ArraySpec {
        path: path.into(),
        shape: shape.to_vec(),
        shard_rows,
        chunk_rows,
        data_type,
        fill_value: json!(0),
        dimension_names: shape.iter().map(|extent| format!("of_{extent}")).collect(),
        attributes: Map::new(),
    }
}

/// Ten rows in three parts; row 5 failed; row r has r % 7 + 1 tokens.
fn write_store(root: &Path) {
    let arrays = vec![
        array(LATENTS, &[ROWS, 2, 7], PART_ROWS, 1, DataType::Float16),
        array(TOKENS, &[3 * CAPACITY, 5], CAPACITY, 4, DataType::Float16),
        array(OFFSET, &[ROWS], PART_ROWS, PART_ROWS, DataType::Int64),
        array(LENGTH, &[ROWS], PART_ROWS, PART_ROWS, DataType::Int32),
        array(POOLED, &[ROWS, 3], PART_ROWS, 1, DataType::Float16),
    ];
    let writer = StoreWriter::create(root, arrays, &Map::new(), "print", &[]).unwrap();
    for part in 0..3 {
        let first_row = part * PART_ROWS;
        let rows: Vec<u64> = (first_row..ROWS.min(first_row + PART_ROWS)).filter(|&row| row != 5).collect();
        let ids: Vec<u32> = rows.iter().map(|row| (row - first_row) as u32).collect();
        let (mut offsets, mut lengths, mut tokens) = ([-1_i64; 4], [0_i32; 4], Vec::new());
        for (&row, &id) in rows.iter().zip(&ids) {
            let count = row as usize % 7 + 1;
            offsets[id as usize] = (part * CAPACITY) as i64 + (tokens.len() / 10) as i64;
            lengths[id as usize] = count as i32;
            tokens.resize((tokens.len() + count * 10).next_multiple_of(40), row as u8);
        }
        let shards = [
            ShardData { array: LATENTS, ids: Some(&ids), data: &vec![1; 28 * rows.len()] },
            ShardData { array: TOKENS, ids: None, data: &tokens },
            ShardData { array: OFFSET, ids: None, data: &offsets.map(i64::to_le_bytes).concat() },
            ShardData { array: LENGTH, ids: None, data: &lengths.map(i32::to_le_bytes).concat() },
            ShardData { array: POOLED, ids: Some(&ids), data: &vec![2; 6 * rows.len()] },
        ];
        let part = Part { part, first_row, rows: 4, ok: rows.len() as u64, failed: &BTreeMap::new() };
        writer.write_part(part, &shards, &[]).unwrap();
    }
}

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
            Ok(batch) => assert_eq!(batch.latents.len(), 6 * reader.store().row_bytes(RowArray::Latents).unwrap()),
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
