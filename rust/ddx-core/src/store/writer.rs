//! Puts metadata, shards and commit records in place.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::metadata::{ArraySpec, GROUP_FILE};
use super::{COMMIT_FOLDER, Commit, atomic, replace, shard};
use crate::error::{Error, Result};

/// What one shard holds: the contents of chunks `ids` (None: the first ones) one after another.
#[derive(Debug, Clone, Copy)]
pub struct ShardData<'a> {
    /// The array, as `text/tokens`.
    pub array: &'a str,
    /// Numbers of the chunks that exist.
    pub ids: Option<&'a [u32]>,
    /// Their bytes.
    pub data: &'a [u8],
}

/// A part that is about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Number of the part, which is that of its shards.
    pub part: u64,
    /// Its first row.
    pub first_row: u64,
    /// Its rows, failed ones included.
    pub rows: u64,
    /// Rows that have latents and text.
    pub ok: u64,
    /// Failed rows by reason.
    pub failed: &'a BTreeMap<String, u64>,
}

/// Writes one store. Several writers may work on disjoint parts of it at once.
#[derive(Debug)]
pub struct StoreWriter {
    root: PathBuf,
    arrays: BTreeMap<String, ArraySpec>,
    fingerprint: String,
}

impl StoreWriter {
    /// Creates the metadata of a store, and the arrays that have no parts. The root's `zarr.json` comes last: a store
    /// exists when that does.
    ///
    /// `attributes` become the root group's. `fingerprint` is the digest that every commit record will carry. `whole`
    /// are arrays of one shard.
    ///
    /// # Errors
    /// When an array is not possible or the disk refuses.
    pub fn create(
        root: &Path,
        arrays: Vec<ArraySpec>,
        attributes: &Map<String, Value>,
        fingerprint: &str,
        whole: &[ShardData<'_>],
    ) -> Result<Self> {
        let mut nodes = Map::new();
        for array in &arrays {
            array.validate()?;
            let mut parent = Path::new(&array.path).parent();
            while let Some(group) = parent.filter(|group| !group.as_os_str().is_empty()) {
                nodes.insert(group.to_string_lossy().into_owned(), group_metadata(&Map::new()));
                parent = group.parent();
            }
            nodes.insert(array.path.clone(), array.to_metadata());
        }
        for (path, metadata) in &nodes {
            write_json(&root.join(path).join(GROUP_FILE), metadata)?;
        }
        atomic::create_folder(&root.join(COMMIT_FOLDER))?;
        let writer = Self {
            root: root.to_owned(),
            arrays: arrays.into_iter().map(|array| (array.path.clone(), array)).collect(),
            fingerprint: fingerprint.to_owned(),
        };
        for &content in whole {
            writer.write_shard(0, content)?;
        }
        let mut group = group_metadata(attributes);
        // Inline metadata of all nodes: one read opens the store, and listings skip what is not Zarr.
        group["consolidated_metadata"] = json!({"kind": "inline", "must_understand": false, "metadata": nodes});
        write_json(&root.join(GROUP_FILE), &group)?;
        Ok(writer)
    }

    /// Opens a store that [`Self::create`] made.
    ///
    /// # Errors
    /// When there is none, or an array is laid out in another way.
    pub fn open(root: &Path, fingerprint: &str) -> Result<Self> {
        let arrays = read_arrays(root)?;
        Ok(Self { root: root.to_owned(), arrays, fingerprint: fingerprint.to_owned() })
    }

    /// Writes arrays of one shard anew, and the metadata of every node as the root holds them.
    ///
    /// # Errors
    /// When the data do not fit the arrays, or the disk refuses.
    pub fn restore(&self, whole: &[ShardData<'_>]) -> Result<()> {
        for (path, metadata) in &read_nodes(&self.root)? {
            write_json(&self.root.join(path).join(GROUP_FILE), metadata)?;
        }
        whole.iter().try_for_each(|&content| self.write_shard(0, content).map(|_| ()))
    }

    /// Writes one shard of one array. Returns its path inside the store and its size.
    ///
    /// # Errors
    /// When the data do not fit the array, or the disk refuses.
    pub fn write_shard(&self, shard: u64, content: ShardData<'_>) -> Result<(String, u64)> {
        self.write_shard_under(&self.root, shard, content)
    }

    fn write_shard_under(&self, base: &Path, shard: u64, content: ShardData<'_>) -> Result<(String, u64)> {
        let array = self.array(content.array)?;
        if shard >= array.num_shards() {
            return Err(Error::store(format!("{} has {} shards, not {shard}", array.path, array.num_shards()), None));
        }
        let path = array.shard_path(shard);
        let target = base.join(&path);
        if let Some(parent) = target.parent() {
            atomic::create_folder(parent)?;
        }
        let size = atomic::write(&target, |out| {
            shard::write(out, array.chunks_per_shard(), array.chunk_bytes(), content.ids, content.data)
        })?;
        Ok((path, size))
    }

    /// Writes a part: its shards, its other files (path inside the store and bytes), and last its commit record.
    ///
    /// # Errors
    /// When the data do not fit, or the disk refuses; the part then does not count, and can be written again.
    pub fn write_part(&self, part: Part<'_>, shards: &[ShardData<'_>], files: &[(String, &[u8])]) -> Result<Commit> {
        let commit = self.write_files(&self.root, part, shards, files)?;
        self.record(&commit)?;
        Ok(commit)
    }

    /// Puts a commit record in place: its part is done.
    pub(super) fn record(&self, commit: &Commit) -> Result<()> {
        write_json(&self.root.join(Commit::path(commit.part)), &to_json(commit)?)
    }

    /// Writes a part that is done anew. The old one counts until the new one is whole, whenever the process stops.
    ///
    /// # Errors
    /// When the data do not fit, or the disk refuses; the old part then still counts.
    pub fn replace_part(&self, part: Part<'_>, shards: &[ShardData<'_>], files: &[(String, &[u8])]) -> Result<Commit> {
        replace::clear(&self.root, part.part)?;
        let commit = self.write_files(&replace::folder(&self.root, part.part), part, shards, files)?;
        let record = replace::record(&self.root, part.part);
        write_json(&record, &to_json(&commit)?)?;
        replace::finish(&self.root, &record)?;
        Ok(commit)
    }

