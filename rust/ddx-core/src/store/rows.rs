//! Single rows of a store, straight from its shards.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Commit;
use super::arrays::{Arrays, RowArray};
use super::files::FileCache;
use super::mapped::{Places, stays_cached};
use super::metadata::ArraySpec;
use super::shard::{self, ABSENT, CHECKSUM_BYTES};
use super::table::Table;
use crate::error::{Error, Result};

const OPEN_FILES: usize = 256;

/// Reads rows at random. Shard indexes are read once and kept as one number a row; calls may come from many threads.
#[derive(Debug)]
pub struct RowStore {
    root: PathBuf,
    arrays: Arrays,
    table: Table,
    verify: bool,
    /// Whether chunks that were read are read again from maps of their shards.
    map: bool,
    /// The parts that are done.
    parts: BTreeMap<u64, OnceLock<PartIndex>>,
    files: FileCache<(usize, u64)>,
}

/// Where the chunks of a part start in the part's shards.
#[derive(Debug)]
struct PartIndex {
    /// Of each row, by [`Arrays::slot`]; empty of an array that is not there.
    rows: Vec<Places>,
    /// Of each caption's first chunk, rows by captions.
    tokens: Places,
}

impl RowStore {
    /// Opens a store. Only the small arrays are read: which rows are there, and how long their captions are.
    ///
    /// `verify` checks a chunk against its checksum: when it is first read, and each time if the store is larger than
    /// half of the machine's memory, so that it may come from the disk again.
    ///
    /// # Errors
    /// When this is not a store, an array is missing or damaged, or no part is done.
    pub fn open(root: &Path, verify: bool) -> Result<Self> {
        let arrays = Arrays::read(root)?;
        let parts = Commit::recorded(root, arrays.num_parts());
        let table = Table::read(root, &arrays, parts.iter().copied())?;
        let row_bytes = |bucket| -> usize {
            let specs = arrays.slots().iter().enumerate().filter(|&(slot, _)| arrays.is_of(slot, bucket));
            specs.filter_map(|(_, array)| array.as_ref()).map(ArraySpec::chunk_bytes).sum()
        };
        let rows = table.ok.iter().enumerate();
        let bytes = rows.fold(0, |sum: u64, (bucket, rows)| {
            sum.saturating_add((rows.len() as u64).saturating_mul(row_bytes(bucket) as u64))
        });
        let token_bytes = table.num_tokens().saturating_mul(arrays.tokens.row_bytes() as u64);
        Ok(Self {
            root: root.to_owned(),
            verify,
            map: stays_cached(bytes.saturating_add(token_bytes)),
            parts: parts.into_iter().map(|part| (part, OnceLock::new())).collect(),
            files: FileCache::new(OPEN_FILES),
            arrays,
            table,
        })
    }

    /// Rows that have latents and text.
    #[must_use]
    pub fn num_ok(&self) -> usize {
        self.table.num_ok()
    }

    /// Those of each aspect bucket, ascending; of one bucket in a store without.
    #[must_use]
    pub fn ok_rows(&self) -> &[Vec<u64>] {
        &self.table.ok
    }

    /// Captions that a row may have.
    #[must_use]
    pub fn num_captions(&self) -> usize {
        self.arrays.num_captions()
    }

    /// One of the captions that a row has, chosen by a number.
    #[must_use]
    pub fn choose_caption(&self, row: u64, number: u64) -> usize {
        self.table.choose_caption(row, number)
    }

    /// Number of tokens of a row's caption.
    #[must_use]
    pub fn length(&self, row: u64, caption: usize) -> usize {
        self.table.length(row, caption)
    }

    /// What the codes of a row's caption are multiplied with, if tokens are codes.
    #[must_use]
    pub fn scale(&self, row: u64, caption: usize) -> Option<f32> {
        self.table.scale(row, caption)
    }

    /// Shape of one row of an array, if the store has it; that of the latents depends on the bucket.
    #[must_use]
    pub fn shape(&self, bucket: usize, array: RowArray) -> Option<&[u64]> {
        self.spec(bucket, array).map(|spec| &spec.shape[1..])
    }

    /// Bytes of one row of an array, if the store has it.
    #[must_use]
    pub fn row_bytes(&self, bucket: usize, array: RowArray) -> Option<usize> {
        self.spec(bucket, array).map(ArraySpec::chunk_bytes)
    }

