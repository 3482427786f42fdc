//! The files of a tar, and what is read of them.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde_json::{Map, Value as Json};
use tar::Archive;

use crate::objects::ObjectError;
use crate::source::place::{Place, Reader};
use crate::source::{CaptionFault, Charset};
use crate::{Error, Result};

/// Longer texts and JSON members are not read.
const LONGEST_TEXT: u64 = 4 << 20;
/// What comes before a member's bytes: its header, and those of a long name.
const LONGEST_HEADERS: u64 = 1 << 20;
/// Members are padded to whole blocks.
const BLOCK: u64 = 512;

/// Which dot of a member's name its key ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot {
    /// The first one after the last slash: the rule of `WebDataset`.
    First,
    /// The last one, in tars of files whose names have dots.
    Last,
}

/// A file within the tar.
pub(super) struct Member {
    /// Its name up to a dot: what a row's members share.
    pub key: String,
    /// What follows that dot, in lower case.
    pub extension: String,
    /// Where its headers begin, those of a long name included.
    pub begin: u64,
    /// Where its bytes begin.
    pub offset: u64,
    pub length: u64,
}

/// Why no more can be read of a tar.
pub(super) enum Stop {
    /// It is damaged or cut short here.
    Damaged(String),
    /// The store does not give it at present.
    Unreachable(Error),
}

/// The files of a tar from an offset on; after an error nothing comes.
pub(super) struct Members {
    pub reader: Reader,
    path: PathBuf,
    size: u64,
    dot: Dot,
    next: u64,
    failed: bool,
}

impl Members {
    pub fn open(place: &Place, dot: Dot, start: u64) -> Result<Self> {
        let reader = place.open()?;
        let size = reader.size().map_err(|error| Error::io(&place.path, error))?;
        Ok(Self { reader, path: place.path.clone(), size, dot, next: start, failed: false })
    }

    /// Goes on with the member whose headers begin there.
    pub fn go_to(&mut self, begin: u64) {
        (self.next, self.failed) = (begin, false);
    }
}

impl Iterator for Members {
    type Item = std::result::Result<Member, Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match read_member(&mut self.reader, self.dot, self.next, self.size)? {
                Ok((member, after)) => {
                    self.next = after;
                    if let Some(member) = member {
                        return Some(Ok(member));
                    }
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(match ObjectError::behind(&error) {
                        Some(error) => Stop::Unreachable(Error::object(&self.path, error)),
                        None => Stop::Damaged(error.to_string()),
                    }));
                }
            }
        }
        None
    }
}

type Found = io::Result<(Option<Member>, u64)>;

/// The member whose headers begin at `begin`, or `None` for what is no part of a row; and where the next one begins.
fn read_member(file: &mut Reader, dot: Dot, begin: u64, size: u64) -> Option<Found> {
    if begin >= size {
        return Some(Err(cut_short("the archive has no end")));
    }
    if let Err(error) = file.seek(SeekFrom::Start(begin)) {
        return Some(Err(error));
    }
    // A long name is read at once, however long its header says it is.
    let headers = (&mut *file).take(LONGEST_HEADERS);
    let mut archive = Archive::new(BufReader::with_capacity(2 * BLOCK as usize, headers));
    let entry = match archive.entries().map(|mut entries| entries.next()) {
        Ok(None) => return None,
        Ok(Some(Ok(entry))) => entry,
        Ok(Some(Err(error))) | Err(error) => return Some(Err(error)),
    };
    let kind = entry.header().entry_type();
    // A file with holes is longer than what is stored of it.
    let stored = if kind.is_gnu_sparse() { entry.header().entry_size() } else { Ok(entry.size()) };
    let (offset, length) = match stored {
        Ok(length) => (begin + entry.raw_file_position(), length),
        Err(error) => return Some(Err(error)),
    };
    if offset.saturating_add(length) > size {
        return Some(Err(cut_short(&format!("a member of {length} bytes at {offset}, and the file has {size}"))));
    }
    let after = offset + length.div_ceil(BLOCK) * BLOCK;
    if !kind.is_file() {
        return Some(Ok((None, after)));
    }
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let Some((key, extension)) = split(&name, dot) else { return Some(Ok((None, after))) };
    let member = Member { key: key.to_owned(), extension: extension.to_ascii_lowercase(), begin, offset, length };
    Some(Ok((Some(member), after)))
}

/// A name's key and extension. As in `WebDataset`, a file without a dot or with one in front is no part of a row (macOS
/// puts `._a.jpg` beside `a.jpg`), nor is what lies in a folder such as `__MACOSX`.
fn split(name: &str, dot: Dot) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let at = match dot {
        Dot::First => name[file..].find('.'),
        Dot::Last => name[file..].rfind('.'),
    };
    let at = file + at.filter(|_| !name[file..].starts_with('.'))?;
    let is_meta = name.split('/').next().is_some_and(|first| first.starts_with("__") && first.ends_with("__"));
    (!is_meta && !name.starts_with("__MACOSX/")).then_some((&name[..at], &name[at + 1..]))
}

fn cut_short(what: &str) -> io::Error {
    io::Error::other(format!("cut short: {what}"))
}

/// The bytes of a text or JSON, or why they cannot be had.
///
/// # Errors
/// If the store does not give it.
pub(super) fn read(
    reader: &mut Reader,
    member: &Member,
) -> std::result::Result<std::result::Result<Vec<u8>, CaptionFault>, ObjectError> {
    let mut bytes = Vec::new();
    if member.length > LONGEST_TEXT {
        let reason = format!("{}.{} has more than {LONGEST_TEXT} bytes", member.key, member.extension);
        return Ok(Err(CaptionFault::TooLong(reason)));
    }
    let mut read = || {
        reader.seek(SeekFrom::Start(member.offset))?;
        reader.take(member.length).read_to_end(&mut bytes)
    };
    match read() {
        Ok(_) => Ok(Ok(bytes)),
        Err(error) => match ObjectError::behind(&error) {
            Some(error) => Err(error),
            None => Ok(Err(CaptionFault::Unreadable(format!("{}.{}: {error}", member.key, member.extension)))),
        },
    }
}

/// An object of JSON, and whether U+FFFD in it stands for what could not be read; an empty one where there is none.
pub(super) fn read_json(
    reader: &mut Reader,
    member: &Member,
    charset: Charset,
) -> std::result::Result<(Map<String, Json>, bool), ObjectError> {
    let bytes = read(reader, member)?.unwrap_or_default();
    let (text, damaged) = match charset.decode(&bytes) {
        Ok(text) => (text, false),
        Err(_) => (String::from_utf8_lossy(&bytes), true),
    };
    Ok(match serde_json::from_str(&text) {
        Ok(Json::Object(object)) => (object, damaged),
        _ => (Map::new(), false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_as_webdataset_splits_them() {
        for (name, first, last) in [
            ("a.jpg", Some(("a", "jpg")), Some(("a", "jpg"))),
            ("x.y/a.seg.png", Some(("x.y/a", "seg.png")), Some(("x.y/a.seg", "png"))),
            ("./a.txt", Some(("./a", "txt")), Some(("./a", "txt"))),
            ("x/._a.jpg", None, None),
            (".DS_Store", None, None),
            ("x/README", None, None),
            ("__MACOSX/a.jpg", None, None),
            ("__meta__", None, None),
        ] {
            assert_eq!((split(name, Dot::First), split(name, Dot::Last)), (first, last), "{name}");
        }
    }
}
