//! Which column is which: LAION's spellings and their relatives, whatever their case.

use std::collections::BTreeMap;
use std::path::Path;

use arrow_schema::{DataType, Field, Schema};

use super::Charset;
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
const IMAGE_NAMES: [&str; 8] = ["image", "images", "jpg", "jpeg", "png", "webp", "img", "bytes"];
const IMAGE_BYTES_NAMES: [&str; 3] = ["image_bytes", "img_bytes", "image_data"];
const PATH_NAMES: [&str; 7] = ["path", "image_path", "file_name", "filename", "filepath", "file", "file_path"];
const CHECKSUM_NAMES: [&str; 2] = ["sha256", "md5"];
const KEY_NAMES: [&str; 5] = ["key", "sample_id", "image_id", "id", "__key__"];

/// Names that an error message shows.
const NAMES_SHOWN: usize = 20;

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
    /// What of a list of captions is kept at most; `None` is all of it.
    pub max_captions: Option<usize>,
    /// What captions are encoded in.
    pub charset: Charset,
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

/// The first of what may be very many names, for an error message.
pub(super) fn some_of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<T> = names.into_iter().collect();
    let shown = names.iter().take(NAMES_SHOWN).map(|name| name.as_ref().to_owned());
    let more = names.len().saturating_sub(NAMES_SHOWN);
    join(shown) + &if more > 0 { format!(" and {more} more") } else { String::new() }
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
        Some(name) => Some(table.named(name, &KEYS)?),
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
            return choice.captions.iter().map(|name| self.named(name, &CAPTIONS)).collect();
        }
        match self.first(&CAPTION_NAMES, is_caption) {
            Some(index) => Ok(vec![index]),
            None => Err(self
                .unusable(&CAPTION_NAMES, &CAPTIONS)
                .unwrap_or_else(|| Error::NoCaptionColumn { path: self.path.to_owned(), columns: self.names() })),
        }
    }

    fn image(&self, choice: &ColumnChoice) -> Result<(usize, ImageKind)> {
        let named: Vec<&String> = [&choice.url, &choice.image, &choice.path].into_iter().flatten().collect();
        if named.len() > 1 {
            let columns: Vec<&str> = named.iter().map(|column| column.as_str()).collect();
            return Err(Error::SeveralImageColumns(columns.join(", ")));
        }
        if let Some(name) = &choice.url {
            return Ok((self.named(name, &URLS)?, ImageKind::Url));
        }
        if let Some(name) = &choice.image {
            return Ok((self.named(name, &IMAGES)?, ImageKind::Bytes));
        }
        if let Some(name) = &choice.path {
            return Ok((self.named(name, &PATHS)?, ImageKind::Path));
        }
        // Bytes first: who embeds images often keeps the URL that they came from beside them.
        self.first(&IMAGE_NAMES, is_encoded)
            .or_else(|| self.first(&IMAGE_BYTES_NAMES, is_encoded))
            .map(|index| (index, ImageKind::Bytes))
            .or_else(|| self.first(&URL_NAMES, is_caption).map(|index| (index, ImageKind::Url)))
            .or_else(|| self.first(&PATH_NAMES, is_path).map(|index| (index, ImageKind::Path)))
            .ok_or_else(|| {
                self.unusable(&IMAGE_NAMES, &IMAGES)
                    .unwrap_or_else(|| Error::NoImageColumn { path: self.path.to_owned(), columns: self.names() })
            })
    }

    fn names(&self) -> String {
        let names = some_of(self.schema.fields().iter().map(|field| field.name()));
        if names.is_empty() { "(no columns)".to_owned() } else { names }
    }

    fn position(&self, name: &str) -> Option<usize> {
        let fields = self.schema.fields();
        let exact = fields.iter().position(|field| field.name() == name);
        exact.or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name)))
    }

    fn first(&self, names: &[&str], usable: fn(&DataType) -> bool) -> Option<usize> {
        let fields = self.schema.fields();
        names.iter().find_map(|name| {
            let fits = |field: &Field| field.name().eq_ignore_ascii_case(name) && usable(field.data_type());
            fields.iter().position(|field| fits(field))
        })
    }

    /// The error for a list or struct of the usual name, which may be what was meant.
    fn unusable(&self, names: &[&str], role: &Role) -> Option<Error> {
        let index = self.first(names, DataType::is_nested)?;
        Some(self.wrong_type(index, role))
    }

    fn wrong_type(&self, index: usize, role: &Role) -> Error {
        let field = self.schema.field(index);
        Error::ColumnType {
            path: self.path.to_owned(),
            column: field.name().clone(),
            found: type_name(field.data_type()),
            role: role.name,
            wanted: role.wanted,
        }
    }

    fn named(&self, name: &str, role: &Role) -> Result<usize> {
        let index = self.position(name).ok_or_else(|| Error::NoSuchColumn {
            path: self.path.to_owned(),
            column: name.to_owned(),
            columns: self.names(),
        })?;
        let usable = (role.usable)(self.schema.field(index).data_type());
        if usable { Ok(index) } else { Err(self.wrong_type(index, role)) }
    }
}

/// What a column is used for, and the types that do.
struct Role {
    name: &'static str,
    wanted: &'static str,
    usable: fn(&DataType) -> bool,
}

const CAPTIONS: Role = Role { name: "captions", wanted: "string or a list of strings", usable: is_caption };
const URLS: Role = Role { name: "URLs", wanted: "string", usable: is_caption };
const PATHS: Role = Role { name: "paths", wanted: "string", usable: is_caption };
const IMAGES: Role =
    Role { name: "images", wanted: "binary, struct{bytes, path} or a list of these", usable: is_encoded };
const KEYS: Role = Role { name: "keys", wanted: "string or integer", usable: is_key };

/// The type of a column as people write it.
fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())),
        DataType::Map(_, _) => "map".to_owned(),
        DataType::Struct(fields) => {
            format!("struct{{{}}}", some_of(fields.iter().map(|field| field.name())))
        }
        kind if is_text(kind) => "string".to_owned(),
        kind => kind.to_string().to_ascii_lowercase(),
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8)
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary)
}

/// Text, also that of writers which do not say that it is, or a list of texts.
fn is_caption(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) => is_text(item.data_type()) || is_binary(item.data_type()),
        kind => is_text(kind) || is_binary(kind),
    }
}

/// Bytes that are not said to be text may be a picture in a column called `file`.
fn is_path(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) => is_text(item.data_type()),
        kind => is_text(kind),
    }
}

fn is_encoded(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => fields.iter().any(|field| field.name() == "bytes" && is_binary(field.data_type())),
        DataType::List(item) if !matches!(item.data_type(), DataType::List(_)) => is_encoded(item.data_type()),
        kind => is_binary(kind),
    }
}

fn is_key(kind: &DataType) -> bool {
    is_text(kind)
        || is_binary(kind)
        || matches!(kind, DataType::Int32 | DataType::Int64 | DataType::UInt32 | DataType::UInt64)
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
