//! The reading thread: rows from the source, each sent to where its bytes come from.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;

use super::decode::{Job, Payload};
use super::{RowRecord, RowStatus, Shared};
use crate::fetch::{BUDGET_PIECE, Body, FetchError, Fetcher};
use crate::panics::caught;
use crate::source::{ImageRef, Row, Source};

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
                    Ok(Some(Ok(row))) => self.send(row, *sequence)?,
                    Ok(Some(Err(error))) => {
                        reason = error.to_string();
                        break;
                    }
                    Ok(None) => break,
                    Err(message) => {
                        reason = format!("the parquet reader {message}");
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
            let record = RowRecord::new(format!("{row:09}"), None).failed(RowStatus::UnreadableSource, &reason);
            self.pass_on(*sequence, record, Payload::None)?;
            *sequence += 1;
        }
        Ok(())
    }

    fn enter_window(&self) -> Result<(), Closed> {
        let permit = self.shared.handle.block_on(self.shared.window.acquire());
        permit.map_err(|_| Closed)?.forget(); // the assembler gives it back
        Ok(())
    }

    fn pass_on(&self, sequence: u64, record: RowRecord, payload: Payload) -> Result<(), Closed> {
        self.jobs.send(Job { sequence, record, payload }).map_err(|_| Closed)
    }

    fn send(&self, row: Row, sequence: u64) -> Result<(), Closed> {
        self.enter_window()?;
        let Row { key, caption, image } = row;
        let without_caption = caption.is_none();
        let record = RowRecord::new(key, caption);
        let image = match image {
            _ if without_caption => {
                let record = record.failed(RowStatus::NoCaption, &"the caption is null or blank");
                return self.pass_on(sequence, record, Payload::None);
            }
            None => {
                let record = record.failed(RowStatus::NoImage, &"the image's cell is null or empty");
                return self.pass_on(sequence, record, Payload::None);
            }
            Some(image) => image,
        };
        match image {
            ImageRef::Url(url) => {
                self.fetch(url, sequence, record);
                Ok(())
            }
            ImageRef::Path(path) => self.pass_on(sequence, record, Payload::File(path)),
            ImageRef::Bytes(bytes) => self.embedded(bytes, sequence, record),
        }
    }

    fn embedded(&self, bytes: Bytes, sequence: u64, record: RowRecord) -> Result<(), Closed> {
        let limit = self.shared.config.fetch.max_body_bytes;
        if bytes.len() > limit {
            let record = record.failed(RowStatus::TooLarge, &FetchError::TooLarge(limit));
            return self.pass_on(sequence, record, Payload::None);
        }
        let pieces = bytes.len().div_ceil(BUDGET_PIECE) as u32;
        let budget = self.shared.handle.block_on(self.shared.bytes.clone().acquire_many_owned(pieces));
        let budget = Some(budget.map_err(|_| Closed)?);
        self.pass_on(sequence, record, Payload::Body(Body { bytes, budget }))
    }

    fn fetch(&self, url: String, sequence: u64, record: RowRecord) {
        let (fetcher, jobs) = (self.fetcher.clone(), self.jobs.clone());
        self.shared.handle.spawn(async move {
            let (record, payload) = match fetcher.fetch(&url).await {
                Ok(body) => (record, Payload::Body(body)),
                Err(error) => (record.failed(RowStatus::from(&error), &error), Payload::None),
            };
            // Nobody listens any more if the run was closed.
            let _ = jobs.send(Job { sequence, record, payload });
        });
    }
}
