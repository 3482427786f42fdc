//! Name resolution with a cache, few lookups at a time, and the address rule on every answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::{AddressRule, FetchError};

/// Lookups at a time: more of them overload resolvers, whose failures then look like dead hosts.
const MAX_LOOKUPS: usize = 16;
const KEEP_FOUND: Duration = Duration::from_secs(300);
const KEEP_FAILED: Duration = Duration::from_secs(60);
/// Hosts that are remembered; beyond it the cache starts anew.
const MAX_HOSTS: usize = 100_000;

type Found = Result<Vec<IpAddr>, FetchError>;

/// A host's answer; the lock is held while it is looked up, so that many rows of one host cause one lookup.
type Entry = Arc<tokio::sync::Mutex<Option<(Instant, Found)>>>;

/// The resolver of the HTTP client.
#[derive(Clone)]
pub(super) struct Dns {
    rule: AddressRule,
    cache: Arc<Mutex<HashMap<String, Entry>>>,
    lookups: Arc<Semaphore>,
}

impl Dns {
    pub fn new(rule: AddressRule) -> Self {
        Self { rule, cache: Arc::default(), lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }

    async fn addresses(&self, host: &str) -> Found {
        let entry = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= MAX_HOSTS && !cache.contains_key(host) {
                cache.clear();
            }
            cache.entry(host.to_owned()).or_default().clone()
        };
        let mut entry = entry.lock().await;
        if let Some((until, found)) = &*entry
            && Instant::now() < *until
        {
            return found.clone();
        }
        let found = self.look_up(host).await;
        let keep = match &found {
            Ok(_) => KEEP_FOUND,
            Err(FetchError::Dns { temporary: true, .. }) => Duration::ZERO,
            Err(_) => KEEP_FAILED,
        };
        *entry = Some((Instant::now() + keep, found.clone()));
        found
    }

    async fn look_up(&self, host: &str) -> Found {
        let _permit = self.lookups.acquire().await.map_err(|_| FetchError::Closed)?;
        let failed = |error: io::Error| {
            let reason = error.to_string();
            // The system's resolver tells "try again" from "no such name" in its message only.
            let temporary = reason.contains("emporary");
            FetchError::Dns { host: host.to_owned(), reason, temporary }
        };
        let found: Vec<IpAddr> =
            tokio::net::lookup_host((host, 0)).await.map_err(failed)?.map(|address| address.ip()).collect();
        // One refused address refuses the name: a name that points both ways is an attack.
        if let Some(&address) = found.iter().find(|address| !self.rule.allows(**address)) {
            return Err(FetchError::RefusedAddress { host: host.to_owned(), address });
        }
        if found.is_empty() {
            return Err(FetchError::Dns { host: host.to_owned(), reason: "no address".to_owned(), temporary: false });
        }
        Ok(found)
    }
}

impl Resolve for Dns {
    fn resolve(&self, name: Name) -> Resolving {
        let dns = self.clone();
        Box::pin(async move {
            let found = dns.addresses(name.as_str()).await?;
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
