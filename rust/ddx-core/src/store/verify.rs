//! Every byte of a store against its checksums, its records, and what its rows say of themselves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::metadata::{ArraySpec, GROUP_FILE};
use super::shard::{self, ABSENT, CHECKSUM_BYTES};
use super::writer::{read_arrays, read_nodes};
use super::{Commit, LENGTH, OFFSET, TOKENS};
use crate::error::Result;

const BLOCK_BYTES: usize = 1 << 20;

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its path inside the store.
    pub file: String,
    /// What does not fit.
    pub reason: String,
}

/// What was read, and what of it is damaged.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Bytes of the files that were read.
    pub bytes: u64,
    /// The files that do not fit, each once.
    pub damaged: Vec<Damage>,
}

impl Checked {
    fn damage(&mut self, file: impl Into<String>, reason: impl Into<String>) {
        self.damaged.push(Damage { file: file.into(), reason: reason.into() });
    }
}

/// The chunks of one shard.
struct Shard {
    /// Where each one starts, [`ABSENT`] for those that are not there.
    starts: Vec<u64>,
    /// The contents of a shard that is one chunk; else nothing.
    content: Vec<u8>,
}

/// Reads a store part by part; calls may come from many threads. Memory is that of one chunk and one index.
#[derive(Debug)]
pub struct Verifier {
    root: PathBuf,
    nodes: Map<String, Value>,
    /// The arrays whose shards are parts, and those that are one shard.
    by_part: Vec<ArraySpec>,
    whole: Vec<ArraySpec>,
}

impl Verifier {
    /// Opens a store by the root's metadata.
    ///
    /// # Errors
    /// When this is not a store, or an array is laid out in another way.
    pub fn open(root: &Path) -> Result<Self> {
        let (by_part, whole) = read_arrays(root)?.into_values().partition(ArraySpec::is_by_part);
        Ok(Self { root: root.to_owned(), nodes: read_nodes(root)?, by_part, whole })
    }

    /// Checks a part that is done: its record, the sizes and checksums of all its files, every chunk of its shards,
    /// and that the chunks are those of the rows that are fine. `ok`: the places of these inside the part, where known.
    #[must_use]
    pub fn part(&self, part: u64, ok: Option<&[u32]>) -> Checked {
        let mut checked = Checked::default();
        let Some(commit) = Commit::read(&self.root, part).filter(|commit| commit.part == part) else {
            let there = self.root.join(Commit::path(part)).exists();
            checked.damage(Commit::path(part), if there { "is not a record" } else { "is missing" });
            return checked;
        };
        let arrays: BTreeMap<String, &ArraySpec> =
            self.by_part.iter().map(|array| (array.shard_path(part), array)).collect();
        let mut shards = BTreeMap::new();
        for (path, &size) in &commit.files {
            checked.bytes += size;
            let mut read = || {
                let file = File::open(self.root.join(path))?;
                let found = file.metadata()?.len();
                if found != size {
                    return Err(shard::corrupt(format!("has {found} bytes, and was written with {size}")));
                }
                match arrays.get(path) {
                    Some(array) => read_shard(&file, array).map(|shard| {
                        shards.insert(array.path.as_str(), shard);
                    }),
                    None => check_whole_file(file, commit.checksums.get(path).copied()),
                }
            };
            if let Err(error) = read() {
                checked.damage(path, reason(&error));
            }
        }
        if checked.damaged.is_empty()
            && let Some(ok) = ok
        {
            let part_rows = self.by_part.iter().filter(|array| array.has_rows()).map(|array| array.shard_rows).max();
            let mut fine = vec![false; part_rows.unwrap_or(0) as usize];
            for &place in ok {
                if let Some(fine) = fine.get_mut(place as usize) {
                    *fine = true;
                }
            }
            self.check_rows(part, &fine, &shards, &mut checked);
            self.check_captions(part, &fine, &shards, &mut checked);
        }
        checked
    }

