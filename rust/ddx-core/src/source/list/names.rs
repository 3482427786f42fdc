//! What the columns of a list are called.

use std::path::Path;

use super::ListFormat;
use super::encoding::Encoded;
use super::reader::{Line, Reader};
use crate::objects::is_object;
use crate::{Error, Result};

/// Rows that are looked at to find the columns of JSON lines.
const ROWS_LOOKED_AT: usize = 100;

/// The keys of the first objects, in the order in which they appear.
pub(super) fn json_names(list: &Encoded) -> Result<Vec<String>> {
    let mut reader = Reader::open(list, ListFormat::Jsonl, list.start)?;
    let mut names: Vec<String> = Vec::new();
    let mut broken = None;
    for _ in 0..ROWS_LOOKED_AT {
        match reader.next()? {
            Some(Line::Object { object, .. }) => {
                let new: Vec<String> = object.keys().filter(|key| !names.contains(key)).cloned().collect();
                names.extend(new);
            }
            Some(Line::Broken(reason)) => broken = broken.or(Some(reason)),
            Some(Line::Fields { .. }) | None => break,
        }
    }
    match broken {
        Some(reason) if names.is_empty() => Err(Error::NotAList { path: list.place.path.clone(), reason }),
        _ => Ok(names),
    }
}

/// The names of the columns, and where the first row begins.
///
/// Conceptual Captions has no header: a first row that holds an address is one of the data, and columns are then
/// called `url` and `caption` (if there are two), or by their number.
pub(super) fn header(list: &Encoded, format: ListFormat) -> Result<(Vec<String>, u64)> {
    let mut reader = Reader::open(list, format, list.start)?;
    let Some(Line::Fields { record: first, .. }) = reader.next()? else { return Ok((Vec::new(), list.start)) };
    let fields: Vec<String> = first.iter().map(|field| String::from_utf8_lossy(field).trim().to_owned()).collect();
    let is_address =
        |field: &str| field.starts_with("http://") || field.starts_with("https://") || is_object(Path::new(field));
    let Some(address) = fields.iter().position(|field| is_address(field)) else {
        return Ok((fields, reader.offset()));
    };
    let name = |index: usize| match index {
        _ if index == address => "url".to_owned(),
        _ if fields.len() == 2 => "caption".to_owned(),
        _ => format!("column_{}", index + 1),
    };
    Ok(((0..fields.len()).map(name).collect(), list.start))
}
