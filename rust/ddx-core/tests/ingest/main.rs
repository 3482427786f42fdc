//! Sources, fetching, decoding and the pipeline, on real bytes and a server on the loopback address.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod fetching;
mod images;
mod pipeline;
mod server;
mod sources;