    /// Checks the arrays without parts, and that every node's own metadata are those that the root holds.
    #[must_use]
    pub fn whole(&self) -> Checked {
        let mut checked = Checked::default();
        for array in &self.whole {
            let path = array.shard_path(0);
            let read = || {
                let file = File::open(self.root.join(&path))?;
                let size = file.metadata()?.len();
                let shard = read_shard(&file, array)?;
                if shard.starts.contains(&ABSENT) {
                    return Err(shard::corrupt("a chunk is missing".into()));
                }
                Ok(size)
            };
            match read() {
                Ok(size) => checked.bytes += size,
                Err(error) => checked.damage(path, reason(&error)),
            }
        }
        for (path, node) in &self.nodes {
            let file = format!("{path}/{GROUP_FILE}");
            match fs::read(self.root.join(&file)) {
                Err(error) => checked.damage(file, reason(&error)),
                Ok(text) if serde_json::from_slice::<Value>(&text).ok().as_ref() == Some(node) => {}
                Ok(_) => checked.damage(file, "differs from the metadata in the store's own zarr.json"),
            }
        }
        checked
    }

    /// A row that is fine has its chunk in every array of a chunk a row, and no other row has one. Arrays of the same
    /// name in several buckets share the rows.
    fn check_rows(&self, part: u64, fine: &[bool], shards: &BTreeMap<&str, Shard>, checked: &mut Checked) {
        let mut groups: BTreeMap<&str, Vec<&ArraySpec>> = BTreeMap::new();
        // Where a part is a single row, a chunk does not tell a row of its own from an entry in a list.
        for array in self.by_part.iter().filter(|array| array.has_rows() && array.chunk_rows < array.shard_rows) {
            groups.entry(outside_bucket(&array.path)).or_default().push(array);
        }
        for arrays in groups.values() {
            let mut found = vec![false; fine.len()];
            for array in arrays {
                let Some(shard) = shards.get(array.path.as_str()) else { continue };
                let wrong = (0..shard.starts.len()).filter(|&place| shard.starts[place] != ABSENT).find(|&place| {
                    let before = std::mem::replace(&mut found[place], true);
                    before || !fine[place]
                });
                if let Some(place) = wrong {
                    let row = part * array.shard_rows + place as u64;
                    checked.damage(array.shard_path(part), format!("row {row} is in it, and should not be"));
                    return;
                }
            }
            if let Some(place) = (0..fine.len()).find(|&place| fine[place] && !found[place]) {
                let row = part * arrays[0].shard_rows + place as u64;
                checked.damage(arrays[0].shard_path(part), format!("row {row} is fine, and is not in it"));
            }
        }
    }

    /// A row that is fine has a caption, and the chunks of tokens are those of the captions.
    fn check_captions(&self, part: u64, fine: &[bool], shards: &BTreeMap<&str, Shard>, checked: &mut Checked) {
        let array = |path: &str| self.by_part.iter().find(|array| array.path == path);
        let (Some(offsets), Some(tokens)) = (array(OFFSET), array(TOKENS)) else { return };
        let content = |path: &str| shards.get(path).map_or(&[][..], |shard| shard.content.as_slice());
        let num_captions = offsets.shape.get(1).map_or(1, |&num| num as usize);
        let first_token = (part * tokens.shard_rows) as i64;
        let mut has_caption = vec![false; fine.len()];
        let mut expected = vec![false; tokens.chunks_per_shard()];
        let pairs = content(OFFSET).as_chunks::<8>().0.iter().zip(content(LENGTH).as_chunks::<4>().0);
        for (caption, (offset, length)) in pairs.enumerate() {
            let (offset, length) = (i64::from_le_bytes(*offset), i64::from(i32::from_le_bytes(*length)));
            if offset < 0 && length == 0 {
                continue;
            }
            let (place, local) = (caption / num_captions, offset - first_token);
            if local < 0 || length <= 0 || length > tokens.shard_rows as i64 - local {
                let row = part * offsets.shard_rows + place as u64;
                checked.damage(offsets.shard_path(part), format!("row {row} has tokens {offset} + {length}"));
                return;
            }
            has_caption[place] = true;
            let first = local as usize / tokens.chunk_rows as usize;
            let last = (local + length - 1) as usize / tokens.chunk_rows as usize;
            expected[first..=last].fill(true);
        }
        if let Some(place) = (0..fine.len()).find(|&place| fine[place] != has_caption[place]) {
            let row = part * offsets.shard_rows + place as u64;
            let reason = if fine[place] { "is fine, and has no caption" } else { "has a caption, and should not" };
            checked.damage(offsets.shard_path(part), format!("row {row} {reason}"));
        }
        let found = |chunk: usize| shards.get(TOKENS).is_some_and(|shard| shard.starts[chunk] != ABSENT);
        if let Some(chunk) = (0..expected.len()).find(|&chunk| found(chunk) != expected[chunk]) {
            let reason = if expected[chunk] { "is missing" } else { "belongs to no caption" };
            checked.damage(tokens.shard_path(part), format!("chunk {chunk} {reason}"));
        }
    }
}

