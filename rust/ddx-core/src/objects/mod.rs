//! Objects in the stores of clouds as if they were files: `s3://bucket/key`, `gs://…`, `az://…`, and `file:///…`.
//!
//! An object is named by a path that begins with its scheme, so it may stand wherever a file's path does, and joining
//! and cutting paths works on both. Credentials and endpoints come from the environment, as in the clouds' own tools.

mod address;
mod error;
mod reader;
mod stores;

use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStoreExt};

pub use address::is_object;
pub use error::ObjectError;
pub use reader::ObjectReader;
pub use stores::runtime;

use address::Address;
use stores::store;

type Result<T> = std::result::Result<T, ObjectError>;

/// Objects that are read at the same time where one alone would wait for its answer.
const AT_A_TIME: usize = 32;

/// An object as it was when it was found.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its address.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    tag: Option<String>,
    modified: String,
}

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// The objects, sorted by path.
    pub objects: Vec<Object>,
    /// The folders right in it, if it was not looked into them.
    pub folders: Vec<PathBuf>,
}

impl Object {
    fn new(address: &Address, meta: ObjectMeta) -> Self {
        let path = address.with_key(meta.location.as_ref());
        Self { path, size: meta.size, tag: meta.e_tag, modified: meta.last_modified.to_rfc3339() }
    }

    /// Looks for an object; `None` if there is none at that place, or no such bucket.
    ///
    /// # Errors
    /// If the store cannot be asked or refuses.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        let address = Address::parse(path)?;
        let (store, key) = (store(&address)?, address.object_path()?);
        match block_on(async move { store.head(&key).await })? {
            Ok(meta) => Ok(Some(Self::new(&address, meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What tells its contents from others: the size and the store's tag, or the time of its last change.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{};{}", self.size, self.tag.as_ref().unwrap_or(&self.modified))
    }

    /// A range of the object, which must not have changed since it was found.
    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let (path, tag) = (self.path.clone(), self.tag.clone());
        block_on(async move {
            let answer = get(&path, Some(range), tag).await?;
            Ok(answer.bytes().await?)
        })?
    }
}

/// Asks for an object or a range of one; with a tag, for that version alone.
///
/// To be awaited on [`runtime`].
///
/// # Errors
/// If there is none, or the store cannot be asked or refuses.
pub async fn get(path: &Path, range: Option<Range<u64>>, tag: Option<String>) -> Result<GetResult> {
    let address = Address::parse(path)?;
    let (store, key) = (store(&address)?, address.object_path()?);
    let options = GetOptions { if_match: tag, range: range.map(GetRange::Bounded), ..GetOptions::default() };
    Ok(store.get_opts(&key, options).await?)
}

/// The small objects of these names, several at a time, in their order; `None` where there is none.
#[must_use]
pub fn read_all(paths: Vec<PathBuf>, longest: u64) -> Vec<Result<Option<Bytes>>> {
    let read = move |path: PathBuf| async move {
        match get(&path, None, None).await {
            Ok(answer) if answer.meta.size > longest => Ok(None),
            Ok(answer) => Ok(Some(answer.bytes().await?)),
            Err(ObjectError::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let num = paths.len();
    block_on(futures_util::stream::iter(paths.into_iter().map(read)).buffered(AT_A_TIME).collect())
        .unwrap_or_else(|error| vec![Err(error); num])
}

/// The objects of a folder, and of those in it if it is searched `deep`.
///
/// # Errors
/// If the store cannot be asked or refuses, or there is no such bucket.
pub fn list(folder: &Path, deep: bool) -> Result<Listing> {
    let address = Address::parse(folder)?;
    let (store, key) = (store(&address)?, address.object_path()?);
    let found = block_on(async move {
        if deep {
            let objects = store.list(Some(&key)).try_collect().await?;
            Ok((objects, Vec::new()))
        } else {
            let found = store.list_with_delimiter(Some(&key)).await?;
            Ok((found.objects, found.common_prefixes))
        }
    })?;
    let (objects, folders) = found.map_err(|error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => ObjectError::NoBucket,
        error => error.into(),
    })?;
    let mut objects: Vec<Object> = objects.into_iter().map(|meta| Object::new(&address, meta)).collect();
    objects.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Listing { objects, folders: folders.iter().map(|folder| address.with_key(folder.as_ref())).collect() })
}

/// Waits in a thread of ours for what runs on the runtime of the stores.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    Ok(runtime()?.block_on(future))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use super::*;

    fn address(path: &Path) -> PathBuf {
        PathBuf::from(format!("file://{}", path.display()))
    }

    #[test]
    fn any_range_of_an_object_is_read_as_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b#1.bin");
        let bytes: Vec<u8> = (0..7_500_001_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let object = Object::find(&address(&path)).unwrap().unwrap();
        assert_eq!(object.size, bytes.len() as u64);
        let mut reader = ObjectReader::new(object);
        for (start, length) in [(7_400_000, 200_000), (0, 10), (1_048_570, 12), (5, 7_499_990), (3_000_000, 1_500_000)]
        {
            let mut found = Vec::new();
            reader.seek(SeekFrom::Start(start)).unwrap();
            (&mut reader).take(length).read_to_end(&mut found).unwrap();
            let end = bytes.len().min((start + length) as usize);
            assert!(found == bytes[start as usize..end], "{start} {length}");
            if start + length <= bytes.len() as u64 {
                assert!(reader.bytes_at(start, length as usize).unwrap() == bytes[start as usize..end]);
            }
        }
        assert!(reader.bytes_at(7_500_000, 2).is_err());
    }

    #[test]
    fn an_object_that_changes_is_not_read_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        std::fs::write(&path, "before").unwrap();
        let mut reader = ObjectReader::new(Object::find(&address(&path)).unwrap().unwrap());
        std::fs::write(&path, "after that").unwrap();
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
    }

    #[test]
    fn folders_are_listed_in_the_order_of_paths() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/2.txt", "b-c/1.txt", "a.txt"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, name).unwrap();
        }
        let names = |deep| {
            let listing = list(&address(folder.path()), deep).unwrap();
            let name = |path: &PathBuf| path.strip_prefix(address(folder.path())).unwrap().display().to_string();
            let objects: Vec<String> = listing.objects.iter().map(|object| name(&object.path)).collect();
            (objects, listing.folders.iter().map(name).collect::<Vec<_>>())
        };
        assert_eq!(names(true), (vec!["a.txt".to_owned(), "b/2.txt".into(), "b-c/1.txt".into()], vec![]));
        assert_eq!(names(false), (vec!["a.txt".to_owned()], vec!["b".to_owned(), "b-c".into()]));
        let paths = ["b/2.txt", "none.txt", "b-c/1.txt"].map(|name| address(folder.path()).join(name));
        let texts: Vec<_> = read_all(paths.to_vec(), 8).into_iter().map(Result::unwrap).collect();
        assert_eq!(texts, [Some(Bytes::from_static(b"b/2.txt")), None, None]); // the last is longer than that
    }
}
