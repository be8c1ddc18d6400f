//! From a delivery to its ack: results through outages, limits on what runs at once, and shutdown.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_broker::absence::PAUSE;
use fanfare_broker::{Broker, BrokerError, PublishError};
use fanfare_worker::{Config, Context, Registration, service};
use harness::{Bench, within};
use tokio::sync::Semaphore;

fn increment() -> Registration {
    service("increment", |_: Context, number: u32| async move { Ok(number + 1) })
}

fn lost() -> BrokerError {
    BrokerError::Unreachable("connection lost".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_result_is_published_again_until_it_is_confirmed() {
    let bench = Bench::new();
    let queue = bench.aggregation_queue().name;
    let errors = [
        PublishError::NotSent(lost()),
        PublishError::Unknown(lost()),
        PublishError::Refused(queue.clone()),
        PublishError::Unroutable(queue.clone()),
    ];
    bench.worker.fail(&queue, errors);
    bench.call("increment", ["1"]).await;
    let worker = bench.start([increment()]).await;
    assert_eq!(bench.result().await.response::<u32>().unwrap(), 2);
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_larger_than_the_broker_takes_fails_its_target() {
    let bench = Bench::new();
    let queue = bench.aggregation_queue().name;
    bench.worker.fail(&queue, [PublishError::TooLarge { bytes: 2_000, most: 1_000 }]);
    bench.call("increment", ["1"]).await;
    let worker = bench.start([increment()]).await;
    let result = bench.result().await;
    assert!(!result.ok);
    assert!(result.exception.unwrap().contains("2000 bytes, and 1000 is the most"));
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_not_acked_before_its_result_is_confirmed() {
    let bench = Bench::new();
    let queue = bench.aggregation_queue().name;
    bench.worker.fail(&queue, std::iter::repeat_n(PublishError::Refused(queue.clone()), 10_000));
    bench.call("increment", ["1"]).await;
    let worker = bench.start([increment()]).await;
    within(async {
        while bench.worker.failures_left() > 9_990 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_when_its_service_returns_and_the_prefetch_bounds_what_is_not_confirmed() {
    let bench = Bench::new();
    let queue = bench.aggregation_queue().name;
    let away = PublishError::NotSent(BrokerError::Unreachable("the broker is away".to_owned()));
    bench.worker.fail(&queue, std::iter::repeat_n(away, 10_000));
    let ran = Arc::new(Semaphore::new(0));
    let signal = Arc::clone(&ran);
    let counted = service("counted", move |_: Context, (): ()| {
        signal.add_permits(1);
        async { Ok(()) }
    });
    bench.call("counted", ["null"; 6]).await;
    let worker = bench.start([counted.concurrency(1).prefetch(3)]).await;
    // The first is held beside the prefetch: it shows that more can be held.
    within(ran.acquire_many(4)).await.unwrap().forget();
    within(async {
        while bench.worker.failures_left() > 9_900 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(ran.available_permits(), 0, "four are not confirmed, and others wait in the broker");
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("counted")).await, 6);
}

#[tokio::test(start_paused = true)]
async fn late_results_are_dropped_once_their_queue_was_found_missing_twice() {
    let bench = Bench::new();
    bench.call("increment", ["1"]).await;
    bench.caller.delete(&bench.aggregation_queue().name).await.unwrap();
    let started = tokio::time::Instant::now();
    let ran = Arc::new(Semaphore::new(0));
    let signal = Arc::clone(&ran);
    let late = service("increment", move |_: Context, number: u32| {
        signal.add_permits(1);
        async move { Ok(number + 1) }
    });
    let worker = bench.start([late]).await;
    within(ran.acquire()).await.unwrap().forget();
    tokio::time::sleep(2 * PAUSE).await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
    let known = tokio::time::Instant::now();
    bench.send("increment", bench.request("increment", 1, "2")).await;
    within(ran.acquire()).await.unwrap().forget();
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
    assert!(
        known.elapsed() < PAUSE && started.elapsed() >= PAUSE,
        "it is found missing once for all of a run"
    );
    assert_eq!(bench.caller.inspect(&bench.aggregation_queue().name).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_delivery_the_broker_took_back_still_answers_and_is_not_begun_again() {
    let bench = Bench::new();
    let (started, finish) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gated = {
        let (started, finish) = (Arc::clone(&started), Arc::clone(&finish));
        service("gated", move |_: Context, (): ()| {
            let (started, finish) = (Arc::clone(&started), Arc::clone(&finish));
            async move {
                started.add_permits(1);
                finish.acquire().await?.forget();
                Ok(())
            }
        })
    };
    bench.call("gated", ["null"]).await;
    let worker = bench.start([gated]).await;
    within(started.acquire()).await.unwrap().forget();
    bench.worker.memory.cut();
    // It is handed out again while it runs.
    within(async {
        while bench.waiting(&bench.service_queue("gated")).await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    finish.add_permits(2);
    assert_eq!(bench.results(1).await.len(), 1);
    worker.stop().await;
    assert_eq!(started.available_permits(), 0, "it ran once");
    assert_eq!(bench.waiting(&bench.service_queue("gated")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_is_told_whether_its_message_was_handed_out_before() {
    let bench = Bench::new();
    bench.call("told", ["null"]).await;
    bench.deliver("told", 1, 1).await;
    bench.call("told", ["null"]).await;
    let told = service("told", |context: Context, (): ()| async move { Ok(context.redelivered()) });
    let _worker = bench.start([told]).await;
    let results = bench.results(2).await;
    let told: Vec<bool> = results.iter().map(|result| result.response().unwrap()).collect();
    assert_eq!(told, [true, false]);
}

/// A service that counts how many of it run at once, and the most that ever did.
fn counting(name: &str, now: &Arc<AtomicUsize>, most: &Arc<AtomicUsize>) -> Registration {
    let (now, most) = (Arc::clone(now), Arc::clone(most));
    service(name, move |_: Context, (): ()| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_limited_per_service_and_used_in_full() {
    let bench = Bench::new();
    let (now, most) = (Arc::default(), Arc::default());
    bench.call("counting", ["null"; 10]).await;
    let _worker = bench.start([counting("counting", &now, &most).concurrency(3)]).await;
    bench.results(10).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_limited_for_all_services_of_a_worker_together() {
    let bench = Bench::new();
    let (now, most) = (Arc::default(), Arc::default());
    bench.call("one", ["null"; 5]).await;
    bench.call("two", ["null"; 5]).await;
    let services = [counting("one", &now, &most), counting("two", &now, &most)];
    let _worker = bench.start_with(Config { concurrency: 4, ..Config::default() }, services).await;
    bench.results(10).await;
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_finishes_what_runs_and_puts_the_rest_back() {
    let bench = Bench::new();
    let (now, most) = (Arc::default(), Arc::<AtomicUsize>::default());
    bench.call("counting", ["null"; 6]).await;
    let worker = bench.start([counting("counting", &now, &most).concurrency(2).prefetch(4)]).await;
    within(async {
        while most.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    worker.stop().await;
    assert_eq!(bench.results(2).await.len(), 2);
    assert_eq!(bench.waiting(&bench.service_queue("counting")).await, 4);
    assert_eq!(bench.waiting(&bench.aggregation_queue()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_finish_in_time_is_told_to_end_dropped_and_put_back() {
    let bench = Bench::new();
    let (started, told) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let stubborn = {
        let (started, told) = (Arc::clone(&started), Arc::clone(&told));
        service("stubborn", move |context: Context, heeds: bool| {
            let (started, told) = (Arc::clone(&started), Arc::clone(&told));
            async move {
                started.add_permits(1);
                context.cancellation().cancelled().await;
                told.fetch_add(1, Ordering::SeqCst);
                if heeds {
                    return Err("told to end".into());
                }
                std::future::pending::<fanfare_worker::Result<()>>().await
            }
        })
    };
    bench.call("stubborn", ["true", "false"]).await;
    let worker = bench.start([stubborn]).await;
    within(started.acquire_many(2)).await.unwrap().forget();
    let stopping = tokio::time::Instant::now();
    worker.stop().await;
    assert!(stopping.elapsed() >= Duration::from_secs(30) && stopping.elapsed() < Duration::from_secs(35));
    assert_eq!(told.load(Ordering::SeqCst), 2);
    assert_eq!(bench.waiting(&bench.service_queue("stubborn")).await, 2, "both will run elsewhere");
    assert_eq!(bench.waiting(&bench.aggregation_queue()).await, 0, "neither is a failure of the service");
}

#[tokio::test(start_paused = true)]
async fn a_worker_waits_for_a_broker_and_goes_on_after_an_outage() {
    let bench = Bench::new();
    bench.worker.memory.isolate();
    bench.call("increment", ["1"]).await;
    let worker = bench.start([increment()]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.worker.memory.rejoin();
    assert_eq!(bench.result().await.response::<u32>().unwrap(), 2);
    bench.worker.memory.isolate();
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.call("increment", ["2"]).await;
    bench.worker.memory.rejoin();
    assert_eq!(bench.result().await.response::<u32>().unwrap(), 3);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_dropped_puts_back_what_it_runs() {
    let bench = Bench::new();
    let (now, most) = (Arc::default(), Arc::<AtomicUsize>::default());
    bench.call("counting", ["null"; 3]).await;
    let worker = fanfare_worker::Worker::new(bench.publisher(), Config::default())
        .service(counting("counting", &now, &most).concurrency(2));
    tokio::select! {
        _ = worker.run_until(std::future::pending()) => unreachable!("nobody stops it"),
        () = async { while most.load(Ordering::SeqCst) < 2 { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
    }
    within(async {
        while bench.waiting(&bench.service_queue("counting")).await < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