    /// Finishes replacements that were stopped half way; several processes may do so at once.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish_replacements(&self) -> Result<()> {
        replace::finish_all(&self.root)
    }

    /// Writes a part's shards and files below `base`; the record of them counts once it is in its place.
    pub(super) fn write_files(
        &self,
        base: &Path,
        part: Part<'_>,
        shards: &[ShardData<'_>],
        files: &[(String, &[u8])],
    ) -> Result<Commit> {
        let (mut sizes, mut checksums) = (BTreeMap::new(), BTreeMap::new());
        for &content in shards {
            let (path, size) = self.write_shard_under(base, part.part, content)?;
            sizes.insert(path, size);
        }
        for (path, bytes) in files {
            let target = base.join(path);
            if let Some(parent) = target.parent() {
                atomic::create_folder(parent)?;
            }
            sizes.insert(path.clone(), atomic::write(&target, |out| out.write_all(bytes))?);
            checksums.insert(path.clone(), crc32c::crc32c(bytes));
        }
        Ok(Commit {
            part: part.part,
            first_row: part.first_row,
            rows: part.rows,
            ok: part.ok,
            failed: part.failed.clone(),
            fingerprint: self.fingerprint.clone(),
            files: sizes,
            checksums,
        })
    }

    /// Records of those of the parts that are done.
    #[must_use]
    pub fn committed(&self, parts: Range<u64>) -> Vec<Commit> {
        parts
            .filter_map(|part| Commit::read(&self.root, part))
            .filter(|commit| commit.holds(&self.root, &self.fingerprint))
            .collect()
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn array(&self, path: &str) -> Result<&ArraySpec> {
        self.arrays.get(path).ok_or_else(|| Error::store(format!("the store has no array {path}"), None))
    }
}

/// The arrays of a store by path, from the root's inline metadata.
pub(super) fn read_arrays(root: &Path) -> Result<BTreeMap<String, ArraySpec>> {
    read_nodes(root)?
        .iter()
        .filter(|(_, metadata)| metadata["node_type"] == "array")
        .map(|(path, metadata)| Ok((path.clone(), ArraySpec::from_metadata(path, metadata)?)))
        .collect()
}

/// The metadata of all nodes of a store by path, from the root's.
pub(super) fn read_nodes(root: &Path) -> Result<Map<String, Value>> {
    let group = read_root(root)?;
    group.pointer("/consolidated_metadata/metadata").and_then(Value::as_object).cloned().ok_or_else(|| {
        Error::store(
            format!("{} is not a store of ddx", root.display()),
            Some("stores are made by `ddx precompute`".into()),
        )
    })
}

/// The root's `zarr.json`; null if it is no JSON.
pub(super) fn read_root(root: &Path) -> Result<Value> {
    let path = root.join(GROUP_FILE);
    let text = fs::read(&path).map_err(|source| Error::read(&path, source))?;
    Ok(serde_json::from_slice(&text).unwrap_or_default())
}

fn group_metadata(attributes: &Map<String, Value>) -> Value {
    json!({"zarr_format": 3, "node_type": "group", "attributes": attributes})
}

fn to_json(commit: &Commit) -> Result<Value> {
    serde_json::to_value(commit).map_err(|error| Error::store(error.to_string(), None))
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    if let Some(parent) = path.parent() {
        atomic::create_folder(parent)?;
    }
    let text = format!("{value:#}\n");
    atomic::write(path, |out| out.write_all(text.as_bytes())).map(|_| ())
}

#[cfg(test)]
pub(super) mod tests {
    use std::slice;

    use super::*;
    use crate::store::DataType;

    pub(in crate::store) fn array(path: &str, shape: &[u64], shard: u64, chunk: u64, data_type: DataType) -> ArraySpec {
        ArraySpec {
            path: path.into(),
            shape: shape.to_vec(),
            shard_rows: shard,
            chunk_rows: chunk,
            data_type,
            fill_value: json!(0),
            dimension_names: shape.iter().map(|extent| format!("of_{extent}")).collect(),
            attributes: Map::new(),
        }
    }

    fn write(writer: &StoreWriter, part: u64) -> Commit {
        let failed = BTreeMap::from([("decode".to_owned(), 1)]);
        let part = Part { part, first_row: 2 * part, rows: 2, ok: 1, failed: &failed };
        let shard = ShardData { array: "latents", ids: Some(&[1]), data: &[7; 8] };
        writer.write_part(part, &[shard], &[("_ddx/errors/0".into(), b"{}\n")]).unwrap()
    }

    /// Both rows of a part that had one.
    fn replace(writer: &StoreWriter, part: u64) -> Commit {
        let failed = BTreeMap::new();
        let part = Part { part, first_row: 2 * part, rows: 2, ok: 2, failed: &failed };
        let shard = ShardData { array: "latents", ids: None, data: &[8; 16] };
        writer.replace_part(part, &[shard], &[("_ddx/errors/0".into(), b"")]).unwrap()
    }

    #[test]
    fn a_replaced_part_is_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let arrays = vec![array("latents", &[5, 4], 2, 1, DataType::Float16)];
        let writer = StoreWriter::create(folder.path(), arrays, &Map::new(), "one", &[]).unwrap();
        write(&writer, 1);
        let commit = replace(&writer, 1);
        assert_eq!(writer.committed(0..3), slice::from_ref(&commit));
        assert_eq!(fs::metadata(folder.path().join("_ddx/errors/0")).unwrap().len(), 0);
        assert!(!folder.path().join("_ddx/next").exists());
    }

    #[test]
    fn a_replacement_that_was_cut_short_is_finished_or_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let arrays = vec![array("latents", &[5, 4], 2, 1, DataType::Float16)];
        let writer = StoreWriter::create(root, arrays, &Map::new(), "one", &[]).unwrap();
        let old = write(&writer, 1);
        let part = Part { part: 1, first_row: 2, rows: 2, ok: 2, failed: &BTreeMap::new() };
        let shard = ShardData { array: "latents", ids: None, data: &[8; 16] };
        // Stopped before the record: the old part counts, and the next attempt starts anew.
        let next = writer.write_files(&replace::folder(root, 1), part, &[shard], &[("x".into(), b"new")]).unwrap();
        writer.finish_replacements().unwrap();
        assert_eq!(writer.committed(0..3), [old]);
        assert!(!replace::record(root, 1).exists() && !root.join("x").exists());
        // Stopped after the record and one rename: the new one counts once it is finished.
        write_json(&replace::record(root, 1), &to_json(&next).unwrap()).unwrap();
        fs::rename(replace::folder(root, 1).join("x"), root.join("x")).unwrap();
        assert!(replace::record(root, 1).exists());
        writer.finish_replacements().unwrap();
        assert_eq!(writer.committed(0..3), [next]);
        assert!(!replace::record(root, 1).exists() && !root.join("_ddx/next").exists());
    }

    #[test]
    fn data_of_another_size_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let arrays = vec![array("latents", &[5, 4], 2, 1, DataType::Float16)];
        let writer = StoreWriter::create(folder.path(), arrays, &Map::new(), "one", &[]).unwrap();
        let shard = ShardData { array: "latents", ids: Some(&[1]), data: &[7; 9] };
        assert!(writer.write_shard(0, shard).is_err());
        assert!(writer.write_shard(3, ShardData { data: &[7; 8], ..shard }).is_err());
        assert!(writer.write_shard(0, ShardData { array: "logvar", ..shard }).is_err());
    }
}
