//! Stores through the crate's public face.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod made;
mod reader;
