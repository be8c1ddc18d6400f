//! More than there is room for: refused with a reason, or brought to its end all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_protocol::FinalPayload;
use fanfare_publisher::{Accepted, Failure, Fanout, InvokeError, Publisher, Target};
use fanfare_tests::{Running, Stack, answer, eventually, full, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, service};
use futures_util::{StreamExt, TryStreamExt, stream};

on_both_brokers!(
    a_fan_out_beyond_those_that_may_wait_is_refused_and_the_others_end,
    services_may_invoke_where_others_are_refused,
    fan_outs_that_hold_every_place_and_wait_for_others_end_once_there_is_another_coordinator,
    many_open_fan_outs_end_once_each,
    results_that_fit_into_no_message_together_reach_every_callback,
    what_a_worker_never_acks_ends_by_the_deadline,
    what_a_worker_never_acks_is_run_by_another_once_it_is_gone,
    a_coordinator_that_is_killed_thirty_times_in_a_row_loses_nothing,
);

// What may wait for a coordinator, and be open, has other bounds in a shard: see shards.rs.
in_shards!(
    results_that_fit_into_no_message_together_reach_every_callback,
    what_a_worker_never_acks_ends_by_the_deadline,
    what_a_worker_never_acks_is_run_by_another_once_it_is_gone,
    a_coordinator_that_is_killed_thirty_times_in_a_row_loses_nothing,
);

/// Fan-outs invoked at the same time. More would wait for the broker all the same.
const AT_ONCE: usize = 32;

fn one_target(publisher: &Publisher, cid: impl ToString) -> Fanout {
    publisher.fanout("my.source").cid(cid.to_string()).target("my.target", 1).on_final("my.done")
}

async fn a_fan_out_beyond_those_that_may_wait_is_refused_and_the_others_end(stack: Stack) {
    const MOST: u64 = 5;
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let publisher = stack.publisher_bounded(MOST);
    let mut accepted = Vec::new();
    for n in 0..MOST {
        accepted.push(one_target(&publisher, n).invoke().await.expect("there is room"));
    }
    for publisher in [publisher.clone(), stack.publisher_bounded(MOST)] {
        let error = one_target(&publisher, "refused").invoke().await.expect_err("there is no room");
        let InvokeError::NotAccepted { requests_sent: false, source, cid, run } = error else {
            panic!("{error:?}");
        };
        assert!(matches!(source, Failure::Busy { waiting: MOST, most: MOST }), "{source:?}");
        assert!(
            source.to_string().starts_with("5 fan-outs wait for a coordinator, and 5 is the most: try again")
        );
        stack.queue_is_gone(&stack.names().aggregation(&cid, run).name).await;
    }
    let coordinator = stack.coordinator();
    stack.queue_has(&stack.names().fanin_queue(), "no message", |state| state.messages == 0).await;
    accepted.push(one_target(&publisher, MOST).invoke().await.expect("there is room again"));
    for _ in &accepted {
        answer(&stack, &target.next().await, "fine").await;
    }
    stack.ended(&accepted, coordinator).await;
    assert_eq!(done.rest().await.len(), accepted.len());
    assert_eq!(target.rest().await, [], "nothing was sent of what was refused");
}

async fn services_may_invoke_where_others_are_refused(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let publisher = stack.publisher_bounded(1);
    let outer = one_target(&publisher, "outer").invoke().await.expect("there is room");
    one_target(&publisher, "refused").invoke().await.expect_err("there is none for another");
    let inner = one_target(&publisher, "inner").nested().invoke().await.expect("what has begun is to end");
    one_target(&publisher, "refused").nested().invoke().await.expect_err("there is an end to that too");
    let coordinator = stack.coordinator();
    for _ in 0..2 {
        answer(&stack, &target.next().await, "fine").await;
    }
    stack.ended([&outer, &inner], coordinator).await;
    assert_eq!(done.rest().await.len(), 2);
}

