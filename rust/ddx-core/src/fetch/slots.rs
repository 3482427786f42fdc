//! Who may ask now: so many requests in all, and so many to one host, since hosts ban who asks too much at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::FetchError;

/// The slots of all requests.
#[derive(Clone)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    per_host: usize,
    hosts: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// Permission for one request; given back when dropped.
pub(super) struct Slot {
    _host: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Slots {
    pub fn new(all: usize, per_host: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_host, hosts: Arc::default() }
    }

    /// Waits for a slot. The host's comes first, so that a crowd at a slow host holds up nobody else.
    pub async fn take(&self, host: &str) -> Result<Slot, FetchError> {
        let slots = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if hosts.len() > 10_000 {
                hosts.retain(|_, slots| Arc::strong_count(slots) > 1 || slots.available_permits() < self.per_host);
            }
            hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.per_host))).clone()
        };
        let closed = |_| FetchError::Closed;
        let host = slots.acquire_owned().await.map_err(closed)?;
        let all = self.all.clone().acquire_owned().await.map_err(closed)?;
        Ok(Slot { _host: host, _all: all })
    }
}
