//! Captions as they are found, in every kind of source alike: text in some encoding, several of them, or none.

use std::borrow::Cow;

use encoding_rs::Encoding;
use serde_json::Value as Json;

use crate::{Error, Result};

/// Characters of a caption that cannot be read which are shown.
const SHOWN: usize = 40;

/// What captions are encoded in: a byte order mark decides, else they are UTF-8, else what the user named.
///
/// A named encoding that is no superset of ASCII comes before UTF-8, which would take its bytes for other text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Charset(Option<&'static Encoding>);

impl Charset {
    /// The encoding of a name such as `cp1252`, `latin1`, `shift_jis`, `gbk` or `utf-16le`.
    ///
    /// # Errors
    /// If no encoding is called so.
    pub fn named(name: &str) -> Result<Self> {
        let unknown = || Error::Setting {
            name: "caption_encoding",
            value: name.to_owned(),
            wanted: "an encoding such as cp1252, shift_jis, gbk, big5, euc-kr, koi8-r or utf-16le".to_owned(),
        };
        Encoding::for_label(name.trim().as_bytes()).map(|encoding| Self(Some(encoding))).ok_or_else(unknown)
    }

    /// Whether it reads otherwise what would be UTF-8 too.
    #[must_use]
    pub fn overrides_utf8(self) -> bool {
        self.0.is_some_and(|encoding| !encoding.is_ascii_compatible())
    }

    /// The encoding of a whole file that is not made of ASCII's bytes, by its first ones, and how long its mark is.
    pub(super) fn of_file(self, start: &[u8]) -> (Option<&'static Encoding>, usize) {
        match Encoding::for_bom(start) {
            Some((encoding, length)) if encoding.is_ascii_compatible() => (None, length),
            Some((encoding, length)) => (Some(encoding), length),
            None => (self.0.filter(|_| self.overrides_utf8()), 0),
        }
    }

    /// The bytes as text, or why they are none.
    pub(super) fn decode(self, bytes: &[u8]) -> std::result::Result<Cow<'_, str>, String> {
        if let Some((encoding, length)) = Encoding::for_bom(bytes) {
            return strict(encoding, &bytes[length..]);
        }
        match self.0 {
            Some(encoding) if !encoding.is_ascii_compatible() => strict(encoding, bytes),
            named => match std::str::from_utf8(bytes) {
                Ok(text) => without_nul(Cow::Borrowed(text)),
                Err(_) if named.is_some_and(|it| it != encoding_rs::UTF_8) => {
                    strict(named.unwrap_or(encoding_rs::UTF_8), bytes)
                }
                Err(error) => {
                    let at = error.valid_up_to();
                    Err(format!("byte 0x{:02x} at {at} is not UTF-8: {:?}", bytes[at], shown(bytes)))
                }
            },
        }
    }
}

fn strict<'a>(encoding: &'static Encoding, bytes: &'a [u8]) -> std::result::Result<Cow<'a, str>, String> {
    let text = encoding.decode_without_bom_handling_and_without_replacement(bytes);
    // Bytes that mean nothing in a one-byte encoding come out as control characters.
    let text = text.filter(|text| !text.chars().any(|sign| ('\u{80}'..='\u{9f}').contains(&sign)));
    text.ok_or_else(|| format!("it is not {}: {:?}", encoding.name(), shown(bytes))).and_then(without_nul)
}

fn without_nul(text: Cow<'_, str>) -> std::result::Result<Cow<'_, str>, String> {
    if text.contains('\0') {
        return Err("it has NUL bytes, as UTF-16 without a byte order mark has".to_owned());
    }
    Ok(text)
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]).chars().take(SHOWN).collect()
}

/// Why a row's caption cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub enum CaptionFault {
    /// There is none.
    Absent(String),
    /// Bytes that are no text.
    Encoding(String),
    /// Something other than text or a list of texts.
    NotText(String),
    /// A file of its own that cannot be read.
    Unreadable(String),
    /// More bytes than a caption has.
    TooLong(String),
}

/// What stands where a caption is looked for.
pub(super) enum Cell {
    Null,
    Text(String),
    List(Vec<Cell>),
    Fault(CaptionFault),
}

impl Cell {
    /// Bytes that should be text.
    pub fn bytes(bytes: &[u8], charset: Charset) -> Self {
        match charset.decode(bytes) {
            Ok(text) => Self::Text(text.into_owned()),
            Err(reason) => Self::Fault(CaptionFault::Encoding(reason)),
        }
    }

