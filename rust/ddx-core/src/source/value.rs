//! A cell of metadata, whatever the file that it comes from.

/// What a filter may compare.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing there.
    Null,
    /// True or false.
    Bool(bool),
    /// Any number; integers beyond 2^53 are rounded.
    Number(f64),
    /// Text as it stands.
    Text(String),
}

impl Value {
    /// The value of a JSON field; lists and objects are null.
    #[must_use]
    pub fn from_json(value: Option<&serde_json::Value>) -> Self {
        match value {
            Some(serde_json::Value::Bool(value)) => Self::Bool(*value),
            Some(serde_json::Value::Number(value)) => value.as_f64().map_or(Self::Null, Self::Number),
            Some(serde_json::Value::String(value)) => Self::Text(value.clone()),
            _ => Self::Null,
        }
    }

    /// As a number, if it is one or spells one.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(value) => Some(*value),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Bool(_) | Self::Null => None,
        }
    }

    /// As text, if it is there; numbers as they are usually written.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(value.to_string()),
            Self::Number(value) => Some(value.to_string()),
            Self::Text(text) => Some(text.clone()),
        }
    }
}
