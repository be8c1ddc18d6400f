//! Callbacks: which are invoked, how they tell why, and that none hinders another.

use std::time::Duration;

use fanfare_protocol::{FinalPayload, TargetResult};
use fanfare_publisher::Accepted;
use fanfare_tests::{Recorder, Stack, answer, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, Registration, Retry, service};
use serde_json::{Value, json};

on_both_brokers!(
    a_callback_is_a_single_name_or_a_list,
    one_service_as_on_target_and_final_callback_tells_them_apart_by_channel,
    on_target_callbacks_come_before_the_final_one,
    a_failing_callback_does_not_hinder_the_others_and_is_parked_with_its_exception,
    a_callback_whose_queue_is_missing_is_parked_and_the_others_go_on,
    a_service_sees_what_it_was_invoked_with,
    a_failed_target_reaches_on_target_callbacks_too,
);

in_shards!(
    a_callback_is_a_single_name_or_a_list,
    one_service_as_on_target_and_final_callback_tells_them_apart_by_channel,
    on_target_callbacks_come_before_the_final_one,
    a_failing_callback_does_not_hinder_the_others_and_is_parked_with_its_exception,
    a_callback_whose_queue_is_missing_is_parked_and_the_others_go_on,
    a_service_sees_what_it_was_invoked_with,
    a_failed_target_reaches_on_target_callbacks_too,
);

async fn a_callback_is_a_single_name_or_a_list(stack: Stack) {
    let mut callbacks = [stack.record("my.cb1").await, stack.record("my.cb2").await];
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = || publisher.fanout("my.source").target("test.echo", 1);
    let single = fanout().on_final("my.cb1").invoke().await.expect("accepted");
    assert_eq!(callbacks[0].next_final().await.on_final, ["my.cb1"]);
    let list = vec!["my.cb2".to_owned(), "my.cb1".to_owned()];
    let list = fanout().on_final(list).on_target("my.cb2").invoke().await.expect("accepted");
    assert_eq!(callbacks[1].next_result().await.target, "test.echo");
    for callback in &mut callbacks {
        let payload = callback.next_final().await;
        assert_eq!(payload.on_final, ["my.cb2", "my.cb1"], "in the caller's order");
        assert_eq!(payload.on_target, ["my.cb2"]);
    }
    stack.ended([&single, &list], coordinator).await;
    for callback in &mut callbacks {
        assert_eq!(callback.rest().await, []);
    }
}

/// A service that reports what it was invoked with, to `my.report`.
fn seeing(name: &str) -> Registration {
    service(name, |context: Context, payload: Value| async move {
        let metadata: Vec<_> = context.metadata().iter().collect();
        let report = json!({
            "service": context.service(), "channel": context.channel().to_string(), "cid": context.cid(),
            "run": context.run(), "source": context.source(), "key": context.key(),
            "attempt": context.attempt(), "message_id": context.message_id(), "metadata": metadata,
            "requested_at": context.requested_at(), "payload": payload,
        });
        context.send("my.report", &report).await?;
        Ok("seen")
    })
}

async fn next_report(reports: &mut Recorder) -> Value {
    serde_json::from_slice(&reports.next().await.body).expect("JSON")
}

async fn one_service_as_on_target_and_final_callback_tells_them_apart_by_channel(stack: Stack) {
    let mut reports = stack.record("my.report").await;
    let worker = stack.worker([services::echo(), seeing("my.both")]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 7);
    let accepted = fanout.on_target("my.both").on_final("my.both").invoke().await.expect("accepted");
    let mut seen = [next_report(&mut reports).await, next_report(&mut reports).await];
    seen.sort_by_key(|report| report["channel"].to_string());
    let [on_final, on_target] = &seen;
    assert_eq!(on_target["channel"], "FANOUT_ON_TARGET");
    let result = TargetResult::from_body(on_target["payload"].to_string().as_bytes()).expect("a result");
    assert_eq!(result.response::<u32>().expect("it answered"), 7);
    assert_eq!(on_final["channel"], "FANOUT_ON_FINAL");
    let payload = serde_json::from_value::<FinalPayload>(on_final["payload"].clone()).expect("a payload");
    assert_eq!(payload.get::<u32>("test.echo").expect("it answered"), 7);
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    assert_eq!(reports.rest().await, []);
}

async fn on_target_callbacks_come_before_the_final_one(stack: Stack) {
    // One queue for both keeps the order in which they were published.
    let mut both = stack.record("my.both").await;
    let mut slow = stack.record("my.slow").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.slow", 50).target("test.echo", 1);
    let fanout = fanout.target("test.fail", "no").on_target("my.both").on_final("my.both");
    let accepted = fanout.invoke().await.expect("accepted");
    let mut keys = Vec::new();
    for number in 0..3 {
        if number == 2 {
            answer(&stack, &slow.next().await, ()).await;
        }
        let message = both.next().await;
        assert_eq!(message.text("fanfare-channel"), Some("fanout-on-target"));
        keys.push(message.text("fanfare-key").expect("a key").to_owned());
    }
    assert_eq!(keys[2], "my.slow", "each is called as its target completes");
    keys.sort();
    assert_eq!(keys, ["my.slow", "test.echo", "test.fail"]);
    assert_eq!(both.next().await.text("fanfare-channel"), Some("fanout-on-final"));
    stack.ended([&accepted], coordinator).await;
    assert_eq!(both.rest().await, []);
}

