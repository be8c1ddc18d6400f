//! Workers and coordinators that are killed, and queues that are taken from under them.

use std::collections::{BTreeMap, BTreeSet};

use fanfare_protocol::{FinalPayload, Message};
use fanfare_publisher::{Fanout, Target};
use fanfare_tests::services::Report;
use fanfare_tests::{
    Node, Recorder, Stack, answer, in_shards, in_shards_on_rabbitmq, on_both_brokers, on_rabbitmq,
};
use fanfare_worker::{Context, service};

const NODE: &str = env!("CARGO_BIN_EXE_fanfare-test-node");

on_both_brokers!(
    a_coordinator_killed_with_half_of_the_results_in_is_made_good_by_another,
    a_killed_worker_s_target_is_run_again_and_counts_once,
    a_run_ends_with_its_own_result_though_its_request_is_redelivered_after_another_run_of_its_cid,
    a_result_of_another_run_never_counts,
    the_first_of_several_results_stands,
    a_fan_out_whose_queue_is_deleted_ends_with_the_missing_targets_failed,
);

// In a shard, the results of two runs with one CID come to one queue anyway, and what is deleted takes other fan-outs with it: see shards.rs.
in_shards!(
    a_coordinator_killed_with_half_of_the_results_in_is_made_good_by_another,
    a_killed_worker_s_target_is_run_again_and_counts_once,
    a_run_ends_with_its_own_result_though_its_request_is_redelivered_after_another_run_of_its_cid,
    the_first_of_several_results_stands,
);

mod processes {
    use super::*;

    on_rabbitmq!(a_process_killed_in_the_middle_of_a_target_hands_it_to_another);
    in_shards_on_rabbitmq!(a_process_killed_in_the_middle_of_a_target_hands_it_to_another);
}

async fn a_coordinator_killed_with_half_of_the_results_in_is_made_good_by_another(stack: Stack) {
    const TARGETS: usize = 40;
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let doomed = stack.doomed_coordinator(NODE);
    let accepted = many(&stack, "my.target", TARGETS).on_final("my.done").invoke().await.expect("accepted");
    for _ in 0..TARGETS / 2 {
        answer_by_key(&stack, &target.next().await).await;
    }
    // What is no longer in the queue, the coordinator holds.
    let queue = stack.results_of(&accepted);
    stack.queue_has(&queue, "nothing unread", |state| state.consumers == 1 && state.messages == 0).await;
    doomed.kill().await;

    let another = stack.coordinator();
    for _ in 0..TARGETS / 2 {
        answer_by_key(&stack, &target.next().await).await;
    }
    assert_complete(&done.next_final().await, TARGETS);
    stack.ended([&accepted], another).await;
    assert_eq!(done.rest().await, []);
}

async fn a_killed_worker_s_target_is_run_again_and_counts_once(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut started = stack.record("my.started").await;
    let coordinator = stack.coordinator();
    let hanging = service("my.target", |context: Context, _: ()| async move {
        context.send("my.started", "by the first").await?;
        std::future::pending::<fanfare_worker::Result<String>>().await
    });
    let killed = stack.worker([hanging]).await;
    let fanout = stack.publisher().fanout("my.source").target("my.target", ());
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    started.next().await;
    let next = service("my.target", |_: Context, _: ()| async { Ok("by the next") });
    let _next = stack.worker([next]).await;
    killed.kill().await;
    let payload = done.next_final().await;
    assert_eq!(payload.get::<String>("my.target").expect("it answered"), "by the next");
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(started.rest().await, []);
}

async fn a_process_killed_in_the_middle_of_a_target_hands_it_to_another(stack: Stack) {
    const TARGETS: usize = 8;
    let mut done = stack.record("my.done").await;
    let mut reports = stack.record("test.reports").await;
    let coordinator = stack.coordinator();
    let hanging = Node::start(NODE, &stack, &["worker", "--hangs"]);
    stack.service_exists("test.report").await;
    let fanout = many(&stack, "test.report", TARGETS);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let killed = hanging.id().expect("it runs");
    for _ in 0..TARGETS {
        assert_eq!(next_report(&mut reports).await.process, killed);
    }
    let another = Node::start(NODE, &stack, &["worker"]);
    stack.service_has_consumers("test.report", 2).await;
    hanging.kill().await;

    let payload = done.next_final().await;
    let by: BTreeSet<u32> =
        payload.data.iter().map(|(_, result)| result.response().expect("it answered")).collect();
    assert_eq!(payload.data.len(), TARGETS);
    assert_eq!(by, BTreeSet::from([another.id().expect("it runs")]));
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(reports.rest().await.len(), TARGETS, "each target is run again, once");
}

