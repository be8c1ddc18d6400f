//! The broker restarts while a fan-out is open: everyone reconnects by themselves, and goes on where they were.
#![allow(clippy::print_stdout, reason = "a test that is left out says so")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fanfare_publisher::{Fanout, Target};
use fanfare_tests::{Stack, eventually, run};
use fanfare_worker::{Context, service};
use tokio::process::Command;
use tokio::sync::{Mutex, Semaphore};

const TARGETS: usize = 40;

/// The tests share one broker that they restart, so they take turns.
static TURN: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_requests_and_results_is_waited_out() {
    with_restart(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_half_of_the_results_in_is_waited_out() {
    with_restart(TARGETS / 2).await;
}

/// Restarts the broker when so many results are in, and lets the others be answered after that.
async fn with_restart(results: usize) {
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
    run(Stack::at(url), async |stack| restart_at(stack, results).await).await;
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
    let _worker = stack.worker([gated.concurrency(TARGETS)]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = |targets: usize| {
        let targets = (0..targets).map(|n| Target::new("my.target", n).key(n.to_string()));
        targets.fold(publisher.fanout("my.source"), Fanout::add).on_final("my.done")
    };
    let accepted = fanout(TARGETS).invoke().await.expect("accepted");
    eventually("all targets run", async || started.load(Ordering::Relaxed) == TARGETS).await;
    let queue = stack.names().aggregation(&accepted.cid, accepted.run).name;
    // The coordinator holds its manifest, and as many results as there are to be.
    eventually("the results are in", async || coordinator.mortal().held() == 1 + results).await;
    stack.queue_has(&queue, "its consumer", |state| state.consumers == 1).await;

    restart().await;
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    let mut done = stack.record_queue(&done).await;
    let payload = done.next_final().await;
    for (n, (key, result)) in payload.data.iter().enumerate() {
        assert_eq!((key, result.response::<usize>().expect("it answered")), (n.to_string().as_str(), n));
    }
    assert_eq!(payload.data.len(), TARGETS);
    stack.queue_is_gone(&queue).await;

    // Everyone is back: the publisher that saw the restart invokes again, and the same worker and coordinator serve it.
    let again = fanout(3).invoke().await.expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), 3);
    assert_eq!(payload.failures().count(), 0);
    stack.ended([&accepted, &again], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn restart() {
    let command = std::env::var("FANFARE_TEST_RESTART_COMMAND").expect("it comes with the broker to restart");
    let status = Command::new("sh").args(["-c", &command]).status().await.expect("`sh` can be run");
    assert!(status.success(), "`{command}`: {status}");
}
