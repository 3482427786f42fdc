//! Images that are objects in a store.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::GetResult;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::{BUDGET_PIECE, Body, FetchError, Fetcher};
use crate::objects::{ObjectError, get};

impl Fetcher {
    /// Reads an object, or so many bytes from an offset in it; to be awaited on the runtime of the stores.
    ///
    /// The store's client tries again by itself; the deadline holds for asking and for the bytes, one after the other.
    ///
    /// # Errors
    /// If there is none, it is too large, or the store does not give it in time.
    pub async fn fetch_object(&self, path: &Path, within: Option<(u64, u64)>) -> Result<Body, FetchError> {
        let limit = self.config.max_body_bytes;
        let failed = |error: ObjectError| match error {
            ObjectError::Missing | ObjectError::NoBucket => FetchError::NoObject(path.display().to_string()),
            ObjectError::Failed(reason) => FetchError::Reset(format!("{}: {reason}", path.display())),
            error => FetchError::Object(format!("{}: {error}", path.display())),
        };
        let ask = || async {
            let range = within.map(|(offset, length)| offset..offset + length);
            let answer = get(path, range, None);
            within_deadline(self.config.total_timeout, answer).await?.map_err(failed)
        };
        let _slot = self.objects.acquire().await.map_err(|_| FetchError::Closed)?;
        let mut answer = ask().await?;
        let length = (answer.range.end - answer.range.start) as usize;
        if length > limit {
            return Err(FetchError::TooLarge(limit));
        }
        let pieces = length.div_ceil(BUDGET_PIECE) as u32;
        let budget = if let Ok(budget) = self.budget.clone().try_acquire_many_owned(pieces) {
            budget
        } else {
            // The store would not wait for us.
            drop(answer);
            let budget = self.reserve(pieces).await?;
            answer = ask().await?;
            budget
        };
        let bytes = within_deadline(self.config.total_timeout, collect(answer, length)).await?.map_err(failed)?;
        Ok(Body { bytes, budget: Some(budget) })
    }

    async fn reserve(&self, pieces: u32) -> Result<OwnedSemaphorePermit, FetchError> {
        self.budget.clone().acquire_many_owned(pieces).await.map_err(|_| FetchError::Closed)
    }
}

async fn within_deadline<T>(deadline: Duration, future: impl Future<Output = T>) -> Result<T, FetchError> {
    timeout(deadline, future).await.map_err(|_| FetchError::Timeout("total"))
}

/// The bytes of an answer, of which no more are taken than were announced.
async fn collect(answer: GetResult, length: usize) -> Result<Bytes, ObjectError> {
    let mut bytes = BytesMut::with_capacity(length);
    let mut pieces = answer.into_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        if bytes.len() + piece.len() > length {
            return Err(ObjectError::Changed);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}
