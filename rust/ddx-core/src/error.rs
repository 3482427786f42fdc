//! The one error of the crate: a sentence with the values in it, and the cure where there is one.

use std::path::{Path, PathBuf};

use crate::objects::ObjectError;

/// What ends a call. A failing row is not an error: it is a `RowStatus`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path or pattern that matches no file.
    #[error("no such file: {0}")]
    NoSuchFile(String),
    /// A folder without a single file that could be an input.
    #[error("no parquet, tar, ffrecord, CSV, TSV or JSONL file and no image in {0}")]
    NothingUsable(String),
    /// A folder that holds latents and no pictures.
    #[error("{0} is a store, and its files are no rows to make another of")]
    IsStore(PathBuf),
    /// A file whose name says nothing.
    #[error("{0}: not a kind of file that rows are read from")]
    UnknownKind(PathBuf),
    /// A file that is not readable as a tar.
    #[error("{path}: not a readable tar: {reason}")]
    NotATar {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A file that is not readable as a list.
    #[error("{path}: not a readable list: {reason}")]
    NotAList {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A filter that is no condition.
    #[error("cannot read the filter {text:?}: {reason}{}", if rest.is_empty() { " at its end".to_owned() } else { format!(" at {rest:?}") })]
    Filter {
        /// The filter.
        text: String,
        /// What is left of it where it stops making sense.
        rest: String,
        /// What was expected there.
        reason: String,
    },
    /// A filter that no row passes.
    #[error("none of {rows} rows passes the filter {filter:?}")]
    NothingPasses {
        /// The filter.
        filter: String,
        /// How many rows there were.
        rows: u64,
    },
    /// Duplicates by address, of images that have none.
    #[error("images inside their rows have no URL or path to be compared by")]
    NoAddress,
    /// A file that is not readable as parquet.
    #[error("{path}: not a readable parquet file: {reason}")]
    NotParquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A file that is no ffrecord file, or one of samples that are not understood.
    #[error("{path}: not a readable ffrecord file: {reason}")]
    NotFfrecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Sources without a single row.
    #[error("{0}: no rows")]
    NoRows(String),
    /// No column that could hold captions.
    #[error("{path}: no caption column among: {columns}")]
    NoCaptionColumn {
        /// The file.
        path: PathBuf,
        /// The columns that it has, comma separated.
        columns: String,
    },
    /// No column that could hold images, paths or URLs.
    #[error("{path}: no image column among: {columns}")]
    NoImageColumn {
        /// The file.
        path: PathBuf,
        /// The columns that it has, comma separated.
        columns: String,
    },
    /// A column that was asked for by name is missing.
    #[error("{path}: no column {column:?} among: {columns}")]
    NoSuchColumn {
        /// The file.
        path: PathBuf,
        /// The name that was asked for.
        column: String,
        /// The columns that it has, comma separated.
        columns: String,
    },
    /// A column of a type that its role cannot use.
    #[error("{path}: column {column:?} has type {found}, but {role} needs {wanted}")]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What it was to be used for.
        role: &'static str,
        /// The types that would do.
        wanted: &'static str,
    },
    /// Two flags that exclude each other.
    #[error("only one of url, image and path columns can be the source of the images, got {0}")]
    SeveralImageColumns(String),
    /// A setting outside its range.
    #[error("{name} = {value}: must be {wanted}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The allowed values.
        wanted: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A store of objects that does not give one.
    #[error("{path}: {source}")]
    Object {
        /// The object, or a folder of them.
        path: PathBuf,
        /// The store's reason.
        source: ObjectError,
    },
    /// A file of a store that cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of a store whose bytes are not those that were written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A store whose metadata and contents do not fit each other or the request.
    #[error("{message}")]
    Store {
        /// What does not fit.
        message: String,
        /// The cure, if there is one.
        hint: Option<String>,
    },
    /// Asked for more from something that has ended.
    #[error("{0}")]
    Stopped(&'static str),
    /// A thread, runtime or TLS set-up that could not be started.
    #[error("cannot start {what}: {reason}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// Why it was not.
        reason: String,
    },
}

