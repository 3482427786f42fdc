//! Which column is which: LAION's spellings and their relatives, whatever their case.

use std::collections::BTreeMap;
use std::path::Path;

use arrow_schema::{DataType, Field, Schema};

use crate::{Error, Result};

const CAPTION_NAMES: [&str; 12] = [
    "caption",
    "text",
    "txt",
    "top_caption",
    "captions",
    "prompt",
    "description",
    "alt_text",
    "alt",
    "title",
    "recaption",
    "label_text",
];
const URL_NAMES: [&str; 5] = ["url", "image_url", "img_url", "uri", "link"];
const IMAGE_NAMES: [&str; 7] = ["image", "jpg", "jpeg", "png", "webp", "img", "bytes"];
const IMAGE_BYTES_NAMES: [&str; 3] = ["image_bytes", "img_bytes", "image_data"];
const PATH_NAMES: [&str; 7] = ["path", "image_path", "file_name", "filename", "filepath", "file", "file_path"];
const CHECKSUM_NAMES: [&str; 2] = ["sha256", "md5"];
const KEY_NAMES: [&str; 5] = ["key", "sample_id", "image_id", "id", "__key__"];

/// What the images of a source are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Addresses to fetch.
    Url,
    /// Encoded images inside the rows.
    Bytes,
    /// Names of local files.
    Path,
    /// There are none: they are drawn from the captions.
    Caption,
}

impl ImageKind {
    /// `url`, `bytes`, `path` or `caption`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Bytes => "bytes",
            Self::Path => "path",
            Self::Caption => "caption",
        }
    }
}

/// Columns that the user named; `None` is to be found out.
#[derive(Clone, Debug, Default)]
pub struct ColumnChoice {
    /// A column of addresses.
    pub url: Option<String>,
    /// A column of encoded images.
    pub image: Option<String>,
    /// A column of file names.
    pub path: Option<String>,
    /// The captions, one or several a row.
    pub captions: Vec<String>,
    /// The rows' names.
    pub key: Option<String>,
    /// Look for no images: the captions are all that is read.
    pub captions_only: bool,
}

/// The columns of one file: indexes into its top-level fields.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub captions: Vec<usize>,
    /// Where there are captions alone, the first column of them.
    pub image: usize,
    pub image_kind: ImageKind,
    pub key: Option<usize>,
    pub checksum: Option<usize>,
}

impl Columns {
    /// The names of the columns by role; `name` gives the one of an index.
    pub fn names(&self, name: impl Fn(usize) -> String) -> BTreeMap<&'static str, String> {
        let mut names = BTreeMap::from([("caption", join(self.captions.iter().map(|&index| name(index))))]);
        if self.image_kind != ImageKind::Caption {
            names.insert("image", name(self.image));
        }
        if let Some(key) = self.key {
            names.insert("key", name(key));
        }
        if let Some(checksum) = self.checksum {
            names.insert("checksum", name(checksum));
        }
        names
    }
}

/// Several names in one text.
pub(super) fn join(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Finds the column of captions by its usual names.
pub(super) fn find_caption(names: &[String]) -> Option<usize> {
    CAPTION_NAMES.iter().find_map(|usual| names.iter().position(|name| name.eq_ignore_ascii_case(usual)))
}

/// Finds the columns of a file.
///
/// # Errors
/// If there is none for the captions or the images, or one that was named is missing or of a useless type.
pub(super) fn find_columns(path: &Path, schema: &Schema, choice: &ColumnChoice) -> Result<Columns> {
    let table = Table { path, schema };
    let (captions, (image, image_kind)) = if choice.captions_only {
        let captions = table.captions(choice)?;
        let image = captions[0];
        (captions, (image, ImageKind::Caption))
    } else {
        let image = table.image(choice)?;
        (table.captions(choice)?, image)
    };
    let key = match &choice.key {
        Some(name) => Some(table.named(name, "keys", "string or integer", is_key)?),
        None => table.first(&KEY_NAMES, is_key),
    };
    // LAION's integer `hash` is none of the content's.
    let checksum = table.first(&CHECKSUM_NAMES, is_text);
    Ok(Columns { captions, image, image_kind, key, checksum })
}

struct Table<'a> {
    path: &'a Path,
    schema: &'a Schema,
}

