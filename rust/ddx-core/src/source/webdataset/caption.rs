//! Where the captions of a tar's rows are.

use super::index::Index;
use super::member::read_json;
use crate::source::ColumnChoice;
use crate::source::columns::find_caption;
use crate::source::place::Place;
use crate::{Error, Result};

const TEXT_EXTENSIONS: [&str; 3] = ["txt", "caption", "text"];

/// Where a row's caption is.
pub(super) enum CaptionMember {
    Extension(String),
    /// `longest`: the most captions that a row has there, `places`: how many of them are kept.
    JsonField {
        name: String,
        longest: usize,
        places: usize,
    },
}

impl CaptionMember {
    pub fn is_json(&self) -> bool {
        matches!(self, Self::JsonField { .. })
    }

    pub fn places(&self) -> usize {
        if let Self::JsonField { places, .. } = self { *places } else { 1 }
    }

    pub fn longest(&self) -> usize {
        if let Self::JsonField { longest, .. } = self { *longest } else { 1 }
    }

    pub fn described(&self) -> String {
        match self {
            Self::Extension(extension) => format!(".{extension}"),
            Self::JsonField { name, .. } => format!("{name:?} of .json"),
        }
    }
}

/// The members that the user named, or those of the usual names.
pub(super) fn caption_members(
    place: &Place,
    choice: &ColumnChoice,
    index: &Index,
    columns: &str,
) -> Result<Vec<CaptionMember>> {
    let json_field = |name: &String| {
        let longest = longest_list(place, choice, index, name)?;
        let places = longest.min(choice.max_captions.unwrap_or(longest));
        Ok(CaptionMember::JsonField { name: name.clone(), longest, places })
    };
    let named = |name: &String| {
        let extension = name.trim_start_matches('.').to_ascii_lowercase();
        if index.extensions.contains(&extension) {
            return Ok(CaptionMember::Extension(extension));
        }
        match index.json_names.iter().find(|field| field.eq_ignore_ascii_case(name)) {
            Some(field) => json_field(field),
            None => {
                Err(Error::NoSuchColumn { path: place.path.clone(), column: name.clone(), columns: columns.to_owned() })
            }
        }
    };
    if !choice.captions.is_empty() {
        return choice.captions.iter().map(named).collect();
    }
    if let Some(extension) = TEXT_EXTENSIONS.iter().find(|extension| index.extensions.contains(**extension)) {
        return Ok(vec![CaptionMember::Extension((*extension).to_owned())]);
    }
    match find_caption(&index.json_names) {
        Some(field) => Ok(vec![json_field(&index.json_names[field])?]),
        None => Err(Error::NoCaptionColumn { path: place.path.clone(), columns: columns.to_owned() }),
    }
}

/// The most captions that a row has in a field of its JSON; all of it is read if the first one has a list there.
fn longest_list(place: &Place, choice: &ColumnChoice, index: &Index, name: &str) -> Result<usize> {
    let mut longest = 1;
    if !index.json_lists.contains(name) {
        return Ok(longest);
    }
    let mut samples = index.samples(place, 0)?;
    while let Some(sample) = samples.next().transpose()? {
        if let Some(member) = sample.iter().find(|member| member.extension == "json") {
            let json = read_json(&mut samples.members.reader, member, choice.charset);
            let (object, _) = json.map_err(|error| Error::object(&place.path, error))?;
            longest = object.get(name).and_then(|field| field.as_array()).map_or(1, Vec::len).max(longest);
        }
    }
    Ok(longest)
}
