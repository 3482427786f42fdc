//! A small store, as the tests of reading and of damage take it.

use std::collections::BTreeMap;
use std::path::Path;

use ddx_core::store::{ArraySpec, DataType, LATENTS, LENGTH, OFFSET, POOLED, Part, ShardData, StoreWriter, TOKENS};
use serde_json::{Map, json};

const ROWS: u64 = 10;
const PART_ROWS: u64 = 4;
const CAPACITY: u64 = PART_ROWS * 8;

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

/// Ten rows in three parts; row 5 failed; row r has r % 7 + 1 tokens, whose bytes are all r, as are its latents'.
pub fn write_store(root: &Path) {
    let arrays = vec![
        array(LATENTS, &[ROWS, 2, 3], PART_ROWS, 1, DataType::Float16),
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
        let filled = |bytes: usize| rows.iter().flat_map(|&row| vec![row as u8; bytes]).collect::<Vec<u8>>();
        let shards = [
            ShardData { array: LATENTS, ids: Some(&ids), data: &filled(12) },
            ShardData { array: TOKENS, ids: None, data: &tokens },
            ShardData { array: OFFSET, ids: None, data: &offsets.map(i64::to_le_bytes).concat() },
            ShardData { array: LENGTH, ids: None, data: &lengths.map(i32::to_le_bytes).concat() },
            ShardData { array: POOLED, ids: Some(&ids), data: &filled(6) },
        ];
        let part = Part { part, first_row, rows: 4, ok: rows.len() as u64, failed: &BTreeMap::new() };
        writer.write_part(part, &shards, &[]).unwrap();
    }
}