impl Table<'_> {
    fn captions(&self, choice: &ColumnChoice) -> Result<Vec<usize>> {
        if !choice.captions.is_empty() {
            return choice.captions.iter().map(|name| self.named(name, "captions", "string", is_text)).collect();
        }
        self.first(&CAPTION_NAMES, is_text)
            .map(|index| vec![index])
            .ok_or_else(|| Error::NoCaptionColumn { path: self.path.to_owned(), columns: self.names() })
    }

    fn image(&self, choice: &ColumnChoice) -> Result<(usize, ImageKind)> {
        let named: Vec<&String> = [&choice.url, &choice.image, &choice.path].into_iter().flatten().collect();
        if named.len() > 1 {
            let columns: Vec<&str> = named.iter().map(|column| column.as_str()).collect();
            return Err(Error::SeveralImageColumns(columns.join(", ")));
        }
        if let Some(name) = &choice.url {
            return Ok((self.named(name, "URLs", "string", is_text)?, ImageKind::Url));
        }
        if let Some(name) = &choice.image {
            let wanted = "binary or struct{bytes, path}";
            return Ok((self.named(name, "images", wanted, is_encoded)?, ImageKind::Bytes));
        }
        if let Some(name) = &choice.path {
            return Ok((self.named(name, "paths", "string", is_text)?, ImageKind::Path));
        }
        // Bytes first: who embeds images often keeps the URL that they came from beside them.
        self.first(&IMAGE_NAMES, is_encoded)
            .or_else(|| self.first(&IMAGE_BYTES_NAMES, is_encoded))
            .map(|index| (index, ImageKind::Bytes))
            .or_else(|| self.first(&URL_NAMES, is_text).map(|index| (index, ImageKind::Url)))
            .or_else(|| self.first(&PATH_NAMES, is_text).map(|index| (index, ImageKind::Path)))
            .ok_or_else(|| Error::NoImageColumn { path: self.path.to_owned(), columns: self.names() })
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        if names.is_empty() { "(no columns)".to_owned() } else { names.join(", ") }
    }

    fn first(&self, names: &[&str], usable: fn(&DataType) -> bool) -> Option<usize> {
        let fields = self.schema.fields();
        names.iter().find_map(|name| {
            let fits = |field: &Field| field.name().eq_ignore_ascii_case(name) && usable(field.data_type());
            fields.iter().position(|field| fits(field))
        })
    }

    fn named(
        &self,
        name: &str,
        role: &'static str,
        wanted: &'static str,
        usable: fn(&DataType) -> bool,
    ) -> Result<usize> {
        let fields = self.schema.fields();
        let index = fields
            .iter()
            .position(|field| field.name() == name)
            .or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name)))
            .ok_or_else(|| Error::NoSuchColumn {
                path: self.path.to_owned(),
                column: name.to_owned(),
                columns: self.names(),
            })?;
        let found = fields[index].data_type();
        if usable(found) {
            return Ok(index);
        }
        Err(Error::ColumnType {
            path: self.path.to_owned(),
            column: name.to_owned(),
            found: found.to_string(),
            role,
            wanted,
        })
    }
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_encoded(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => fields.iter().any(|field| field.name() == "bytes" && is_binary(field.data_type())),
        kind => is_binary(kind),
    }
}

fn is_key(kind: &DataType) -> bool {
    is_text(kind) || matches!(kind, DataType::Int32 | DataType::Int64 | DataType::UInt32 | DataType::UInt64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, DataType)]) -> Schema {
        Schema::new(columns.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>())
    }

    #[test]
    fn laion_spellings_are_found_in_any_case() {
        for (url, caption) in [("URL", "TEXT"), ("url", "caption"), ("Url", "top_caption")] {
            let schema = schema(&[("hash", DataType::Int64), (caption, DataType::Utf8), (url, DataType::Utf8)]);
            let columns = find_columns(Path::new("x"), &schema, &ColumnChoice::default()).unwrap();
            assert_eq!(columns.captions, [1]);
            assert_eq!((columns.image, columns.image_kind, columns.key), (2, ImageKind::Url, None));
        }
    }

    #[test]
    fn embedded_bytes_win_over_the_url_that_they_came_from() {
        let image = DataType::Struct(
            vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)].into(),
        );
        let schema = schema(&[("url", DataType::Utf8), ("image", image), ("text", DataType::Utf8)]);
        let columns = find_columns(Path::new("x"), &schema, &ColumnChoice::default()).unwrap();
        assert_eq!((columns.image, columns.image_kind), (1, ImageKind::Bytes));
    }

    #[test]
    fn what_is_missing_is_named_with_the_columns_found() {
        let schema = schema(&[("url", DataType::Utf8), ("width", DataType::Int64)]);
        let find = |choice: &ColumnChoice| find_columns(Path::new("x.parquet"), &schema, choice).unwrap_err();
        let error = find(&ColumnChoice::default());
        assert_eq!(error.to_string(), "x.parquet: no caption column among: url, width");
        assert!(error.hint().unwrap().contains("--caption-column"));
        let error = find(&ColumnChoice { captions: vec!["width".into()], ..Default::default() });
        assert!(matches!(error, Error::ColumnType { .. }), "{error}");
        let error = find(&ColumnChoice { path: Some("nope".into()), ..Default::default() });
        assert!(matches!(error, Error::NoSuchColumn { .. }), "{error}");
    }
}