    /// A field of JSON. In one that was read from `damaged` bytes, U+FFFD stands for what could not be read.
    pub fn json(value: Option<&Json>, damaged: bool) -> Self {
        match value {
            None | Some(Json::Null) => Self::Null,
            Some(Json::String(text)) => Self::text(text, damaged),
            Some(Json::Number(number)) => Self::Text(number.to_string()),
            Some(Json::Bool(flag)) => Self::Text(flag.to_string()),
            Some(Json::Array(items)) => Self::List(items.iter().map(|item| Self::json(Some(item), damaged)).collect()),
            Some(Json::Object(_)) => Self::Fault(CaptionFault::NotText("the caption is an object".to_owned())),
        }
    }

    /// Text that was decoded already.
    pub fn text(text: &str, damaged: bool) -> Self {
        if damaged && text.contains('\u{fffd}') {
            let shown: String = text.chars().take(SHOWN).collect();
            return Self::Fault(CaptionFault::Encoding(format!("bytes are not UTF-8: {shown:?}")));
        }
        match without_nul(Cow::Borrowed(text)) {
            Ok(text) => Self::Text(text.into_owned()),
            Err(reason) => Self::Fault(CaptionFault::Encoding(reason)),
        }
    }
}

/// The captions of a row, one after the other as its columns give them.
#[derive(Default)]
pub(super) struct Captions {
    texts: Vec<Option<String>>,
    fault: Option<CaptionFault>,
}

impl Captions {
    /// Takes what a column holds, whose captions have so many places; of a list that has more, the first ones.
    pub fn push(&mut self, cell: Cell, places: usize) {
        let end = self.texts.len() + places;
        let items = match cell {
            Cell::List(items) => items,
            cell => vec![cell],
        };
        for item in items {
            match item {
                Cell::Null => {}
                Cell::Text(text) if text.trim().is_empty() => {}
                Cell::Text(text) if self.texts.len() < end => self.texts.push(Some(text.trim().to_owned())),
                Cell::Text(_) => break,
                Cell::List(_) => self.fail(CaptionFault::NotText("the caption is a list of lists".to_owned())),
                Cell::Fault(fault) => self.fail(fault),
            }
        }
        self.texts.resize(end, None);
    }

    fn fail(&mut self, fault: CaptionFault) {
        self.fault.get_or_insert(fault);
    }

    /// The captions; and why the row has none, or `absent` if it just has none.
    pub fn finish(self, absent: impl FnOnce() -> String) -> (Vec<Option<String>>, Option<CaptionFault>) {
        let Self { texts, fault } = self;
        match fault {
            None if texts.iter().all(Option::is_none) => (texts, Some(CaptionFault::Absent(absent()))),
            fault => (texts, fault),
        }
    }
}

/// What is said of a cell without a caption in it.
pub(super) fn blank() -> String {
    "the caption is null or blank".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, mark: bool) -> Vec<u8> {
        let mark = mark.then_some(0xfeff);
        mark.into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn a_mark_decides_then_utf8_then_the_named_encoding() {
        let plain = Charset::default();
        let western = Charset::named("cp1252").unwrap();
        let wide = Charset::named("utf-16le").unwrap();
        for charset in [plain, western, wide] {
            assert_eq!(charset.decode(b"\xef\xbb\xbfa caf\xc3\xa9").unwrap(), "a café");
            assert_eq!(charset.decode(&utf16("a café 猫", true)).unwrap(), "a café 猫");
        }
        assert_eq!(plain.decode("a café".as_bytes()).unwrap(), "a café");
        assert_eq!(western.decode("a café".as_bytes()).unwrap(), "a café");
        assert_eq!(western.decode(b"a caf\xe9 \x96 \x80").unwrap(), "a café – €");
        assert_eq!(wide.decode(&utf16("中文", false)).unwrap(), "中文");
        let error = plain.decode(b"a caf\xe9").unwrap_err();
        assert!(error.contains("0xe9 at 5"), "{error}");
        assert!(plain.decode(&utf16("a cat", false)).unwrap_err().contains("NUL"));
        assert!(western.decode(b"a\x81").unwrap_err().contains("windows-1252"));
        assert!(Charset::named("klingon").is_err());
    }

    #[test]
    fn captions_keep_their_places_and_the_first_fault() {
        let text = |text: &str| Cell::Text(text.to_owned());
        let mut captions = Captions::default();
        captions.push(Cell::List(vec![text(" a "), Cell::Null, text(""), text("b"), text("c")]), 2);
        captions.push(text("d"), 1);
        let (texts, fault) = captions.finish(blank);
        assert_eq!(texts, ["a", "b", "d"].map(|text| Some(text.to_owned())));
        assert_eq!(fault, None);
        let mut captions = Captions::default();
        captions.push(Cell::json(Some(&serde_json::json!({"en": "a"})), false), 1);
        captions.push(Cell::Null, 1);
        assert!(matches!(captions.finish(blank), (texts, Some(CaptionFault::NotText(_))) if texts == [None, None]));
    }
}
