//! A stop is not a crash: nothing is repeated, and nothing is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_protocol::FinalPayload;
use fanfare_publisher::{Fanout, Target};
use fanfare_tests::services::Report;
use fanfare_tests::{Node, Stack, in_shards, in_shards_on_rabbitmq, on_both_brokers, on_rabbitmq, services};

const NODE: &str = env!("CARGO_BIN_EXE_fanfare-test-node");

on_both_brokers!(a_coordinator_that_stops_in_the_middle_repeats_no_callback);

in_shards!(a_coordinator_that_stops_in_the_middle_repeats_no_callback);

mod processes {
    use super::*;

    on_rabbitmq!(
        a_terminated_worker_finishes_what_runs_and_puts_the_rest_back,
        a_terminated_coordinator_repeats_no_callback,
    );
    in_shards_on_rabbitmq!(
        a_terminated_worker_finishes_what_runs_and_puts_the_rest_back,
        a_terminated_coordinator_repeats_no_callback,
    );
}

/// Targets of the fan-outs, and on-target callbacks after which the first coordinator is to stop.
const TARGETS: usize = 1_000;
const STOPS_AFTER: usize = 300;

async fn a_coordinator_that_stops_in_the_middle_repeats_no_callback(stack: Stack) {
    let first = stack.coordinator();
    stopped_in_the_middle(&stack, async || first.stop().await).await;
}

async fn a_terminated_coordinator_repeats_no_callback(stack: Stack) {
    let first = Node::start(NODE, &stack, &["coordinator"]);
    stopped_in_the_middle(&stack, async || {
        let status = first.terminate().await;
        assert!(status.success(), "{status}");
    })
    .await;
}

async fn stopped_in_the_middle(stack: &Stack, stop: impl AsyncFnOnce()) {
    let mut callback = stack.record("my.callback").await;
    let _worker = stack.worker([services::echo()]).await;
    let targets = (0..TARGETS).map(|n| Target::new("test.echo", n).key(n.to_string()));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), Fanout::add);
    let fanout = fanout.on_target("my.callback").on_final("my.callback");
    let accepted = fanout.invoke().await.expect("accepted");
    let mut seen = Vec::new();
    while seen.len() < STOPS_AFTER {
        seen.push(callback.next().await);
    }
    stop().await;
    let another = stack.coordinator();
    stack.ended([&accepted], another).await;
    seen.extend(callback.rest().await);

    let last = seen.pop().expect("callbacks came");
    let payload: FinalPayload = serde_json::from_slice(&last.body).expect("the final payload comes last");
    assert_eq!(payload.data.len(), TARGETS);
    let mut called: BTreeMap<String, usize> = BTreeMap::new();
    for message in &seen {
        *called.entry(message.properties.message_id.as_ref().expect("an id").to_string()).or_default() += 1;
    }
    let once = (0..TARGETS).map(|place| (format!("{}/{place}/on-target/my.callback", accepted.cid), 1));
    assert_eq!(called, once.collect());
}

async fn a_terminated_worker_finishes_what_runs_and_puts_the_rest_back(stack: Stack) {
    const TARGETS: usize = 12;
    const CONCURRENCY: usize = 2;
    let mut done = stack.record("my.done").await;
    let mut reports = stack.record("test.reports").await;
    let coordinator = stack.coordinator();
    let concurrency = CONCURRENCY.to_string();
    let first = Node::start(NODE, &stack, &["worker", "--concurrency", &concurrency]);
    stack.service_exists("test.report").await;
    let takes = Duration::from_secs(1).as_millis();
    let targets = (0..TARGETS).map(|n| Target::new("test.report", takes).key(n.to_string()));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let mut ran = BTreeMap::new();
    for _ in 0..CONCURRENCY {
        let report: Report = serde_json::from_slice(&reports.next().await.body).expect("a report");
        ran.insert(report.key, report.process);
    }
    let status = first.terminate().await;
    assert!(status.success(), "{status}");

    let second = Node::start(NODE, &stack, &["worker"]);
    let payload = done.next_final().await;
    stack.ended([&accepted], coordinator).await;
    for message in reports.rest().await {
        let report: Report = serde_json::from_slice(&message.body).expect("a report");
        let before = ran.insert(report.key.clone(), report.process);
        assert_eq!(before, None, "target {} ran twice", report.key);
    }
    let answers =
        payload.data.iter().map(|(key, result)| (key.to_owned(), result.response().expect("it answered")));
    assert_eq!(
        answers.collect::<BTreeMap<String, u32>>(),
        ran,
        "each is answered by the process that it ran in"
    );
    let by_first = ran.values().filter(|process| Some(**process) != second.id()).count();
    assert!((CONCURRENCY..TARGETS).contains(&by_first), "{by_first} ran in the process that stopped");
    assert_eq!(done.rest().await, []);
}
