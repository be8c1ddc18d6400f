//! Many targets, many fan-outs, and more than one process for each part of the work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::Broker;
use fanfare_protocol::{FinalPayload, Message, ServiceName};
use fanfare_publisher::{Accepted, Fanout, Target};
use fanfare_tests::{
    Death, Mortal, Node, PATIENCE, Stack, Step, answer, eventually, in_shards, in_shards_on_rabbitmq,
    on_both_brokers, on_rabbitmq, run, services,
};
use fanfare_worker::{Context, service};
use futures_util::future::join_all;
use serde_json::json;

const NODE: &str = env!("CARGO_BIN_EXE_fanfare-test-node");

on_both_brokers!(
    two_coordinators_end_two_hundred_concurrent_fan_outs_once_each,
    a_coordinator_killed_after_three_fifths_of_the_on_target_callbacks_repeats_at_most_a_hundred,
    a_killed_coordinator_repeats_at_most_as_many_on_target_callbacks_as_it_was_told,
    a_queue_with_more_results_than_may_be_unacked_ends_through_two_crashes,
    ten_fan_outs_whose_targets_wait_for_inner_ones_need_one_slot,
);

in_shards!(
    two_coordinators_end_two_hundred_concurrent_fan_outs_once_each,
    a_coordinator_killed_after_three_fifths_of_the_on_target_callbacks_repeats_at_most_a_hundred,
    a_killed_coordinator_repeats_at_most_as_many_on_target_callbacks_as_it_was_told,
    a_queue_with_more_results_than_may_be_unacked_ends_through_two_crashes,
    ten_fan_outs_whose_targets_wait_for_inner_ones_need_one_slot,
);

// Processes need a broker that they can reach, and in memory, so many targets say nothing about one.
mod with_a_broker {
    use super::*;

    on_rabbitmq!(a_thousand_targets_are_shared_by_three_worker_processes, a_hundred_thousand_targets_work);
    in_shards_on_rabbitmq!(a_hundred_thousand_targets_work);
}

async fn a_thousand_targets_are_shared_by_three_worker_processes(stack: Stack) {
    const TARGETS: usize = 1_000;
    let mut done = stack.record("my.done").await;
    let _reports = stack.record("test.reports").await;
    let workers = [(); 3].map(|()| Node::start(NODE, &stack, &["worker"]));
    stack.service_has_consumers("test.report", 3).await;
    let coordinator = stack.coordinator();
    let accepted = many(&stack, "test.report", TARGETS).on_final("my.done").invoke().await.expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), TARGETS);
    let by: BTreeSet<u32> =
        payload.data.iter().map(|(_, result)| result.response().expect("it answered")).collect();
    assert_eq!(by, workers.iter().filter_map(Node::id).collect());
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

/// Their final payload is larger than a message may be on RabbitMQ 4.
async fn a_hundred_thousand_targets_work(stack: Stack) {
    const TARGETS: usize = 100_000;
    let worker = stack.worker([services::echo().concurrency(256).prefetch(512)]).await;
    let coordinator = stack.coordinator();
    let payload = many(&stack, "test.echo", TARGETS).invoke_and_wait(PATIENCE * 4).await.expect("it ends");
    assert_eq!((payload.data.len(), payload.failures().count()), (TARGETS, 0));
    for n in [0, TARGETS / 2, TARGETS - 1] {
        assert_eq!(payload.get::<usize>(&n.to_string()).expect("it answered"), n);
    }
    stack.ended([], coordinator).await;
    worker.stop().await;
}

async fn two_coordinators_end_two_hundred_concurrent_fan_outs_once_each(stack: Stack) {
    const FAN_OUTS: u64 = 200;
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let _worker = stack.worker([services::echo()]).await;
    let (one, other) = (stack.coordinator(), stack.coordinator());
    let publisher = stack.publisher();
    let invoke = |n: u64| {
        let fanout = publisher.fanout("my.source").cid(n.to_string()).on_final("my.done");
        let target = |key: &str| Target::new("test.echo", json!([n, key])).key(key);
        fanout.add(target("a")).add(target("b")).invoke()
    };
    let invoked = join_all((0..FAN_OUTS).map(invoke)).await;
    let accepted: Vec<Accepted> = invoked.into_iter().map(|accepted| accepted.expect("accepted")).collect();

    let mut ended = BTreeMap::new();
    for _ in 0..FAN_OUTS {
        let message = done.next().await;
        let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
        let cid = message.cid().expect("a CID");
        let n: u64 = cid.as_str().parse().expect("a number");
        for key in ["a", "b"] {
            assert_eq!(payload.get::<(u64, String)>(key).expect("it answered"), (n, key.to_owned()));
        }
        assert!(ended.insert(cid, message.run().expect("a run")).is_none(), "{n} ended twice");
    }
    assert_eq!(ended, accepted.iter().map(|accepted| (accepted.cid.clone(), accepted.run)).collect());
    for Accepted { cid, run } in &accepted {
        stack.queue_is_gone(&stack.names().aggregation(cid, *run).name).await;
    }
    one.stop().await;
    stack.ended([], other).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(parked.rest().await, []);
}

