//! Fan-outs that take longer than anything may be held unacked.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_coordinator::Config;
use fanfare_publisher::{Accepted, Fanout, Target};
use fanfare_tests::{Running, Stack, eventually, in_shards, on_both_brokers, services};

on_both_brokers!(
    a_manifest_renewed_every_second_between_two_coordinators_ends_once,
    results_renewed_every_second_between_two_coordinators_call_back_once,
);

in_shards!(
    a_manifest_renewed_every_second_between_two_coordinators_ends_once,
    results_renewed_every_second_between_two_coordinators_call_back_once,
);

const RENEWAL: Duration = Duration::from_secs(1);

/// What takes the longest takes many times the renewal time, and ends half-way between two renewals: a copy of a manifest
/// that reaches a coordinator for the first time just when its fan-out has ended is parked, by design.
const TARGETS_MS: [u64; 4] = [4_500, 3_000, 4_000, 10];

async fn a_manifest_renewed_every_second_between_two_coordinators_ends_once(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let _worker = stack.worker([services::sleep()]).await;
    let coordinators = [(); 2].map(|()| renewing(&stack));
    let accepted = sleeping(&stack).on_final("my.done").invoke().await.expect("accepted");
    assert_slept(&done.next_final().await);
    end(&stack, &accepted, coordinators).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(parked.rest().await, []);
}

async fn results_renewed_every_second_between_two_coordinators_call_back_once(stack: Stack) {
    let mut callback = stack.record("my.callback").await;
    let mut parked = stack.record_parked().await;
    let _worker = stack.worker([services::sleep()]).await;
    let coordinators = [(); 2].map(|()| renewing(&stack));
    let fanout = sleeping(&stack).on_target("my.callback").on_final("my.callback");
    let accepted = fanout.invoke().await.expect("accepted");
    let mut answers = BTreeMap::new();
    for _ in TARGETS_MS {
        let result = callback.next_result().await;
        let slept: u64 = result.response().expect("it answered");
        assert!(answers.insert(slept, result.target).is_none(), "the callback for {slept} came twice");
    }
    assert_eq!(answers.len(), TARGETS_MS.len());
    assert_slept(&callback.next_final().await);
    end(&stack, &accepted, coordinators).await;
    assert_eq!(callback.rest().await, []);
    assert_eq!(parked.rest().await, []);
}

fn renewing(stack: &Stack) -> Running {
    let mut config: Config = stack.coordinator_config();
    config.limits.renewal = RENEWAL;
    // A standby has found out that the queue is gone before the next renewal.
    config.absence_pause = Duration::from_millis(50);
    stack.coordinator_with(config)
}

/// Nothing is left of the fan-out: no queue, no manifest, and nothing that either coordinator holds.
async fn end(stack: &Stack, accepted: &Accepted, coordinators: [Running; 2]) {
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    let [one, other] = coordinators;
    eventually("both coordinators hold nothing", async || one.mortal().held() + other.mortal().held() == 0)
        .await;
    one.stop().await;
    stack.ended([accepted], other).await;
}

fn sleeping(stack: &Stack) -> Fanout {
    let targets = TARGETS_MS.into_iter().enumerate();
    let targets = targets.map(|(n, milliseconds)| Target::new("test.sleep", milliseconds).key(n.to_string()));
    targets.fold(stack.publisher().fanout("my.source"), Fanout::add)
}

fn assert_slept(payload: &fanfare_protocol::FinalPayload) {
    let answers: Vec<u64> =
        payload.data.iter().map(|(_, result)| result.response().expect("it answered")).collect();
    assert_eq!(answers, TARGETS_MS);
}
