//! Single rows of a store, straight from its shards.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::files::FileCache;
use super::mapped::{Places, stays_cached};
use super::metadata::{ArraySpec, DataType};
use super::shard::{self, ABSENT, CHECKSUM_BYTES};
use super::writer::read_arrays;
use super::{COMMIT_FOLDER, Commit};
use crate::error::{Error, Result};

/// Latents, one row a sample.
pub const LATENTS: &str = "latents";
/// Token embeddings of all captions, each starting on a chunk boundary.
pub const TOKENS: &str = "text/tokens";
/// Latents of the mirrored pictures.
pub const FLIP: &str = "latents_flip";
/// Logarithms of the variances that belong to the latents, where these are means.
pub const LOGVAR: &str = "logvar";
/// The same of the mirrored pictures.
pub const LOGVAR_FLIP: &str = "logvar_flip";
/// First token of each row's caption (`[rows]`, or `[rows, K]` of K captions each), -1 for one that is not there.
pub const OFFSET: &str = "text/offset";
/// Number of tokens of each caption, in the same shape.
pub const LENGTH: &str = "text/length";
/// Pooled embeddings, for the families that have them.
pub const POOLED: &str = "text/pooled";

const OPEN_FILES: usize = 256;

/// Reads rows at random. Shard indexes are read once and kept as one number a row; calls may come from many threads.
#[derive(Debug)]
pub struct RowStore {
    root: PathBuf,
    /// The arrays of one chunk a row, by [`RowArray`]; of these only the latents are always there.
    row_arrays: [Option<ArraySpec>; RowArray::ALL.len()],
    tokens: ArraySpec,
    num_captions: usize,
    verify: bool,
    /// Whether chunks that were read are read again from maps of their shards.
    map: bool,
    /// Rows that have latents and text, ascending.
    ok: Vec<u64>,
    /// First token of each caption up to the last that is there, rows by captions, inside its part's shard; meaningless
    /// where the length is 0.
    first_token: Vec<u32>,
    length: Vec<u32>,
    /// The parts that are done.
    parts: BTreeMap<u64, OnceLock<PartIndex>>,
    files: FileCache<(Option<RowArray>, u64)>,
}

/// An array whose rows are read one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowArray {
    /// [`LATENTS`].
    Latents,
    /// [`FLIP`].
    Flip,
    /// [`LOGVAR`].
    LogVar,
    /// [`LOGVAR_FLIP`].
    LogVarFlip,
    /// [`POOLED`].
    Pooled,
}

impl RowArray {
    const ALL: [Self; 5] = [Self::Latents, Self::Flip, Self::LogVar, Self::LogVarFlip, Self::Pooled];

    fn path(self) -> &'static str {
        [LATENTS, FLIP, LOGVAR, LOGVAR_FLIP, POOLED][self as usize]
    }
}

