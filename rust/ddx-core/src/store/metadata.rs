//! Zarr v3 metadata of the arrays of a store.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The name of every metadata file of Zarr v3.
pub const GROUP_FILE: &str = "zarr.json";

/// The element types that a store uses. Bytes on disk are little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    /// IEEE half precision.
    Float16,
    /// IEEE single precision.
    Float32,
    /// Codes of an 8-bit format, named by an attribute.
    Uint8,
    /// Bits of another 16-bit format, named by an attribute.
    Uint16,
    /// Signed 32-bit integers.
    Int32,
    /// Signed 64-bit integers.
    Int64,
}

impl DataType {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Uint8 => 1,
            Self::Float16 | Self::Uint16 => 2,
            Self::Float32 | Self::Int32 => 4,
            Self::Int64 => 8,
        }
    }
}

/// One sharded array, whose shards and inner chunks cut the first axis alone: a chunk is a run of whole rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArraySpec {
    /// Place in the store, as `text/tokens`.
    pub path: String,
    /// Extent of the array.
    pub shape: Vec<u64>,
    /// Entries of the first axis in one shard.
    pub shard_rows: u64,
    /// Entries of the first axis in one inner chunk; divides `shard_rows`.
    pub chunk_rows: u64,
    /// Element type.
    pub data_type: DataType,
    /// What absent chunks read as.
    pub fill_value: Value,
    /// A name for every axis.
    pub dimension_names: Vec<String>,
    /// User attributes.
    #[serde(default)]
    pub attributes: Map<String, Value>,
}

impl ArraySpec {
    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// Names the array and the numbers that do not.
    pub fn validate(&self) -> Result<()> {
        let fits = !self.shape.is_empty()
            && self.shape.iter().all(|&extent| extent > 0)
            && self.dimension_names.len() == self.shape.len()
            && self.chunk_rows > 0
            && self.shard_rows > 0
            && self.shard_rows.is_multiple_of(self.chunk_rows)
            && self.is_addressable();
        if fits {
            return Ok(());
        }
        Err(Error::store(
            format!(
                "array {}: shape {:?} in shards of {} and chunks of {} rows is not possible",
                self.path, self.shape, self.shard_rows, self.chunk_rows
            ),
            None,
        ))
    }

    /// Whether the bytes of the array and of a shard can be counted, with a checksum and a place in the index a row.
    fn is_addressable(&self) -> bool {
        let row_bytes =
            self.shape[1..].iter().try_fold(self.data_type.size() as u64, |bytes, &it| bytes.checked_mul(it));
        let rows = self.shape[0].max(self.shard_rows);
        let bytes = row_bytes.and_then(|bytes| bytes.checked_add(32)).and_then(|bytes| bytes.checked_mul(rows));
        bytes.is_some_and(|bytes| bytes <= i64::MAX as u64 / 2)
    }

