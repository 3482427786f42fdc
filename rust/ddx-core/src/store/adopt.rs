//! Parts of another store become parts of this one, without being read.

use std::collections::BTreeMap;
use std::path::Path;

use super::writer::{ShardData, StoreWriter};
use super::{Commit, Part, atomic};
use crate::error::Result;

impl StoreWriter {
    /// Writes a part whose shards are, but for those given, files of another store: `links` are their paths inside this
    /// one, and where they are. They are hard-linked where the file system allows it, else copied; no file of a store is
    /// ever changed in place. The commit record comes last.
    ///
    /// # Errors
    /// When a file is missing, the data do not fit, or the disk refuses; the part then does not count.
    pub fn adopt_part(
        &self,
        part: Part<'_>,
        links: &BTreeMap<String, impl AsRef<Path>>,
        shards: &[ShardData<'_>],
        files: &[(String, &[u8])],
    ) -> Result<Commit> {
        let mut sizes = BTreeMap::new();
        for (path, source) in links {
            sizes.insert(path.clone(), atomic::link(source.as_ref(), &self.root().join(path))?);
        }
        let mut commit = self.write_files(self.root(), part, shards, files)?;
        commit.files.append(&mut sizes);
        self.record(&commit)?;
        Ok(commit)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use serde_json::Map;

    use super::super::writer::tests::array;
    use super::super::{DataType, Verifier};
    use super::*;

    #[test]
    fn a_part_moves_to_another_number_and_shares_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (source, root) = (folder.path().join("a"), folder.path().join("b"));
        let mut latents = array("latents", &[6, 2], 2, 1, DataType::Float16);
        latents.dimension_names[0] = "row".into();
        let from = StoreWriter::create(&source, vec![latents.clone()], &Map::new(), "one", &[]).unwrap();
        let to = StoreWriter::create(&root, vec![latents], &Map::new(), "one", &[]).unwrap();
        let failed = BTreeMap::new();
        let part = |part: u64| Part { part, first_row: 2 * part, rows: 2, ok: 2, failed: &failed };
        let shard = ShardData { array: "latents", ids: None, data: &[7; 8] };
        from.write_part(part(0), &[shard], &[]).unwrap();
        let links = BTreeMap::from([("latents/c.2.0".to_owned(), source.join("latents/c.0.0"))]);
        for _ in 0..2 {
            // The second time the link is there already, as after a stop before the record.
            to.adopt_part(part(2), &links, &[], &[("_ddx/errors/2".into(), b"")]).unwrap();
        }
        assert_eq!(to.committed(0..3).iter().map(|commit| commit.part).collect::<Vec<_>>(), [2]);
        assert_eq!(Verifier::open(&root).unwrap().part(2, Some(&[0, 1])).damaged, []);
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&root.join("latents/c.2.0")), inode(&source.join("latents/c.0.0")));
        assert_eq!(fs::read_dir(root.join("latents")).unwrap().count(), 2, "nothing temporary is left");
        let missing = BTreeMap::from([("latents/c.1.0".to_owned(), source.join("latents/c.1.0"))]);
        assert!(to.adopt_part(part(1), &missing, &[], &[]).is_err());
    }
}
