//! What a stranger with access to the queues may write, beyond what is merely malformed.

use std::time::Duration;

use fanfare_protocol::{Message, Metadata, Request, RunId, ServiceName, Source, WireTime, limits};
use fanfare_publisher::{Invalid, InvokeError, Target};
use fanfare_tests::{Recorder, Stack, answer, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, service};
use serde_json::value::RawValue;
use serde_json::{Value, json};

on_both_brokers!(
    a_payload_nested_ten_thousand_deep_is_refused_or_parked_and_its_worker_lives,
    a_response_nested_ten_thousand_deep_fails_its_target_alone,
    a_deadline_beyond_all_time_keeps_nobody_from_the_end,
    names_that_are_none_are_refused_wherever_they_come_from,
);

in_shards!(
    a_payload_nested_ten_thousand_deep_is_refused_or_parked_and_its_worker_lives,
    a_response_nested_ten_thousand_deep_fails_its_target_alone,
    a_deadline_beyond_all_time_keeps_nobody_from_the_end,
    names_that_are_none_are_refused_wherever_they_come_from,
);

const DEEP: usize = 10_000;

fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("it is JSON")
}

async fn a_payload_nested_ten_thousand_deep_is_refused_or_parked_and_its_worker_lives(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut done = stack.record("my.done").await;
    let worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let fanout = || publisher.fanout("my.source").on_final("my.done");
    let error = fanout().target("test.echo", raw(nested(DEEP))).invoke().await.expect_err("it is too deep");
    assert!(matches!(error, InvokeError::Invalid(Invalid::PayloadTooDeep { levels: DEEP, .. })), "{error:?}");

    // A foreign program sends it all the same.
    let foreign = Request {
        cid: "my-cid".parse().expect("a CID"),
        run: RunId::from(uuid::Uuid::new_v4()),
        source: Source::new("my.source").expect("a name"),
        service: ServiceName::new("test.echo").expect("a name"),
        requested_at: WireTime::from(chrono::Utc::now()),
        metadata: Metadata::default(),
        traceparent: None,
        body: nested(DEEP).into(),
        target: None,
    };
    stack.publish(&format!("{}.service.test.echo", stack.names().prefix()), foreign.encode()).await;
    let reason = parked.next().await.text("fanfare-reason").expect("why").to_owned();
    assert!(reason.contains("nested too deeply: it has 10000 levels"), "{reason}");

    let fits = raw(nested(limits::NESTING));
    let accepted = fanout().target("test.echo", &fits).invoke().await.expect("it is not too deep");
    let message = done.next().await;
    serde_json::from_slice::<Value>(&message.body).expect("a receiver can parse the final payload whole");
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
}

