//! One attempt: a request, its redirects, and the body, all inside the deadlines.

use std::future::Future;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::{ACCEPT, LOCATION};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use url::{Host, Url};

use super::receive::Received;
use super::slots::Slot;
use super::{AddressRule, BUDGET_PIECE, Body, FetchError, Fetcher, retry};

const MAX_REDIRECTS: usize = 5;
const ACCEPTED: &str = "image/jpeg,image/png,image/webp,image/*;q=0.8,*/*;q=0.5";

pub(super) struct Attempt<'a> {
    pub fetcher: &'a Fetcher,
    /// When the row's time is over; moves on while we wait for ourselves.
    pub deadline: Instant,
}

impl Attempt<'_> {
    pub async fn run(&mut self, mut url: Url) -> Result<Body, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let host = check(&url, self.fetcher.rule)?;
            let fetcher = self.fetcher;
            let slot = self.uncounted(fetcher.slots.take(&host)).await?;
            let response = self.send(&url).await?;
            let status = response.status();
            if status.is_redirection()
                && let Some(target) = redirect_target(&url, &response)
            {
                url = target?;
                continue; // and the slot is free again: the target is another host's business
            }
            if !status.is_success() {
                let retry_after = retry::retry_after(response.headers());
                return Err(FetchError::Status { status: status.as_u16(), retry_after });
            }
            if fetcher.config.respect_opt_out {
                check_opt_out(&response)?;
            }
            return self.body(response, slot).await;
        }
        Err(FetchError::Redirects(MAX_REDIRECTS))
    }

    /// Waits for something of our own, which is not the server's fault.
    async fn uncounted<T>(&mut self, future: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let value = future.await;
        self.deadline += start.elapsed();
        value
    }

    async fn send(&self, url: &Url) -> Result<Response, FetchError> {
        let config = &self.fetcher.config;
        let request = self.fetcher.client.get(url.clone()).header(ACCEPT, ACCEPTED).send();
        // Until the headers are here: connect, then one silence at most.
        let answer = timeout(config.connect_timeout + config.idle_timeout, request);
        match timeout_at(self.deadline, answer).await {
            Err(_) => Err(FetchError::Timeout("total")),
            Ok(Err(_)) => Err(FetchError::Timeout("idle")),
            Ok(Ok(response)) => response.map_err(|error| FetchError::from_client(&error)),
        }
    }

    async fn body(&mut self, mut response: Response, slot: Slot) -> Result<Body, FetchError> {
        let limit = self.fetcher.config.max_body_bytes;
        let stated = response.content_length();
        if stated.is_some_and(|length| length > limit as u64) {
            return Err(FetchError::TooLarge(limit));
        }
        // The first piece, which is short, tells whether the stated length is that of the image.
        let mut start = BytesMut::new();
        while start.len() < Received::TELLING {
            let Some(piece) = self.piece(&mut response).await? else { break };
            start.extend_from_slice(&piece);
        }
        let mut received = Received::new(&start, stated, limit);
        // Taken whole before the rest: bodies that each waited for more could wait for one another for ever.
        let mut budget = self.uncounted(reserve(self.fetcher, received.most())).await?;
        received.push(&start)?;
        while let Some(piece) = self.piece(&mut response).await? {
            received.push(&piece)?;
        }
        drop(slot);
        let bytes = received.finish()?;
        let used = pieces(bytes.len());
        if let Some(surplus) = budget.num_permits().checked_sub(used).filter(|surplus| *surplus > 0) {
            drop(budget.split(surplus));
        }
        Ok(Body { bytes, budget: Some(budget) })
    }

    async fn piece(&self, response: &mut Response) -> Result<Option<Bytes>, FetchError> {
        let piece = timeout(self.fetcher.config.idle_timeout, response.chunk());
        match timeout_at(self.deadline, piece).await {
            Err(_) => Err(FetchError::Timeout("total")),
            Ok(Err(_)) => Err(FetchError::Timeout("idle")),
            Ok(Ok(piece)) => piece.map_err(|error| FetchError::from_client(&error)),
        }
    }
}

fn pieces(num_bytes: usize) -> usize {
    num_bytes.div_ceil(BUDGET_PIECE)
}

async fn reserve(fetcher: &Fetcher, num_bytes: usize) -> Result<OwnedSemaphorePermit, FetchError> {
    let pieces = u32::try_from(pieces(num_bytes)).unwrap_or(u32::MAX);
    fetcher.budget.clone().acquire_many_owned(pieces).await.map_err(|_| FetchError::Closed)
}

/// The host of an address that may be asked as far as the address itself tells; names are checked when resolved.
fn check(url: &Url, rule: AddressRule) -> Result<String, FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(FetchError::Scheme(url.scheme().to_owned()));
    }
    let address = match url.host() {
        None => return Err(FetchError::BadUrl("no host".to_owned())),
        Some(Host::Domain(host)) => return Ok(host.to_owned()),
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
    };
    let host = address.to_string();
    if rule.allows(address) { Ok(host) } else { Err(FetchError::RefusedAddress { host, address }) }
}

fn redirect_target(url: &Url, response: &Response) -> Option<Result<Url, FetchError>> {
    let location = String::from_utf8_lossy(response.headers().get(LOCATION)?.as_bytes()).into_owned();
    Some(url.join(&location).map_err(|error| FetchError::BadUrl(format!("redirect to {location:?}: {error}"))))
}

/// The directives that data-set builders agreed to respect.
fn check_opt_out(response: &Response) -> Result<(), FetchError> {
    for value in response.headers().get_all("x-robots-tag") {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        // A directive may be meant for one agent only: "otherbot: noai".
        let directives = value.split([',', ':']).map(str::trim);
        for directive in directives {
            if matches!(directive, "noai" | "noimageai" | "noindex" | "noimageindex") {
                return Err(FetchError::OptedOut(value));
            }
        }
    }
    Ok(())
}