/// Reads a shard from its first byte to its last.
fn read_shard(file: &File, array: &ArraySpec) -> io::Result<Shard> {
    let starts = shard::read_index(file, array.chunks_per_shard(), array.chunk_bytes())?;
    let mut chunks: Vec<(u64, usize)> = starts.iter().copied().zip(0..).filter(|&(start, _)| start != ABSENT).collect();
    chunks.sort_unstable();
    let stored_bytes = array.chunk_bytes() + CHECKSUM_BYTES;
    let index_start = file.metadata()?.len() - (16 * starts.len() + CHECKSUM_BYTES) as u64;
    let end = (chunks.len() * stored_bytes) as u64;
    if end != index_start || chunks.iter().zip(0u64..).any(|(&(start, _), place)| start != place * stored_bytes as u64)
    {
        return Err(shard::corrupt("its chunks do not lie one after another".into()));
    }
    let mut reader = BufReader::with_capacity(BLOCK_BYTES, file);
    let mut stored = vec![0; if chunks.is_empty() { 0 } else { stored_bytes }];
    for (_, chunk) in chunks {
        reader.read_exact(&mut stored)?;
        if shard::checked(&stored).is_none() {
            return Err(shard::corrupt(format!("chunk {chunk} fails its checksum")));
        }
    }
    if starts.len() > 1 {
        stored.clear();
    }
    stored.truncate(array.chunk_bytes());
    Ok(Shard { starts, content: stored })
}

/// Reads a file that is no shard; those of old records have no checksum.
fn check_whole_file(mut file: File, checksum: Option<u32>) -> io::Result<()> {
    let Some(checksum) = checksum else { return Ok(()) };
    let (mut block, mut found) = (vec![0; BLOCK_BYTES], 0);
    loop {
        let num_bytes = file.read(&mut block)?;
        if num_bytes == 0 {
            break;
        }
        found = crc32c::crc32c_append(found, &block[..num_bytes]);
    }
    if found == checksum { Ok(()) } else { Err(shard::corrupt("fails its checksum".into())) }
}

