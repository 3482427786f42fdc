//! An object that is read as a file is: from any place on, in pieces of any size.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use super::{Object, ObjectError};

/// What is asked for at least.
const BLOCK: u64 = 1 << 20;
/// Blocks that are asked for at once where reading goes on from one block to the next.
const READ_AHEAD: u64 = 4;
/// Blocks that are kept: several columns of a parquet file are read side by side.
const KEPT: usize = 24;

/// Reads an object; clones share what is kept of it, and have their own place in it.
#[derive(Clone)]
pub struct ObjectReader {
    object: Arc<Object>,
    blocks: Arc<Mutex<Blocks>>,
    at: u64,
}

impl ObjectReader {
    /// A reader at the beginning; nothing is asked for yet.
    #[must_use]
    pub fn new(object: Object) -> Self {
        Self { object: Arc::new(object), blocks: Arc::default(), at: 0 }
    }

    /// How long the object is.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.object.size
    }

    /// A reader from `at` on.
    #[must_use]
    pub fn from(&self, at: u64) -> Self {
        Self { at, ..self.clone() }
    }

    /// So many bytes from a place on.
    ///
    /// # Errors
    /// If the object is not that long, or cannot be read.
    pub fn bytes_at(&self, start: u64, length: usize) -> io::Result<Bytes> {
        let end = start.saturating_add(length as u64);
        if end > self.object.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if length as u64 > READ_AHEAD * BLOCK {
            return self.object.read(start..end).map_err(io::Error::other);
        }
        let first = self.piece(start)?;
        if first.len() >= length {
            return Ok(first.slice(..length));
        }
        let mut bytes = BytesMut::with_capacity(length);
        bytes.extend_from_slice(&first);
        while bytes.len() < length {
            let piece = self.piece(start + bytes.len() as u64)?;
            bytes.extend_from_slice(&piece[..piece.len().min(length - bytes.len())]);
        }
        Ok(bytes.freeze())
    }

    /// What is left of the block at a place, which is in the object.
    fn piece(&self, at: u64) -> io::Result<Bytes> {
        let block = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).block(&self.object, at / BLOCK);
        let block = block.map_err(io::Error::other)?;
        let within = (at % BLOCK) as usize;
        if within >= block.len() {
            return Err(io::Error::other(ObjectError::Changed));
        }
        Ok(block.slice(within..))
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.object.size || buffer.is_empty() {
            return Ok(0);
        }
        let piece = self.piece(self.at)?;
        let num = piece.len().min(buffer.len());
        buffer[..num].copy_from_slice(&piece[..num]);
        self.at += num as u64;
        Ok(num)
    }
}

impl Seek for ObjectReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.object.size.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Blocks by number; those that were used last are at the back.
#[derive(Default)]
struct Blocks(VecDeque<(u64, Bytes)>);

impl Blocks {
    fn has(&self, number: u64) -> bool {
        self.0.iter().any(|(found, _)| *found == number)
    }

    fn block(&mut self, object: &Object, number: u64) -> Result<Bytes, ObjectError> {
        if let Some(index) = self.0.iter().position(|(found, _)| *found == number)
            && let Some(block) = self.0.remove(index)
        {
            let bytes = block.1.clone();
            self.0.push_back(block);
            return Ok(bytes);
        }
        let goes_on = number > 0 && self.has(number - 1);
        let most = if goes_on { READ_AHEAD } else { 1 };
        let end = (number + 1..number + most).find(|next| self.has(*next)).unwrap_or(number + most);
        let bytes = object.read(number * BLOCK..object.size.min(end * BLOCK))?;
        for (next, start) in (number..end).zip((0..bytes.len()).step_by(BLOCK as usize)) {
            self.0.push_back((next, bytes.slice(start..bytes.len().min(start + BLOCK as usize))));
        }
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
        Ok(bytes.slice(..bytes.len().min(BLOCK as usize)))
    }
}
