//! Services that invoke other services: as targets, as callbacks, and waiting for what they started.

use std::time::Duration;

use fanfare_protocol::RunId;
use fanfare_publisher::Accepted;
use fanfare_tests::{Recorder, Stack, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, Registration, service};
use serde_json::{Value, json};

on_both_brokers!(
    two_fan_outs_from_one_call_never_mix,
    a_target_starts_a_fan_out_of_its_own,
    a_callback_starts_a_fan_out_of_its_own,
    a_target_that_waits_for_an_inner_fan_out_gives_way_to_it,
    a_service_sends_to_another_that_nobody_answers,
    a_service_starts_a_parallel_execution,
);

in_shards!(
    two_fan_outs_from_one_call_never_mix,
    a_target_starts_a_fan_out_of_its_own,
    a_callback_starts_a_fan_out_of_its_own,
    a_target_that_waits_for_an_inner_fan_out_gives_way_to_it,
);

const LONG: Duration = Duration::from_secs(60);

/// `my.outer` starts a fan-out of `test.echo` for each of its payload's numbers, and answers with their runs.
fn outer() -> Registration {
    service("my.outer", |context: Context, numbers: Vec<u32>| async move {
        let mut runs = Vec::new();
        for number in numbers {
            let inner = context.fanout().target("test.echo", number).on_final("inner.done");
            runs.push(inner.invoke().await?.run);
        }
        Ok(runs)
    })
}

/// The next final callbacks of `test.echo`: the run and the answer of each, in the order of the answers.
async fn echoed(done: &mut Recorder, calls: usize) -> Vec<(u32, RunId)> {
    let mut echoed = Vec::new();
    for _ in 0..calls {
        let message = done.next().await;
        let payload: fanfare_protocol::FinalPayload =
            serde_json::from_slice(&message.body).expect("a final payload");
        assert_eq!(payload.source, message.text("fanfare-source").expect("a source"));
        let answer = payload.get("test.echo").expect("it answered");
        echoed.push((answer, message.run().expect("a run")));
    }
    echoed.sort_by_key(|(answer, _)| *answer);
    echoed
}

async fn two_fan_outs_from_one_call_never_mix(stack: Stack) {
    let mut done = stack.record("inner.done").await;
    let worker = stack.worker([services::echo(), outer()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.outer", [1, 2]);
    let payload = fanout.invoke_and_wait(LONG).await.expect("it ends");
    let runs: Vec<RunId> = payload.get("my.outer").expect("it answered");
    assert_eq!(echoed(&mut done, 2).await, [(1, runs[0]), (2, runs[1])]);
    coordinator.stop().await;
    worker.stop().await;
    assert_eq!(done.rest().await, []);
}

async fn a_target_starts_a_fan_out_of_its_own(stack: Stack) {
    let (mut inner, mut done) = (stack.record("inner.done").await, stack.record("my.done").await);
    let _worker = stack.worker([services::echo(), outer()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.outer", [5]).target("test.echo", 1);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let message = inner.next().await;
    assert_eq!(message.text("fanfare-source"), Some("my.outer"), "the service is the source");
    let (cid, run) = (message.cid().expect("a CID"), message.run().expect("a run"));
    assert_ne!(cid, accepted.cid, "a fan-out of its own has a CID of its own");
    let payload = done.next_final().await;
    assert_eq!(payload.source, "my.source");
    assert_eq!(payload.get::<Vec<RunId>>("my.outer").expect("it answered"), [run]);
    stack.ended([&accepted, &Accepted { cid, run }], coordinator).await;
    for recorder in [&mut inner, &mut done] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_callback_starts_a_fan_out_of_its_own(stack: Stack) {
    let mut done = stack.record("inner.done").await;
    let continuing = service("my.continuing", |context: Context, _: Value| async move {
        let number = if context.channel() == fanfare_protocol::Channel::FanoutOnFinal { 2 } else { 1 };
        context.fanout().target("test.echo", number).on_final("inner.done").invoke().await?;
        Ok(())
    });
    let worker = stack.worker([services::echo(), continuing]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", "first");
    let fanout = fanout.on_target("my.continuing").on_final("my.continuing");
    let accepted = fanout.invoke().await.expect("accepted");
    let echoed = echoed(&mut done, 2).await;
    assert_eq!(echoed.iter().map(|(answer, _)| *answer).collect::<Vec<_>>(), [1, 2]);
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    assert_eq!(done.rest().await, []);
}

async fn a_target_that_waits_for_an_inner_fan_out_gives_way_to_it(stack: Stack) {
    // The inner target is the same service, which has one slot: it would never run if the outer one kept it.
    let descend = service("my.descend", |context: Context, depth: u32| async move {
        if depth == 0 {
            return Ok(0);
        }
        let inner = context.fanout().target("my.descend", depth - 1);
        let payload = inner.invoke_and_wait(LONG).await?;
        Ok(payload.get::<u32>("my.descend")? + 1)
    });
    let worker = stack.worker([descend.concurrency(1).prefetch(1)]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.descend", 4);
    let payload = fanout.invoke_and_wait(LONG).await.expect("it ends");
    assert_eq!(payload.get::<u32>("my.descend").expect("it answered"), 4);
    worker.stop().await;
    coordinator.stop().await;
}

async fn a_service_sends_to_another_that_nobody_answers(stack: Stack) {
    let mut sent = stack.record("my.other").await;
    let sending = service("my.sending", |context: Context, payload: Value| async move {
        Ok(context.send("my.other", payload).await?.cid)
    });
    let _worker = stack.worker([sending]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.sending", json!({"x": null}));
    let payload = fanout.invoke_and_wait(LONG).await.expect("it ends");
    let message = sent.next().await;
    assert_eq!(message.kind(), "fanfare.request");
    assert_eq!(message.text("fanfare-channel"), Some("invoke"));
    assert_eq!(message.text("fanfare-source"), Some("my.sending"));
    assert_eq!((message.properties.reply_to.as_deref(), message.text("fanfare-key")), (None, None));
    assert_eq!(message.body, br#"{"x":null}"#.as_slice());
    let cid: String = payload.get("my.sending").expect("it answered");
    assert_eq!(message.properties.correlation_id, Some(cid.into()));
    coordinator.stop().await;
    assert_eq!(sent.rest().await, []);
}

async fn a_service_starts_a_parallel_execution(stack: Stack) {
    let mut progress = stack.record("my.progress").await;
    let starting = service("my.starting", |context: Context, number: u32| async move {
        let parallel = context.parallel().target("test.echo", number).on_target("my.progress");
        Ok(parallel.invoke().await?.run)
    });
    let _worker = stack.worker([services::echo(), starting]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.starting", 3);
    let payload = fanout.invoke_and_wait(LONG).await.expect("it ends");
    let message = progress.next().await;
    assert_eq!(message.text("fanfare-channel"), Some("parallel-exec-on-target"));
    assert_eq!(message.text("fanfare-source"), Some("my.starting"));
    let (cid, run) = (message.cid().expect("a CID"), message.run().expect("a run"));
    assert_eq!(payload.get::<RunId>("my.starting").expect("it answered"), run);
    stack.ended([&Accepted { cid, run }], coordinator).await;
    assert_eq!(progress.rest().await, []);
}
