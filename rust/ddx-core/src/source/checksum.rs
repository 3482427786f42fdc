//! What a data set says that its images' bytes hash to.

use md5::{Digest, Md5};
use sha2::Sha256;

/// A hash of encoded bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// 128 bits.
    Md5([u8; 16]),
    /// 256 bits.
    Sha256([u8; 32]),
}

impl Checksum {
    /// Reads hexadecimal digits, whose number tells the kind.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        match digits.len() {
            32 => bytes.try_into().ok().map(Self::Md5),
            64 => bytes.try_into().ok().map(Self::Sha256),
            _ => None,
        }
    }

    /// Whether the bytes hash to this; `sha256` is their SHA-256, which everybody needs anyway.
    #[must_use]
    pub fn matches(&self, bytes: &[u8], sha256: &[u8; 32]) -> bool {
        match self {
            Self::Md5(expected) => <[u8; 16]>::from(Md5::digest(bytes)) == *expected,
            Self::Sha256(expected) => sha256 == expected,
        }
    }
}

/// The SHA-256 of encoded bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read_and_compared() {
        for (text, matches) in [
            ("5d41402abc4b2a76b9719d911017c592", true),
            (" 2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824", true),
            ("5d41402abc4b2a76b9719d911017c593", false),
        ] {
            assert_eq!(Checksum::parse(text).unwrap().matches(b"hello", &sha256(b"hello")), matches, "{text}");
        }
        for text in ["", "5d41", "5d41402abc4b2a76b9719d911017c59x", "-1234567890123456789"] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }
}
