//! Reads every array below a group with zarrs: `zarrs-reader STORE OUT` writes the bytes of array `a/b` to `OUT/a/b`,
//! and prints one line of JSON for each: its path, shape and data type.
//!
//! Every row is also read alone, as a random batch would be, which goes through zarrs' partial decoders.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

use zarrs::array::{Array, ArrayMetadata};
use zarrs::array_subset::ArraySubset;
use zarrs::filesystem::FilesystemStore;
use zarrs::group::Group;
use zarrs::metadata::NodeMetadata;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let [_, store, out] = env::args().collect::<Vec<_>>().try_into().map_err(|_| "usage: zarrs-reader STORE OUT")?;
    let storage = Arc::new(FilesystemStore::new(store)?);
    for (path, metadata) in Group::open(Arc::clone(&storage), "/")?.traverse()? {
        if matches!(metadata, NodeMetadata::Array(ArrayMetadata::V3(_))) {
            read(&Array::open(Arc::clone(&storage), path.as_str())?, Path::new(&out))?;
        }
    }
    Ok(())
}

fn read(array: &Array<FilesystemStore>, out: &Path) -> Result<()> {
    let name = array.path().as_str().trim_start_matches('/');
    let whole = array.retrieve_array_subset(&array.subset_all())?.into_fixed()?.into_owned();
    let rows = array.shape()[0];
    for row in 0..rows {
        let mut ranges: Vec<_> = array.shape().iter().map(|&extent| 0..extent).collect();
        ranges[0] = row..row + 1;
        let alone = array.retrieve_array_subset(&ArraySubset::new_with_ranges(&ranges))?.into_fixed()?.into_owned();
        if alone != whole[row as usize * alone.len()..][..alone.len()] {
            return Err(format!("{name}: row {row} alone is not what it is in the whole").into());
        }
    }
    let path = out.join(name);
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    fs::write(path, whole)?;
    let line = serde_json::json!({"path": name, "shape": array.shape(), "data_type": array.data_type().to_string()});
    println!("{line}");
    Ok(())
}
