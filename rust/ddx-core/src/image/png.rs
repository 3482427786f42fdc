//! A PNG whose last chunk is missing.

use std::borrow::Cow;

const END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// The file with an end behind its last whole chunk, where it has none: the pixels may all be there nevertheless.
pub(super) fn ended(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut at = 8;
    while let Some((length, rest)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<4>()) {
        let end = at + 12 + u32::from_be_bytes(*length) as usize;
        if end > bytes.len() {
            break;
        }
        if rest.starts_with(b"IEND") {
            return Cow::Borrowed(bytes);
        }
        at = end;
    }
    Cow::Owned([&bytes[..at.min(bytes.len())], &END].concat())
}