/// P3 and P4: at most a hundred repeats, and the final callback after all of them.
async fn a_coordinator_killed_after_three_fifths_of_the_on_target_callbacks_repeats_at_most_a_hundred(
    stack: Stack,
) {
    const TARGETS: usize = 5_000;
    const MOST_REPEATED: usize = 100;
    // Both kinds of callbacks go to one queue, so that their order can be seen.
    let mut callback = stack.record("my.callback").await;
    let _worker = stack.worker([services::echo()]).await;
    let doomed = stack.doomed_coordinator(NODE);
    let fanout = many(&stack, "test.echo", TARGETS).on_target("my.callback").on_final("my.callback");
    let accepted = fanout.invoke().await.expect("accepted");
    let mut seen = Vec::new();
    while seen.len() < TARGETS / 5 * 3 {
        seen.push(callback.next().await);
    }
    doomed.kill().await;
    let another = stack.coordinator();
    stack.ended([&accepted], another).await;
    seen.extend(callback.rest().await);

    let last = seen.pop().expect("callbacks came");
    assert_eq!(last.properties.message_id, Some(format!("{}/on-final/my.callback", accepted.cid).into()));
    let payload: FinalPayload = serde_json::from_slice(&last.body).expect("a final payload");
    assert_eq!(payload.data.len(), TARGETS);
    assert_eq!(payload.failures().count(), 0);

    let mut called: BTreeMap<&str, Vec<&Message>> = BTreeMap::new();
    for message in &seen {
        assert_eq!(message.run(), Ok(accepted.run));
        called.entry(message.properties.message_id.as_deref().expect("an id")).or_default().push(message);
    }
    let expected = (0..TARGETS).map(|place| format!("{}/{place}/on-target/my.callback", accepted.cid));
    let expected: BTreeSet<String> = expected.collect();
    assert_eq!(called.keys().map(ToString::to_string).collect::<BTreeSet<_>>(), expected);
    assert!(called.values().all(|repeats| repeats.iter().all(|repeat| repeat.body == repeats[0].body)));
    let repeated = seen.len() - TARGETS;
    assert!(repeated <= MOST_REPEATED, "{repeated} on-target callbacks were repeated");
}

