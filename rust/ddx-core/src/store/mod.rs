//! The Zarr store: whole shards written atomically, and random batches read back.
//!
//! A store is plain Zarr v3. Its rows are cut into *parts*: part `p` is shard `p` of every per-row array, has one
//! writer, and counts only once its commit record exists. Everything else here follows from that:
//!
//! * [`ArraySpec`] is an array whose shards and inner chunks cut the first axis alone, and its `zarr.json`;
//! * [`shard`] encodes and decodes one shard (inner chunks, then the index, all with crc32c);
//! * [`atomic`] makes a file appear whole or not at all;
//! * [`StoreWriter`] puts a part's shards and then its [`Commit`] in place;
//! * [`Verifier`] reads all of it against its checksums;
//! * [`Permutation`] orders an epoch from a seed without storing it;
//! * [`BatchReader`] reads random batches on threads of its own, in an order that does not depend on them.

mod adopt;
mod arrays;
pub mod atomic;
mod commit;
mod files;
mod grow;
mod mapped;
mod metadata;
mod order;
mod reader;
mod replace;
mod rows;
mod sampler;
pub mod shard;
mod table;
mod verify;
mod writer;

pub use arrays::{BUCKET, FLIP, LATENTS, LENGTH, LOGVAR, LOGVAR_FLIP, OFFSET, POOLED, RowArray, SCALE, TOKENS};
pub use commit::{COMMIT_FOLDER, Commit};
pub use metadata::{ArraySpec, DataType, GROUP_FILE};
pub use order::Permutation;
pub use reader::{Batch, BatchReader, ReaderOptions};
pub use rows::RowStore;
pub use verify::{Checked, Damage, Verifier};
pub use writer::{Part, ShardData, StoreWriter};
