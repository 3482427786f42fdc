//! `--where "aesthetic >= 5.5 and width >= 512"`: a small language of comparisons, with SQL's idea of nothing.
//!
//! ```text
//! either     = both ("or" both)*
//! both       = one ("and" one)*
//! one        = "not" one | "(" either ")" | operand comparison?
//! comparison = ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand
//!            | "not"? "in" "(" operand ("," operand)* ")" | "is" "not"? "null"
//! operand    = column | number | 'text' | "text" | true | false
//! ```
//!
//! A comparison with nothing is neither true nor false, and a row is taken only if the whole is true.

mod parser;
mod tokens;

use super::Value;
use crate::{Error, Result};
use parser::parse;

/// A condition on the cells of a row.
#[derive(Debug)]
pub(super) struct Filter {
    condition: Condition,
    columns: Vec<String>,
}

#[derive(Debug)]
enum Condition {
    Or(Vec<Condition>),
    And(Vec<Condition>),
    Not(Box<Condition>),
    Compare(Comparison, Operand, Operand),
    In(Operand, Vec<Operand>),
    IsNull(Operand),
    /// An operand that is true or false itself.
    Is(Operand),
}

#[derive(Debug)]
enum Operand {
    /// An index into the filter's columns.
    Column(usize),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Filter {
    /// Reads a condition.
    ///
    /// # Errors
    /// If the text is no condition; the message says where it stops being one.
    pub fn parse(text: &str) -> Result<Self> {
        let (condition, columns) = parse(text)?;
        Ok(Self { condition, columns })
    }

    /// The columns that it speaks of.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether a row is taken; `cells` are those of [`columns`](Self::columns).
    pub fn takes(&self, cells: &[Value]) -> bool {
        holds(&self.condition, cells) == Some(true)
    }
}

fn failed(text: &str, at: usize, reason: &str) -> Error {
    Error::Filter {
        text: text.to_owned(),
        rest: text.get(at..).unwrap_or_default().to_owned(),
        reason: reason.to_owned(),
    }
}

/// True, false, or not to be said.
fn holds(condition: &Condition, cells: &[Value]) -> Option<bool> {
    let value = |operand: &'_ Operand| match operand {
        Operand::Column(index) => cells[*index].clone(),
        Operand::Literal(value) => value.clone(),
    };
    match condition {
        Condition::Or(parts) => decide(parts, cells, true),
        Condition::And(parts) => decide(parts, cells, false),
        Condition::Not(part) => holds(part, cells).map(|known| !known),
        Condition::Compare(comparison, left, right) => compare(*comparison, &value(left), &value(right)),
        Condition::In(left, rights) => {
            let left = value(left);
            let found: Vec<_> = rights.iter().map(|right| compare(Comparison::Equal, &left, &value(right))).collect();
            if found.contains(&Some(true)) {
                Some(true)
            } else if found.contains(&None) {
                None
            } else {
                Some(false)
            }
        }
        Condition::IsNull(operand) => Some(value(operand) == Value::Null),
        Condition::Is(operand) => match value(operand) {
            Value::Bool(known) => Some(known),
            Value::Text(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::Text(text) if text.eq_ignore_ascii_case("false") => Some(false),
            Value::Number(number) => Some(number != 0.0),
            Value::Text(_) | Value::Null => None,
        },
    }
}

/// `or` for `decisive = true`, `and` for false: one part that is decisive decides, then one that cannot be said.
fn decide(parts: &[Condition], cells: &[Value], decisive: bool) -> Option<bool> {
    let mut result = Some(!decisive);
    for part in parts {
        match holds(part, cells) {
            Some(known) if known == decisive => return Some(decisive),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

/// Numbers compare as numbers, also where a list spells them as text; texts as texts; anything else cannot be said.
fn compare(comparison: Comparison, left: &Value, right: &Value) -> Option<bool> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let ordering = match (left, right) {
        (Value::Null, _) | (_, Value::Null) => return None,
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Text(left), Value::Text(right)) => left.cmp(right),
        (Value::Bool(flag), Value::Text(text)) | (Value::Text(text), Value::Bool(flag)) => {
            if text.eq_ignore_ascii_case(if *flag { "true" } else { "false" }) { Equal } else { Less }
        }
        _ => left.number()?.partial_cmp(&right.number()?)?,
    };
    Some(match comparison {
        Comparison::Equal => ordering == Equal,
        Comparison::NotEqual => ordering != Equal,
        Comparison::Less => ordering == Less,
        Comparison::AtMost => ordering != Greater,
        Comparison::More => ordering == Greater,
        Comparison::AtLeast => ordering != Less,
    })
}

#[cfg(test)]
mod tests {
    use super::parser::DEEPEST;
    use super::*;

    /// Whether the filter takes a row with width 640, aesthetic 5.5, NSFW "UNLIKELY", `my col` "7", and no height.
    fn takes(text: &str) -> bool {
        let filter = Filter::parse(text).unwrap();
        let cell = |name: &String| match name.as_str() {
            "width" => Value::Number(640.0),
            "aesthetic" => Value::Number(5.5),
            "NSFW" => Value::Text("UNLIKELY".to_owned()),
            "my col" => Value::Text("7".to_owned()),
            "good" => Value::Bool(true),
            "height" => Value::Null,
            other => panic!("{other}"),
        };
        let cells: Vec<Value> = filter.columns().iter().map(cell).collect();
        filter.takes(&cells)
    }

    #[test]
    fn comparisons_and_words_mean_what_they_say() {
        for text in [
            "aesthetic >= 5.5 and width >= 512",
            "width = 640 AND NOT aesthetic < 5",
            "NSFW == 'UNLIKELY' or width < 0",
            "(width < 0 or width > 600) and NSFW != \"NSFW\"",
            "NSFW in ('LIKELY', 'UNLIKELY')",
            "NSFW not in ('LIKELY')",
            "`my col` > 6.9 and -1 < width and width <> 1e3",
            "good and height is null and width is not null",
        ] {
            assert!(takes(text), "{text}");
        }
        for text in ["width < 640", "NSFW = 'unlikely'", "not good", "width in (1, 2)", "width = 640 and aesthetic > 6"]
        {
            assert!(!takes(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_neither_more_nor_less() {
        for text in ["height > 5", "not height > 5", "height in (1)", "height not in (1)", "NSFW > 5", "height"] {
            assert!(!takes(text), "{text}");
        }
        assert!(takes("height > 5 or width = 640"));
    }

    #[test]
    fn a_filter_is_only_so_deep() {
        let nested = |open: &str, close: &str, times| format!("{}good{}", open.repeat(times), close.repeat(times));
        assert!(takes(&nested("not not (", ")", DEEPEST / 3)));
        assert!(takes(&vec!["(good)"; 10_000].join(" and ")));
        for text in [nested("(", ")", 100_000), nested("not ", "", 100_000), nested("(", "", 100_000)] {
            assert!(Filter::parse(&text).unwrap_err().to_string().contains("levels"));
        }
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        for (text, rest, reason) in [
            ("width >", "", "a column, a number"),
            ("width > 5 height", "height", "`and`, `or` or the end"),
            ("(width > 5", "", "closing parenthesis"),
            ("width & 5", "& 5", "unknown sign"),
            ("NSFW = 'x", "'x", "not closed"),
            ("width is 5", "5", "`null`"),
            ("", "", "a column"),
        ] {
            let Err(Error::Filter { rest: found, reason: why, .. }) = Filter::parse(text) else { panic!("{text}") };
            assert_eq!(found, rest, "{text}");
            assert!(why.contains(reason), "{text}: {why}");
        }
    }
}
