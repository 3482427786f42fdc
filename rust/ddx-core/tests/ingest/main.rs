//! Sources, fetching, decoding and the pipeline, on real bytes and a server on the loopback address.

#![allow(clippy::unwrap_used)] // helpers outside of #[test] functions

use std::time::Duration;

/// No test may pass or fail by a clock. What waits so long will never end by itself.
const WATCHDOG: Duration = Duration::from_secs(1800);

mod fetching;
mod images;
mod pipeline;
mod server;
mod sources;
