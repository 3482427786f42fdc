//! Damaged bytes of every kind that is read: an error at worst; never a panic, an abort, an endless loop or memory
//! without bound.
//!
//! Every target makes small valid files, damages them and reads them. `cargo test` runs the same few hundred cases of
//! each every time. With `DDX_FUZZ_SECONDS=600` (`make fuzz`) each target runs that long from a random seed, which is
//! printed; `DDX_FUZZ_SEED` repeats it. What fails is kept below `target/tmp/fuzz`, and so is the file at hand when the
//! process dies; with `DDX_FUZZ_INPUT=FILE` the target that is named reads that file alone. A decoder's panic that is
//! caught costs one image: its file is kept and counted, but it is no failure.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

mod bombs;
mod harness;
mod images;
#[path = "../store/made.rs"]
mod made;
mod memory;
mod mutate;
mod pictures;
mod sources;
mod store;
mod tables;
