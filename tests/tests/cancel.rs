//! A fan-out that is cancelled ends with what there is, whoever runs its targets and whoever dies meanwhile.

use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::System;
use fanfare_protocol::{Cancellation, EndedBy, FinalPayload, Message};
use fanfare_publisher::{Accepted, CancelError, Publisher, Target};
use fanfare_tests::{
    Death, Mortal, Recorder, Stack, Step, eventually_seen, in_shards, on_both_brokers, services,
};
use fanfare_worker::{Context, Registration, service};
use serde_json::Value;
use tokio::sync::mpsc;

const NODE: &str = env!("CARGO_BIN_EXE_fanfare-test-node");

on_both_brokers!(
    what_runs_is_told_to_end_and_what_waits_is_not_begun_with,
    to_cancel_again_succeeds_and_changes_nothing,
    to_cancel_what_has_completed_changes_nothing,
    what_has_ended_with_one_cid_is_told_of_again,
    workers_drop_what_is_left_of_a_fan_out_that_ended_before_it_was_cancelled,
    what_cannot_be_cancelled_is_told_with_the_reason,
    what_a_coordinator_may_hold_that_does_not_answer_is_unknown,
    each_of_several_coordinators_cancels_what_it_holds,
    all_fan_outs_of_a_cid_are_cancelled_whoever_holds_them,
    a_cancel_outlives_the_coordinator_that_confirmed_it,
    a_cancel_that_its_coordinator_dies_of_is_taken_up_by_another,
    an_inner_fan_out_goes_on_when_the_outer_one_is_cancelled,
    an_outer_fan_out_goes_on_when_the_inner_one_is_cancelled,
    who_waits_is_handed_what_there_is,
    a_coordinator_of_certain_users_cancels_for_them_only,
);

// All fan-outs of a CID are in one shard, which one coordinator holds.
in_shards!(
    what_runs_is_told_to_end_and_what_waits_is_not_begun_with,
    to_cancel_again_succeeds_and_changes_nothing,
    to_cancel_what_has_completed_changes_nothing,
    what_has_ended_with_one_cid_is_told_of_again,
    workers_drop_what_is_left_of_a_fan_out_that_ended_before_it_was_cancelled,
    what_cannot_be_cancelled_is_told_with_the_reason,
    what_a_coordinator_may_hold_that_does_not_answer_is_unknown,
    each_of_several_coordinators_cancels_what_it_holds,
    a_cancel_outlives_the_coordinator_that_confirmed_it,
    a_cancel_that_its_coordinator_dies_of_is_taken_up_by_another,
    an_inner_fan_out_goes_on_when_the_outer_one_is_cancelled,
    an_outer_fan_out_goes_on_when_the_inner_one_is_cancelled,
    who_waits_is_handed_what_there_is,
    a_coordinator_of_certain_users_cancels_for_them_only,
);

const LONG: Duration = Duration::from_secs(60);

/// `my.holding` tells that it has begun, and runs until it is told to end.
fn holding() -> (Registration, mpsc::UnboundedReceiver<String>) {
    let (begun, begins) = mpsc::unbounded_channel();
    let holding = service("my.holding", move |context: Context, _: Value| {
        let begun = begun.clone();
        async move {
            begun.send(context.key().expect("it is a target").to_string())?;
            context.cancellation().cancelled().await;
            Err::<(), _>("it was told to end".into())
        }
    });
    (holding.concurrency(1).prefetch(1), begins)
}

/// A fan-out of a target that nobody runs.
async fn open(publisher: &Publisher, stack: &Stack) -> Accepted {
    stack.declare_service("nobody").await;
    let fanout = publisher.fanout("my.source").target("nobody", 1).on_final("my.done");
    fanout.invoke().await.expect("accepted")
}

async fn cancel_all(publisher: &Publisher, cid: &str) -> Vec<Cancellation> {
    publisher.cancel_all(cid).await.expect("it is cancelled").into_values().collect()
}

fn by_cancel(responded: usize, missing: usize) -> Cancellation {
    Cancellation { responded, missing, ended_by: Some(EndedBy::Cancel) }
}

#[track_caller]
fn check_failed(payload: &FinalPayload, keys: &[&str]) {
    let failures: Vec<_> =
        payload.failures().map(|failure| (failure.key.to_string(), failure.exception.to_string())).collect();
    let expected: Vec<_> = keys.iter().map(|&key| (key.to_owned(), "cancelled".to_owned())).collect();
    assert_eq!(failures, expected);
    assert_eq!(payload.ended_by(), Some(EndedBy::Cancel));
}

