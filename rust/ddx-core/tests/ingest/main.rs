//! Sources, fetching, decoding and the pipeline, on real bytes and a server on the loopback address.

mod fetching;
mod images;
mod pipeline;
mod server;
mod sources;
