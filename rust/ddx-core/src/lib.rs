//! The compiled half of `ddx`, free of Python: sources of images, fetching, decoding, Zarr shards, random batches.

pub mod error;
pub mod fetch;
pub mod image;
pub mod ingest;
pub mod objects;
mod panics;
pub mod source;
pub mod store;

pub use error::{Error, Result};