async fn a_failing_callback_does_not_hinder_the_others_and_is_parked_with_its_exception(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let (mut progress, mut done) = (stack.record("my.progress").await, stack.record("my.done").await);
    let refuse = |_: Context, _: Value| async { Err::<(), _>("the disk is full".into()) };
    let panic = |_: Context, _: Value| async { panic!("no way") as fanfare_worker::Result<()> };
    let failing = [service("fails.callback", refuse), service("panics.callback", panic)];
    let failing = failing.map(|service| service.retry(Retry::exponential(1)));
    let worker = stack.worker(failing.into_iter().chain([services::echo()])).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 1);
    let fanout = fanout.on_target(["fails.callback", "my.progress"]).on_final(["panics.callback", "my.done"]);
    let accepted = fanout.invoke().await.expect("accepted");
    progress.next_result().await;
    done.next_final().await;
    let mut reasons = Vec::new();
    for _ in 0..2 {
        let message = parked.next().await;
        assert_eq!((message.cid(), message.run()), (Ok(accepted.cid.clone()), Ok(accepted.run)));
        assert_eq!(message.kind(), "fanfare.callback", "it is kept as it was, to be replayed");
        let queue = message.text("fanfare-parked-from").expect("where it was").to_owned();
        reasons.push((queue, message.text("fanfare-reason").expect("why").to_owned()));
    }
    reasons.sort();
    let queue = |name| format!("{}.service.{name}", stack.names().prefix());
    assert_eq!(
        reasons,
        [
            (queue("fails.callback"), "fails.callback failed: the disk is full".to_owned()),
            (queue("panics.callback"), "panics.callback failed: the service panicked: no way".to_owned()),
        ]
    );
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    for recorder in [&mut parked, &mut progress, &mut done] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_callback_whose_queue_is_missing_is_parked_and_the_others_go_on(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut target = stack.record("my.target").await;
    let (mut progress, mut done) = (stack.record("my.progress").await, stack.record("my.done").await);
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1).declare_missing();
    let fanout = fanout.on_target(["gone.progress", "my.progress"]).on_final(["gone.done", "my.done"]);
    let accepted = fanout.invoke().await.expect("accepted");
    for name in ["gone.progress", "gone.done"] {
        stack.note_service(name);
        let queue = format!("{}.service.{name}", stack.names().prefix());
        stack.bystander().delete(&queue).await.expect("deleted");
    }
    answer(&stack, &target.next().await, 1).await;
    progress.next_result().await;
    done.next_final().await;
    for (id, name) in [("0/on-target/gone.progress", "gone.progress"), ("on-final/gone.done", "gone.done")] {
        let message = parked.next().await;
        assert_eq!(message.properties.message_id, Some(format!("{}/{id}", accepted.cid).into()));
        let queue = format!("{}.service.{name}", stack.names().prefix());
        assert_eq!(message.text("fanfare-parked-from"), Some(queue.as_str()));
        let reason = message.text("fanfare-reason").expect("why");
        assert!(reason.contains("does not exist"), "{reason}");
    }
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut parked, &mut progress, &mut done, &mut target] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_service_sees_what_it_was_invoked_with(stack: Stack) {
    let mut reports = stack.record("my.report").await;
    let seeing = ["my.target", "my.progress", "my.done"].map(seeing);
    let _worker = stack.worker(seeing).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let target = fanfare_publisher::Target::new("my.target", "payload").key("its key");
    let fanout = publisher.fanout("my.source").cid("my-cid").metadata("tenant", 7).add(target);
    let fanout = fanout.on_target("my.progress").on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let of_target = next_report(&mut reports).await;
    let requested_at = of_target["requested_at"].as_str().expect("a time").to_owned();
    let expected = |service: &str, channel: &str, key: Value, id: &str, payload: &Value| {
        json!({"service": service, "channel": channel, "cid": "my-cid", "run": accepted.run,
            "source": "my.source", "key": key, "attempt": 1, "message_id": format!("my-cid/{id}"),
            "metadata": [["tenant", "7"]], "requested_at": requested_at, "payload": payload})
    };
    let payload = json!("payload");
    assert_eq!(of_target, expected("my.target", "FANOUT_CALL", json!("its key"), "0", &payload));
    let mut callbacks = [next_report(&mut reports).await, next_report(&mut reports).await];
    callbacks.sort_by_key(|report| report["service"].to_string());
    let [on_final, on_target] = &callbacks;
    let id = "0/on-target/my.progress";
    let expected_on_target =
        expected("my.progress", "FANOUT_ON_TARGET", json!("its key"), id, &on_target["payload"]);
    assert_eq!(*on_target, expected_on_target);
    assert_eq!(on_target["payload"]["response"], "seen");
    let id = "on-final/my.done";
    assert_eq!(*on_final, expected("my.done", "FANOUT_ON_FINAL", Value::Null, id, &on_final["payload"]));

    let Accepted { cid, run } = publisher.send("my.source", "my.target", "alone").await.expect("accepted");
    let sent = next_report(&mut reports).await;
    for (field, value) in [
        ("channel", json!("INVOKE")),
        ("cid", json!(cid)),
        ("run", json!(run)),
        ("source", json!("my.source")),
        ("key", Value::Null),
        ("payload", json!("alone")),
    ] {
        assert_eq!(sent[field], value, "{field}");
    }
    stack.ended([&accepted], coordinator).await;
    assert_eq!(reports.rest().await, []);
}

async fn a_failed_target_reaches_on_target_callbacks_too(stack: Stack) {
    let mut progress = stack.record("my.progress").await;
    let _worker = stack.worker([services::fail()]).await;
    let _coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.fail", "no").on_target("my.progress");
    let payload = fanout.invoke_and_wait(Duration::from_secs(60)).await.expect("it ends");
    let called = progress.next().await;
    let result = TargetResult::from_body(&called.body).expect("a result");
    assert_eq!((result.ok, result.exception.as_deref()), (false, Some("no")));
    let counted = payload.data.get("test.fail").expect("a result");
    assert_eq!(json!(counted).to_string(), json!(result).to_string());
    assert_eq!(progress.rest().await, []);
}
