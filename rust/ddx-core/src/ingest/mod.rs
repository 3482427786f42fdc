//! Rows in, uint8 batches of one shape out: a reader thread, fetch tasks, decode threads, an assembler.
//!
//! ```text
//! reader ──URL──▶ fetch tasks ──▶ decode threads ──▶ assembler (in the caller's thread) ──▶ Batch … PartEnd
//!        ──bytes, path──────────▶
//! ```
//!
//! Memory is bounded by three budgets, whatever the input: a window of rows between reader and assembler, bytes of
//! encoded bodies, pixels of decoded pictures. Rows come out in the order of the source, so the batches do not depend
//! on which server answered first.

mod assemble;
mod config;
mod decode;
mod read;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;

pub use assemble::{Batch, Item, PartEnd};
pub use config::IngestConfig;
pub use status::{RowRecord, RowStatus};

use crate::fetch::{BUDGET_PIECE, Fetcher};
use crate::source::Source;
use crate::{Error, Result};
use assemble::Assembler;

/// A row on its way out, with its place in the order.
struct Outcome {
    sequence: u64,
    record: RowRecord,
    /// If the row is ok.
    image: Option<Cropped>,
}

/// A picture of one of the wanted sizes.
struct Cropped {
    /// Its place among the sizes.
    size: usize,
    /// 8-bit RGB.
    rgb: Vec<u8>,
}

/// Counters since the start.
#[derive(Default, Debug)]
pub struct Stats {
    /// Rows that have their status.
    pub rows: AtomicU64,
    /// Rows with an image.
    pub ok: AtomicU64,
    /// Encoded bytes received.
    pub bytes: AtomicU64,
    /// Pixels decoded.
    pub pixels: AtomicU64,
    /// Rows that are being fetched right now.
    pub fetching: AtomicU64,
}

/// What all threads of a run share.
struct Shared {
    config: IngestConfig,
    handle: Handle,
    stats: Stats,
    closed: AtomicBool,
    /// Rows between reader and assembler.
    window: Semaphore,
    /// Encoded bytes, in pieces of [`BUDGET_PIECE`].
    bytes: Arc<Semaphore>,
    /// Decoded pixels, in pieces of [`PIXEL_PIECE`].
    pixels: Semaphore,
}

/// The pixel budget is counted in pieces of this size.
const PIXEL_PIECE: u64 = 4096;

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Ends every wait of every thread.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.window.close();
        self.bytes.close();
        self.pixels.close();
    }
}

/// What [`Ingest::poll`] found.
#[derive(Debug)]
pub enum Poll {
    /// The next batch or end of a part.
    Item(Item),
    /// Nothing within the time given.
    Pending,
    /// Every part is complete.
    Done,
}

/// A running ingest. Dropping it stops its threads without waiting for them.
pub struct Ingest {
    shared: Arc<Shared>,
    assembler: Assembler,
    outcomes: Receiver<Outcome>,
    decode_jobs: Receiver<decode::Job>,
    runtime: Option<Runtime>,
}

impl Ingest {
    /// Starts reading the given parts (each a range of `config.part_rows` rows) in the given order.
    ///
    /// # Errors
    /// If a setting is out of range, a part is beyond the source, or a thread cannot be started.
    pub fn start(source: Arc<dyn Source>, parts: &[u64], config: IngestConfig) -> Result<Self> {
        config.check()?;
        let assembler = Assembler::new(parts, source.num_rows(), &config)?;
        let start = |what| move |error: std::io::Error| Error::Start { what, reason: error.to_string() };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("ddx-fetch")
            .enable_all()
            .build()
            .map_err(start("the fetching threads"))?;
        let byte_pieces = config.byte_budget.max(config.fetch.max_body_bytes).div_ceil(BUDGET_PIECE);
        let pixel_pieces = config.pixel_budget.max(config.max_pixels).div_ceil(PIXEL_PIECE);
        let shared = Arc::new(Shared {
            handle: runtime.handle().clone(),
            stats: Stats::default(),
            closed: AtomicBool::new(false),
            window: Semaphore::new(config.prefetch_rows),
            bytes: Arc::new(Semaphore::new(byte_pieces.min(Semaphore::MAX_PERMITS))),
            pixels: Semaphore::new((pixel_pieces as usize).min(Semaphore::MAX_PERMITS)),
            config,
        });
        let fetcher = Fetcher::new(shared.config.fetch.clone(), shared.bytes.clone())?;

        // Unbounded channels: what is in them is bounded by the window.
        let (jobs, decode_jobs) = crossbeam_channel::unbounded();
        let (results, outcomes) = crossbeam_channel::unbounded();
        for index in 0..shared.config.decode_threads {
            let worker = decode::Worker::new(shared.clone(), decode_jobs.clone(), results.clone());
            thread::Builder::new()
                .name(format!("ddx-decode-{index}"))
                .spawn(move || worker.run())
                .map_err(start("a decoding thread"))?;
        }
        let reader = read::Reader { shared: shared.clone(), source, fetcher, jobs, ranges: assembler.ranges() };
        thread::Builder::new()
            .name("ddx-read".to_owned())
            .spawn(move || reader.run())
            .map_err(start("the reading thread"))?;
        Ok(Self { shared, assembler, outcomes, decode_jobs, runtime: Some(runtime) })
    }

    /// Waits up to `patience` for the next item.
    ///
    /// # Errors
    /// If the ingest was closed, or its threads died, which is a bug.
    pub fn poll(&mut self, patience: Duration) -> Result<Poll> {
        let deadline = Instant::now() + patience;
        loop {
            if self.shared.is_closed() {
                return Err(Error::Stopped("the ingest is closed"));
            }
            if let Some(item) = self.assembler.next_item() {
                return Ok(Poll::Item(item));
            }
            if self.assembler.is_done() {
                return Ok(Poll::Done);
            }
            match self.outcomes.recv_deadline(deadline) {
                Ok(outcome) => self.take(outcome),
                Err(RecvTimeoutError::Timeout) => return Ok(Poll::Pending),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Stopped("the ingest's threads ended early")),
            }
        }
    }

    fn take(&mut self, outcome: Outcome) {
        let stats = &self.shared.stats;
        stats.rows.fetch_add(1, Ordering::Relaxed);
        stats.ok.fetch_add(u64::from(outcome.image.is_some()), Ordering::Relaxed);
        let num_placed = self.assembler.push(outcome);
        self.shared.window.add_permits(num_placed);
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Rows that wait for a decoding thread right now.
    #[must_use]
    pub fn num_queued(&self) -> usize {
        self.decode_jobs.len()
    }

    /// Stops the threads; nothing comes out afterwards.
    pub fn close(&mut self) {
        self.shared.close();
        if let Some(runtime) = self.runtime.take() {
            // A lookup in the system's resolver cannot be interrupted; it ends by itself.
            runtime.shutdown_background();
        }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.close();
    }
}
