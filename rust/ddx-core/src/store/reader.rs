//! Random batches, read ahead on threads of their own.

use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::arrays::RowArray;
use super::order::draw;
use super::rows::RowStore;
use super::sampler::Sampler;
use crate::error::{Error, Result};

/// How batches are drawn and read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Samples of one batch over all ranks; a multiple of `world`.
    pub batch_size: usize,
    /// Chooses the order of every epoch.
    pub seed: u64,
    /// First batch to give, counted from the start of training.
    pub position: u64,
    /// This process among `world`: it gets its slice of every batch.
    pub rank: usize,
    /// Number of processes that share a batch.
    pub world: usize,
    /// Batches that are read ahead.
    pub prefetch: usize,
    /// Threads that read.
    pub threads: usize,
    /// Whether chunks are checked against their checksums; see [`RowStore::open`].
    pub verify: bool,
}

/// One rank's slice of a batch. Arrays are C-ordered and little endian.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The aspect bucket that all samples are in; 0 in a store without.
    pub bucket: usize,
    /// Row of the store of every sample.
    pub rows: Vec<i64>,
    /// Whether the latents are those of the mirrored picture: half of the samples, if the store has them.
    pub flipped: Vec<bool>,
    /// Latents, one sample after another.
    pub latents: Vec<u8>,
    /// Logarithms of their variances, if the store has them.
    pub logvar: Option<Vec<u8>>,
    /// Token embeddings `[B, length, D]`, zero behind each caption's end.
    pub tokens: Vec<u8>,
    /// Tokens of the longest caption of the batch over all ranks; a row of several captions draws one.
    pub length: usize,
    /// Tokens of every caption.
    pub lengths: Vec<i32>,
    /// What every caption's tokens are multiplied with, where they are codes of eight bits.
    pub scales: Option<Vec<f32>>,
    /// Pooled embeddings, if the store has them.
    pub pooled: Option<Vec<u8>>,
}

/// An endless stream of batches whose content depends on the store, the seed, the batch size and the position alone.
#[derive(Debug)]
pub struct BatchReader {
    store: Arc<RowStore>,
    position: u64,
    queues: Vec<Receiver<Result<Batch>>>,
    threads: Vec<JoinHandle<()>>,
}

impl BatchReader {
    /// Opens a store and starts reading ahead.
    ///
    /// # Errors
    /// When the store cannot be opened or the options do not fit each other.
    pub fn open(root: &Path, options: &ReaderOptions) -> Result<Self> {
        let store = Arc::new(RowStore::open(root, options.verify)?);
        if options.batch_size == 0 || options.rank >= options.world || !options.batch_size.is_multiple_of(options.world)
        {
            return Err(Error::Setting {
                name: "batch_size",
                value: options.batch_size.to_string(),
                wanted: format!("a multiple of the number of processes, {}", options.world),
            });
        }
        let num_threads = options.threads.max(1);
        let depth = options.prefetch.div_ceil(num_threads).max(1);
        let mut queues = Vec::with_capacity(num_threads);
        let mut threads = Vec::with_capacity(num_threads);
        for thread in 0..num_threads {
            // Thread i reads batches i, i + n, i + 2n, … into a queue of its own: the order needs no coordination.
            let (sender, receiver) = bounded(depth);
            let rows = store.ok_rows().iter().map(|rows| rows.len() as u64).collect();
            let sampler = Sampler::new(rows, options.batch_size as u64, options.seed);
            let plan = Plan { store: Arc::clone(&store), sampler, options: options.clone() };
            let first = options.position + thread as u64;
            let handle = Builder::new()
                .name(format!("ddx-reader-{thread}"))
                .spawn(move || plan.run(first, num_threads as u64, &sender))
                .map_err(|error| Error::Start { what: "a reader thread", reason: error.to_string() })?;
            queues.push(receiver);
            threads.push(handle);
        }
        Ok(Self { store, position: options.position, queues, threads })
    }

    /// The rows behind the reader.
    #[must_use]
    pub fn store(&self) -> &RowStore {
        &self.store
    }

    /// Number of the batch that comes next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Waits for the next batch.
    ///
    /// # Errors
    /// When a shard is missing or damaged.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let first = self.position; // queues rotate with the position, whatever it started at
        let queue = &self.queues[0];
        let batch = queue
            .recv()
            .unwrap_or_else(|_| Err(Error::store(format!("the reader stopped before batch {first}"), None)))?;
        self.position += 1;
        self.queues.rotate_left(1);
        Ok(batch)
    }
}

