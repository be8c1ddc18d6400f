//! What failed is run again as often as it was agreed, and waits for that in the broker.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanfare_broker::{Broker, BrokerError, PublishError};
use fanfare_protocol::{Message, header};
use fanfare_worker::{Context, Registration, Retry, ServiceError, service};
use harness::{Bench, within};
use tokio::time::Instant;

/// The attempts of a service, and when each began.
type Attempts = Arc<Mutex<Vec<(u32, Instant)>>>;

/// Fails until its attempt with this number; its payload says how.
fn moody(succeeds_at: u32) -> (Registration, Attempts) {
    let attempts = Attempts::default();
    let noted = Arc::clone(&attempts);
    let moody = service("moody", move |context: Context, mood: String| {
        noted.lock().unwrap().push((context.attempt(), Instant::now()));
        async move {
            match &*mood {
                _ if context.attempt() >= succeeds_at => Ok(context.attempt()),
                "panics" => panic!("at attempt {}", context.attempt()),
                "hangs" => std::future::pending().await,
                "fatal" => Err(ServiceError::fatal(format!("wrong at attempt {}", context.attempt()))),
                _ => Err(format!("not at attempt {}", context.attempt()).into()),
            }
        }
    });
    (moody.timeout(Duration::from_secs(30)), attempts)
}

fn numbers(attempts: &Attempts) -> Vec<u32> {
    attempts.lock().unwrap().iter().map(|(number, _)| *number).collect()
}

/// A plain invocation, which nobody answers.
fn plain(bench: &Bench, body: &'static str) -> Message {
    let mut message = bench.request("moody", 0, body).with_header(header::CHANNEL, "invoke");
    message.headers.remove(header::KEY);
    message.properties.reply_to = None;
    message
}