async fn fan_outs_that_hold_every_place_and_wait_for_others_end_once_there_is_another_coordinator(
    stack: Stack,
) {
    let mut done = stack.record("my.done").await;
    let outer = service("my.outer", |context: Context, n: usize| async move {
        let inner = context.fanout().target("my.inner", n).invoke_and_wait(fanfare_tests::PATIENCE).await?;
        Ok(inner.get::<usize>("my.inner")?)
    });
    let inner = service("my.inner", |_: Context, n: usize| async move { Ok(n * 2) });
    let one_place =
        fanfare_coordinator::Config { prefetch: 1, most_channels: 1, ..stack.coordinator_config() };
    let first = stack.coordinator_with(one_place.clone());
    stack.declare_service("my.outer").await;
    let accepted = stack
        .publisher()
        .fanout("my.source")
        .target("my.outer", 21)
        .on_final("my.done")
        .invoke()
        .await
        .expect("accepted");
    // Not before: a request is sent before its manifest, so the inner manifest could be first, and take the place.
    let _worker = stack.worker([outer, inner]).await;
    let fanin = stack.names().fanin_queue();
    stack.queue_has(&fanin, "the inner manifest", |state| state.messages == 1).await;
    let second = stack.coordinator_with(one_place);
    let payload = done.next_final().await;
    assert_eq!(payload.get::<usize>("my.outer").expect("it answered"), 42);
    second.stop().await;
    stack.ended([&accepted], first).await;
    assert_eq!(done.rest().await, []);
}

/// 9,000 with `--full`: within the descriptors that a broker needs for them, of which the tests give it 20,000.
async fn many_open_fan_outs_end_once_each(stack: Stack) {
    let fan_outs = if full() { 9_000 } else { 250 };
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let invoked = stream::iter(0..fan_outs).map(|n| one_target(&publisher, n).invoke());
    let accepted: Vec<Accepted> = invoked.buffer_unordered(AT_ONCE).try_collect().await.expect("accepted");
    // All at once: each one is consumed while none has had an answer.
    for Accepted { cid, run } in &accepted {
        let queue = stack.names().aggregation(cid, *run).name;
        stack.queue_has(&queue, "a consumer", |state| state.consumers == 1).await;
    }
    for _ in 0..fan_outs {
        answer(&stack, &target.next().await, "fine").await;
    }
    let mut ended = BTreeSet::new();
    for _ in 0..fan_outs {
        let message = done.next().await;
        let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
        assert_eq!(payload.get::<String>("my.target").expect("it answered"), "fine");
        assert!(ended.insert(message.cid().expect("a CID")), "a fan-out ended twice");
    }
    stack.ended(&accepted, coordinator).await;
    assert_eq!(done.rest().await, []);
}

/// 200 MB with `--full`. A message holds 16.
async fn results_that_fit_into_no_message_together_reach_every_callback(stack: Stack) {
    const BYTES: usize = 4_000_000;
    let targets = if full() { 50 } else { 6 };
    let mut seen = stack.record("my.seen").await;
    let mut done = stack.record("my.done").await;
    let large = service("my.large", |_: Context, n: usize| async move { Ok(n.to_string().repeat(BYTES)) });
    let _worker = stack.worker([large.concurrency(2)]).await;
    let coordinator = stack.coordinator();
    let target = |n: usize| Target::new("my.large", n % 10).key(n.to_string());
    let fanout = (0..targets).map(target).fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted = fanout.on_target("my.seen").on_final("my.done").invoke().await.expect("accepted");
    for _ in 0..targets {
        let result = seen.next_result().await;
        assert_eq!(result.response::<String>().expect("it is whole").len(), BYTES);
    }
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), targets);
    for (key, result) in payload.data.iter() {
        assert_eq!(result.response::<String>().expect("it is whole").len(), BYTES, "{key}");
    }
    stack.ended([&accepted], coordinator).await;
    assert_eq!(seen.rest().await, []);
    assert_eq!(done.rest().await, []);
}

