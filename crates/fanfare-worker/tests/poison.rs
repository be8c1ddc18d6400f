//! A message that is delivered again and again runs alone, and is given up in the end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_protocol::{Message, header};
use fanfare_worker::{Config, Context, Registration, service};
use harness::{Bench, within};
use tokio::time::Instant;

/// Counts how many run at a time, and the most that did.
#[derive(Clone, Default)]
struct Gauge {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
}

impl Gauge {
    fn service(&self, name: &str) -> Registration {
        let gauge = self.clone();
        service(name, move |_: Context, number: u32| {
            let gauge = gauge.clone();
            async move {
                let now = gauge.now.fetch_add(1, Ordering::SeqCst) + 1;
                gauge.most.fetch_max(now, Ordering::SeqCst);
                gauge.runs.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(3)).await;
                gauge.now.fetch_sub(1, Ordering::SeqCst);
                Ok(number)
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_over_the_redelivery_limit_is_a_failed_result_and_parked_and_never_run() {
    let bench = Bench::new();
    let gauge = Gauge::default();
    bench.call("a", ["1"]).await;
    bench.deliver("a", 1, 21).await;
    let worker = bench.start([gauge.service("a")]).await;
    let result = bench.result().await;
    assert!(result.exception.unwrap().starts_with("the request is given up: it was delivered 22 times"));
    assert_eq!((result.source.as_str(), result.target.as_str()), ("shop", "a"));
    let parked = bench.take(&bench.names.parked(), 1).await.remove(0).message;
    assert!(parked.text(header::REASON).unwrap().starts_with("it was delivered 22 times"));
    assert_eq!(parked.text(header::PARKED_FROM), Some("fanfare.service.a"));
    worker.stop().await;
    assert_eq!(gauge.runs.load(Ordering::SeqCst), 0);
    assert_eq!(bench.waiting(&bench.service_queue("a")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_at_the_limit_still_runs_and_the_limit_is_the_workers() {
    for (limit, redeliveries, ok) in [(20, 20, true), (3, 3, true), (3, 4, false), (0, 1, false)] {
        let bench = Bench::new();
        bench.call("a", ["1"]).await;
        bench.deliver("a", 1, redeliveries).await;
        let config = Config { redelivery_limit: limit, ..Config::default() };
        let worker = bench.start_with(config, [Gauge::default().service("a")]).await;
        assert_eq!(bench.result().await.ok, ok, "{redeliveries} of {limit}");
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_callback_over_the_limit_is_parked() {
    let bench = Bench::new();
    let mut message = bench.request("a", 0, "1").with_header(header::CHANNEL, "fanout-on-final");
    message.properties.kind = Some("fanfare.callback".into());
    message.properties.reply_to = None;
    bench.send("a", message).await;
    bench.deliver("a", 1, 21).await;
    let gauge = Gauge::default();
    let worker = bench.start([gauge.service("a")]).await;
    bench.take(&bench.names.parked(), 1).await;
    worker.stop().await;
    assert_eq!(gauge.runs.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn from_the_third_delivery_on_nothing_of_any_service_runs_beside_it() {
    let bench = Bench::new();
    let gauge = Gauge::default();
    bench.call("a", ["1", "2", "3", "4"]).await;
    // Two of them are suspect, two are not.
    bench.deliver("a", 2, 2).await;
    bench.call("b", ["5", "6"]).await;
    let worker = bench.start([gauge.service("a"), gauge.service("b")]).await;
    let results = bench.results(6).await;
    let order: Vec<u32> = results.iter().map(|result| result.response().unwrap()).collect();
    assert_eq!(order, [5, 6, 1, 2, 3, 4], "the suspects run one by one, once the worker is empty");
    assert_eq!(gauge.most.load(Ordering::SeqCst), 2, "the others run side by side");
    worker.stop().await;

    let bench = Bench::new();
    let gauge = Gauge::default();
    bench.call("a", ["1", "2", "3"]).await;
    bench.deliver("a", 3, 2).await;
    let worker = bench.start([gauge.service("a")]).await;
    bench.results(3).await;
    assert_eq!(gauge.most.load(Ordering::SeqCst), 1, "each runs alone");
    worker.stop().await;
}

/// Takes as many seconds as it is told to, and returns them.
fn sleeper(name: &str) -> Registration {
    service(name, |_: Context, seconds: u32| async move {
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        Ok(seconds)
    })
}

async fn in_order(bench: &Bench, results: usize) -> Vec<u32> {
    bench.results(results).await.iter().map(|result| result.response().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn one_that_runs_for_long_keeps_others_waiting_for_a_limited_time() {
    let bench = Bench::new();
    bench.call("a", ["200", "1"]).await;
    bench.deliver("a", 1, 2).await;
    let since = Instant::now();
    let config = Config { alone_limit: Duration::from_secs(20), ..Config::default() };
    // The service runs one at a time, whatever it is suspected of.
    let worker = bench.start_with(config, [sleeper("a").concurrency(1), sleeper("b")]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.call("b", ["2"]).await;
    assert_eq!(in_order(&bench, 1).await, [2]);
    let took = since.elapsed().as_secs();
    assert!((22..25).contains(&took), "it begins when the other has run for 20 s, and not after {took} s");
    assert_eq!(in_order(&bench, 2).await, [200, 1]);
    let took = since.elapsed().as_secs();
    assert!((201..205).contains(&took), "{took} s");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_to_run_alone_waits_for_a_limited_time_for_what_runs_for_long() {
    let bench = Bench::new();
    bench.call("a", ["5"]).await;
    bench.deliver("a", 1, 2).await;
    let suspect = bench.hide("a").await;
    bench.call("b", ["200"]).await;
    let worker = bench.start([sleeper("a"), sleeper("b"), sleeper("c")]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let since = Instant::now();
    suspect.close().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.call("c", ["1"]).await;
    assert_eq!(in_order(&bench, 3).await, [5, 1, 200]);
    let took = since.elapsed().as_secs();
    assert!((195..205).contains(&took), "{took} s");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_holds_nothing_beside_a_suspect_that_its_death_would_count_against() {
    let bench = Bench::new();
    bench.call("a", ["1", "2", "3", "4", "5"]).await;
    bench.deliver("a", 3, 2).await;
    let gauge = Gauge::default();
    let worker = bench.start([gauge.service("a")]).await;
    for done in 0..3 {
        within(async {
            while gauge.runs.load(Ordering::SeqCst) <= done {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(bench.waiting(&bench.service_queue("a")).await, 4 - done as u64);
    }
    bench.results(5).await;
    assert_eq!(gauge.most.load(Ordering::SeqCst), 2, "what follows them runs side by side");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn at_their_second_delivery_messages_still_run_side_by_side() {
    let bench = Bench::new();
    let gauge = Gauge::default();
    bench.call("a", ["1", "2", "3"]).await;
    bench.deliver("a", 3, 1).await;
    let worker = bench.start([gauge.service("a")]).await;
    bench.results(3).await;
    assert_eq!(gauge.most.load(Ordering::SeqCst), 3);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_puts_back_what_waits_to_run_alone() {
    let bench = Bench::new();
    bench.call("a", ["1", "2"]).await;
    bench.deliver("a", 2, 2).await;
    let gauge = Gauge::default();
    let worker = bench.start([gauge.service("a")]).await;
    within(async {
        while gauge.runs.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    worker.stop().await;
    assert_eq!(gauge.runs.load(Ordering::SeqCst), 1, "what ran has finished");
    assert_eq!(bench.waiting(&bench.service_queue("a")).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_count_that_a_publisher_made_up_fails_nothing() {
    let bench = Bench::new();
    bench.call("a", []).await;
    let forged: Message = bench.request("a", 0, "1").with_header(header::DELIVERY_COUNT, 1_000);
    bench.send("a", forged).await;
    let worker = bench.start([Gauge::default().service("a")]).await;
    assert!(bench.result().await.ok);
    worker.stop().await;
}