impl Drop for BatchReader {
    fn drop(&mut self) {
        self.queues.clear(); // a thread that waits to hand over its batch fails to, and ends
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a reader thread knows.
struct Plan {
    store: Arc<RowStore>,
    sampler: Sampler,
    options: ReaderOptions,
}

impl Plan {
    fn run(&self, first: u64, step: u64, out: &Sender<Result<Batch>>) {
        let mut scratch = Vec::new();
        for position in (first..).step_by(step as usize) {
            let batch = self.read(position, &mut scratch);
            let failed = batch.is_err();
            if out.send(batch).is_err() || failed {
                return;
            }
        }
    }

    /// What batch `position` holds over all ranks, and the bucket that all of it is in.
    fn samples(&self, position: u64) -> (usize, Vec<Sample>) {
        let chosen = self.sampler.batch(position);
        let rows = &self.store.ok_rows()[chosen.bucket];
        let can_flip = self.store.shape(chosen.bucket, RowArray::Flip).is_some();
        let first = position * self.options.batch_size as u64;
        let samples = chosen.places.iter().zip(first..).map(|(&place, sample)| {
            let row = rows[place as usize];
            let draw = |purpose| draw(self.options.seed, sample, purpose);
            let caption = self.store.choose_caption(row, draw(CAPTION));
            Sample { row, caption, flipped: can_flip && draw(FLIPPED).is_multiple_of(2) }
        });
        (chosen.bucket, samples.collect())
    }

    fn read(&self, position: u64, scratch: &mut Vec<u8>) -> Result<Batch> {
        let (bucket, all) = self.samples(position);
        // Before anything is allocated by what the metadata say: the shards must be as large.
        all.iter().try_for_each(|sample| self.store.check(sample.row))?;
        // Padded to the longest caption of the whole batch, so that the shape does not depend on the ranks.
        let length = all.iter().map(|sample| self.length(sample)).max().unwrap_or(0);
        let share = all.len() / self.options.world;
        let samples = &all[self.options.rank * share..][..share];
        let token_bytes = self.store.token_bytes();
        let mut tokens = Vec::with_capacity(share * length * token_bytes);
        for (number, sample) in samples.iter().enumerate() {
            self.store.read_tokens(sample.row, sample.caption, &mut tokens, scratch)?;
            tokens.resize((number + 1) * length * token_bytes, 0);
        }
        let mut read = |array, flipped| self.read_rows(bucket, samples, array, flipped, scratch);
        Ok(Batch {
            bucket,
            rows: samples.iter().map(|sample| sample.row as i64).collect(),
            flipped: samples.iter().map(|sample| sample.flipped).collect(),
            lengths: samples.iter().map(|sample| self.length(sample) as i32).collect(),
            scales: samples.iter().map(|sample| self.store.scale(sample.row, sample.caption)).collect(),
            latents: read(RowArray::Latents, RowArray::Flip)?.unwrap_or_default(),
            logvar: read(RowArray::LogVar, RowArray::LogVarFlip)?,
            pooled: read(RowArray::Pooled, RowArray::Pooled)?,
            tokens,
            length,
        })
    }

    fn length(&self, sample: &Sample) -> usize {
        self.store.length(sample.row, sample.caption)
    }

    /// One array's rows of these samples, from `flipped` for those that are; None if the store does not have it.
    fn read_rows(
        &self,
        bucket: usize,
        samples: &[Sample],
        array: RowArray,
        flipped: RowArray,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(bytes) = self.store.row_bytes(bucket, array) else { return Ok(None) };
        let mut rows = Vec::with_capacity(samples.len() * bytes);
        for sample in samples {
            let array = if sample.flipped { flipped } else { array };
            self.store.read_row(array, sample.row, &mut rows, scratch)?;
        }
        Ok(Some(rows))
    }
}

/// What one sample of a batch is.
struct Sample {
    row: u64,
    caption: usize,
    flipped: bool,
}

// What a sample draws numbers for.
const CAPTION: u64 = 0;
const FLIPPED: u64 = 1;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::os::unix::fs::FileExt;

    use serde_json::Map;

    use super::super::arrays::{LATENTS, LENGTH, OFFSET, POOLED, TOKENS};
    use super::super::writer::tests::array;
    use super::super::{DataType, Part, ShardData, StoreWriter};
    use super::*;

    const ROWS: u64 = 10;
    const PART_ROWS: u64 = 4;
    const CAPACITY: u64 = PART_ROWS * 8;

    /// Ten rows in three parts; row 5 failed; row r has r % 7 + 1 tokens, whose bytes are all r, as are its latents'.
    fn store(root: &Path) {
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
            let (mut offsets, mut lengths) = ([-1i64; 4], [0i32; 4]);
            let mut tokens = Vec::new();
            for &row in &rows {
                let count = row as usize % 7 + 1;
                offsets[(row - first_row) as usize] = (part * CAPACITY) as i64 + (tokens.len() / 10) as i64;
                lengths[(row - first_row) as usize] = count as i32;
                tokens.extend(vec![row as u8; count * 10]);
                tokens.resize(tokens.len().div_ceil(40) * 40, 0);
            }
            let of = |bytes: usize| rows.iter().flat_map(|&row| vec![row as u8; bytes]).collect::<Vec<u8>>();
            let offsets: Vec<u8> = offsets.iter().flat_map(|value| value.to_le_bytes()).collect();
            let lengths: Vec<u8> = lengths.iter().flat_map(|value| value.to_le_bytes()).collect();
            let shards = [
                ShardData { array: LATENTS, ids: Some(&ids), data: &of(12) },
                ShardData { array: TOKENS, ids: None, data: &tokens },
                ShardData { array: OFFSET, ids: None, data: &offsets },
                ShardData { array: LENGTH, ids: None, data: &lengths },
                ShardData { array: POOLED, ids: Some(&ids), data: &of(6) },
            ];
            let ok = rows.len() as u64;
            writer.write_part(Part { part, first_row, rows: 4, ok, failed: &BTreeMap::new() }, &shards, &[]).unwrap();
        }
    }

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
        store(folder.path());
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
        store(folder.path());
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
        store(folder.path());
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
        store(folder.path());
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
        store(folder.path());
        drop(BatchReader::open(folder.path(), &ReaderOptions { threads: 3, ..options() }).unwrap());
    }
}
