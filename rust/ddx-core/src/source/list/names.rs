//! What the columns of a list are called.

use std::path::Path;

use super::ListFormat;
use super::reader::{Line, Reader};
use crate::objects::is_object;
use crate::source::place::Place;
use crate::{Error, Result};

/// Rows that are looked at to find the columns of JSON lines.
const ROWS_LOOKED_AT: usize = 100;

/// The keys of the first objects, in the order in which they appear.
pub(super) fn json_names(place: &Place) -> Result<Vec<String>> {
    let mut reader = Reader::open(place, ListFormat::Jsonl, 0)?;
    let mut names: Vec<String> = Vec::new();
    let mut broken = None;
    for _ in 0..ROWS_LOOKED_AT {
        match reader.next()? {
            Some(Line::Object(object)) => {
                let new: Vec<String> = object.keys().filter(|key| !names.contains(key)).cloned().collect();
                names.extend(new);
            }
            Some(Line::Broken(reason)) => broken = broken.or(Some(reason)),
            Some(Line::Fields(_)) | None => break,
        }
    }
    match broken {
        Some(reason) if names.is_empty() => Err(Error::NotAList { path: place.path.clone(), reason }),
        _ => Ok(names),
    }
}

/// The names of the columns, and where the first row begins.
///
/// Conceptual Captions has no header: a first row that holds an address is one of the data, and columns are then
/// called `url` and `caption` (if there are two), or by their number.
pub(super) fn header(place: &Place, format: ListFormat) -> Result<(Vec<String>, u64)> {
    let mut reader = Reader::open(place, format, 0)?;
    let Some(Line::Fields(first)) = reader.next()? else { return Ok((Vec::new(), 0)) };
    let fields: Vec<String> = first.iter().map(|field| String::from_utf8_lossy(field).trim().to_owned()).collect();
    let is_address =
        |field: &str| field.starts_with("http://") || field.starts_with("https://") || is_object(Path::new(field));
    let Some(address) = fields.iter().position(|field| is_address(field)) else {
        let mut names = fields;
        if let Some(name) = names.first_mut() {
            *name = name.trim_start_matches('\u{feff}').to_owned();
        }
        return Ok((names, reader.offset()));
    };
    let name = |index: usize| match index {
        _ if index == address => "url".to_owned(),
        _ if fields.len() == 2 => "caption".to_owned(),
        _ => format!("column_{}", index + 1),
    };
    Ok(((0..fields.len()).map(name).collect(), 0))
}
