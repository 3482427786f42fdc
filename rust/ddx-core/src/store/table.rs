//! What is known of every row without reading its latents or its text: a few bytes a row, in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::COMMIT_FOLDER;
use super::arrays::Arrays;
use super::metadata::ArraySpec;
use super::shard::{self, ABSENT, CHECKSUM_BYTES};
use crate::error::{Error, Result};

/// The small arrays of the parts that are done.
#[derive(Debug)]
pub(super) struct Table {
    /// Rows that have latents and text, ascending, of each bucket.
    pub ok: Vec<Vec<u64>>,
    /// Which bucket a row is in, up to the last that is there; empty if there is one.
    bucket: Vec<u16>,
    num_captions: usize,
    /// First token of each caption up to the last that is there, rows by captions, inside its part's shard; meaningless
    /// where the length is 0.
    first_token: Vec<u32>,
    length: Vec<u32>,
    /// Empty where tokens are not codes.
    scale: Vec<f32>,
}

impl Table {
    /// # Errors
    /// When a shard is missing or damaged, or no row is there.
    pub fn read(root: &Path, arrays: &Arrays, parts: impl IntoIterator<Item = u64>) -> Result<Self> {
        let mut table = Self {
            ok: vec![Vec::new(); arrays.num_buckets()],
            bucket: Vec::new(),
            num_captions: arrays.num_captions(),
            first_token: Vec::new(),
            length: Vec::new(),
            scale: Vec::new(),
        };
        for part in parts {
            table.read_part(root, arrays, part)?;
        }
        if table.num_ok() == 0 {
            return Err(Error::store(
                format!("{} has no row to read", root.display()),
                Some(format!("see {}/ for the parts that are done", root.join(COMMIT_FOLDER).display())),
            ));
        }
        Ok(table)
    }

    fn read_part(&mut self, root: &Path, arrays: &Arrays, part: u64) -> Result<()> {
        let read = |array: &ArraySpec| read_whole_shard(root, array, part);
        let read_if_there = |array: Option<&ArraySpec>| array.map_or(Ok(Vec::new()), read);
        let (offsets, lengths) = (read(&arrays.offset)?, read(&arrays.length)?);
        let scales = read_if_there(arrays.scale.as_ref())?;
        let buckets = read_if_there(arrays.bucket.as_ref())?;
        let damaged = |array: &ArraySpec, reason| Error::Damaged { path: root.join(array.shard_path(part)), reason };

        let num_captions = self.num_captions as u64;
        let first_caption = part * arrays.part_rows() * num_captions;
        let part_start = (part * arrays.tokens.shard_rows) as i64;
        let places = offsets.as_chunks::<8>().0.iter().zip(lengths.as_chunks::<4>().0);
        for (caption, (offset, length)) in (first_caption..arrays.num_rows() * num_captions).zip(places) {
            let row = caption / num_captions;
            let (offset, length) = (i64::from_le_bytes(*offset), i32::from_le_bytes(*length));
            if offset < 0 {
                continue;
            }
            let local = offset - part_start;
            if local < 0 || length <= 0 || i64::from(length) > arrays.tokens.shard_rows as i64 - local {
                return Err(damaged(&arrays.offset, format!("row {row} has tokens {offset} + {length}")));
            }
            let mut bucket = 0;
            if let Some(array) = &arrays.bucket {
                let number = buckets.as_chunks::<4>().0.get((row - part * arrays.part_rows()) as usize);
                let number = number.and_then(|bytes| usize::try_from(i32::from_le_bytes(*bytes)).ok());
                bucket = number
                    .filter(|&number| number < self.ok.len())
                    .ok_or_else(|| damaged(array, format!("row {row} is in no bucket")))?;
                // Here and below grown with what is there, whatever number of it the metadata claim.
                self.bucket.resize(row as usize, 0);
                self.bucket.push(bucket as u16);
            }
            if self.ok[bucket].last() != Some(&row) {
                self.ok[bucket].push(row);
            }
            self.first_token.resize(caption as usize, 0);
            self.length.resize(caption as usize, 0);
            self.first_token.push(local as u32);
            self.length.push(length as u32);
            if let Some(array) = &arrays.scale {
                let scale = scales.as_chunks::<4>().0.get((caption - first_caption) as usize);
                let scale = scale.map(|bytes| f32::from_le_bytes(*bytes)).filter(|scale| scale.is_finite());
                self.scale.resize(caption as usize, 0.0);
                self.scale.push(scale.ok_or_else(|| damaged(array, format!("row {row} has no scale")))?);
            }
        }
        Ok(())
    }

    pub fn num_ok(&self) -> usize {
        self.ok.iter().map(Vec::len).sum()
    }

    pub fn bucket(&self, row: u64) -> usize {
        self.bucket.get(row as usize).map_or(0, |&bucket| bucket.into())
    }

    /// One of the captions that a row has, chosen by a number.
    pub fn choose_caption(&self, row: u64, number: u64) -> usize {
        if self.num_captions == 1 {
            return 0;
        }
        let there: Vec<usize> = (0..self.num_captions).filter(|&caption| self.length(row, caption) > 0).collect();
        there[(number % there.len() as u64) as usize]
    }

    /// Number of tokens; 0 of a caption that is not there.
    pub fn length(&self, row: u64, caption: usize) -> usize {
        self.length.get(self.place(row, caption)).map_or(0, |&length| length as usize)
    }

    /// Only of a caption that is there.
    pub fn first_token(&self, row: u64, caption: usize) -> usize {
        self.first_token[self.place(row, caption)] as usize
    }

    /// None where tokens are not codes.
    pub fn scale(&self, row: u64, caption: usize) -> Option<f32> {
        self.scale.get(self.place(row, caption)).copied()
    }

    fn place(&self, row: u64, caption: usize) -> usize {
        row as usize * self.num_captions + caption
    }

    pub fn num_tokens(&self) -> u64 {
        self.length.iter().map(|&length| u64::from(length)).sum()
    }
}

/// The contents of a shard that is one chunk; empty when the chunk is absent.
fn read_whole_shard(root: &Path, array: &ArraySpec, shard: u64) -> Result<Vec<u8>> {
    let path = root.join(array.shard_path(shard));
    let read = || {
        let file = File::open(&path)?;
        let start = shard::read_index(&file, 1, array.chunk_bytes())?[0];
        if start == ABSENT {
            return Ok(Vec::new());
        }
        let mut stored = vec![0; array.chunk_bytes() + CHECKSUM_BYTES];
        file.read_exact_at(&mut stored, start)?;
        shard::checked(&stored).map(<[u8]>::to_vec).ok_or_else(|| shard::corrupt("its chunk fails its checksum".into()))
    };
    read().map_err(|source| Error::read(&path, source))
}