async fn what_runs_is_told_to_end_and_what_waits_is_not_begun_with(stack: Stack) {
    let (mut done, mut each) = (stack.record("my.done").await, stack.record("my.each").await);
    let (holding, mut begins) = holding();
    let worker = stack.worker([services::echo(), holding]).await;
    stack.exchange_is_heard(&stack.names().workers()).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = publisher.fanout("my.source").target("test.echo", 1);
    let held = |key: &str| Target::new("my.holding", ()).key(key);
    let fanout = fanout.add(held("runs")).add(held("waits")).on_target("my.each").on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    assert!(each.next_result().await.ok, "one has responded");
    assert_eq!(begins.recv().await.as_deref(), Some("runs"));

    assert_eq!(publisher.cancel(&accepted).await.expect("it is cancelled"), by_cancel(1, 2));
    let message = done.next().await;
    let header = |name: &str| message.text(name).map(str::to_owned);
    assert_eq!(header("fanfare-ended-by").as_deref(), Some("cancel"));
    assert_eq!((message.int("fanfare-missing"), message.int("fanfare-failed")), (Some(2), Some(2)));
    let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
    assert_eq!(payload.get::<u32>("test.echo").expect("it has responded"), 1);
    check_failed(&payload, &["runs", "waits"]);
    for _ in 0..2 {
        assert_eq!(each.next_result().await.exception.as_deref(), Some("cancelled"));
    }
    // Nothing is left of either, and the one that waited was not run.
    let queue = stack.declare_service("my.holding").await;
    stack.queue_has(&queue, "no messages", |state| state.messages == 0).await;
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    assert_eq!(begins.recv().await, None, "only one has begun");
    stack.queue_has(&queue, "no messages", |state| state.messages == 0).await;
    for recorder in [&mut done, &mut each] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn to_cancel_again_succeeds_and_changes_nothing(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let publisher = stack.publisher();
    let accepted = open(&publisher, &stack).await;
    let (first, second) = tokio::join!(publisher.cancel(&accepted), publisher.cancel(&accepted));
    for cancelled in [first, second] {
        assert_eq!(cancelled.expect("it is cancelled"), by_cancel(0, 1));
    }
    check_failed(&done.next_final().await, &["nobody"]);
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    assert_eq!(publisher.cancel(&accepted).await.expect("it is remembered"), by_cancel(0, 1));
    let all = publisher.cancel_all(&accepted.cid).await.expect("it is remembered");
    assert_eq!(all, [(accepted.run, by_cancel(0, 1))].into());
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn to_cancel_what_has_completed_changes_nothing(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = publisher.fanout("my.source").target("test.echo", 1).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    assert_eq!(done.next_final().await.failures().count(), 0);
    let too_late = publisher.cancel(&accepted).await.expect("it is known");
    assert_eq!(too_late, Cancellation { responded: 1, missing: 0, ended_by: None });
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn what_has_ended_with_one_cid_is_told_of_again(stack: Stack) {
    let mut done = stack.record("my.done").await;
    stack.declare_service("nobody").await;
    let coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let publisher = stack.publisher();
    let mut accepted = Vec::new();
    for _ in 0..2 {
        let fanout = publisher.fanout("my.source").cid("mine").target("nobody", 1).on_final("my.done");
        let fan_out = fanout.invoke().await.expect("accepted");
        assert_eq!(publisher.cancel(&fan_out).await.expect("it is cancelled"), by_cancel(0, 1));
        check_failed(&done.next_final().await, &["nobody"]);
        accepted.push(fan_out);
    }
    let all = accepted.iter().map(|fan_out| (fan_out.run, by_cancel(0, 1))).collect();
    // The second still ends, and hides the first so long.
    let again = async { while publisher.cancel_all("mine").await.expect("they are remembered") != all {} };
    tokio::time::timeout(LONG, again).await.expect("both are told of");
    stack.ended(&accepted, coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn workers_drop_what_is_left_of_a_fan_out_that_ended_before_it_was_cancelled(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let (holding, mut begins) = holding();
    let worker = stack.worker([holding]).await;
    stack.exchange_is_heard(&stack.names().workers()).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let held = |key: &str| Target::new("my.holding", ()).key(key);
    let fanout = publisher.fanout("my.source").add(held("runs")).add(held("waits")).on_final("my.done");
    let accepted = fanout.deadline(Duration::from_secs(2)).invoke().await.expect("accepted");
    assert_eq!(begins.recv().await.as_deref(), Some("runs"));
    assert_eq!(done.next_final().await.ended_by(), Some(EndedBy::Deadline));

    let by_deadline = Cancellation { responded: 0, missing: 2, ended_by: Some(EndedBy::Deadline) };
    for _ in 0..2 {
        assert_eq!(publisher.cancel(&accepted).await.expect("it has ended"), by_deadline);
    }
    let queue = stack.declare_service("my.holding").await;
    stack.queue_has(&queue, "no messages", |state| state.messages == 0).await;
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    assert_eq!(begins.recv().await, None, "only one has begun");
    stack.queue_has(&queue, "no messages", |state| state.messages == 0).await;
    assert_eq!(done.rest().await, []);
}

async fn what_a_coordinator_may_hold_that_does_not_answer_is_unknown(stack: Stack) {
    let _coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    // To the broker, whoever consumes the dead letters is a coordinator.
    let dead = stack.names().dead_queue();
    let _deaf = stack.record_queue(&dead).await;
    stack.queue_has(&dead, "two consumers", |dead| dead.consumers == 2).await;
    let error = stack.publisher().cancel_all("my-own").await.expect_err("one does not answer");
    assert!(matches!(error, CancelError::Silent { answered: 1, silent: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("and 1 more has not, which may hold it"), "{error}");
}

async fn what_cannot_be_cancelled_is_told_with_the_reason(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let publisher = stack.publisher();
    let accepted = open(&publisher, &stack).await;
    let none = publisher.cancel(&accepted).await.expect_err("nobody holds it");
    assert!(matches!(none, CancelError::NoCoordinator { .. }), "{none:?}");

    let coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let unknown = publisher.cancel_all("my-own").await.expect_err("nobody has invoked it");
    let CancelError::Unknown { answered: 1, .. } = &unknown else { panic!("{unknown:?}") };
    let told = unknown.to_string();
    assert!(
        told.contains("my-own (one has answered within ") && told.contains(" s): it has ended"),
        "{told}"
    );
    let invalid = publisher.cancel_all("my own").await.expect_err("this is no CID");
    assert!(matches!(invalid, CancelError::Invalid(_)), "{invalid:?}");

    assert_eq!(publisher.cancel(&accepted).await.expect("it is cancelled"), by_cancel(0, 1));
    check_failed(&done.next_final().await, &["nobody"]);
    stack.ended([&accepted], coordinator).await;
    let another = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let ended = publisher.cancel(&accepted).await.expect_err("this one has never heard of it");
    // A shard tells nothing by being there.
    let is_told = match stack.is_shared() {
        true => matches!(ended, CancelError::Unknown { answered: 1, .. }),
        false => matches!(ended, CancelError::Ended { .. }),
    };
    assert!(is_told, "{ended:?}");
    another.stop().await;
    assert_eq!(done.rest().await, []);
}

async fn each_of_several_coordinators_cancels_what_it_holds(stack: Stack) {
    const FAN_OUTS: usize = 12;
    let mut done = stack.record("my.done").await;
    let [first, second] = [stack.coordinator(), stack.coordinator()];
    let manifests = stack.names().fanin_queue();
    stack.queue_has(&manifests, "two consumers", |state| state.consumers == 2).await;
    let publisher = stack.publisher();
    let mut accepted = Vec::new();
    stack.declare_service("nobody").await;
    for n in 0..FAN_OUTS {
        // By these CIDs, each shard has some.
        let fanout = publisher.fanout("my.source").cid(n.to_string()).target("nobody", 1);
        accepted.push(fanout.on_final("my.done").invoke().await.expect("accepted"));
    }
    if stack.is_shared() {
        let held = async || [first.mortal().held(), second.mortal().held()];
        let each = |held: &[usize; 2]| held.iter().sum::<usize>() == FAN_OUTS && !held.contains(&0);
        eventually_seen("each holds a shard", held, each).await;
    }
    for fan_out in &accepted {
        let cancelled = publisher.cancel(fan_out).await.expect("some coordinator holds it");
        assert_eq!(cancelled, by_cancel(0, 1));
        check_failed(&done.next_final().await, &["nobody"]);
    }
    first.stop().await;
    stack.ended(&accepted, second).await;
    assert_eq!(done.rest().await, []);
}

async fn all_fan_outs_of_a_cid_are_cancelled_whoever_holds_them(stack: Stack) {
    let mut done = stack.record("my.done").await;
    stack.declare_service("nobody").await;
    // Each has room for one.
    let config =
        || fanfare_coordinator::Config { prefetch: 1, most_channels: 1, ..stack.coordinator_config() };
    let [first, second] = [(); 2].map(|()| stack.coordinator_with(config()));
    let manifests = stack.names().fanin_queue();
    stack.queue_has(&manifests, "two consumers", |state| state.consumers == 2).await;
    let publisher = stack.publisher();
    let mut accepted = Vec::new();
    for _ in 0..2 {
        let fanout = publisher.fanout("my.source").cid("mine").target("nobody", 1).on_final("my.done");
        let fan_out = fanout.invoke().await.expect("accepted");
        let queue = stack.names().aggregation(&fan_out.cid, fan_out.run).name;
        stack.queue_has(&queue, "a consumer", |state| state.consumers == 1).await;
        accepted.push(fan_out);
    }
    let all = accepted.iter().map(|fan_out| (fan_out.run, by_cancel(0, 1))).collect();
    // Where one coordinator is late, it tells who asks again.
    let both = async { while publisher.cancel_all("mine").await.expect("they are cancelled") != all {} };
    tokio::time::timeout(LONG, both).await.expect("both are told of");
    for _ in 0..2 {
        check_failed(&done.next_final().await, &["nobody"]);
    }
    for fan_out in &accepted {
        stack.queue_is_gone(&stack.names().aggregation(&fan_out.cid, fan_out.run).name).await;
    }
    assert_eq!(publisher.cancel_all("mine").await.expect("they are remembered"), all);
    first.stop().await;
    stack.ended(&accepted, second).await;
    assert_eq!(done.rest().await, []);
}

/// The final callbacks that there are, and those that have come before: a repetition is none of its own.
async fn finals(mut finals: Vec<Message>, done: &mut Recorder) -> Vec<FinalPayload> {
    finals.extend(done.rest().await);
    finals.dedup();
    finals.iter().map(|message| serde_json::from_slice(&message.body).expect("a final payload")).collect()
}

async fn a_cancel_outlives_the_coordinator_that_confirmed_it(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let first = stack.doomed_coordinator(NODE);
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let publisher = stack.publisher();
    let accepted = open(&publisher, &stack).await;
    assert_eq!(publisher.cancel(&accepted).await.expect("it is cancelled"), by_cancel(0, 1));
    first.kill().await;
    let second = stack.coordinator();
    let early = vec![done.next().await];
    // Where the first has come as far as to delete the queue, its manifest is left to be parked.
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    second.stop().await;
    let [payload] = &finals(early, &mut done).await[..] else { panic!("one final callback") };
    check_failed(payload, &["nobody"]);
}

async fn a_cancel_that_its_coordinator_dies_of_is_taken_up_by_another(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let publisher = stack.publisher();
    stack.declare_service("nobody").await;
    // It appends two failures, and says that it has found the fan-out, in whatever order.
    for nth in 1..=3 {
        let mortal = Mortal::new(stack.connect());
        let first = stack.coordinator_on(Arc::clone(&mortal), stack.coordinator_config());
        stack.exchange_is_heard(&stack.names().coordinators()).await;
        let keyed = |key: &str| Target::new("nobody", 1).key(key);
        let fanout = publisher.fanout("my.source").add(keyed("a")).add(keyed("b")).on_final("my.done");
        let accepted = fanout.invoke().await.expect("accepted");
        let queue = stack.results_of(&accepted);
        stack.queue_has(&queue, "a consumer", |state| state.consumers == 1).await;
        // Where there are two, each gets a shard, and the second may get that of the fan-out.
        let mut standby = None;
        if !stack.is_shared() {
            standby = Some(stack.coordinator());
            let manifests = stack.names().fanin_queue();
            stack.queue_has(&manifests, "two consumers", |state| state.consumers == 2).await;
        }
        mortal.dies_at(Death { nth, of: Some(Step::Publish), takes_effect: nth % 2 == 0 });
        let died = async {
            mortal.dead().await;
            first.kill().await;
            standby.unwrap_or_else(|| stack.coordinator())
        };
        // Where the first has told nobody, who asks again is told by the second.
        let cancel = async {
            loop {
                if let Ok(cancelled) = publisher.cancel(&accepted).await {
                    break cancelled;
                }
            }
        };
        let (cancelled, second) = tokio::join!(tokio::time::timeout(LONG, cancel), died);
        let cancelled = cancelled.expect("the second cancels it");
        assert_eq!(cancelled, by_cancel(0, 2), "{nth}");
        stack.ended([&accepted], second).await;
        let [payload] = &finals(Vec::new(), &mut done).await[..] else { panic!("one final callback: {nth}") };
        check_failed(payload, &["a", "b"]);
    }
}

/// `my.outer` starts a fan-out with the CID `inner` of `my.holding`, and answers with how it ended where it is to wait.
fn outer() -> Registration {
    service("my.outer", |context: Context, waits: bool| async move {
        let inner = context.fanout().cid("inner").target("my.holding", ()).on_final("inner.done");
        if waits {
            return Ok(inner.invoke_and_wait(LONG).await?.ended_by());
        }
        inner.invoke().await?;
        context.cancellation().cancelled().await;
        Ok(None)
    })
}

async fn an_inner_fan_out_goes_on_when_the_outer_one_is_cancelled(stack: Stack) {
    let (mut done, mut inner) = (stack.record("my.done").await, stack.record("inner.done").await);
    let (holding, mut begins) = holding();
    let worker = stack.worker([outer(), holding]).await;
    stack.exchange_is_heard(&stack.names().workers()).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = publisher.fanout("my.source").target("my.outer", false).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    assert_eq!(begins.recv().await.as_deref(), Some("my.holding"));
    assert_eq!(publisher.cancel(&accepted).await.expect("it is cancelled"), by_cancel(0, 1));
    check_failed(&done.next_final().await, &["my.outer"]);
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    // It is there to be cancelled, by itself.
    assert_eq!(cancel_all(&publisher, "inner").await, [by_cancel(0, 1)]);
    check_failed(&inner.next_final().await, &["my.holding"]);
    worker.stop().await;
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut done, &mut inner] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn an_outer_fan_out_goes_on_when_the_inner_one_is_cancelled(stack: Stack) {
    let mut inner = stack.record("inner.done").await;
    let (holding, mut begins) = holding();
    let worker = stack.worker([outer(), holding]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = publisher.fanout("my.source").target("my.outer", true);
    let waits = tokio::spawn(fanout.invoke_and_wait(LONG));
    assert_eq!(begins.recv().await.as_deref(), Some("my.holding"));
    assert_eq!(cancel_all(&publisher, "inner").await, [by_cancel(0, 1)]);
    let payload = waits.await.expect("it does not panic").expect("it ends");
    assert_eq!(payload.ended_by(), None);
    assert_eq!(payload.get::<Option<String>>("my.outer").expect("it answers").as_deref(), Some("cancel"));
    check_failed(&inner.next_final().await, &["my.holding"]);
    coordinator.stop().await;
    worker.stop().await;
}

async fn who_waits_is_handed_what_there_is(stack: Stack) {
    let mut each = stack.record("my.each").await;
    let _worker = stack.worker([services::echo()]).await;
    stack.declare_service("nobody").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").cid("mine").target("test.echo", 1).target("nobody", 1);
    let waits = tokio::spawn(fanout.on_target("my.each").invoke_and_wait(LONG));
    assert!(each.next_result().await.ok);
    assert_eq!(cancel_all(&stack.publisher(), "mine").await, [by_cancel(1, 1)]);
    let payload = waits.await.expect("it does not panic").expect("it ends");
    assert_eq!(payload.get::<u32>("test.echo").expect("it has responded"), 1);
    check_failed(&payload, &["nobody"]);
    coordinator.stop().await;
}

async fn a_coordinator_of_certain_users_cancels_for_them_only(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let config = fanfare_coordinator::Config {
        accepted_users: Some([stack.user().to_owned()].into()),
        user_id: Some(stack.user().to_owned()),
        ..stack.coordinator_config()
    };
    let coordinator = stack.coordinator_with(config);
    let config =
        fanfare_publisher::Config { user_id: Some(stack.user().to_owned()), ..stack.publisher_config() };
    let accepted_user = Publisher::new(stack.connect(), Arc::new(System), config);
    let accepted = open(&accepted_user, &stack).await;
    let refused = stack.publisher().cancel(&accepted).await.expect_err("it does not say whose it is");
    let CancelError::Refused { reason, .. } = &refused else { panic!("{refused:?}") };
    assert!(reason.contains("it has no user_id"), "{reason}");
    assert_eq!(accepted_user.cancel(&accepted).await.expect("it is cancelled"), by_cancel(0, 1));
    check_failed(&done.next_final().await, &["nobody"]);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}
