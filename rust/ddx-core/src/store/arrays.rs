//! The arrays of a store that a reader needs, and whether they fit each other.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::metadata::{ArraySpec, DataType};
use super::writer::read_arrays;
use crate::error::{Error, Result};

/// Latents, one row a sample. With aspect buckets these and the next three are in `buckets/<name>/`, once a bucket.
pub const LATENTS: &str = "latents";
/// Latents of the mirrored pictures.
pub const FLIP: &str = "latents_flip";
/// Logarithms of the variances that belong to the latents, where these are means.
pub const LOGVAR: &str = "logvar";
/// The same of the mirrored pictures.
pub const LOGVAR_FLIP: &str = "logvar_flip";
/// Which bucket a row is in, -1 for none; its attribute `names` lists them.
pub const BUCKET: &str = "bucket";
/// Token embeddings of all captions, each starting on a chunk boundary.
pub const TOKENS: &str = "text/tokens";
/// First token of each row's caption (`[rows]`, or `[rows, K]` of K captions each), -1 for one that is not there.
pub const OFFSET: &str = "text/offset";
/// Number of tokens of each caption, in the same shape.
pub const LENGTH: &str = "text/length";
/// What the codes of each caption's tokens are multiplied with, in the same shape, where they are of eight bits.
pub const SCALE: &str = "text/scale";
/// Pooled embeddings, `[rows, W]` or `[rows, K, W]` of K captions each, for the families that have them.
pub const POOLED: &str = "text/pooled";

/// An array whose rows are read one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Those that each bucket has of its own.
const OF_BUCKET: [&str; RowArray::Pooled as usize] = [LATENTS, FLIP, LOGVAR, LOGVAR_FLIP];

#[derive(Debug)]
pub(super) struct Arrays {
    /// Those of one chunk a row, by [`Self::slot`].
    rows: Vec<Option<ArraySpec>>,
    pub tokens: ArraySpec,
    pub offset: ArraySpec,
    pub length: ArraySpec,
    pub scale: Option<ArraySpec>,
    pub bucket: Option<ArraySpec>,
}

impl Arrays {
    /// # Errors
    /// When this is not a store, or an array is missing or does not fit the others.
    pub fn read(root: &Path) -> Result<Self> {
        let mut found = read_arrays(root)?;
        let missing = |path: &str| Error::store(format!("{} has no array {path}", root.display()), None);
        let misfit = || Error::store(format!("the arrays of {} do not fit each other", root.display()), None);
        let take =
            |found: &mut BTreeMap<String, ArraySpec>, path: &str| found.remove(path).ok_or_else(|| missing(path));
        let bucket = found.remove(BUCKET);
        let folders = bucket.as_ref().map_or(Some(vec![String::new()]), bucket_folders).ok_or_else(misfit)?;
        let mut rows = Vec::new();
        for folder in folders {
            rows.extend(OF_BUCKET.map(|name| found.remove(&format!("{folder}{name}"))));
            if rows[rows.len() - OF_BUCKET.len()].is_none() {
                return Err(missing(&format!("{folder}{LATENTS}")));
            }
        }
        rows.push(found.remove(POOLED));
        let arrays = Self {
            rows,
            tokens: take(&mut found, TOKENS)?,
            offset: take(&mut found, OFFSET)?,
            length: take(&mut found, LENGTH)?,
            scale: found.remove(SCALE),
            bucket,
        };
        if arrays.fit() { Ok(arrays) } else { Err(misfit()) }
    }

    fn fit(&self) -> bool {
        let (rows, part_rows) = (self.num_rows(), self.part_rows());
        // Small ones are read a shard at a time.
        let is_small = |array: &ArraySpec| {
            array.shape[0] == rows && array.shard_rows == part_rows && array.chunks_per_shard() == 1
        };
        let of_captions = [Some(&self.offset), Some(&self.length), self.scale.as_ref()];
        of_captions.into_iter().flatten().all(|array| is_small(array) && array.shape == self.offset.shape)
            && self.offset.shape.len() <= 2
            && self.num_captions() > 0
            && self.bucket.as_ref().is_none_or(|it| is_small(it) && (it.shape.len(), it.data_type) == (1, DataType::Int32))
            && (self.offset.data_type, self.length.data_type) == (DataType::Int64, DataType::Int32)
            && self.scale.as_ref().is_none_or(|scale| scale.data_type == DataType::Float32)
            && self.tokens.data_type.size() == if self.scale.is_some() { 1 } else { 2 }
            && self.tokens.num_shards() == self.num_parts()
            && u32::try_from(self.tokens.shard_rows).is_ok()
            && self.rows.iter().flatten().all(|array| {
                array.shape[0] == rows
                    && array.shard_rows == part_rows
                    && array.chunk_rows == 1
                    && array.data_type.size() == 2
            })
            && self.pooled().is_none_or(|pooled| pooled.shape[1..pooled.shape.len() - 1] == self.offset.shape[1..])
            // Every bucket has the same arrays.
            && self.rows[..self.rows.len() - 1].chunks(OF_BUCKET.len()).all(|bucket| {
                bucket.iter().zip(&self.rows).all(|(its, first)| its.is_some() == first.is_some())
            })
    }

    pub fn num_rows(&self) -> u64 {
        self.offset.shape[0]
    }

    pub fn part_rows(&self) -> u64 {
        self.offset.shard_rows
    }

    pub fn num_parts(&self) -> u64 {
        self.offset.num_shards()
    }

    pub fn num_captions(&self) -> usize {
        self.offset.shape.get(1).map_or(1, |&num| num as usize)
    }

    fn pooled(&self) -> Option<&ArraySpec> {
        self.rows.last().and_then(Option::as_ref)
    }

    pub fn num_buckets(&self) -> usize {
        self.rows.len() / OF_BUCKET.len()
    }

    /// Where the array of a bucket is in [`Self::slots`]; all share the pooled embeddings.
    pub fn slot(&self, bucket: usize, array: RowArray) -> usize {
        if array == RowArray::Pooled { self.rows.len() - 1 } else { bucket * OF_BUCKET.len() + array as usize }
    }

    /// Whether an array's rows belong to this bucket.
    pub fn is_of(&self, slot: usize, bucket: usize) -> bool {
        slot == self.rows.len() - 1 || slot / OF_BUCKET.len() == bucket
    }

    /// Every array of one chunk a row that may be there.
    pub fn slots(&self) -> &[Option<ArraySpec>] {
        &self.rows
    }
}

fn bucket_folders(bucket: &ArraySpec) -> Option<Vec<String>> {
    let names = bucket.attributes.get("names").and_then(Value::as_array).filter(|names| !names.is_empty())?;
    names.iter().map(|name| Some(format!("buckets/{}/", name.as_str()?))).collect()
}
