//! A broker that has stopped answering, behind a proxy that keeps back what it says.

// One copy of the proxy serves the tests of two crates.
#[path = "../../../fanfare-broker/tests/support/proxy.rs"]
#[allow(dead_code, reason = "some of it is for tests that are not here")]
mod proxy;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use self::proxy::Proxy;
use crate::support::{Running, broker, run, split};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinator_that_is_told_to_stop_ends_within_its_deadline_all_the_same() {
    const DEADLINE: Duration = Duration::from_secs(3);
    /// For a machine that does other things too: without the deadline it would take several times as long.
    const ALLOWANCE: Duration = Duration::from_secs(4);
    let proxy = Proxy::start(&broker()).await;
    let directory = tempfile::tempdir().unwrap();
    let prefix = format!("cli-frozen-{}", std::process::id());
    let arguments = ["coordinator", "--broker", &proxy.url, "--prefix", &prefix, "--shutdown-deadline", "3s"];
    let coordinator = Running::start(directory.path(), &arguments, "coordinator started");
    // Through a fan-out, so that it consumes.
    let invoke = ["invoke", "--wait", "1m", "--broker", &broker(), "--prefix", &prefix];
    run(directory.path(), &invoke).succeeds();
    proxy.silence();
    let told = Instant::now();
    let (exit, log) = tokio::task::spawn_blocking(|| coordinator.stop(Signal::TERM)).await.unwrap();
    assert_eq!(exit, Some(0), "{log}");
    assert!(told.elapsed() < DEADLINE + ALLOWANCE, "it took {:?}: {log}", told.elapsed());
}