#[tokio::test(start_paused = true)]
async fn a_target_is_tried_again_until_it_succeeds_and_only_that_is_its_result() {
    for mood in [r#""fails""#, r#""panics""#, r#""hangs""#] {
        let bench = Bench::new();
        let (moody, attempts) = moody(3);
        bench.call("moody", [mood]).await;
        let worker = bench.start([moody.retry(Retry::exponential(5))]).await;
        assert_eq!(bench.result().await.response::<u32>().unwrap(), 3);
        worker.stop().await;
        assert_eq!(numbers(&attempts), [1, 2, 3], "{mood}");
        assert_eq!(bench.waiting(&bench.aggregation_queue()).await, 0, "there is one result");
        assert_eq!(bench.waiting(&bench.service_queue("moody")).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_failure_is_the_result_and_waits_double() {
    let bench = Bench::new();
    let (moody, attempts) = moody(u32::MAX);
    bench.call("moody", [r#""fails""#]).await;
    let retry =
        Retry::exponential(4).first_delay(Duration::from_secs(8)).longest_delay(Duration::from_secs(16));
    let worker = bench.start([moody.retry(retry)]).await;
    assert_eq!(bench.result().await.exception.unwrap(), "not at attempt 4");
    worker.stop().await;
    let attempts = attempts.lock().unwrap().clone();
    let waits: Vec<Duration> = attempts.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    for (wait, whole) in waits.iter().zip([8, 16, 16].map(Duration::from_secs)) {
        assert!(*wait >= whole / 2 && *wait < whole + Duration::from_secs(1), "{waits:?}");
    }
    assert_eq!(waits.len(), 3);
    assert_eq!(bench.waiting(&bench.aggregation_queue()).await, 0, "there is one result");
}

#[tokio::test(start_paused = true)]
async fn a_target_has_one_attempt_unless_its_service_says_otherwise() {
    let bench = Bench::new();
    let (moody, attempts) = moody(2);
    bench.call("moody", [r#""fails""#]).await;
    let worker = bench.start([moody]).await;
    assert_eq!(bench.result().await.exception.unwrap(), "not at attempt 1");
    worker.stop().await;
    assert_eq!(numbers(&attempts), [1]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_has_five_attempts_and_is_parked_with_the_last_failure() {
    let bench = Bench::new();
    let (moody, attempts) = moody(u32::MAX);
    bench.send("moody", plain(&bench, r#""fails""#)).await;
    let worker = bench.start([moody]).await;
    let parked = bench.take(&bench.names.parked(), 1).await.remove(0).message;
    worker.stop().await;
    assert_eq!(parked.text(header::REASON), Some("moody failed 5 times: not at attempt 5"));
    assert_eq!(parked.text(header::PARKED_FROM), Some("fanfare.service.moody"));
    assert_eq!(numbers(&attempts), [1, 2, 3, 4, 5]);
    assert_eq!(bench.waiting(&bench.service_queue("moody")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_fatal_or_malformed_is_not_tried_again() {
    let bench = Bench::new();
    let (moody, attempts) = moody(u32::MAX);
    bench.call("moody", [r#""fatal""#, "5", "{"]).await;
    let worker = bench.start([moody.retry(Retry::exponential(5)).concurrency(1)]).await;
    let results = bench.results(3).await;
    let exceptions: Vec<&str> = results.iter().map(|result| result.exception.as_deref().unwrap()).collect();
    assert_eq!(exceptions[0], "wrong at attempt 1");
    assert!(exceptions[1].starts_with("the payload is not what this service takes"), "{exceptions:?}");
    assert!(exceptions[2].starts_with("the payload is not JSON"), "{exceptions:?}");
    worker.stop().await;
    assert_eq!(numbers(&attempts), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_in_the_broker_and_any_worker_runs_it() {
    let bench = Bench::new();
    let retry = Retry::exponential(2).first_delay(Duration::from_secs(1));
    let (first, _) = moody(2);
    bench.call("moody", [r#""fails""#]).await;
    let worker = bench.start([first.retry(retry)]).await;
    let delay = bench.names.delay(1);
    within(async {
        while !matches!(bench.caller.inspect(&delay.name).await, Ok(Some(state)) if state.messages == 1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(bench.waiting(&bench.service_queue("moody")).await, 0);
    worker.stop().await;
    let (second, attempts) = moody(2);
    let another = bench.start([second.retry(retry)]).await;
    assert_eq!(bench.result().await.response::<u32>().unwrap(), 2);
    another.stop().await;
    assert_eq!(numbers(&attempts), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_is_not_acked_before_its_retry_is_confirmed() {
    let bench = Bench::new();
    let exchange = bench.names.delay_exchange(1).name;
    let lost = || PublishError::Unknown(BrokerError::Unreachable("connection lost".to_owned()));
    bench.worker.fail(&exchange, std::iter::repeat_with(lost).take(10_000));
    let (moody, _) = moody(2);
    bench.call("moody", [r#""fails""#]).await;
    let worker = bench.start([moody.retry(Retry::exponential(2))]).await;
    within(async {
        while bench.worker.failures_left() > 9_990 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("moody")).await, 1, "it is back in its queue");
    assert_eq!(bench.caller.inspect(&exchange).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_cannot_be_retried_is_the_result() {
    let bench = Bench::new();
    let exchange = bench.names.delay_exchange(1).name;
    bench.worker.fail(&exchange, [PublishError::TooLarge { bytes: 2_000, most: 1_000 }]);
    let (moody, _) = moody(2);
    bench.call("moody", [r#""fails""#]).await;
    let worker = bench.start([moody.retry(Retry::exponential(2))]).await;
    assert_eq!(bench.result().await.exception.unwrap(), "not at attempt 1");
    worker.stop().await;
    // Somebody has declared the delay queue in another way.
    let bench = Bench::new();
    let mut other = bench.names.parked();
    other.name = bench.names.delay(1).name;
    bench.caller.declare(&other).await.unwrap();
    let (moody, _) = self::moody(2);
    bench.call("moody", [r#""fails""#]).await;
    let worker = bench.start([moody.retry(Retry::exponential(2))]).await;
    assert_eq!(bench.result().await.exception.unwrap(), "not at attempt 1");
    worker.stop().await;
}
