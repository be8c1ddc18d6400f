//! Fan-outs and targets that take longer than the broker lets anyone hold a message.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanfare_publisher::{Fanout, Target};
use fanfare_tests::{Operator, Stack, eventually, run};
use fanfare_worker::{Context, Registration, service};

/// The broker's consumer time-out in these tests. It looks every second.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fan_out_thrice_as_long_as_the_consumer_timeout_loses_and_repeats_nothing() {
    with_short_timeout(0, long_fan_out).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_longer_than_the_consumer_timeout_runs_twice_and_counts_once() {
    with_short_timeout(0, long_target).await;
}

mod in_shards {
    use super::*;

    const SHARDS: u32 = 2;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_fan_out_thrice_as_long_as_the_consumer_timeout_loses_and_repeats_nothing() {
        with_short_timeout(SHARDS, long_fan_out).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_target_longer_than_the_consumer_timeout_runs_twice_and_counts_once() {
        with_short_timeout(SHARDS, long_target).await;
    }
}

/// Runs a test with fan-outs in so many shards, or in queues of their own where there are none.
async fn with_short_timeout<F: Future<Output = ()>>(shards: u32, test: impl FnOnce(Stack) -> F) {
    Operator::run(async |operator| {
        let milliseconds = CONSUMER_TIMEOUT.as_millis();
        operator
            .control(&[
                "eval",
                &format!(
                    "application:set_env(rabbit, consumer_timeout, {milliseconds}), \
                     application:set_env(rabbit, channel_tick_interval, 1000)."
                ),
            ])
            .await;
        run(Stack::at(operator.url().to_owned()).sharing(shards), test).await;
    })
    .await;
}

async fn long_fan_out(stack: Stack) {
    const TARGETS: usize = 12;
    const EACH: Duration = Duration::from_millis(1_500);
    assert!(EACH * 12 > CONSUMER_TIMEOUT * 3);
    let mut done = stack.record("my.done").await;
    let mut progress = stack.record("my.progress").await;
    let mut parked = stack.record_parked().await;
    let proof = tokio::spawn(taken_back(stack.clone()));
    let runs = Runs::default();
    let _worker = stack.worker([runs.service("my.target", EACH).concurrency(1).prefetch(1)]).await;
    let mut config = stack.coordinator_config();
    config.consumer_timeout = CONSUMER_TIMEOUT;
    config.limits.renewal = CONSUMER_TIMEOUT.mul_f64(0.4);
    let coordinator = stack.coordinator_with(config);
    let targets = (0..TARGETS).map(|n| Target::new("my.target", n).key(n.to_string()));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted =
        fanout.on_target("my.progress").on_final("my.done").invoke().await.expect("it is accepted");

    let mut answers = BTreeMap::new();
    for _ in 0..TARGETS {
        let result = progress.next_result().await;
        *answers.entry(result.response::<usize>().expect("it answered")).or_insert(0) += 1;
    }
    assert_eq!(answers, (0..TARGETS).map(|n| (n, 1)).collect());
    let payload = done.next_final().await;
    assert_eq!((payload.data.len(), payload.failures().count()), (TARGETS, 0));
    stack.ended([&accepted], coordinator).await;
    assert_eq!(runs.of_each(), vec![1; TARGETS]);
    for rest in [done.rest().await, progress.rest().await, parked.rest().await] {
        assert_eq!(rest, []);
    }
    proof.await.expect("the time-out is in force");
}

async fn long_target(stack: Stack) {
    const LENGTH: Duration = Duration::from_secs(9);
    let mut done = stack.record("my.done").await;
    let runs = Runs::default();
    // When the broker takes the message back from the one, it hands it to the other.
    let one = stack.worker([runs.service("my.target", LENGTH)]).await;
    let other = stack.worker([runs.service("my.target", LENGTH)]).await;
    stack.service_has_consumers("my.target", 2).await;
    let mut config = stack.coordinator_config();
    config.consumer_timeout = CONSUMER_TIMEOUT;
    config.limits.renewal = CONSUMER_TIMEOUT.mul_f64(0.4);
    let coordinator = stack.coordinator_with(config);
    let fanout = stack.publisher().fanout("my.source").target("my.target", 0);
    let accepted = fanout.on_final("my.done").invoke().await.expect("it is accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.get::<usize>("my.target").expect("it answered"), 0);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);

    // It is not handed out for ever: whoever gets it again has run it already, and lets go of it.
    eventually("nobody holds it", async || one.mortal().held() + other.mortal().held() == 0).await;
    one.stop().await;
    other.stop().await;
    let left = stack.record_queue(&stack.declare_service("my.target").await).await.rest().await;
    assert_eq!(left, []);
    assert_eq!(runs.of_each(), [2]);
}

/// Holds a message until the broker takes it back, which proves that it does so.
async fn taken_back(stack: Stack) {
    let queue = stack.declare_service("my.held").await;
    stack.publish(&queue, fanfare_protocol::Message::default()).await;
    let broker = stack.connect();
    let channel = broker.open().await.expect("a channel can be opened");
    let mut consumer = channel.consume(&queue, 1).await.expect("the queue can be consumed");
    let _held = consumer.next().await.expect("the queue is there").expect("the channel is there");
    // Older versions end the channel, newer ones the consumer.
    let end = tokio::time::timeout(fanfare_tests::PATIENCE, consumer.next()).await.expect("it is taken back");
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");
}

/// Counts how often each target runs.
#[derive(Default, Clone)]
struct Runs(Arc<Mutex<BTreeMap<usize, AtomicUsize>>>);

impl Runs {
    /// A service that takes so long and answers with its number.
    fn service(&self, name: &str, length: Duration) -> Registration {
        let runs = self.clone();
        service(name, move |_: Context, n: usize| {
            runs.0.lock().expect("nobody panics").entry(n).or_default().fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(length).await;
                Ok(n)
            }
        })
    }

    fn of_each(&self) -> Vec<usize> {
        self.0.lock().expect("nobody panics").values().map(|runs| runs.load(Ordering::Relaxed)).collect()
    }
}
