//! The clients, one a bucket, and the threads that they work in.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use super::ObjectError;
use super::address::Address;

/// Further tries after a reset, a timeout, 429 or 5xx: ten seconds of pauses or so, which double.
const RETRIES: usize = 6;
const LONGEST_RETRYING: Duration = Duration::from_secs(90);

type Store = Arc<dyn ObjectStore>;

static STORES: LazyLock<Mutex<HashMap<(&'static str, String), Store>>> = LazyLock::new(Mutex::default);

/// The runtime of all stores: open connections belong to the one that they were made in.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime() -> Result<&'static Runtime, ObjectError> {
    static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
        // Without a default the client would have to be told which of rustls' providers it is to take; ours is `ring`.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Builder::new_multi_thread().worker_threads(2).thread_name("ddx-objects").enable_all().build()
    });
    RUNTIME.as_ref().map_err(|error| ObjectError::Failed(format!("cannot start threads: {error}")))
}

/// The client of a bucket.
pub(super) fn store(address: &Address) -> Result<Store, ObjectError> {
    runtime()?;
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let name = (address.scheme, address.bucket.clone());
    if let Some(store) = stores.get(&name) {
        return Ok(store.clone());
    }
    let store = connect(address)?;
    stores.insert(name, store.clone());
    Ok(store)
}

fn connect(address: &Address) -> object_store::Result<Store> {
    let (bucket, retry) = (
        address.bucket.as_str(),
        RetryConfig { max_retries: RETRIES, retry_timeout: LONGEST_RETRYING, ..RetryConfig::default() },
    );
    Ok(match address.scheme {
        "s3" => Arc::new(AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build()?),
        "gs" => Arc::new(GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry).build()?),
        "az" => Arc::new(MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry).build()?),
        _ => Arc::new(LocalFileSystem::new()),
    })
}