async fn a_response_nested_ten_thousand_deep_fails_its_target_alone(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let deep = service("my.deep", |_: Context, (): ()| async move { Ok(raw(nested(DEEP))) });
    let worker = stack.worker([deep]).await;
    let coordinator = stack.coordinator();
    let keys = ["response", "unknown field", "sound"];
    let targets = keys.iter().map(|key| Target::new("my.target", ()).key(key));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), fanfare_publisher::Fanout::add);
    let accepted = fanout.target("my.deep", ()).on_final("my.done").invoke().await.expect("accepted");
    let whole = |response: &str, more: &str| {
        format!(
            r#"{{"source":"s","target":"my.target","response":{response},"req_ts_utc":"2025-01-19 19:55:45",
            "resp_ts_utc":"2025-01-19 19:55:46","ok":true,"exception":null,"cid":"{cid}"{more}}}"#,
            cid = accepted.cid
        )
    };
    for _ in keys {
        let request = target.next().await;
        let body = match request.text("fanfare-key").expect("a key") {
            "response" => whole(&nested(DEEP), ""),
            "unknown field" => whole("1", &format!(r#","new":{}"#, nested(DEEP))),
            _ => whole("1", ""),
        };
        stack.publish(&stack.results_of(&accepted), result_of(&request, body)).await;
    }
    let payload = done.next_final().await;
    assert_eq!(payload.get::<u8>("sound").expect("it answered"), 1);
    let failed: Vec<_> = payload.failures().collect();
    assert_eq!(failed.len(), 3, "{failed:?}");
    for failure in failed {
        assert!(failure.exception.contains("nested too deeply: it has 1000"), "{failure}");
    }
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
}

async fn a_deadline_beyond_all_time_keeps_nobody_from_the_end(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let publisher = stack.publisher();
    let invoke = || publisher.fanout("my.source").target("my.target", 1).on_final("my.done").invoke();
    let accepted = [invoke().await.expect("accepted"), invoke().await.expect("accepted")];
    let changed = [("deadline_ms", json!(u64::MAX)), ("deadline_utc", json!("9999-12-31 23:59:59"))];
    for ((field, value), accepted) in changed.into_iter().zip(&accepted) {
        let queue = stack.manifests_of(accepted);
        let mut manifests = stack.record_queue(&queue).await;
        let message = manifests.next().await;
        drop(manifests);
        let mut manifest: Value = serde_json::from_slice(&message.body).expect("JSON");
        manifest[field] = value;
        stack.publish(&queue, Message { body: manifest.to_string().into(), ..message }).await;
    }
    let coordinator = stack.coordinator();
    for _ in &accepted {
        answer(&stack, &target.next().await, "fine").await;
        assert_eq!(done.next_final().await.failures().count(), 0);
    }
    stack.ended(&accepted, coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn names_that_are_none_are_refused_wherever_they_come_from(stack: Stack) {
    let long = "x".repeat(300);
    let names = ["../../etc/passwd", "a/b", "#", "a.*", "a b", "a\u{0}b", "", &long, "ü"];
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let publisher = stack.publisher();
    let fanout = || publisher.fanout("my.source").on_final("my.done");
    let good = fanout().invoke().await.expect("accepted");
    let queue = stack.manifests_of(&good);
    let mut manifests = stack.record_queue(&queue).await;
    let manifest = manifests.next().await;
    drop(manifests);
    let coordinator = stack.coordinator();
    for name in names {
        for mistaken in [fanout().cid(name), fanout().target(name, 1), fanout().on_target(name)] {
            let error = mistaken.invoke().await.expect_err("it is no name");
            assert!(matches!(error, InvokeError::Invalid(_)), "{error:?}");
            assert!(error.to_string().contains("is not allowed") && error.to_string().len() < 700, "{error}");
        }
        for field in ["cid", "source", "targets", "on_target", "on_final"] {
            let mut body: Value = serde_json::from_slice(&manifest.body).expect("JSON");
            body[field] = match field {
                "targets" => json!([{"key": "k", "service": name}]),
                "on_target" | "on_final" => json!([name]),
                _ => json!(name),
            };
            stack.publish(&queue, Message { body: body.to_string().into(), ..manifest.clone() }).await;
            let reason = parked.next().await.text("fanfare-reason").expect("why").to_owned();
            assert!(reason.contains("is not allowed"), "{field} {name:?}: {reason}");
        }
    }
    stack.publish(&queue, manifest).await;
    assert_eq!(done.next_final().await.data.len(), 0);
    tokio::time::timeout(Duration::from_secs(60), stack.ended([&good], coordinator)).await.expect("it ends");
    for recorder in [&mut done, &mut parked] {
        none_left(recorder).await;
    }
}

async fn none_left(recorder: &mut Recorder) {
    assert_eq!(recorder.rest().await, []);
}

/// A result with some body for a request.
fn result_of(request: &Message, body: String) -> Message {
    let mut result = Message { body: body.into(), ..Message::default() };
    let id = request.properties.message_id.as_deref().expect("an id");
    result.properties.kind = Some("fanfare.result".into());
    result.properties.correlation_id.clone_from(&request.properties.correlation_id);
    result.properties.message_id = Some(format!("{id}/result").into());
    for name in ["fanfare-run", "fanfare-key"] {
        result.headers.insert(name, request.headers[name].clone());
    }
    result
}
