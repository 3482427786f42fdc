//! Fetches bodies over HTTP(S) from servers that may be slow, endless, hostile or gone.

mod address;
mod attempt;
mod dns;
mod error;
mod object;
mod receive;
mod retry;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::redirect::Policy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use url::Url;

pub use address::AddressRule;
pub use error::FetchError;

use crate::{Error, Result};
use attempt::Attempt;
use dns::Dns;
use slots::Slots;

/// The limits of fetching.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Requests in flight.
    pub concurrency: usize,
    /// Requests in flight to one host.
    pub per_host: usize,
    /// Between two requests to one host.
    pub host_interval: Duration,
    /// For the TCP and TLS handshakes.
    pub connect_timeout: Duration,
    /// Between two pieces of an answer.
    pub idle_timeout: Duration,
    /// For all attempts at a row together, redirects and pauses included; waiting for a free slot is not counted.
    pub total_timeout: Duration,
    /// Of one body, which is decompressed where it is gzip.
    pub max_body_bytes: usize,
    /// Attempts after the first.
    pub retries: u32,
    /// The first pause; it doubles, and is jittered by half.
    pub backoff: Duration,
    /// Whether loopback and private addresses may be asked. Link-local ones never are.
    pub allow_private_hosts: bool,
    /// Whether `X-Robots-Tag: noai` and its relatives are respected.
    pub respect_opt_out: bool,
    /// How ddx introduces itself.
    pub user_agent: String,
}

/// A body with the part of the byte budget that it occupies.
#[derive(Debug)]
pub struct Body {
    /// The bytes.
    pub bytes: Bytes,
    /// Given back when dropped.
    pub budget: Option<OwnedSemaphorePermit>,
}

/// A client with its limits; cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    config: Arc<FetchConfig>,
    rule: AddressRule,
    slots: Slots,
    /// Requests to object stores.
    objects: Arc<Semaphore>,
    budget: Arc<Semaphore>,
}

/// The byte budget is counted in pieces of this size.
pub const BUDGET_PIECE: usize = 4096;

impl Fetcher {
    /// Makes a client; `budget` bounds the bytes of all bodies together, in pieces of [`BUDGET_PIECE`].
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(config: FetchConfig, budget: Arc<Semaphore>) -> Result<Self> {
        let rule = AddressRule { allow_private: config.allow_private_hosts };
        let start = |reason: String| Error::Start { what: "the HTTP client", reason };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls().map_err(|error| start(error.to_string()))?)
            .dns_resolver(Dns::new(rule))
            // Redirects are followed by hand, since each target has to pass the same checks.
            .redirect(Policy::none())
            // A proxy would resolve names for us, out of the reach of the address rule.
            .no_proxy()
            .retry(reqwest::retry::never())
            .connect_timeout(config.connect_timeout)
            .pool_max_idle_per_host(config.per_host)
            .user_agent(&config.user_agent)
            .build()
            .map_err(|error| start(error.to_string()))?;
        let slots = Slots::new(config.concurrency, config.per_host, config.host_interval);
        let objects = Arc::new(Semaphore::new(config.concurrency));
        Ok(Self { client, config: Arc::new(config), rule, slots, objects, budget })
    }

    /// Fetches one address, with retries, within the deadlines.
    ///
    /// # Errors
    /// The reason of the last attempt.
    pub async fn fetch(&self, url: &str) -> std::result::Result<Body, FetchError> {
        let url = Url::parse(url.trim()).map_err(|error| FetchError::BadUrl(error.to_string()))?;
        let mut deadline = Instant::now() + self.config.total_timeout;
        let mut failures = 0;
        loop {
            let mut attempt = Attempt { fetcher: self, deadline };
            let result = attempt.run(url.clone()).await;
            deadline = attempt.deadline; // moved on by the time that was spent waiting for slots
            let error = match result {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            failures += 1;
            if failures > self.config.retries || !error.is_worth_retrying() {
                return Err(error);
            }
            let pause = retry::pause(self.config.backoff, failures, error.retry_after());
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// TLS 1.2 and 1.3 with `ring`; the bundled roots, and those of the system, where companies put theirs.
fn tls() -> std::result::Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