async fn what_a_worker_never_acks_ends_by_the_deadline(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let queue = stack.declare_service("my.target").await;
    let channel = stack.connect().open().await.expect("a channel can be opened");
    let mut stuck = channel.consume(&queue, 10).await.expect("the queue can be consumed");
    let coordinator = stack.coordinator();
    let fanout = one_target(&stack.publisher(), "stuck").deadline(Duration::from_millis(500));
    let accepted = fanout.invoke().await.expect("accepted");
    let held = stuck.next().await.expect("the queue stays").expect("the channel stays");
    let payload = done.next_final().await;
    let failure = payload.failures().next().expect("it failed");
    assert!(failure.exception.contains("deadline"), "{failure}");
    // Its answer comes too late, and harms nobody.
    if stack.is_shared() {
        answer(&stack, &held.message, "late").await;
        stack.ended([&accepted], coordinator).await;
    } else {
        stack.ended([&accepted], coordinator).await;
        answer_late(&stack, &held.message).await;
    }
    held.receipt.ack().await;
    assert_eq!(done.rest().await, []);
}

/// What comes back as unroutable was late.
async fn answer_late(stack: &Stack, request: &fanfare_protocol::Message) {
    let queue = request.properties.reply_to.as_ref().expect("a target has one").to_string();
    let sent = stack.bystander().publish(&queue, fanfare_protocol::Message::default()).await;
    assert!(matches!(sent, Err(fanfare_broker::PublishError::Unroutable(_))), "{sent:?}");
}

async fn what_a_worker_never_acks_is_run_by_another_once_it_is_gone(stack: Stack) {
    const TARGETS: usize = 20;
    let mut done = stack.record("my.done").await;
    let queue = stack.declare_service("test.echo").await;
    let channel = stack.connect().open().await.expect("a channel can be opened");
    let mut stuck = channel.consume(&queue, 5).await.expect("the queue can be consumed");
    let coordinator = stack.coordinator();
    let target = |n: usize| Target::new("test.echo", n).key(n.to_string());
    let fanout = (0..TARGETS).map(target).fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let first = stuck.next().await.expect("the queue stays").expect("the channel stays");
    assert!(!first.redelivered);
    let _worker = stack.worker([services::echo()]).await;
    channel.close().await;
    let payload = done.next_final().await;
    assert_eq!((payload.data.len(), payload.failures().count()), (TARGETS, 0));
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

fn manifests_held(coordinator: &Running) -> usize {
    coordinator.mortal().held_messages().iter().filter(|id| id.ends_with("/manifest")).count()
}

/// Thirty redeliveries are more than the twenty after which RabbitMQ 4 drops a message unless its queue says otherwise.
async fn a_coordinator_that_is_killed_thirty_times_in_a_row_loses_nothing(stack: Stack) {
    const RESTARTS: usize = 30;
    let fan_outs = if full() { 300 } else { 10 };
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let mut target = stack.record("my.target").await;
    let publisher = stack.publisher();
    let invoked = stream::iter(0..fan_outs).map(|n| one_target(&publisher, n).invoke());
    let accepted: Vec<Accepted> = invoked.buffer_unordered(AT_ONCE).try_collect().await.expect("accepted");
    let fanin = stack.names().fanin_queue();
    for _ in 0..RESTARTS {
        let doomed = stack.coordinator();
        eventually("it holds every manifest", async || manifests_held(&doomed) == fan_outs).await;
        doomed.kill().await;
        stack.coordinators_are_gone_but(0).await;
        if !stack.is_shared() {
            stack.queue_has(&fanin, "every manifest", |state| state.messages == fan_outs as u64).await;
        }
    }
    let last = stack.coordinator();
    for _ in 0..fan_outs {
        answer(&stack, &target.next().await, "fine").await;
    }
    for _ in 0..fan_outs {
        let payload = done.next_final().await;
        assert_eq!(payload.get::<String>("my.target").expect("it answered"), "fine");
    }
    stack.ended(&accepted, last).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(parked.rest().await, []);
}
