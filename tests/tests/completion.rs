//! A fan-out is complete when its policy is met, whoever is missing, and whoever dies meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use fanfare_protocol::{EndedBy, FinalPayload, HeaderValue, Message};
use fanfare_publisher::{Completion, Fanout, Target};
use fanfare_tests::{Death, Mortal, Stack, Step, answer, in_shards, on_both_brokers, services};

on_both_brokers!(
    a_fan_out_is_complete_with_the_first_successes_and_names_what_was_missing,
    a_fan_out_fails_fast_at_the_first_failure,
    a_parallel_execution_calls_back_for_what_is_not_awaited,
    a_coordinator_that_dies_while_it_completes_by_policy_is_made_good_by_the_next,
    a_caller_who_waits_is_told_how_the_fan_out_completed,
);

in_shards!(
    a_fan_out_is_complete_with_the_first_successes_and_names_what_was_missing,
    a_fan_out_fails_fast_at_the_first_failure,
    a_parallel_execution_calls_back_for_what_is_not_awaited,
    a_coordinator_that_dies_while_it_completes_by_policy_is_made_good_by_the_next,
    a_caller_who_waits_is_told_how_the_fan_out_completed,
);

async fn a_fan_out_is_complete_with_the_first_successes_and_names_what_was_missing(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut called = stack.record("my.called").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let fanout = many(&stack, 4).complete_when(Completion::succeeded(2));
    let accepted = fanout.on_target("my.called").on_final("my.done").invoke().await.expect("accepted");
    let requests = [target.next().await, target.next().await, target.next().await, target.next().await];
    answer(&stack, &requests[3], "fast").await;
    answer(&stack, &requests[0], "second").await;

    let message = done.next().await;
    assert_eq!(message.text("fanfare-ended-by"), Some("completion"));
    assert_eq!(numbers(&message), [4, 2, 2]);
    let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
    assert_eq!(payload.ended_by(), Some(EndedBy::Completion));
    let reason = "not awaited: the fan-out was complete when 2 targets had succeeded";
    let seen: Vec<String> = payload
        .data
        .iter()
        .map(|(_, result)| {
            result.exception.clone().unwrap_or_else(|| result.response().expect("it answered"))
        })
        .collect();
    assert_eq!(seen, ["second", reason, reason, "fast"]);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(called.rest().await.len(), 4, "each target has completed, of whichever kind");
    assert_eq!(done.rest().await, []);
}

async fn a_fan_out_fails_fast_at_the_first_failure(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _target = stack.record("my.target").await;
    let _worker = stack.worker([services::fail()]).await;
    let coordinator = stack.coordinator();
    let fanout = many(&stack, 3).target("test.fail", "broken").complete_when(Completion::failed_above(0));
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let payload = done.next_final().await;
    let exceptions: Vec<String> = payload.failures().map(|failure| failure.exception).collect();
    let reason = "not awaited: the fan-out was complete when more than 0 targets had failed";
    assert_eq!(exceptions, [reason, reason, reason, "broken"]);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn a_parallel_execution_calls_back_for_what_is_not_awaited(stack: Stack) {
    let mut called = stack.record("my.called").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let targets = (0..2).map(|n| Target::new("my.target", n).key(n.to_string()));
    let parallel = targets.fold(stack.publisher().parallel("my.source"), Fanout::add);
    let parallel = parallel.complete_when(Completion::responded(1)).on_target("my.called");
    let accepted = parallel.invoke().await.expect("accepted");
    answer(&stack, &target.next().await, "one").await;
    assert!(called.next_result().await.ok);
    let missing = called.next_result().await;
    assert_eq!((missing.ok, missing.ended_by), (false, Some(EndedBy::Completion)));
    stack.ended([&accepted], coordinator).await;
    assert_eq!(called.rest().await, []);
}

/// Some of the failures are in the queue when it dies, and what still answers comes between them and those of the next.
async fn a_coordinator_that_dies_while_it_completes_by_policy_is_made_good_by_the_next(stack: Stack) {
    const TARGETS: usize = 12;
    for takes_effect in [false, true] {
        let mut done = stack.record("my.done").await;
        let mut target = stack.record("my.target").await;
        let mortal = Mortal::new(stack.connect());
        mortal.dies_at(Death { nth: 5, of: Some(Step::Publish), takes_effect });
        let dying = stack.coordinator_on(Arc::clone(&mortal), stack.coordinator_config());
        let fanout = many(&stack, TARGETS).complete_when(Completion::responded(2)).on_final("my.done");
        let accepted = fanout.invoke().await.expect("accepted");
        let mut requests = Vec::new();
        for _ in 0..TARGETS {
            requests.push(target.next().await);
        }
        for request in &requests[..2] {
            answer(&stack, request, "in time").await;
        }
        mortal.dead().await;
        dying.kill().await;
        for request in &requests[2..6] {
            answer(&stack, request, "between").await;
        }
        let next = stack.coordinator();
        let message = done.next().await;
        let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, result) in payload.data.iter() {
            let kind = result.exception.clone().unwrap_or_else(|| result.response().expect("it answered"));
            *counts.entry(kind).or_default() += 1;
        }
        let reason = "not awaited: the fan-out was complete when 2 targets had responded";
        let missing = counts[reason];
        assert_eq!(counts["in time"], 2, "{counts:?}");
        assert_eq!(counts.values().sum::<usize>(), TARGETS, "{counts:?}");
        // Of the four that answered, those whose failure was in the queue before came too late.
        assert!((6..=10).contains(&missing), "{counts:?}");
        assert_eq!(message.text("fanfare-ended-by"), Some("completion"));
        assert_eq!(numbers(&message), [TARGETS, missing, missing].map(|n| i64::try_from(n).expect("small")));
        stack.ended([&accepted], next).await;
        // It may have come so far as to publish the final callback before it died: a crash repeats that, and changes nothing.
        for again in done.rest().await {
            assert_eq!((again.properties, again.body), (message.properties.clone(), message.body.clone()));
        }
    }
}

async fn a_caller_who_waits_is_told_how_the_fan_out_completed(stack: Stack) {
    let _target = stack.record("my.target").await;
    let _worker = stack.worker([services::echo()]).await;
    let _coordinator = stack.coordinator();
    let fanout = many(&stack, 2).target("test.echo", "here").complete_when(Completion::succeeded(1));
    let payload = fanout.invoke_and_wait(fanfare_tests::PATIENCE).await.expect("it ends");
    assert_eq!(payload.ended_by(), Some(EndedBy::Completion));
    assert_eq!(payload.get::<String>("test.echo").expect("it answered"), "here");
    assert_eq!(payload.failures().count(), 2);
}

/// Targets of one service under many keys, which the test answers by hand or not at all.
fn many(stack: &Stack, targets: usize) -> Fanout {
    let targets = (0..targets).map(|n| Target::new("my.target", n).key(n.to_string()));
    targets.fold(stack.publisher().fanout("my.source"), Fanout::add)
}

/// How many targets there were, failed and were missing, as the headers say.
fn numbers(message: &Message) -> [i64; 3] {
    ["fanfare-targets", "fanfare-failed", "fanfare-missing"].map(|name| match message.headers.get(name) {
        Some(HeaderValue::Int(number)) => *number,
        other => panic!("{name}: {other:?}"),
    })
}
