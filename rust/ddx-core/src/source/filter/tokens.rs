//! The words and signs of a filter.

use super::{Comparison, failed};
use crate::Result;
use crate::source::Value;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name or a word of the language; `true` if it was written in backticks.
    Word(String, bool),
    Literal(Value),
    Compare(Comparison),
    Open,
    Close,
    Comma,
}

/// The tokens and where each begins.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>> {
    const SYMBOLS: [(&str, Token); 11] = [
        ("==", Token::Compare(Comparison::Equal)),
        ("!=", Token::Compare(Comparison::NotEqual)),
        ("<>", Token::Compare(Comparison::NotEqual)),
        ("<=", Token::Compare(Comparison::AtMost)),
        (">=", Token::Compare(Comparison::AtLeast)),
        ("=", Token::Compare(Comparison::Equal)),
        ("<", Token::Compare(Comparison::Less)),
        (">", Token::Compare(Comparison::More)),
        ("(", Token::Open),
        (")", Token::Close),
        (",", Token::Comma),
    ];
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, length) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if let Some((symbol, token)) = SYMBOLS.iter().find(|(symbol, _)| rest.starts_with(symbol)) {
            (token.clone(), symbol.len())
        } else if matches!(first, '\'' | '"' | '`') {
            let end = rest[1..].find(first).ok_or_else(|| failed(text, at, "a quote that is not closed"))?;
            let inside = rest[1..=end].to_owned();
            let token = if first == '`' { Token::Word(inside, true) } else { Token::Literal(Value::Text(inside)) };
            (token, end + 2)
        } else {
            let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            if length == 0 {
                return Err(failed(text, at, "an unknown sign"));
            }
            let word = &rest[..length];
            let token = match word.parse::<f64>() {
                Ok(number) if !word.starts_with(char::is_alphabetic) => Token::Literal(Value::Number(number)),
                _ if word.eq_ignore_ascii_case("true") => Token::Literal(Value::Bool(true)),
                _ if word.eq_ignore_ascii_case("false") => Token::Literal(Value::Bool(false)),
                _ => Token::Word(word.to_owned(), false),
            };
            (token, length)
        };
        found.push((at, token));
        at += length;
    }
    Ok(found)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+')
}