async fn a_killed_coordinator_repeats_at_most_as_many_on_target_callbacks_as_it_was_told(stack: Stack) {
    const TARGETS: usize = 400;
    const MOST_REPEATED: usize = 7;
    let mut callback = stack.record("my.callback").await;
    let _worker = stack.worker([services::echo()]).await;
    let mut config = stack.coordinator_config();
    config.limits.calls_at_risk = MOST_REPEATED;
    let doomed = stack.coordinator_with(config.clone());
    let fanout = many(&stack, "test.echo", TARGETS).on_target("my.callback").on_final("my.callback");
    let accepted = fanout.invoke().await.expect("accepted");
    let mut called = BTreeSet::new();
    let mut calls = 0;
    while calls < TARGETS / 5 * 3 {
        called.insert(callback.next().await.properties.message_id);
        calls += 1;
    }
    doomed.kill().await;
    stack.ended([&accepted], stack.coordinator_with(config)).await;
    for message in callback.rest().await {
        called.insert(message.properties.message_id);
        calls += 1;
    }
    // Each target's, and the final one.
    assert_eq!(called.len(), TARGETS + 1);
    let repeated = calls - called.len();
    assert!(repeated <= MOST_REPEATED, "{repeated} callbacks were repeated");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_hears_nothing_any_more_calls_as_many_as_a_crash_may_repeat() {
    run(Stack::in_memory(), calls_of_a_deaf_coordinator).await;
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_hears_nothing_any_more_of_a_shard_calls_as_many_as_a_crash_may_repeat() {
    run(Stack::in_memory().sharing(1), calls_of_a_deaf_coordinator).await;
}

/// The connection that it consumes on dies without a word, while it holds many results and publishes.
async fn calls_of_a_deaf_coordinator(stack: Stack) {
    const TARGETS: usize = 400;
    const MOST_REPEATED: usize = 7;
    let broker = stack.connect_in_memory();
    // The callbacks' queue is full at first.
    stack.note_service("my.callback");
    let mut full = stack.names().service(&ServiceName::new("my.callback").expect("a name"));
    full.arguments.extend([("x-max-length", 1.into()), ("x-overflow", "reject-publish".into())]);
    broker.declare(&full).await.expect("the queue can be declared");
    stack.publish(&full.name, Message::default()).await;

    let mut target = stack.record("my.target").await;
    let fanout = many(&stack, "my.target", TARGETS).on_target("my.callback").on_final("my.callback");
    let accepted = fanout.invoke().await.expect("accepted");
    for _ in 0..TARGETS {
        answer(&stack, &target.next().await, ()).await;
    }
    let mut config = stack.coordinator_config();
    config.limits.calls_at_risk = MOST_REPEATED;
    let first = stack.coordinator_on(Mortal::new(Arc::clone(&broker) as Arc<dyn Broker>), config.clone());
    eventually("it holds all results", async || first.mortal().held() > TARGETS).await;
    broker.deafen();
    let mut callback = stack.record_queue(&full.name).await;
    assert_eq!(callback.next().await, Message::default());
    // Longer than any pause between two tries to publish.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let mut calls = callback.rest().await;
    assert_eq!(calls.len(), MOST_REPEATED);

    first.kill().await;
    stack.ended([&accepted], stack.coordinator_with(config)).await;
    calls.extend(callback.rest().await);
    let called: BTreeSet<_> = calls.iter().map(|call| call.properties.message_id.clone()).collect();
    // Each target's, and the final one.
    assert_eq!(called.len(), TARGETS + 1);
    let repeated = calls.len() - called.len();
    assert!(repeated <= MOST_REPEATED, "{repeated} callbacks were repeated");
}

/// 6,000 results are more than a quorum queue hands out unacked (2,000), and more than a coordinator's own window (4,000).
async fn a_queue_with_more_results_than_may_be_unacked_ends_through_two_crashes(stack: Stack) {
    const TARGETS: usize = 6_000;
    let mut done = stack.record("my.done").await;
    let worker = stack.worker_of_single_results([services::echo()]).await;
    let accepted = many(&stack, "test.echo", TARGETS).on_final("my.done").invoke().await.expect("accepted");
    // In a shard it is the manifest that lies beside them.
    let all = |state: fanfare_broker::QueueState| state.messages == TARGETS as u64 + 1;
    stack.queue_has(&stack.results_of(&accepted), "all results and the sentinel", all).await;
    worker.stop().await;

    // The first dies before it has let go of any result. The second finds the whole backlog, of which it must take in more than
    // its window holds before it comes to its own fence; and dies when that is in two checkpoints, its third and second message. In a
    // shard they come to the manifest even later, and make room by moving results behind it: the second dies when three are there twice.
    let mut config = stack.coordinator_config();
    config.shard_limits.window = config.limits.window;
    for nth in [1, 3] {
        let mortal = Mortal::new(stack.connect());
        mortal.dies_at(Death { nth, of: Some(Step::Publish), takes_effect: nth > 1 });
        let doomed = stack.coordinator_on(Arc::clone(&mortal), config.clone());
        mortal.dead().await;
        doomed.kill().await;
    }
    let last = stack.coordinator_with(config);
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), TARGETS);
    for (n, (key, result)) in payload.data.iter().enumerate() {
        assert_eq!((key, result.response::<usize>().expect("it answered")), (n.to_string().as_str(), n));
    }
    stack.ended([&accepted], last).await;
    assert_eq!(done.rest().await, []);
}

async fn ten_fan_outs_whose_targets_wait_for_inner_ones_need_one_slot(stack: Stack) {
    const FAN_OUTS: usize = 10;
    let mut done = stack.record("my.done").await;
    let outer = service("my.outer", |context: Context, n: usize| async move {
        let inner = context.fanout().target("my.inner", n).invoke_and_wait(Duration::from_secs(80)).await?;
        Ok(inner.get::<usize>("my.inner")?)
    });
    let inner = service("my.inner", |_: Context, n: usize| async move { Ok(n * 2) });
    let _worker = stack.worker([outer.concurrency(1), inner.concurrency(1)]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let invoke = |n: usize| {
        let fanout = publisher.fanout("my.source").on_final("my.done");
        let target = |n: usize| Target::new("my.outer", n).key(n.to_string());
        fanout.add(target(n)).add(target(n + 100)).invoke()
    };
    let invoked = join_all((0..FAN_OUTS).map(invoke)).await;
    let accepted: Vec<Accepted> = invoked.into_iter().map(|accepted| accepted.expect("accepted")).collect();
    let mut seen = BTreeSet::new();
    for _ in 0..FAN_OUTS {
        for (key, result) in done.next_final().await.data.iter() {
            let n: usize = key.parse().expect("a number");
            assert_eq!(result.response::<usize>().expect("it answered"), n * 2);
            assert!(seen.insert(n));
        }
    }
    assert_eq!(seen, (0..FAN_OUTS).chain(100..100 + FAN_OUTS).collect());
    stack.ended(accepted.iter(), coordinator).await;
    assert_eq!(done.rest().await, []);
}

/// A fan-out of one service under many keys, each given its number.
fn many(stack: &Stack, service: &str, targets: usize) -> Fanout {
    let payload = |n: usize| if service == "test.report" { 0 } else { n };
    let targets = (0..targets).map(|n| Target::new(service, payload(n)).key(n.to_string()));
    targets.fold(stack.publisher().fanout("my.source"), Fanout::add)
}