    /// Bytes of one token's embedding.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        self.arrays.tokens.row_bytes()
    }

    /// Values of one token's embedding.
    #[must_use]
    pub fn token_width(&self) -> usize {
        self.token_bytes() / self.arrays.tokens.data_type.size()
    }

    /// Appends a row that is there to `out`.
    ///
    /// # Errors
    /// When the store has no such array, or the shard is missing or damaged.
    pub fn read_row(&self, array: RowArray, row: u64, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<()> {
        let slot = self.arrays.slot(self.table.bucket(row), array);
        let spec = self.arrays.slots()[slot]
            .as_ref()
            .ok_or_else(|| Error::store(format!("{} has no array {array:?}", self.root.display()), None))?;
        let (part, local) = self.place(row);
        let chunk = Chunk { slot, array: spec, part, places: &self.part(part)?.rows[slot], local };
        self.read_chunks(&chunk, spec.chunk_bytes(), out, scratch)
    }

    /// Checks that the chunks of a row that is there are in its part's shards: what it takes is then no more than these.
    ///
    /// # Errors
    /// When a shard is missing or damaged.
    pub fn check(&self, row: u64) -> Result<()> {
        self.part(self.place(row).0).map(|_| ())
    }

    /// Appends the tokens of a caption that is there to `out`.
    ///
    /// # Errors
    /// When the shard is missing or damaged.
    pub fn read_tokens(&self, row: u64, caption: usize, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<()> {
        let (part, local) = self.place(row);
        let local = local * self.arrays.num_captions() + caption;
        let (slot, array) = (self.arrays.slots().len(), &self.arrays.tokens);
        let chunk = Chunk { slot, array, part, places: &self.part(part)?.tokens, local };
        self.read_chunks(&chunk, self.length(row, caption) * self.token_bytes(), out, scratch)
    }

    fn spec(&self, bucket: usize, array: RowArray) -> Option<&ArraySpec> {
        self.arrays.slots()[self.arrays.slot(bucket, array)].as_ref()
    }

    fn place(&self, row: u64) -> (u64, usize) {
        let part_rows = self.arrays.part_rows();
        (row / part_rows, (row % part_rows) as usize)
    }

    fn part(&self, part: u64) -> Result<&PartIndex> {
        let cell = &self.parts[&part];
        if let Some(index) = cell.get() {
            return Ok(index);
        }
        let index = self.read_part_index(part)?;
        Ok(cell.get_or_init(|| index)) // two threads may have read it; either will do
    }

    fn read_part_index(&self, part: u64) -> Result<PartIndex> {
        let read = |slot, array: &ArraySpec| -> Result<(Vec<u64>, Arc<File>)> {
            let path = self.root.join(array.shard_path(part));
            let read = || {
                let file = self.files.open((slot, part), || &path)?;
                Ok((shard::read_index(&file, array.chunks_per_shard(), array.chunk_bytes())?, file))
            };
            read().map_err(|source| Error::read(&path, source))
        };
        let places = |starts, file: &File| Places::new(starts, self.map.then_some(file));
        let mut rows = Vec::with_capacity(self.arrays.slots().len());
        for (slot, array) in self.arrays.slots().iter().enumerate() {
            let index = array.as_ref().map(|array| read(slot, array)).transpose()?;
            rows.push(index.map_or_else(Places::default, |(starts, file)| places(starts, &file)));
        }
        let tokens = &self.arrays.tokens;
        let (chunks, token_file) = read(self.arrays.slots().len(), tokens)?;
        let (first_row, num_captions) = (part * self.arrays.part_rows(), self.arrays.num_captions());
        let num_rows = self.arrays.part_rows().min(self.arrays.num_rows() - first_row) as usize;
        let chunk_rows = tokens.chunk_rows as usize;
        let stored_bytes = (tokens.chunk_bytes() + CHECKSUM_BYTES) as u64;
        let mut starts = vec![ABSENT; num_rows * num_captions];
        for (local, start) in starts.iter_mut().enumerate() {
            let (local_row, caption) = (local / num_captions, local % num_captions);
            let row = first_row + local_row as u64;
            let length = self.length(row, caption);
            if length == 0 {
                continue;
            }
            let first = self.table.first_token(row, caption) / chunk_rows;
            let caption = &chunks[first..first + length.div_ceil(chunk_rows)];
            // A caption is read in one piece, so its chunks must lie one after another, as they are written.
            let in_order = caption.windows(2).all(|pair| pair[0].wrapping_add(stored_bytes) == pair[1]);
            let bucket = self.table.bucket(row);
            let row_there = self.arrays.slots().iter().enumerate().all(|(slot, array)| {
                array.is_none()
                    || !self.arrays.is_of(slot, bucket)
                    || rows[slot].of.get(local_row).is_some_and(super::mapped::Place::is_there)
            });
            if caption[0] == ABSENT || !in_order || !row_there {
                let path = self.root.join(tokens.shard_path(part));
                let reason = format!("the chunks of row {row} are missing or out of order");
                return Err(Error::Damaged { path, reason });
            }
            *start = caption[0];
        }
        Ok(PartIndex { rows, tokens: places(starts, &token_file) })
    }

    /// Appends neighbouring chunks that begin with `chunk`, as many as make up `bytes`.
    fn read_chunks(&self, chunk: &Chunk<'_>, bytes: usize, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<()> {
        let chunk_bytes = chunk.array.chunk_bytes();
        let stored_bytes = chunk_bytes + CHECKSUM_BYTES;
        let all_bytes = bytes.div_ceil(chunk_bytes) * stored_bytes;
        let place = &chunk.places.of[chunk.local];
        let mapped = chunk.places.mapped(place, all_bytes);
        let path = || self.root.join(chunk.array.shard_path(chunk.part));
        let read = || {
            let stored = if let Some(stored) = mapped {
                stored
            } else {
                scratch.resize(all_bytes, 0);
                self.files.open((chunk.slot, chunk.part), path)?.read_exact_at(scratch, place.start())?;
                scratch
            };
            for (stored, first) in stored.chunks_exact(stored_bytes).zip((0..bytes).step_by(chunk_bytes)) {
                if self.verify && mapped.is_none() && shard::checked(stored).is_none() {
                    return Err(shard::corrupt(format!("a chunk near byte {} fails its checksum", place.start())));
                }
                out.extend_from_slice(&stored[..chunk_bytes.min(bytes - first)]);
            }
            if mapped.is_none() {
                place.set_read();
            }
            Ok(())
        };
        read().map_err(|source| Error::read(path(), source))
    }
}

/// The first chunk of a row or caption.
struct Chunk<'a> {
    /// The array among those of [`Arrays::slots`]; behind them the tokens.
    slot: usize,
    array: &'a ArraySpec,
    part: u64,
    places: &'a Places,
    local: usize,
}
