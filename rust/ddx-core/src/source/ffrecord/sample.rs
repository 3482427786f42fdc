//! A sample as named fields.

use arrow_schema::{DataType, Field};
use bytes::Bytes;

use super::Fields;
use super::pickle::{Pickled, STEPS, unpickle};
use crate::image::sniff;
use crate::source::caption::{CaptionFault, Cell};
use crate::source::{Charset, Value};

/// Takes a sample apart. A dict within the dict is part of it: a `WebDataset` sample has its JSON there.
///
/// # Errors
/// If it is something else, in words.
pub(super) fn fields(sample: Bytes) -> Result<Fields, String> {
    match (sample.first(), sample.get(1)) {
        (Some(0x80), Some(2..=5)) => {}
        _ if sniff(&sample).is_some() => return Ok(vec![("image".to_owned(), Pickled::Bytes(sample))]),
        _ => return Err("it is neither a pickle nor an image".to_owned()),
    }
    let items = match unpickle(sample, STEPS)? {
        Pickled::Dict(dict) => dict.items,
        Pickled::List(list) => return Ok(tuple(list.items)),
        _ => return Err("its pickle is no dict".to_owned()),
    };
    let mut fields = Fields::new();
    let mut inner = Vec::new();
    for (key, value) in items {
        match (key.text(), value) {
            (Some(_), Pickled::Dict(dict)) => inner.extend(dict.items),
            (Some(name), value) => fields.push((name.to_owned(), value)),
            (None, _) => return Err("its pickle is a dict whose keys are not names".to_owned()),
        }
    }
    for (key, value) in inner {
        if let Some(name) = key.text()
            && fields.iter().all(|(known, _)| known != name)
        {
            fields.push((name.to_owned(), value));
        }
    }
    Ok(fields)
}

/// The first image and the first text of a tuple, which have no names, and the rest by number.
fn tuple(items: Vec<Pickled>) -> Fields {
    let (mut has_image, mut has_caption) = (false, false);
    let name = |(index, item): (usize, &Pickled)| match item {
        Pickled::Bytes(bytes) if !has_image && sniff(bytes).is_some() => {
            has_image = true;
            "image".to_owned()
        }
        Pickled::Text(_) if !has_caption => {
            has_caption = true;
            "caption".to_owned()
        }
        _ => format!("column_{}", index + 1),
    };
    let names: Vec<String> = items.iter().enumerate().map(name).collect();
    names.into_iter().zip(items).collect()
}

/// What columns are found by: bytes that are text count as text.
pub(super) fn schema_field((name, field): &(String, Pickled)) -> Field {
    let kind = match field {
        Pickled::Bytes(bytes) if sniff(bytes).is_some() || std::str::from_utf8(bytes).is_err() => DataType::Binary,
        Pickled::Bytes(_) | Pickled::Text(_) => DataType::Utf8,
        Pickled::Bool(_) => DataType::Boolean,
        Pickled::Int(_) => DataType::Int64,
        Pickled::Float(_) => DataType::Float64,
        Pickled::List(list) if list.items.iter().all(|item| matches!(item, Pickled::Bytes(_) | Pickled::Text(_))) => {
            DataType::List(Field::new("item", DataType::Binary, true).into())
        }
        Pickled::None | Pickled::List(_) | Pickled::Dict(_) | Pickled::Name(_) => DataType::Null,
    };
    Field::new(name, kind, true)
}

/// A field as a filter compares it.
pub(super) fn value(field: &Pickled) -> Value {
    match field {
        Pickled::Bool(flag) => Value::Bool(*flag),
        Pickled::Int(number) => Value::Number(*number as f64),
        Pickled::Float(number) => Value::Number(*number),
        Pickled::Text(_) | Pickled::Bytes(_) => text(field).map_or(Value::Null, Value::Text),
        Pickled::None | Pickled::List(_) | Pickled::Dict(_) | Pickled::Name(_) => Value::Null,
    }
}

/// A field as captions.
pub(super) fn caption(field: &Pickled, charset: Charset) -> Cell {
    match field {
        Pickled::Text(text) | Pickled::Bytes(text) => Cell::bytes(text, charset),
        Pickled::Int(number) => Cell::Text(number.to_string()),
        Pickled::List(list) => Cell::List(list.items.iter().map(|item| caption(item, charset)).collect()),
        Pickled::None => Cell::Null,
        _ => Cell::Fault(CaptionFault::NotText("the caption is neither text nor a list of texts".to_owned())),
    }
}

/// A field as text, trimmed; of a list the first. `None` when it has none or is blank.
pub(super) fn text(field: &Pickled) -> Option<String> {
    let text = match field {
        Pickled::Text(text) | Pickled::Bytes(text) => std::str::from_utf8(text).ok()?.trim().to_owned(),
        Pickled::Int(number) => number.to_string(),
        Pickled::List(list) => return list.items.iter().find_map(text),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}