/// Where the chunks of a part start in the part's shards.
#[derive(Debug)]
struct PartIndex {
    /// Of each row, by [`RowArray`].
    rows: [Places; RowArray::ALL.len()],
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
        let mut arrays = read_arrays(root)?;
        let mut take = |path: &str| arrays.remove(path);
        let missing = |path: &str| Error::store(format!("{} has no array {path}", root.display()), None);
        let row_arrays = RowArray::ALL.map(|array| take(array.path()));
        let latents = row_arrays[RowArray::Latents as usize].as_ref().ok_or_else(|| missing(LATENTS))?;
        let tokens = take(TOKENS).ok_or_else(|| missing(TOKENS))?;
        let offset = take(OFFSET).ok_or_else(|| missing(OFFSET))?;
        let lengths = take(LENGTH).ok_or_else(|| missing(LENGTH))?;
        let (rows, part_rows) = (latents.shape[0], latents.shard_rows);
        let num_captions = offset.shape.get(1).map_or(1, |&num| num as usize);
        let num_parts = latents.num_shards();
        let fits = tokens.data_type.size() == 2
            && [&offset, &lengths].iter().all(|array| {
                array.shape[0] == rows
                    && array.shape == offset.shape
                    && array.shape.len() <= 2
                    && array.shard_rows == part_rows
                    && array.chunks_per_shard() == 1
            })
            && num_captions > 0
            && (offset.data_type, lengths.data_type) == (DataType::Int64, DataType::Int32)
            && tokens.num_shards() == num_parts
            && u32::try_from(tokens.shard_rows).is_ok()
            && row_arrays.iter().flatten().all(|array| {
                array.shape[0] == rows
                    && array.shard_rows == part_rows
                    && array.chunk_rows == 1
                    && array.data_type.size() == 2
            });
        if !fits {
            return Err(Error::store(format!("the arrays of {} do not fit each other", root.display()), None));
        }
        let mut store = Self {
            root: root.to_owned(),
            parts: Commit::recorded(root, num_parts).into_iter().map(|part| (part, OnceLock::new())).collect(),
            ok: Vec::new(),
            first_token: Vec::new(),
            length: Vec::new(),
            files: FileCache::new(OPEN_FILES),
            row_arrays,
            tokens,
            num_captions,
            verify,
            map: false,
        };
        store.read_rows(&offset, &lengths)?;
        let row_bytes: usize = RowArray::ALL.iter().filter_map(|&array| store.row_bytes(array)).sum();
        let num_tokens: u64 = store.length.iter().map(|&length| u64::from(length)).sum();
        let bytes = (store.ok.len() as u64).saturating_mul(row_bytes as u64);
        store.map = stays_cached(bytes.saturating_add(num_tokens.saturating_mul(store.token_bytes() as u64)));
        Ok(store)
    }

    /// Rows that have latents and text, ascending.
    #[must_use]
    pub fn ok_rows(&self) -> &[u64] {
        &self.ok
    }

    /// One of the captions that a row has, chosen by a number.
    #[must_use]
    pub fn choose_caption(&self, row: u64, number: u64) -> usize {
        if self.num_captions == 1 {
            return 0;
        }
        let there: Vec<usize> = (0..self.num_captions).filter(|&caption| self.length(row, caption) > 0).collect();
        there[(number % there.len() as u64) as usize]
    }

    /// Number of tokens of a row's caption.
    #[must_use]
    pub fn length(&self, row: u64, caption: usize) -> usize {
        self.length.get(row as usize * self.num_captions + caption).map_or(0, |&length| length as usize)
    }

    /// Whether the store has this array.
    #[must_use]
    pub fn has(&self, array: RowArray) -> bool {
        self.row_arrays[array as usize].is_some()
    }

    /// Bytes of one row of an array, if the store has it.
    #[must_use]
    pub fn row_bytes(&self, array: RowArray) -> Option<usize> {
        self.row_arrays[array as usize].as_ref().map(ArraySpec::chunk_bytes)
    }

    /// Bytes of one token's embedding.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        self.tokens.row_bytes()
    }

    /// Shape of one row's latents.
    #[must_use]
    pub fn latent_shape(&self) -> &[u64] {
        &self.latents().shape[1..]
    }

    /// Appends a row that is there to `out`.
    ///
    /// # Errors
    /// When the store has no such array, or the shard is missing or damaged.
    pub fn read_row(&self, array: RowArray, row: u64, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<()> {
        let spec = self.row_arrays[array as usize]
            .as_ref()
            .ok_or_else(|| Error::store(format!("{} has no array {}", self.root.display(), array.path()), None))?;
        let (part, local) = self.place(row);
        let chunk =
            Chunk { kind: Some(array), array: spec, part, places: &self.part(part)?.rows[array as usize], local };
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
        let local = local * self.num_captions + caption;
        let chunk = Chunk { kind: None, array: &self.tokens, part, places: &self.part(part)?.tokens, local };
        self.read_chunks(&chunk, self.length(row, caption) * self.token_bytes(), out, scratch)
    }

    fn latents(&self) -> &ArraySpec {
        self.row_arrays[RowArray::Latents as usize].as_ref().expect("checked when the store was opened")
    }

    /// Reads the small arrays of every part that is done.
    fn read_rows(&mut self, offset: &ArraySpec, lengths: &ArraySpec) -> Result<()> {
        let (rows, part_rows) = (self.latents().shape[0], self.latents().shard_rows);
        let parts: Vec<u64> = self.parts.keys().copied().collect();
        for part in parts {
            let offsets = self.read_whole_shard(offset, part)?;
            let counts = self.read_whole_shard(lengths, part)?;
            let first_caption = part * part_rows * self.num_captions as u64;
            let part_start = (part * self.tokens.shard_rows) as i64;
            for (caption, (offset, count)) in (first_caption..rows * self.num_captions as u64)
                .zip(offsets.as_chunks::<8>().0.iter().zip(counts.as_chunks::<4>().0))
            {
                let row = caption / self.num_captions as u64;
                let (offset, count) = (i64::from_le_bytes(*offset), i32::from_le_bytes(*count));
                if offset < 0 {
                    continue;
                }
                let local = offset - part_start;
                if local < 0 || count <= 0 || i64::from(count) > self.tokens.shard_rows as i64 - local {
                    let path = self.root.join(offset_path(part));
                    return Err(Error::Damaged { path, reason: format!("row {row} has tokens {offset} + {count}") });
                }
                if self.ok.last() != Some(&row) {
                    self.ok.push(row);
                }
                // Grown with the captions that are there, whatever number of them the metadata claim.
                self.first_token.resize(caption as usize, 0);
                self.length.resize(caption as usize, 0);
                self.first_token.push(local as u32);
                self.length.push(count as u32);
            }
        }
        if self.ok.is_empty() {
            return Err(Error::store(
                format!("{} has no row to read", self.root.display()),
                Some(format!("see {}/ for the parts that are done", self.root.join(COMMIT_FOLDER).display())),
            ));
        }
        Ok(())
    }

    /// The contents of a shard that is one chunk; empty when the chunk is absent.
    fn read_whole_shard(&self, array: &ArraySpec, shard: u64) -> Result<Vec<u8>> {
        let path = self.root.join(array.shard_path(shard));
        let read = || {
            let file = File::open(&path)?;
            let start = shard::read_index(&file, 1, array.chunk_bytes())?[0];
            if start == ABSENT {
                return Ok(Vec::new());
            }
            let mut stored = vec![0; array.chunk_bytes() + CHECKSUM_BYTES];
            file.read_exact_at(&mut stored, start)?;
            shard::checked(&stored)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| shard::corrupt("its chunk fails its checksum".into()))
        };
        read().map_err(|source| Error::read(&path, source))
    }

    fn place(&self, row: u64) -> (u64, usize) {
        let part_rows = self.latents().shard_rows;
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
        let read = |kind, array: &ArraySpec| -> Result<(Vec<u64>, Arc<File>)> {
            let path = self.root.join(array.shard_path(part));
            let read = || {
                let file = self.files.open((kind, part), || &path)?;
                Ok((shard::read_index(&file, array.chunks_per_shard(), array.chunk_bytes())?, file))
            };
            read().map_err(|source| Error::read(&path, source))
        };
        let places = |starts, file: &File| Places::new(starts, self.map.then_some(file));
        let mut rows: [Places; RowArray::ALL.len()] = Default::default();
        for array in RowArray::ALL {
            if let Some(spec) = &self.row_arrays[array as usize] {
                let (starts, file) = read(Some(array), spec)?;
                rows[array as usize] = places(starts, &file);
            }
        }
        let (chunks, token_file) = read(None, &self.tokens)?;
        let latents = self.latents();
        let first_row = part * latents.shard_rows;
        let num_rows = latents.shard_rows.min(latents.shape[0] - first_row) as usize;
        let chunk_rows = self.tokens.chunk_rows as usize;
        let stored_bytes = (self.tokens.chunk_bytes() + CHECKSUM_BYTES) as u64;
        let mut tokens = vec![ABSENT; num_rows * self.num_captions];
        for (local, start) in tokens.iter_mut().enumerate() {
            let row = local / self.num_captions;
            let length = self.length(first_row + row as u64, local % self.num_captions);
            if length == 0 {
                continue;
            }
            let first = self.first_token[first_row as usize * self.num_captions + local] as usize / chunk_rows;
            let caption = &chunks[first..first + length.div_ceil(chunk_rows)];
            // A caption is read in one piece, so its chunks must lie one after another, as they are written.
            let in_order = caption.windows(2).all(|pair| pair[0].wrapping_add(stored_bytes) == pair[1]);
            let row_there = rows.iter().all(|array| array.of.is_empty() || array.of[row].is_there());
            if caption[0] == ABSENT || !in_order || !row_there {
                return Err(Error::Damaged {
                    path: self.root.join(self.tokens.shard_path(part)),
                    reason: format!("the chunks of row {} are missing or out of order", first_row as usize + row),
                });
            }
            *start = caption[0];
        }
        Ok(PartIndex { rows, tokens: places(tokens, &token_file) })
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
                self.files.open((chunk.kind, chunk.part), path)?.read_exact_at(scratch, place.start())?;
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
    kind: Option<RowArray>,
    array: &'a ArraySpec,
    part: u64,
    places: &'a Places,
    local: usize,
}

fn offset_path(part: u64) -> String {
    format!("{OFFSET}/c.{part}")
}
