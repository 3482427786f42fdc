//! The files of a tar, and what is read of them.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde_json::{Map, Value as Json};
use tar::Archive;

use crate::objects::ObjectError;
use crate::source::place::{Place, Reader};
use crate::{Error, Result};

/// Longer texts and JSON members are not read.
const LONGEST_TEXT: u64 = 4 << 20;
/// What comes before a member's bytes: its header, and those of a long name.
const LONGEST_HEADERS: u64 = 1 << 20;
/// Members are padded to whole blocks.
const BLOCK: u64 = 512;

/// A file within the tar.
pub(super) struct Member {
    /// Its name up to the first dot after the last slash: what a row's members share.
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
    next: u64,
    failed: bool,
}

impl Members {
    pub fn open(place: &Place, start: u64) -> Result<Self> {
        let reader = place.open()?;
        let size = reader.size().map_err(|error| Error::io(&place.path, error))?;
        Ok(Self { reader, path: place.path.clone(), size, next: start, failed: false })
    }
}

impl Iterator for Members {
    type Item = std::result::Result<Member, Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match read_member(&mut self.reader, self.next, self.size)? {
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

/// The member whose headers begin at `begin`, or `None` for a folder or link; and where the next one begins.
fn read_member(file: &mut Reader, begin: u64, size: u64) -> Option<Found> {
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
    let folder = name.rfind('/').map_or(0, |slash| slash + 1);
    let (stem, extension) = name[folder..].split_once('.').unwrap_or((&name[folder..], ""));
    let member = Member {
        key: format!("{}{stem}", &name[..folder]),
        extension: extension.to_ascii_lowercase(),
        begin,
        offset,
        length,
    };
    Some(Ok((Some(member), after)))
}

fn cut_short(what: &str) -> io::Error {
    io::Error::other(format!("cut short: {what}"))
}

/// The bytes of a text or JSON; none of one that is too long, or lies in a damaged file.
///
/// # Errors
/// If the store does not give it.
pub(super) fn read(reader: &mut Reader, member: &Member) -> std::result::Result<Vec<u8>, ObjectError> {
    let mut bytes = Vec::new();
    if member.length > LONGEST_TEXT {
        return Ok(bytes);
    }
    let mut read = || {
        reader.seek(SeekFrom::Start(member.offset))?;
        reader.take(member.length).read_to_end(&mut bytes)
    };
    match read() {
        Ok(_) => Ok(bytes),
        // What cannot be read is a caption that is not there, and the row says so.
        Err(error) => ObjectError::behind(&error).map_or(Ok(Vec::new()), Err),
    }
}

pub(super) fn read_json(reader: &mut Reader, member: &Member) -> std::result::Result<Map<String, Json>, ObjectError> {
    Ok(match serde_json::from_slice(&read(reader, member)?) {
        Ok(Json::Object(object)) => object,
        _ => Map::new(),
    })
}
