//! The Zarr store: whole shards written atomically, and random batches read back.
