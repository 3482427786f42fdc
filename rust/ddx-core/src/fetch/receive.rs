//! A body as it comes in: as it is, or decompressed where a server sends gzip although nobody asked for it.

use std::io::{Error, ErrorKind, Write};

use bytes::Bytes;
use flate2::write::GzDecoder;

use super::FetchError;

/// No image starts with it; what the headers say of the encoding is often untrue.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const FIRST_CAPACITY: usize = 64 << 10;

/// Collects a body and never holds more than the limit.
pub(super) enum Received {
    Plain(Bounded),
    Gzip(Box<GzDecoder<Bounded>>),
}

impl Received {
    /// How many bytes tell the two apart.
    pub const TELLING: usize = GZIP.len();

    /// `start` is looked at, not taken in. `stated` is the length that the headers give, within the
    /// limit.
    pub fn new(start: &[u8], stated: Option<u64>, limit: usize) -> Self {
        if start.starts_with(&GZIP) {
            return Self::Gzip(Box::new(GzDecoder::new(Bounded { bytes: Vec::new(), most: limit })));
        }
        let most = stated.map_or(limit, |length| length as usize);
        Self::Plain(Bounded { bytes: Vec::with_capacity(stated.map_or(FIRST_CAPACITY, |_| most)), most })
    }

    /// The memory that it may take.
    pub fn most(&self) -> usize {
        match self {
            Self::Plain(bounded) => bounded.most,
            Self::Gzip(decoder) => decoder.get_ref().most,
        }
    }

    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), FetchError> {
        let limit = self.most();
        let failed = |error: Error| gzip_error(&error, limit);
        match self {
            Self::Plain(bounded) => bounded.write_all(piece).map_err(failed),
            Self::Gzip(decoder) => {
                while !piece.is_empty() {
                    match decoder.write(piece).map_err(failed)? {
                        0 => break, // behind the end lies nothing of the image
                        taken => piece = &piece[taken..],
                    }
                }
                Ok(())
            }
        }
    }

    pub fn finish(self) -> Result<Bytes, FetchError> {
        let limit = self.most();
        let bounded = match self {
            Self::Plain(bounded) => bounded,
            Self::Gzip(decoder) => decoder.finish().map_err(|error| gzip_error(&error, limit))?,
        };
        Ok(Bytes::from(bounded.bytes))
    }
}

fn gzip_error(error: &Error, limit: usize) -> FetchError {
    match error.kind() {
        ErrorKind::FileTooLarge => FetchError::TooLarge(limit),
        _ => FetchError::Gzip(error.to_string()),
    }
}

/// Refuses what goes beyond `most`.
pub(super) struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + piece.len() > self.most {
            return Err(ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