/// The crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps a system error with the path that it is about.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        match ObjectError::behind(&source) {
            Some(source) => Self::Object { path, source },
            None => Self::Io { path, source },
        }
    }

    /// Wraps what a store of objects says with the address that it is about.
    pub fn object(path: impl AsRef<Path>, source: ObjectError) -> Self {
        Self::Object { path: path.as_ref().to_owned(), source }
    }

    /// Wraps the refusal of a disk.
    pub fn write(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Write { path: path.as_ref().to_owned(), source }
    }

    /// Wraps what went wrong when reading a file of a store.
    pub fn read(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        match source.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                Self::Damaged { path, reason: source.to_string() }
            }
            _ => Self::Io { path, source },
        }
    }

    /// A store that does not fit itself or the request.
    pub fn store(message: impl Into<String>, hint: Option<String>) -> Self {
        Self::Store { message: message.into(), hint }
    }

    /// The cure, in words for a user of the command line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoSuchFile(_) => "check the path; quote a pattern such as 'part-*.parquet'",
            Self::NothingUsable(_) | Self::UnknownKind(_) => {
                "give *.parquet, *.tar, *.ffr, *.csv, *.tsv or *.jsonl, a pattern, or a folder of these or of images"
            }
            Self::IsStore(_) => {
                "give what it was made from, or its rows.parquet, which has captions and where pictures were"
            }
            Self::NotATar { .. } => "give a complete, uncompressed tar; a download may have been cut short",
            Self::NotAList { .. } => "the name's ending tells the format: .csv, .tsv or .jsonl",
            Self::Filter { .. } => "write it like: --where \"aesthetic >= 5.5 and width >= 512 and NSFW = 'UNLIKELY'\"",
            Self::NothingPasses { .. } => "widen the filter; text is compared letter by letter, in quotes",
            Self::NoAddress => "leave --dedup away",
            Self::NotParquet { .. } => "give a complete parquet file; a download may have been cut short",
            Self::NotFfrecord { .. } => {
                "give a whole file of `ffrecord.pack_folder`, or one whose samples are pickled dicts of an encoded image, \
                 text and numbers; no pickle is run"
            }
            Self::NoRows(_) => "give a file with at least one row",
            Self::NoCaptionColumn { .. } => "name the column with --caption-column",
            Self::NoImageColumn { .. } => {
                "name the column with --url-column, --image-column or --path-column; with --synthetic the teacher draws \
                 the pictures, and captions are enough"
            }
            Self::NoSuchColumn { .. } => "use one of the columns listed",
            Self::ColumnType { .. } => "name another column, or write this one as one of the types that would do",
            Self::SeveralImageColumns(_) => "give one of --url-column, --image-column and --path-column",
            Self::Write { source, .. } => return write_hint(source),
            Self::Damaged { .. } => {
                "`ddx inspect STORE --verify` names all damaged files, and the same `ddx precompute` with --verify makes \
                 their parts anew"
            }
            Self::Store { hint, .. } => return hint.clone(),
            Self::Object { path, source } => return source.hint(path),
            Self::Setting { .. } | Self::Io { .. } | Self::Stopped(_) | Self::Start { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the caller asked for something impossible (exit code 2), rather than something failing (exit code 1).
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoSuchColumn { .. }
                | Self::SeveralImageColumns(_)
                | Self::Setting { .. }
                | Self::Filter { .. }
                | Self::NothingPasses { .. }
                | Self::NoAddress
        )
    }
}

fn write_hint(source: &std::io::Error) -> Option<String> {
    use std::io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let hint = match source.kind() {
        StorageFull | QuotaExceeded => "free some space, or give another place with --out or --workspace",
        FileTooLarge => "raise the limit on the size of files (`ulimit -f`), or make parts smaller with --part-rows",
        PermissionDenied | ReadOnlyFilesystem => "give a folder that you may write to with --out or --workspace",
        _ => return None,
    };
    Some(hint.to_owned())
}
