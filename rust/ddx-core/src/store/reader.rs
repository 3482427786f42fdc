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
    /// Which of its row's captions every sample drew, in a store of several captions a row.
    pub captions: Option<Vec<i32>>,
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
            captions: (self.store.num_captions() > 1)
                .then(|| samples.iter().map(|sample| sample.caption as i32).collect()),
            scales: samples.iter().map(|sample| self.store.scale(sample.row, sample.caption)).collect(),
            latents: read(RowArray::Latents, RowArray::Flip)?.unwrap_or_default(),
            logvar: read(RowArray::LogVar, RowArray::LogVarFlip)?,
            pooled: self.read_pooled(bucket, samples, scratch)?,
            tokens,
            length,
        })
    }

    fn length(&self, sample: &Sample) -> usize {
        self.store.length(sample.row, sample.caption)
    }

    /// The pooled embeddings of the captions of these samples; None if the store has none.
    fn read_pooled(&self, bucket: usize, samples: &[Sample], scratch: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
        let Some(bytes) = self.store.row_bytes(bucket, RowArray::Pooled) else { return Ok(None) };
        let width = bytes / self.store.num_captions();
        let (mut pooled, mut row) = (Vec::with_capacity(samples.len() * width), Vec::with_capacity(bytes));
        for sample in samples {
            row.clear();
            self.store.read_row(RowArray::Pooled, sample.row, &mut row, scratch)?;
            pooled.extend_from_slice(&row[sample.caption * width..][..width]);
        }
        Ok(Some(pooled))
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
