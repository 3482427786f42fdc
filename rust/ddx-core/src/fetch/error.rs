//! Why a fetch failed, and whether another attempt makes sense.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::time::Duration;

/// The reason of a failed fetch.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// Not an absolute address.
    #[error("not a URL: {0}")]
    BadUrl(String),
    /// Neither http nor https.
    #[error("scheme {0:?} is not fetched")]
    Scheme(String),
    /// An address that the rule refuses.
    #[error("{host} is at {address}, which is not fetched from")]
    RefusedAddress {
        /// The host in the URL.
        host: String,
        /// Where it is.
        address: IpAddr,
    },
    /// The name has no address.
    #[error("{host}: {reason}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
        /// Whether the resolver could not say, rather than said no.
        temporary: bool,
    },
    /// No connection, or no TLS.
    #[error("{0}")]
    Connect(String),
    /// A deadline passed.
    #[error("{0} deadline passed")]
    Timeout(&'static str),
    /// The connection broke.
    #[error("{0}")]
    Reset(String),
    /// A status other than 2xx.
    #[error("HTTP {status}")]
    Status {
        /// The code.
        status: u16,
        /// What the server asked for.
        retry_after: Option<Duration>,
    },
    /// Redirects without end.
    #[error("more than {0} redirects")]
    Redirects(usize),
    /// The owner does not want it used.
    #[error("X-Robots-Tag: {0}")]
    OptedOut(String),
    /// More bytes than allowed.
    #[error("more than {0} bytes")]
    TooLarge(usize),
    /// A body that is broken as gzip.
    #[error("gzip: {0}")]
    Gzip(String),
    /// Nothing at that place of a store.
    #[error("{0}: no such object")]
    NoObject(String),
    /// A store that refuses an object.
    #[error("{0}")]
    Object(String),
    /// The run ends.
    #[error("closed")]
    Closed,
}

impl FetchError {
    /// Whether the next attempt may go better.
    #[must_use]
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Timeout(_) | Self::Reset(_) => true,
            Self::Dns { temporary, .. } => *temporary,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 520..=530),
            _ => false,
        }
    }

    /// How long the server asked us to stay away.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Sorts an error of the client; our own resolver's errors are somewhere in its chain.
    pub(super) fn from_client(error: &reqwest::Error) -> Self {
        let mut message = String::new();
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(own) = current.downcast_ref::<Self>() {
                return own.clone();
            }
            // The outermost message repeats the URL, which the row has already.
            message = current.to_string();
            cause = current.source();
        }
        if error.is_timeout() {
            Self::Timeout(if error.is_connect() { "connect" } else { "total" })
        } else if error.is_connect() {
            Self::Connect(message)
        } else {
            Self::Reset(message)
        }
    }
}
