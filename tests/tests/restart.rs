//! The broker restarts while a fan-out is open: everyone reconnects by themselves, and goes on where they were.
#![allow(clippy::print_stdout, reason = "a test that is left out says so")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fanfare_publisher::{Fanout, Target};
use fanfare_tests::{Stack, eventually, run};
use fanfare_worker::{Context, service};
use tokio::process::Command;
use tokio::sync::{Mutex, Semaphore, mpsc};

const TARGETS: usize = 40;

/// The tests share one broker that they restart, so they take turns.
static TURN: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_requests_and_results_is_waited_out() {
    with_restart(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_half_of_the_results_in_is_waited_out() {
    with_restart(TARGETS / 2, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_after_a_restart_reaches_coordinator_and_worker() {
    with_broker(0, cancel_after_restart).await;
}

mod in_shards {
    use super::*;

    const SHARDS: u32 = 2;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restart_with_half_of_the_results_in_is_waited_out() {
        with_restart(TARGETS / 2, SHARDS).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cancel_after_a_restart_reaches_coordinator_and_worker() {
        with_broker(SHARDS, cancel_after_restart).await;
    }
}

/// Restarts the broker when so many results are in, and lets the others be answered after that.
async fn with_restart(results: usize, shards: u32) {
    with_broker(shards, async |stack| restart_at(stack, results).await).await;
}

/// Runs a test on the broker that may be restarted. Fan-outs are gathered in so many shards, or in queues of their own where there are
/// none.
async fn with_broker(shards: u32, test: impl AsyncFnOnce(Stack)) {
    if std::env::var_os("FANFARE_TEST_NO_RESTART").is_some() {
        #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
        {
            println!("left out: FANFARE_TEST_NO_RESTART is set, so there is no broker to restart");
        }
        return;
    }
    let _turn = TURN.lock().await;
    let url = std::env::var("FANFARE_TEST_RESTART_BROKER")
        .expect("this test restarts a RabbitMQ: run `cargo xtask test`, or set FANFARE_TEST_NO_RESTART");
    run(Stack::at(url).sharing(shards), async |stack| test(stack).await).await;
}

async fn restart_at(stack: Stack, results: usize) {
    let done = stack.declare_service("my.done").await;
    let gate = Arc::new(Semaphore::new(results));
    let started = Arc::new(AtomicUsize::new(0));
    let gated = {
        let (gate, started) = (Arc::clone(&gate), Arc::clone(&started));
        service("my.target", move |_: Context, n: usize| {
            let (gate, started) = (Arc::clone(&gate), Arc::clone(&started));
            async move {
                started.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await?.forget();
                Ok(n)
            }
        })
    };
    let _worker = stack.worker_of_single_results([gated.concurrency(TARGETS)]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = |targets: usize| {
        let targets = (0..targets).map(|n| Target::new("my.target", n).key(n.to_string()));
        targets.fold(publisher.fanout("my.source"), Fanout::add).on_final("my.done")
    };
    let accepted = fanout(TARGETS).invoke().await.expect("accepted");
    eventually("all targets run", async || started.load(Ordering::Relaxed) == TARGETS).await;
    let queue = stack.results_of(&accepted);
    // The coordinator holds the manifest, the sentinel where there is one, and as many results as there are to be.
    let beside = if stack.is_shared() { 1 } else { 2 };
    eventually("the results are in", async || coordinator.mortal().held() == beside + results).await;
    stack.queue_has(&queue, "its consumer", |state| state.consumers == 1).await;

    restart().await;
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    let mut done = stack.record_queue(&done).await;
    let payload = done.next_final().await;
    for (n, (key, result)) in payload.data.iter().enumerate() {
        assert_eq!((key, result.response::<usize>().expect("it answered")), (n.to_string().as_str(), n));
    }
    assert_eq!(payload.data.len(), TARGETS);
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;

    // Everyone is back: the publisher that saw the restart invokes again, and the same worker and coordinator serve it.
    let again = fanout(3).invoke().await.expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), 3);
    assert_eq!(payload.failures().count(), 0);
    stack.ended([&accepted, &again], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn cancel_after_restart(stack: Stack) {
    let done = stack.declare_service("my.done").await;
    let (told, mut tells) = mpsc::unbounded_channel();
    let holding = service("my.holding", move |context: Context, _: usize| {
        let told = told.clone();
        async move {
            told.send("it runs")?;
            context.cancellation().cancelled().await;
            Ok(told.send("it is to end")?)
        }
    });
    let _worker = stack.worker([holding]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = publisher.fanout("my.source").target("my.holding", 1).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    assert_eq!(tells.recv().await, Some("it runs"));
    let queue = stack.results_of(&accepted);
    stack.queue_has(&queue, "its consumer", |state| state.consumers == 1).await;

    restart().await;
    for exchange in [stack.names().coordinators(), stack.names().workers()] {
        stack.exchange_is_heard(&exchange).await;
    }
    stack.queue_has(&queue, "its consumer", |state| state.consumers == 1).await;
    // A shard has its consumer before that has read the manifest.
    eventually("the coordinator holds the fan-out", async || coordinator.mortal().held() > 0).await;
    let cancellation = publisher.cancel(&accepted).await.expect("it is cancelled");
    assert_eq!((cancellation.responded, cancellation.missing), (0, 1));
    assert_eq!(tells.recv().await, Some("it is to end"));
    let mut done = stack.record_queue(&done).await;
    assert_eq!(done.next_final().await.failures().count(), 1);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn restart() {
    let command = std::env::var("FANFARE_TEST_RESTART_COMMAND").expect("it comes with the broker to restart");
    let status = Command::new("sh").args(["-c", &command]).status().await.expect("`sh` can be run");
    assert!(status.success(), "`{command}`: {status}");
}