async fn a_run_ends_with_its_own_result_though_its_request_is_redelivered_after_another_run_of_its_cid(
    stack: Stack,
) {
    let mut done = stack.record("my.done").await;
    let mut started = stack.record("my.started").await;
    let coordinator = stack.coordinator();
    let hanging = service("my.target", |context: Context, n: u32| async move {
        context.send("my.started", n).await?;
        std::future::pending::<fanfare_worker::Result<u32>>().await
    });
    let killed = stack.worker([hanging.concurrency(1).prefetch(1)]).await;
    let publisher = stack.publisher();
    let invoke = |n: u32| {
        publisher.fanout("my.source").cid("the-same").target("my.target", n).on_final("my.done").invoke()
    };
    let first = invoke(1).await.expect("accepted");
    started.next().await;

    // The one that hangs has no room for more, so the second run is served by another worker.
    let echo = service("my.target", |_: Context, n: u32| async move { Ok(n) });
    let _next = stack.worker([echo]).await;
    let second = invoke(2).await.expect("accepted");
    assert_eq!(next_answer(&mut done).await, (second.run.to_string(), 2));
    killed.kill().await;
    assert_eq!(next_answer(&mut done).await, (first.run.to_string(), 1));
    stack.ended([&first, &second], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn next_answer(done: &mut Recorder) -> (String, u32) {
    let message = done.next().await;
    let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
    (message.run().expect("a run").to_string(), payload.get("my.target").expect("it answered"))
}

async fn a_result_of_another_run_never_counts(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let invoke =
        || publisher.fanout("my.source").cid("the-same").target("my.target", ()).on_final("my.done").invoke();
    let first = invoke().await.expect("accepted");
    let of_first = target.next().await;
    let second = invoke().await.expect("accepted");
    let of_second = target.next().await;

    // The result of the first run comes to the queue of the second one, with the same CID and key.
    let mut misled = of_first.clone();
    misled.properties.reply_to = of_second.properties.reply_to.clone();
    answer(&stack, &misled, 11).await;
    answer(&stack, &of_second, 2).await;
    assert_eq!(next_answer(&mut done).await, (second.run.to_string(), 2));
    answer(&stack, &of_first, 1).await;
    assert_eq!(next_answer(&mut done).await, (first.run.to_string(), 1));
    stack.ended([&first, &second], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn the_first_of_several_results_stands(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut on_target = stack.record("my.progress").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let fanout = many(&stack, "my.target", 2).on_target("my.progress").on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let (one, other) = (target.next().await, target.next().await);
    for response in ["first", "second", "third"] {
        answer(&stack, &one, response).await;
    }
    answer(&stack, &other, "the only one").await;
    answer(&stack, &other, "too late").await;
    let payload = done.next_final().await;
    for (request, expected) in [(&one, "first"), (&other, "the only one")] {
        let key = request.text("fanfare-key").expect("a key");
        assert_eq!(payload.get::<String>(key).expect("it answered"), expected);
        assert_eq!(on_target.next_result().await.response::<String>().expect("it answered"), expected);
    }
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(on_target.rest().await, []);
}

async fn a_fan_out_whose_queue_is_deleted_ends_with_the_missing_targets_failed(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let mut parked = stack.record_parked().await;
    let coordinator = stack.coordinator();
    let fanout = many(&stack, "my.target", 3).on_target("my.done").on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let answered = target.next().await;
    answer_by_key(&stack, &answered).await;
    assert_eq!(done.next_result().await.response::<String>().expect("it answered"), key(&answered));
    stack.bystander().delete(&stack.results_of(&accepted)).await.expect("deleted");

    for _ in 0..2 {
        let failed = done.next_result().await;
        assert!(!failed.ok);
        assert!(failed.exception.expect("it failed").contains("queue was deleted"));
    }
    let payload = done.next_final().await;
    assert_eq!(payload.get::<String>(key(&answered)).expect("it answered"), key(&answered));
    assert_eq!(payload.failures().count(), 2);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(parked.rest().await, []);
}

/// A fan-out of one service under many keys.
fn many(stack: &Stack, service: &str, targets: usize) -> Fanout {
    let targets = (0..targets).map(|n| Target::new(service, 0).key(n.to_string()));
    targets.fold(stack.publisher().fanout("my.source"), Fanout::add)
}

fn key(request: &Message) -> &str {
    request.text("fanfare-key").expect("a target has a key")
}

async fn answer_by_key(stack: &Stack, request: &Message) {
    answer(stack, request, key(request)).await;
}

async fn next_report(reports: &mut Recorder) -> Report {
    serde_json::from_slice(&reports.next().await.body).expect("a report")
}

/// Every target is there once and answered with its key.
fn assert_complete(payload: &FinalPayload, targets: usize) {
    let answers: BTreeMap<String, String> = payload
        .data
        .iter()
        .map(|(key, result)| (key.to_owned(), result.response().expect("it answered")))
        .collect();
    assert_eq!(answers, (0..targets).map(|n| (n.to_string(), n.to_string())).collect());
}
