//! Single rows of a store, straight from its shards.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::files::FileCache;
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
    /// Rows that have latents and text, ascending.
    ok: Vec<u64>,
    /// First token of each caption up to the last that is there, rows by captions, inside its part's shard; meaningless
    /// where the length is 0.
    first_token: Vec<u32>,
    length: Vec<u32>,
    /// The parts that are done.
    parts: BTreeMap<u64, OnceLock<Arc<PartIndex>>>,
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
    rows: [Vec<u64>; RowArray::ALL.len()],
    /// Of each caption's first chunk, rows by captions.
    tokens: Vec<u64>,
}

impl RowStore {
    /// Opens a store. Only the small arrays are read: which rows are there, and how long their captions are.
    ///
    /// `verify` checks every chunk against its checksum.
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
        };
        store.read_rows(&offset, &lengths)?;
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

    /// Reads a row that is there into `out`, which has exactly its size.
    ///
    /// # Errors
    /// When the store has no such array, or the shard is missing or damaged.
    pub fn read_row(&self, array: RowArray, row: u64, out: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let spec = self.row_arrays[array as usize]
            .as_ref()
            .ok_or_else(|| Error::store(format!("{} has no array {}", self.root.display(), array.path()), None))?;
        let (part, local) = self.place(row);
        let start = self.part(part)?.rows[array as usize][local];
        self.read_chunks(Some(array), spec, part, start, out, scratch)
    }

    /// Checks that the chunks of a row that is there are in its part's shards: what it takes is then no more than these.
    ///
    /// # Errors
    /// When a shard is missing or damaged.
    pub fn check(&self, row: u64) -> Result<()> {
        self.part(self.place(row).0).map(|_| ())
    }

    /// Reads a caption that is there into `out`, which has exactly the size of its tokens.
    ///
    /// # Errors
    /// When the shard is missing or damaged.
    pub fn read_tokens(&self, row: u64, caption: usize, out: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let (part, local) = self.place(row);
        let start = self.part(part)?.tokens[local * self.num_captions + caption];
        self.read_chunks(None, &self.tokens, part, start, out, scratch)
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
            let file = std::fs::File::open(&path)?;
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

    fn part(&self, part: u64) -> Result<Arc<PartIndex>> {
        let cell = &self.parts[&part];
        if let Some(index) = cell.get() {
            return Ok(Arc::clone(index));
        }
        let index = Arc::new(self.read_part_index(part)?);
        Ok(Arc::clone(cell.get_or_init(|| index))) // two threads may have read it; either will do
    }

    fn read_part_index(&self, part: u64) -> Result<PartIndex> {
        let read = |kind, array: &ArraySpec| -> Result<Vec<u64>> {
            let path = self.root.join(array.shard_path(part));
            self.files
                .open((kind, part), || &path)
                .and_then(|file| shard::read_index(&file, array.chunks_per_shard(), array.chunk_bytes()))
                .map_err(|source| Error::read(&path, source))
        };
        let mut rows: [Vec<u64>; RowArray::ALL.len()] = Default::default();
        for array in RowArray::ALL {
            if let Some(spec) = &self.row_arrays[array as usize] {
                rows[array as usize] = read(Some(array), spec)?;
            }
        }
        let chunks = read(None, &self.tokens)?;
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
            let row_there = rows.iter().all(|starts| starts.is_empty() || starts[row] != ABSENT);
            if caption[0] == ABSENT || !in_order || !row_there {
                return Err(Error::Damaged {
                    path: self.root.join(self.tokens.shard_path(part)),
                    reason: format!("the chunks of row {} are missing or out of order", first_row as usize + row),
                });
            }
            *start = caption[0];
        }
        Ok(PartIndex { rows, tokens })
    }

    /// Reads neighbouring chunks that begin at byte `start` of a shard, as many as `out` needs.
    fn read_chunks(
        &self,
        kind: Option<RowArray>,
        array: &ArraySpec,
        part: u64,
        start: u64,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let chunk_bytes = array.chunk_bytes();
        let stored_bytes = chunk_bytes + CHECKSUM_BYTES;
        let num_chunks = out.len().div_ceil(chunk_bytes);
        let mut read = || {
            let file = self.files.open((kind, part), || self.root.join(array.shard_path(part)))?;
            if num_chunks == 1 && !self.verify {
                return file.read_exact_at(out, start);
            }
            scratch.resize(num_chunks * stored_bytes, 0);
            file.read_exact_at(scratch, start)?;
            for (stored, out) in scratch.chunks_exact(stored_bytes).zip(out.chunks_mut(chunk_bytes)) {
                let content = if self.verify { shard::checked(stored) } else { Some(&stored[..chunk_bytes]) };
                let Some(content) = content else {
                    return Err(shard::corrupt(format!("a chunk near byte {start} fails its checksum")));
                };
                out.copy_from_slice(&content[..out.len()]);
            }
            Ok(())
        };
        read().map_err(|source| Error::read(self.root.join(array.shard_path(part)), source))
    }
}

fn offset_path(part: u64) -> String {
    format!("{OFFSET}/c.{part}")
}
