//! A store with more parts than before, or a new one with the arrays of another.

use std::path::Path;

use serde_json::{Map, Value};

use super::metadata::{ArraySpec, GROUP_FILE};
use super::writer::{StoreWriter, read_nodes, read_root, write_json};
use super::{COMMIT_FOLDER, atomic};
use crate::error::{Error, Result};

impl StoreWriter {
    /// Gives a store room for `rows` rows in `num_parts` parts, and `attributes` that say so. What is there stays as it
    /// is. The root's `zarr.json`, which is what readers go by, comes last.
    ///
    /// # Errors
    /// When there is no such store, it is not possible, or the disk refuses; the store then has its old size.
    pub fn grow(root: &Path, rows: u64, num_parts: u64, attributes: &Map<String, Value>) -> Result<()> {
        write_resized(root, root, rows, num_parts, attributes)
    }

    /// Creates a store of so many rows and parts with the arrays of `source`; those of one shard are copied. The root's
    /// `zarr.json` comes last: a store exists when that does.
    ///
    /// # Errors
    /// When there is no such source, it is not possible, or the disk refuses.
    pub fn create_like(
        root: &Path,
        source: &Path,
        rows: u64,
        num_parts: u64,
        attributes: &Map<String, Value>,
    ) -> Result<()> {
        for (path, node) in &read_nodes(source)? {
            if node["node_type"] == "array" {
                let array = ArraySpec::from_metadata(path, node)?;
                if !array.is_by_part() {
                    atomic::copy(&source.join(array.shard_path(0)), &root.join(array.shard_path(0)))?;
                }
            }
        }
        atomic::create_folder(&root.join(COMMIT_FOLDER))?;
        write_resized(source, root, rows, num_parts, attributes)
    }
}

/// Writes the metadata of `source` to `root` with other extents and attributes.
fn write_resized(source: &Path, root: &Path, rows: u64, num_parts: u64, attributes: &Map<String, Value>) -> Result<()> {
    let mut group = read_root(source)?;
    let mut nodes = read_nodes(source)?;
    for (path, node) in &mut nodes {
        if node["node_type"] == "array" {
            let mut array = ArraySpec::from_metadata(path, node)?;
            if array.is_by_part() {
                let extent = if array.has_rows() { Some(rows) } else { num_parts.checked_mul(array.shard_rows) };
                array.shape[0] = extent.unwrap_or(u64::MAX);
                array.validate()?;
                if array.num_shards() != num_parts {
                    return Err(Error::store(format!("{rows} rows are not {num_parts} parts of {path}"), None));
                }
                *node = array.to_metadata();
            }
        }
    }
    for (path, node) in &nodes {
        write_json(&root.join(path).join(GROUP_FILE), node)?;
    }
    group["attributes"] = Value::Object(attributes.clone());
    group["consolidated_metadata"]["metadata"] = Value::Object(nodes);
    write_json(&root.join(GROUP_FILE), &group)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use serde_json::json;

    use super::super::writer::tests::array;
    use super::super::{DataType, Part, RowStore, ShardData};
    use super::*;

    fn store(root: &Path) -> StoreWriter {
        let mut arrays = vec![
            array("latents", &[3, 2], 2, 1, DataType::Float16),
            array("text/tokens", &[8, 1], 4, 2, DataType::Float16),
            array("text/offset", &[3], 2, 2, DataType::Int64),
            array("text/length", &[3], 2, 2, DataType::Int32),
            array("text/null", &[3, 1], 3, 3, DataType::Float16),
        ];
        for array in &mut arrays[..4] {
            array.dimension_names[0] = if array.path == "text/tokens" { "token" } else { "row" }.into();
        }
        let null = ShardData { array: "text/null", ids: None, data: &[5; 6] };
        StoreWriter::create(root, arrays, &Map::new(), "one", &[null]).unwrap()
    }

    /// A part whose first row is fine.
    fn write(root: &Path, part: u64) {
        let writer = StoreWriter::open(root, "one").unwrap();
        let offset = [(4 * part).cast_signed(), -1].map(i64::to_le_bytes).concat();
        let length = [1i32, 0].map(i32::to_le_bytes).concat();
        let shards = [
            ShardData { array: "latents", ids: Some(&[0]), data: &[part as u8; 4] },
            ShardData { array: "text/tokens", ids: None, data: &[1; 4] },
            ShardData { array: "text/offset", ids: None, data: &offset },
            ShardData { array: "text/length", ids: None, data: &length },
        ];
        let part = Part { part, first_row: 2 * part, rows: 1, ok: 1, failed: &BTreeMap::new() };
        writer.write_part(part, &shards, &[]).unwrap();
    }

    #[test]
    fn a_store_that_grew_has_old_rows_and_new_ones_and_a_gap_behind_a_short_part() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        (0..2).for_each(|part| write(folder.path(), part));
        let attributes = json!({"ddx": {"rows": 5}});
        StoreWriter::grow(folder.path(), 6, 3, attributes.as_object().unwrap()).unwrap();
        write(folder.path(), 2);
        let rows = RowStore::open(folder.path(), true).unwrap();
        assert_eq!(rows.ok_rows(), [[0, 2, 4]]);
        let group = read_root(folder.path()).unwrap();
        assert_eq!(group["attributes"], attributes);
        let shape = |path: &str| {
            let text = fs::read(folder.path().join(path).join(GROUP_FILE)).unwrap();
            let node: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(node, group["consolidated_metadata"]["metadata"][path]);
            node["shape"].clone()
        };
        assert_eq!(["latents", "text/tokens", "text/null"].map(shape), [json!([6, 2]), json!([12, 1]), json!([3, 1])]);
    }

    #[test]
    fn rows_that_are_not_so_many_parts_are_refused_and_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        let before = fs::read(folder.path().join("latents").join(GROUP_FILE)).unwrap();
        assert!(StoreWriter::grow(folder.path(), 7, 3, &Map::new()).is_err());
        assert!(StoreWriter::grow(folder.path(), u64::MAX, u64::MAX / 2, &Map::new()).is_err());
        assert_eq!(fs::read(folder.path().join("latents").join(GROUP_FILE)).unwrap(), before);
    }

    #[test]
    fn a_store_like_another_has_its_arrays_of_one_shard() {
        let folder = tempfile::tempdir().unwrap();
        let (source, root) = (folder.path().join("a"), folder.path().join("b"));
        store(&source);
        StoreWriter::create_like(&root, &source, 8, 4, &Map::new()).unwrap();
        assert_eq!(fs::read(root.join("text/null/c.0.0")).unwrap(), fs::read(source.join("text/null/c.0.0")).unwrap());
        assert!(StoreWriter::open(&root, "one").unwrap().committed(0..4).is_empty());
    }
}