    /// Bytes of one entry of the first axis.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.shape[1..].iter().product::<u64>() as usize * self.data_type.size()
    }

    /// Bytes of one inner chunk before its checksum.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        self.row_bytes() * self.chunk_rows as usize
    }

    /// Inner chunks in one shard, present or not.
    #[must_use]
    pub fn chunks_per_shard(&self) -> usize {
        (self.shard_rows / self.chunk_rows) as usize
    }

    /// Whether the first axis is that of the store's rows.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        self.dimension_names.first().is_some_and(|name| name == "row")
    }

    /// Whether shard `p` is that of part `p`; the other arrays are one shard.
    #[must_use]
    pub fn is_by_part(&self) -> bool {
        self.has_rows() || self.path == super::TOKENS
    }

    /// Number of shards that cover the array.
    #[must_use]
    pub fn num_shards(&self) -> u64 {
        self.shape[0].div_ceil(self.shard_rows)
    }

    /// Path of a shard inside the store: flat names (`latents/c.3.0.0.0`), so that a part adds no folders.
    #[must_use]
    pub fn shard_path(&self, shard: u64) -> String {
        format!("{}/c.{shard}{}", self.path, ".0".repeat(self.shape.len() - 1))
    }

    /// The array's `zarr.json`.
    #[must_use]
    pub fn to_metadata(&self) -> Value {
        let with_rows = |rows: u64| -> Vec<u64> {
            let mut shape = self.shape.clone();
            shape[0] = rows;
            shape
        };
        let bytes = json!({"name": "bytes", "configuration": {"endian": "little"}});
        let crc32c = json!({"name": "crc32c"});
        json!({
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.data_type,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": with_rows(self.shard_rows)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": self.fill_value,
            "codecs": [{
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": with_rows(self.chunk_rows),
                    "codecs": [bytes.clone(), crc32c.clone()],
                    "index_codecs": [bytes, crc32c],
                    "index_location": "end",
                },
            }],
            "dimension_names": self.dimension_names,
            "storage_transformers": [],
            "attributes": self.attributes,
        })
    }

    /// The array that a `zarr.json` describes.
    ///
    /// # Errors
    /// When it is not one that [`Self::to_metadata`] writes: other codecs, other chunking, another key encoding.
    pub fn from_metadata(path: &str, metadata: &Value) -> Result<Self> {
        let first = |pointer: &str| metadata.pointer(pointer).and_then(|shape| shape.get(0)).and_then(Value::as_u64);
        let field = |name: &str| metadata.get(name).cloned().unwrap_or_default();
        let spec = (|| {
            Some(Self {
                path: path.to_owned(),
                shape: serde_json::from_value(field("shape")).ok()?,
                shard_rows: first("/chunk_grid/configuration/chunk_shape")?,
                chunk_rows: first("/codecs/0/configuration/chunk_shape")?,
                data_type: serde_json::from_value(field("data_type")).ok()?,
                fill_value: field("fill_value"),
                dimension_names: serde_json::from_value(field("dimension_names")).ok()?,
                attributes: serde_json::from_value(field("attributes")).ok()?,
            })
        })();
        match spec {
            Some(spec) if spec.to_metadata()["codecs"] == field("codecs") && spec.validate().is_ok() => Ok(spec),
            _ => Err(Error::store(
                format!("array {path} is not laid out as ddx writes it"),
                Some("a store can be read by any Zarr tool, but must be written by `ddx precompute`".into()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ArraySpec {
        ArraySpec {
            path: "text/tokens".into(),
            shape: vec![96, 5],
            shard_rows: 48,
            chunk_rows: 4,
            data_type: DataType::Float16,
            fill_value: json!(0.0),
            dimension_names: vec!["token".into(), "channel".into()],
            attributes: Map::new(),
        }
    }

    #[test]
    fn metadata_round_trips() {
        assert_eq!(ArraySpec::from_metadata("text/tokens", &spec().to_metadata()).unwrap(), spec());
    }

    #[test]
    fn a_compressed_array_is_refused() {
        let mut metadata = spec().to_metadata();
        metadata["codecs"][0]["configuration"]["codecs"] = json!([{"name": "bytes"}, {"name": "zstd"}]);
        assert!(ArraySpec::from_metadata("text/tokens", &metadata).is_err());
    }

    #[test]
    fn numbers_follow_from_the_shape() {
        let spec = spec();
        assert_eq!((spec.row_bytes(), spec.chunk_bytes(), spec.chunks_per_shard(), spec.num_shards()), (10, 40, 12, 2));
        assert_eq!(spec.shard_path(1), "text/tokens/c.1.0");
    }

    #[test]
    fn an_array_that_nobody_can_count_is_refused() {
        for shape in [vec![u64::MAX, 5], vec![96, u64::MAX], vec![96, 1 << 32, 1 << 32]] {
            let dimension_names = vec!["axis".into(); shape.len()];
            assert!(ArraySpec { shape, dimension_names, ..spec() }.validate().is_err());
        }
        assert!(ArraySpec { shard_rows: 1 << 62, ..spec() }.validate().is_err());
    }

    #[test]
    fn chunks_must_divide_shards() {
        assert!(ArraySpec { chunk_rows: 5, ..spec() }.validate().is_err());
    }
}
