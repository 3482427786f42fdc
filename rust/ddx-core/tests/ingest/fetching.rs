//! Every way in which a server can fail has its reason and its time limit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ddx_core::fetch::{Body, FetchConfig, FetchError, Fetcher};
use ddx_core::ingest::RowStatus;
use tokio::sync::Semaphore;

use crate::WATCHDOG;
use crate::server::{BODY, Server};

pub fn config() -> FetchConfig {
    FetchConfig {
        concurrency: 16,
        per_host: 16,
        host_interval: Duration::ZERO,
        connect_timeout: WATCHDOG,
        idle_timeout: WATCHDOG,
        total_timeout: WATCHDOG,
        max_body_bytes: 100_000,
        retries: 3,
        backoff: Duration::from_millis(10),
        allow_private_hosts: true,
        respect_opt_out: true,
        user_agent: "ddx-test".to_owned(),
    }
}

fn budget() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1000))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn fetch(config: FetchConfig, url: &str) -> Result<Body, FetchError> {
    let fetcher = Fetcher::new(config, budget()).unwrap();
    runtime().block_on(fetcher.fetch(url))
}

/// The reason of a failure, as the store keeps it.
fn reason(config: FetchConfig, url: &str) -> String {
    RowStatus::from(&fetch(config, url).unwrap_err()).slug().into_owned()
}

#[test]
fn a_body_is_fetched_directly_and_through_redirects() {
    let server = Server::start(HashMap::new());
    for path in ["ok", "to-ok", "to-name"] {
        assert_eq!(&fetch(config(), &server.url(path)).unwrap().bytes[..], BODY, "{path}");
    }
}

#[test]
fn failures_that_may_pass_are_tried_again_and_others_are_not() {
    let server = Server::start(HashMap::new());
    assert_eq!(&fetch(config(), &server.url("flaky")).unwrap().bytes[..], BODY);
    assert_eq!(server.hits("flaky"), 3);
    assert_eq!(reason(config(), &server.url("always-503")), "http_503");
    assert_eq!(server.hits("always-503"), 4);
    assert_eq!(reason(config(), &server.url("gone")), "http_404");
    assert_eq!(server.hits("gone"), 1);
    assert_eq!(reason(config(), &server.url("cut")), "reset");
    assert_eq!(server.hits("cut"), 4);
}

#[test]
fn retry_after_is_respected_within_the_deadline() {
    let server = Server::start(HashMap::new());
    let start = Instant::now();
    assert!(fetch(config(), &server.url("patient")).is_ok());
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // An hour is beyond the row's deadline: it is not waited for, nor is the deadline.
    assert_eq!(reason(config(), &server.url("away")), "http_503");
    assert_eq!(server.hits("away"), 1);
}

#[test]
fn slow_and_silent_servers_end_at_the_deadline_that_is_theirs() {
    let server = Server::start(HashMap::new());
    let soon = Duration::from_millis(300);
    let idle = FetchConfig { connect_timeout: soon, idle_timeout: soon, retries: 0, ..config() };
    let total = FetchConfig { total_timeout: soon, retries: 0, ..config() };
    for (path, config, which) in [("stall", &idle, "idle"), ("silent", &idle, "idle"), ("drip", &total, "total")] {
        let error = fetch(config.clone(), &server.url(path)).unwrap_err();
        assert!(matches!(error, FetchError::Timeout(found) if found == which), "{path}: {error}");
        assert_eq!(RowStatus::from(&error).slug(), "timeout");
    }
}

#[test]
fn a_body_is_cut_off_at_the_limit() {
    let server = Server::start(HashMap::new());
    for path in ["endless", "huge"] {
        assert_eq!(reason(config(), &server.url(path)), "too_large", "{path}");
        assert_eq!(server.hits(path), 1, "{path}");
    }
}

#[test]
fn gzip_that_nobody_asked_for_is_undone_within_the_limit() {
    let server = Server::start(HashMap::new());
    for path in ["gzip", "gzip-silent", "gzip-chunked", "gzip-untrue"] {
        let body = fetch(config(), &server.url(path)).unwrap();
        assert_eq!(&body.bytes[..], BODY, "{path}");
        assert_eq!(body.budget.unwrap().num_permits(), 1, "{path}");
    }
    assert_eq!(reason(config(), &server.url("gzip-bomb")), "too_large");
    assert_eq!(reason(config(), &server.url("gzip-cut")), "decode");
    assert_eq!(server.hits("gzip-cut"), 1);
}

#[test]
fn a_budget_smaller_than_all_bodies_together_still_lets_all_through() {
    let server = Server::start(HashMap::new());
    // One body of unknown length reserves 25 pieces of 4096 bytes, which is all there is.
    let budget = Arc::new(Semaphore::new(25));
    let fetcher = Fetcher::new(config(), budget.clone()).unwrap();
    let url = server.url("endless");
    runtime().block_on(async {
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (fetcher, url) = (fetcher.clone(), url.clone());
                tokio::spawn(async move { fetcher.fetch(&url).await })
            })
            .collect();
        for task in tasks {
            assert!(matches!(task.await.unwrap(), Err(FetchError::TooLarge(100_000))));
        }
    });
    assert_eq!(budget.available_permits(), 25);
}

#[test]
fn one_host_is_not_asked_more_often_at_once_than_allowed() {
    let server = Server::start(HashMap::new());
    let fetcher = Fetcher::new(FetchConfig { per_host: 2, ..config() }, budget()).unwrap();
    let url = server.url("slow-ok");
    runtime().block_on(async {
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (fetcher, url) = (fetcher.clone(), url.clone());
                tokio::spawn(async move { fetcher.fetch(&url).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert!(server.most_at_once.load(std::sync::atomic::Ordering::SeqCst) <= 2);
}

#[test]
fn private_addresses_are_refused_before_anything_is_sent() {
    let server = Server::start(HashMap::new());
    let public = FetchConfig { allow_private_hosts: false, ..config() };
    let (port, path) = (server.port, "ok");
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"] {
        assert_eq!(reason(public.clone(), &format!("http://{host}:{port}/{path}")), "refused_address", "{host}");
    }
    assert_eq!(server.hits(path), 0);
}

#[test]
fn link_local_addresses_and_other_schemes_are_refused_even_behind_a_redirect() {
    let server = Server::start(HashMap::new());
    assert_eq!(reason(config(), "http://169.254.169.254/latest"), "refused_address");
    assert_eq!(reason(config(), &server.url("to-metadata")), "refused_address");
    assert_eq!(reason(config(), &server.url("to-file")), "bad_url");
    assert_eq!(reason(config(), "ftp://127.0.0.1/x"), "bad_url");
    assert_eq!(reason(config(), "no address at all"), "bad_url");
    assert_eq!(reason(config(), &server.url("loop")), "redirects");
}

#[test]
fn who_opts_out_is_left_alone_unless_told_otherwise() {
    let server = Server::start(HashMap::new());
    assert_eq!(reason(config(), &server.url("noai")), "opted_out");
    assert!(fetch(FetchConfig { respect_opt_out: false, ..config() }, &server.url("noai")).is_ok());
}

#[test]
fn a_dead_port_is_a_failed_connection() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    assert_eq!(reason(config(), &format!("http://127.0.0.1:{port}/")), "connect");
}
