//! Outcomes in any order to batches in the order of the rows.

use std::collections::VecDeque;
use std::ops::Range;

use super::{IngestConfig, Outcome, RowRecord};
use crate::image::Size;
use crate::{Error, Result};

/// Pictures of one part and one size, in row order; the last ones of a part may hold fewer.
#[derive(Debug)]
pub struct Batch {
    /// The part.
    pub part: u64,
    /// The rows of the pictures, counted over the whole source.
    pub rows: Vec<u64>,
    /// The size of the pictures.
    pub size: Size,
    /// As many bytes of RGB as `batch_size` pictures have; zero beyond the pictures.
    pub images: Vec<u8>,
}

/// A part is complete.
#[derive(Debug)]
pub struct PartEnd {
    /// The part.
    pub part: u64,
    /// Its first row, counted over the whole source.
    pub first_row: u64,
    /// One record a row.
    pub records: Vec<RowRecord>,
}

/// What comes out of an ingest.
#[derive(Debug)]
pub enum Item {
    /// Pictures.
    Batch(Batch),
    /// The records of a part, after its last batch.
    PartEnd(PartEnd),
}

/// A part that is to come.
struct Part {
    number: u64,
    range: Range<u64>,
}

/// A batch that is not full.
struct Growing {
    size: Size,
    rows: Vec<u64>,
    images: Vec<u8>,
}

pub(super) struct Assembler {
    parts: VecDeque<Part>,
    batch_size: usize,
    /// Outcomes that wait for earlier rows, from `next_sequence` on.
    waiting: VecDeque<Option<Outcome>>,
    next_sequence: u64,
    /// The part at hand.
    records: Vec<RowRecord>,
    /// Its next batch of each size.
    batches: Vec<Growing>,
    items: VecDeque<Item>,
}

impl Assembler {
    pub fn new(parts: &[u64], num_rows: u64, config: &IngestConfig) -> Result<Self> {
        let num_parts = num_rows.div_ceil(config.part_rows);
        let part = |&number: &u64| {
            if number >= num_parts {
                let wanted = format!("below {num_parts}, the number of parts");
                return Err(Error::Setting { name: "part", value: number.to_string(), wanted });
            }
            let first = number * config.part_rows;
            Ok(Part { number, range: first..num_rows.min(first + config.part_rows) })
        };
        Ok(Self {
            parts: parts.iter().map(part).collect::<Result<_>>()?,
            batch_size: config.batch_size,
            waiting: VecDeque::new(),
            next_sequence: 0,
            records: Vec::new(),
            batches: config.sizes.iter().map(|&size| Growing { size, rows: Vec::new(), images: Vec::new() }).collect(),
            items: VecDeque::new(),
        })
    }

    /// The rows of each part, in order.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.parts.iter().map(|part| part.range.clone()).collect()
    }

    pub fn next_item(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    pub fn is_done(&self) -> bool {
        self.parts.is_empty() && self.items.is_empty()
    }

    /// Takes an outcome; returns how many rows found their place by it.
    pub fn push(&mut self, outcome: Outcome) -> usize {
        let offset = (outcome.sequence - self.next_sequence) as usize;
        if self.waiting.len() <= offset {
            self.waiting.resize_with(offset + 1, || None);
        }
        self.waiting[offset] = Some(outcome);
        let mut num_placed = 0;
        while let Some(Some(_)) = self.waiting.front() {
            if let Some(outcome) = self.waiting.pop_front().flatten() {
                self.place(outcome);
                num_placed += 1;
            }
        }
        self.next_sequence += num_placed as u64;
        num_placed
    }

    fn place(&mut self, outcome: Outcome) {
        let Some(part) = self.parts.front() else { return };
        let (number, range) = (part.number, part.range.clone());
        if let Some(image) = outcome.image {
            let batch = &mut self.batches[image.size];
            if batch.images.is_empty() {
                batch.images.reserve_exact(self.batch_size * batch.size.num_bytes());
            }
            batch.images.extend_from_slice(&image.rgb);
            batch.rows.push(range.start + self.records.len() as u64);
        }
        self.records.push(outcome.record);
        let is_complete = self.records.len() as u64 == range.end - range.start;
        for batch in &mut self.batches {
            if batch.rows.len() == self.batch_size || (is_complete && !batch.rows.is_empty()) {
                let (rows, mut images) = (std::mem::take(&mut batch.rows), std::mem::take(&mut batch.images));
                images.resize(self.batch_size * batch.size.num_bytes(), 0);
                self.items.push_back(Item::Batch(Batch { part: number, size: batch.size, rows, images }));
            }
        }
        if is_complete {
            let records = std::mem::take(&mut self.records);
            self.items.push_back(Item::PartEnd(PartEnd { part: number, first_row: range.start, records }));
            self.parts.pop_front();
        }
    }
}
