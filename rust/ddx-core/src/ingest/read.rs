//! The reading thread: rows from the source, each sent to where its bytes come from.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::runtime::Handle;

use super::decode::{Job, Payload};
use super::{RowRecord, RowStatus, Shared};
use crate::fetch::{BUDGET_PIECE, Body, FetchError, Fetcher};
use crate::objects::{self, is_object};
use crate::panics::caught;
use crate::source::{ImageRef, Row, Source, numbered};

pub(super) struct Reader {
    pub shared: Arc<Shared>,
    pub source: Arc<dyn Source>,
    pub fetcher: Fetcher,
    pub jobs: Sender<Job>,
    /// The rows of each part, in order.
    pub ranges: Vec<Range<u64>>,
}

/// The run is over: somebody closed it.
struct Closed;

impl Reader {
    pub fn run(self) {
        let mut sequence = 0;
        for range in &self.ranges {
            if self.read_part(range.clone(), &mut sequence).is_err() {
                return;
            }
        }
    }

    fn read_part(&self, range: Range<u64>, sequence: &mut u64) -> Result<(), Closed> {
        let mut next = range.start;
        let mut reason = "the file has fewer rows than its footer says".to_owned();
        match self.source.rows(range.clone()) {
            Err(error) => reason = error.to_string(),
            Ok(mut rows) => loop {
                match caught(|| rows.next()) {
                    Ok(Some(Ok(row))) => self.send(row, next, *sequence)?,
                    Ok(Some(Err(error))) => {
                        reason = error.to_string();
                        break;
                    }
                    Ok(None) => break,
                    Err(message) => {
                        reason = format!("the reader {message}");
                        break;
                    }
                }
                next += 1;
                *sequence += 1;
            },
        }
        // What cannot be read is recorded row by row, like any other failure, and the next part goes on.
        for row in next..range.end {
            self.enter_window()?;
            let record = RowRecord::new(numbered(row), Vec::new()).failed(RowStatus::UnreadableSource, &reason);
            self.give_up(*sequence, record)?;
            *sequence += 1;
        }
        Ok(())
    }

    fn enter_window(&self) -> Result<(), Closed> {
        let permit = self.shared.handle.block_on(self.shared.window.acquire());
        permit.map_err(|_| Closed)?.forget(); // the assembler gives it back
        Ok(())
    }

    /// A row that has failed, and needs no decoding.
    fn give_up(&self, sequence: u64, record: RowRecord) -> Result<(), Closed> {
        self.pass_on(Job { sequence, record, checksum: None, payload: Payload::None })
    }

    fn pass_on(&self, job: Job) -> Result<(), Closed> {
        self.jobs.send(job).map_err(|_| Closed)
    }

    fn send(&self, row: Row, number: u64, sequence: u64) -> Result<(), Closed> {
        self.enter_window()?;
        let Row { key, captions, caption_fault, image, checksum } = row;
        let mut record = RowRecord::new(key.unwrap_or_else(|| numbered(number)), captions);
        record.source = match &image {
            Some(ImageRef::Url(url)) => url.clone(),
            Some(ImageRef::Path(path) | ImageRef::Range { path, .. }) => path.to_string_lossy().into_owned(),
            Some(ImageRef::Bytes(_) | ImageRef::Caption | ImageRef::Broken(_)) | None => String::new(),
        };
        let checksum = checksum.filter(|_| self.shared.config.verify_checksums);
        if let Some(fault) = caption_fault.filter(|_| !matches!(image, Some(ImageRef::Broken(_)))) {
            let (status, reason) = fault.status();
            return self.give_up(sequence, record.failed(status, &reason));
        }
        let image = match image {
            Some(ImageRef::Broken(reason)) => {
                let record = record.failed(RowStatus::UnreadableSource, &reason);
                return self.give_up(sequence, record);
            }
            None => {
                let record = record.failed(RowStatus::NoImage, &"the image's cell is null or empty");
                return self.give_up(sequence, record);
            }
            Some(image) => image,
        };
        match image {
            // An address in a table off the web may name an object, but not a file of this machine.
            ImageRef::Url(url) if is_object(Path::new(&url)) && !url.starts_with("file:") => {
                self.fetch_object(PathBuf::from(url), None, Job { sequence, record, checksum, payload: Payload::None })
            }
            ImageRef::Path(path) if is_object(&path) => {
                self.fetch_object(path, None, Job { sequence, record, checksum, payload: Payload::None })
            }
            ImageRef::Range { path, offset, length } if is_object(&path) => {
                let within = Some((offset, length));
                self.fetch_object(path, within, Job { sequence, record, checksum, payload: Payload::None })
            }
            ImageRef::Url(url) => {
                self.fetch(url, Job { sequence, record, checksum, payload: Payload::None });
                Ok(())
            }
            ImageRef::Path(path) => {
                let payload = Payload::File { path, within: None };
                self.pass_on(Job { sequence, record, checksum, payload })
            }
            ImageRef::Range { path, offset, length } => {
                let payload = Payload::File { path, within: Some((offset, length)) };
                self.pass_on(Job { sequence, record, checksum, payload })
            }
            ImageRef::Bytes(bytes) => self.embedded(bytes, Job { sequence, record, checksum, payload: Payload::None }),
            ImageRef::Caption => self.pass_on(Job { sequence, record, checksum: None, payload: Payload::None }),
            ImageRef::Broken(_) => Ok(()), // passed on above
        }
    }

    fn embedded(&self, bytes: Bytes, job: Job) -> Result<(), Closed> {
        let limit = self.shared.config.fetch.max_body_bytes;
        if bytes.len() > limit {
            let record = job.record.failed(RowStatus::TooLarge, &FetchError::TooLarge(limit));
            return self.give_up(job.sequence, record);
        }
        let pieces = bytes.len().div_ceil(BUDGET_PIECE) as u32;
        let budget = self.shared.handle.block_on(self.shared.bytes.clone().acquire_many_owned(pieces));
        let budget = Some(budget.map_err(|_| Closed)?);
        self.pass_on(Job { payload: Payload::Body(Body { bytes, budget }), ..job })
    }

    /// Fetches in the background; `job` then goes on with what came.
    fn fetch(&self, url: String, job: Job) {
        let fetcher = self.fetcher.clone();
        self.go_on_with(&self.shared.handle, async move { fetcher.fetch(&url).await }, job);
    }

    /// The same with an object of a store, or a range of one.
    fn fetch_object(&self, path: PathBuf, within: Option<(u64, u64)>, job: Job) -> Result<(), Closed> {
        let fetcher = self.fetcher.clone();
        match objects::runtime() {
            Ok(runtime) => {
                let body = async move { fetcher.fetch_object(&path, within).await };
                self.go_on_with(runtime.handle(), body, job);
                Ok(())
            }
            Err(error) => self.give_up(job.sequence, job.record.failed(RowStatus::UnreadableFile, &error)),
        }
    }

    fn go_on_with(
        &self,
        runtime: &Handle,
        body: impl Future<Output = std::result::Result<Body, FetchError>> + Send + 'static,
        job: Job,
    ) {
        let (jobs, shared) = (self.jobs.clone(), self.shared.clone());
        shared.stats.fetching.fetch_add(1, Ordering::Relaxed);
        runtime.spawn(async move {
            let job = match body.await {
                Ok(body) => Job { payload: Payload::Body(body), ..job },
                Err(error) => Job { record: job.record.failed(RowStatus::from(&error), &error), ..job },
            };
            shared.stats.fetching.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more if the run was closed.
            let _ = jobs.send(job);
        });
    }
}