/// The name of an array without the bucket that it is in.
fn outside_bucket(path: &str) -> &str {
    path.strip_prefix("buckets/").and_then(|rest| rest.split_once('/')).map_or(path, |(_, name)| name)
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "is missing".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::tests::array;
    use super::super::{DataType, Part, ShardData, StoreWriter};
    use super::*;

    /// Two parts of four rows with one token each, in chunks of two; of each part row 2 failed.
    fn store(root: &Path) {
        let mut arrays = vec![
            array("latents", &[8, 2], 4, 1, DataType::Float16),
            array("text/tokens", &[16, 1], 8, 2, DataType::Float16),
            array("text/offset", &[8], 4, 4, DataType::Int64),
            array("text/length", &[8], 4, 4, DataType::Int32),
            array("text/null", &[3, 1], 3, 3, DataType::Float16),
        ];
        for array in &mut arrays[..4] {
            array.dimension_names[0] = if array.path == TOKENS { "token" } else { "row" }.into();
        }
        let null = ShardData { array: "text/null", ids: None, data: &[5; 6] };
        let writer = StoreWriter::create(root, arrays, &Map::new(), "one", &[null]).unwrap();
        for part in 0..2 {
            let first = 8 * i64::try_from(part).unwrap();
            let offset = [first, first + 2, -1, first + 4].map(i64::to_le_bytes).concat();
            let length = [1i32, 1, 0, 1].map(i32::to_le_bytes).concat();
            let shards = [
                ShardData { array: "latents", ids: Some(&[0, 1, 3]), data: &[7; 12] },
                ShardData { array: TOKENS, ids: None, data: &[1; 12] },
                ShardData { array: OFFSET, ids: None, data: &offset },
                ShardData { array: LENGTH, ids: None, data: &length },
            ];
            let failed = BTreeMap::from([("decode".to_owned(), 1)]);
            let part = Part { part, first_row: 4 * part, rows: 4, ok: 3, failed: &failed };
            writer.write_part(part, &shards, &[(format!("_ddx/errors/{}", part.part), b"{}\n")]).unwrap();
        }
    }

    fn only(checked: &Checked) -> (&str, &str) {
        let [damage] = &checked.damaged[..] else { panic!("{checked:?}") };
        (&damage.file, &damage.reason)
    }

    #[test]
    fn what_was_written_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        let verifier = Verifier::open(folder.path()).unwrap();
        for part in 0..2 {
            assert_eq!(verifier.part(part, Some(&[0, 1, 3])).damaged, []);
        }
        assert_eq!(verifier.whole().damaged, []);
        assert_eq!(only(&verifier.part(2, None)), ("_ddx/commit/2", "is missing"));
    }

    #[test]
    fn every_flipped_bit_of_a_part_is_found() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        let verifier = Verifier::open(folder.path()).unwrap();
        let files = Commit::read(folder.path(), 1).unwrap().files;
        assert_eq!(files.len(), 5);
        for file in files.keys() {
            let path = folder.path().join(file);
            let whole = fs::read(&path).unwrap();
            for place in 0..whole.len() {
                let mut torn = whole.clone();
                torn[place] ^= 1 << (place % 8);
                fs::write(&path, torn).unwrap();
                assert_eq!(only(&verifier.part(1, Some(&[0, 1, 3]))).0, file, "byte {place}");
            }
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(verifier.part(1, Some(&[0, 1, 3])).damaged, []);
    }

    #[test]
    fn whole_shards_of_other_rows_are_found() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        let verifier = Verifier::open(folder.path()).unwrap();
        let (latents, reason) = ("latents/c.1.0", "row 6 is fine, and is not in it");
        let checked = verifier.part(1, Some(&[0, 1, 2, 3]));
        assert_eq!((&*checked.damaged[0].file, &*checked.damaged[0].reason), (latents, reason));
        assert_eq!(checked.damaged[1].file, "text/offset/c.1");
        let checked = verifier.part(1, Some(&[0, 1]));
        assert_eq!(checked.damaged[0].reason, "row 7 is in it, and should not be");
        assert_eq!(checked.damaged[1].reason, "row 7 has a caption, and should not");
        // The shard of another part has tokens that are not this part's.
        fs::copy(folder.path().join("text/offset/c.0"), folder.path().join("text/offset/c.1")).unwrap();
        assert_eq!(only(&verifier.part(1, Some(&[0, 1, 3]))), ("text/offset/c.1", "row 4 has tokens 0 + 1"));
    }

    #[test]
    fn arrays_of_several_buckets_share_the_rows() {
        assert_eq!(outside_bucket("buckets/448x576/latents"), "latents");
        assert_eq!((outside_bucket("latents"), outside_bucket("text/pooled")), ("latents", "text/pooled"));
    }

    #[test]
    fn metadata_and_whole_arrays_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path());
        let verifier = Verifier::open(folder.path()).unwrap();
        let node = folder.path().join("text/length").join(GROUP_FILE);
        let text = fs::read_to_string(&node).unwrap();
        fs::write(&node, text.replace('8', "9")).unwrap();
        assert_eq!(only(&verifier.whole()).0, "text/length/zarr.json");
        fs::write(&node, text).unwrap();
        fs::remove_file(folder.path().join("text/null/c.0.0")).unwrap();
        assert_eq!(only(&verifier.whole()), ("text/null/c.0.0", "is missing"));
    }
}
