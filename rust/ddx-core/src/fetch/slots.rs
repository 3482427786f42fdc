//! Who may ask now: so many requests in all, so many to one host, and not too soon after the last one there. Hosts ban
//! who asks too much at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::FetchError;

/// Hosts that are remembered before those without a request are forgotten.
const MANY_HOSTS: usize = 10_000;

/// The slots of all requests.
#[derive(Clone)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    per_host: usize,
    interval: Duration,
    hosts: Arc<Mutex<HashMap<String, Host>>>,
}

#[derive(Clone)]
struct Host {
    slots: Arc<Semaphore>,
    /// When the next request may start.
    next: Arc<Mutex<Instant>>,
}

/// Permission for one request; given back when dropped.
pub(super) struct Slot {
    _host: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Slots {
    pub fn new(all: usize, per_host: usize, interval: Duration) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_host, interval, hosts: Arc::default() }
    }

    /// Waits for a slot. The host's comes first, so that a crowd at a slow host holds up nobody else.
    pub async fn take(&self, host: &str) -> Result<Slot, FetchError> {
        let Host { slots, next } = self.host(host);
        let closed = |_| FetchError::Closed;
        let host = slots.acquire_owned().await.map_err(closed)?;
        if !self.interval.is_zero() {
            sleep_until(self.turn(&next)).await;
        }
        let all = self.all.clone().acquire_owned().await.map_err(closed)?;
        Ok(Slot { _host: host, _all: all })
    }

    fn host(&self, host: &str) -> Host {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() > MANY_HOSTS {
            let now = Instant::now();
            hosts.retain(|_, host| {
                let is_waiting = *host.next.lock().unwrap_or_else(PoisonError::into_inner) > now;
                is_waiting || Arc::strong_count(&host.slots) > 1 || host.slots.available_permits() < self.per_host
            });
        }
        let new =
            || Host { slots: Arc::new(Semaphore::new(self.per_host)), next: Arc::new(Mutex::new(Instant::now())) };
        hosts.entry(host.to_owned()).or_insert_with(new).clone()
    }

    /// When this request may start; the next one an interval later.
    fn turn(&self, next: &Mutex<Instant>) -> Instant {
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(Instant::now());
        *next = turn + self.interval;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_one_host_keep_their_distance_and_others_do_not_wait() {
        let interval = Duration::from_secs(2);
        let slots = Slots::new(8, 8, interval);
        let turn = |host: &str| slots.turn(&slots.host(host).next);
        let first = turn("a");
        assert_eq!([turn("a") - first, turn("a") - first], [interval, 2 * interval]);
        assert!(turn("b") - first < interval);
    }
}
