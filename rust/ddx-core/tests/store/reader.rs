//! Random batches of a store.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ddx_core::store::{Batch, BatchReader, ReaderOptions, RowArray, RowStore};

use crate::made::write_store;

fn options() -> ReaderOptions {
    ReaderOptions { batch_size: 6, seed: 3, position: 0, rank: 0, world: 1, prefetch: 2, threads: 2, verify: true }
}

fn read(root: &Path, options: &ReaderOptions, batches: usize) -> Vec<Batch> {
    let mut reader = BatchReader::open(root, options).unwrap();
    (0..batches).map(|_| reader.next_batch().unwrap()).collect()
}

#[test]
fn every_sample_is_its_rows_and_every_epoch_holds_each_ok_row_once() {
    let folder = tempfile::tempdir().unwrap();
    write_store(folder.path());
    let batches = read(folder.path(), &options(), 6); // 36 samples: four epochs of nine
    let mut seen = Vec::new();
    for batch in &batches {
        assert_eq!(batch.length as i32, *batch.lengths.iter().max().unwrap());
        for (sample, &row) in batch.rows.iter().enumerate() {
            let count = row as usize % 7 + 1;
            assert_eq!(batch.lengths[sample] as usize, count);
            assert_eq!(batch.latents[sample * 12..][..12], [row as u8; 12]);
            assert_eq!(batch.pooled.as_ref().unwrap()[sample * 6..][..6], [row as u8; 6]);
            let tokens = &batch.tokens[sample * batch.length * 10..][..batch.length * 10];
            assert!(tokens[..count * 10].iter().all(|&byte| byte == row as u8));
            assert!(tokens[count * 10..].iter().all(|&byte| byte == 0));
        }
        seen.extend(&batch.rows);
    }
    for epoch in seen.chunks(9) {
        assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), 9);
        assert!(!epoch.contains(&5));
    }
    assert_ne!(seen[..9], seen[9..18]);
}

#[test]
fn the_order_depends_on_neither_threads_nor_start_nor_ranks() {
    let folder = tempfile::tempdir().unwrap();
    write_store(folder.path());
    let expected = read(folder.path(), &options(), 5);
    let options = options();
    assert_eq!(read(folder.path(), &ReaderOptions { threads: 5, prefetch: 9, ..options.clone() }, 5), expected);
    let later = ReaderOptions { position: 3, verify: false, ..options.clone() };
    assert_eq!(read(folder.path(), &later, 2), expected[3..]);
    let halves = [0, 1].map(|rank| read(folder.path(), &ReaderOptions { rank, world: 2, ..options.clone() }, 5));
    for (position, whole) in expected.iter().enumerate() {
        let [first, second] = [&halves[0][position], &halves[1][position]];
        assert_eq!([first.rows.clone(), second.rows.clone()].concat(), whole.rows);
        assert_eq!([first.tokens.clone(), second.tokens.clone()].concat(), whole.tokens);
        assert_eq!([first.latents.clone(), second.latents.clone()].concat(), whole.latents);
    }
    assert!(BatchReader::open(folder.path(), &ReaderOptions { world: 4, ..options }).is_err());
}

#[test]
fn a_flipped_bit_is_an_error_that_names_the_shard() {
    let folder = tempfile::tempdir().unwrap();
    write_store(folder.path());
    let path = folder.path().join("latents/c.1.0.0");
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut reader = BatchReader::open(folder.path(), &options()).unwrap();
    let error = (0..4).find_map(|_| reader.next_batch().err()).unwrap();
    assert!(error.to_string().contains("latents/c.1.0.0 is damaged"), "{error}");
    assert!(reader.store().num_ok() == 9);
    // Without checksums the bit passes: this is what they are for.
    read(folder.path(), &ReaderOptions { verify: false, ..options() }, 4);
}

#[test]
fn a_chunk_is_checked_once() {
    let folder = tempfile::tempdir().unwrap();
    write_store(folder.path());
    let store = RowStore::open(folder.path(), true).unwrap();
    let latents = |row| {
        let mut out = Vec::new();
        store.read_row(RowArray::Latents, row, &mut out, &mut Vec::new()).map(|()| out)
    };
    assert_eq!(latents(4).unwrap(), [4; 12]);
    let shard = fs::File::options().write(true).open(folder.path().join("latents/c.1.0.0")).unwrap();
    shard.write_all_at(&[9; 32], 0).unwrap(); // into the chunks of rows 4 and 6
    assert_eq!(latents(4).unwrap(), [9; 12]);
    assert!(latents(6).is_err() && latents(6).is_err());
}

#[test]
fn dropping_a_reader_stops_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    write_store(folder.path());
    drop(BatchReader::open(folder.path(), &ReaderOptions { threads: 3, ..options() }).unwrap());
}
