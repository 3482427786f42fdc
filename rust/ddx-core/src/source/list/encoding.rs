//! The encoding of a list, which its first bytes tell, or the user.

use std::io::Read as _;

use crate::source::Charset;
use crate::source::place::Place;
use crate::{Error, Result};

/// A list in UTF-16 is turned into UTF-8 in memory, so it must not be larger.
const LARGEST: u64 = 1 << 30;

/// A list whose lines and fields are told apart by ASCII's signs.
pub(super) struct Encoded {
    pub place: Place,
    /// Where its text begins: behind a byte order mark.
    pub start: u64,
    pub charset: Charset,
    /// Whether U+FFFD stands for what could not be read.
    pub damaged: bool,
}

impl Encoded {
    /// Looks at the first bytes; reads all of one in UTF-16.
    ///
    /// # Errors
    /// If it cannot be read, or is in UTF-16 and very large.
    pub fn open(place: Place, charset: Charset) -> Result<Self> {
        let failed = |error| Error::io(&place.path, error);
        let mut start = Vec::new();
        place.open()?.take(4).read_to_end(&mut start).map_err(failed)?;
        let (encoding, mark) = charset.of_file(&start);
        let Some(encoding) = encoding else {
            return Ok(Self { place, start: mark as u64, charset, damaged: false });
        };
        let mut file = place.open()?;
        if file.size().map_err(failed)? > LARGEST {
            let reason = format!("it is in {} and has more than {LARGEST} bytes; write it as UTF-8", encoding.name());
            return Err(Error::NotAList { path: place.path.clone(), reason });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let (text, damaged) = encoding.decode_without_bom_handling(&bytes[mark..]);
        let place = place.with_text(text.into_owned());
        Ok(Self { place, start: 0, charset: Charset::default(), damaged })
    }
}
