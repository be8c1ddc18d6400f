//! Fan-outs as a user sees them: what is sent and received, byte for byte, and how they end.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_protocol::{
    Bundle, FinalPayload, HeaderValue, Headers, Message, Properties, QueueNames, WireTime, header,
};
use fanfare_publisher::{Accepted, Target, WaitError};
use fanfare_tests::{Stack, answer, eventually, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, Registration, service};
use serde_json::{Value, json};

on_both_brokers!(
    every_message_of_a_fan_out_is_the_protocols_byte_for_byte,
    a_rust_worker_answers_with_the_protocols_bytes,
    two_targets_and_two_callbacks,
    a_target_that_fails_at_once_does_not_hinder_the_others,
    all_targets_may_fail,
    every_kind_of_failure_is_told_with_its_whole_chain_and_the_worker_lives_on,
    a_cid_is_returned_as_it_came,
    two_fan_outs_with_one_cid_end_with_their_own_results,
    metadata_reaches_every_target_and_callback,
    no_targets_end_at_once_with_empty_data,
    one_target,
    one_service_fifty_times_by_key,
    targets_as_a_map,
    keys_in_any_script_keep_the_callers_order,
    a_waiting_caller_needs_no_final_callback,
    a_waiting_caller_and_a_final_callback_are_told_the_same,
    a_wait_that_times_out_leaves_the_fan_out_to_its_end,
);

in_shards!(
    every_message_of_a_fan_out_is_the_protocols_byte_for_byte,
    a_rust_worker_answers_with_the_protocols_bytes,
    two_targets_and_two_callbacks,
    a_target_that_fails_at_once_does_not_hinder_the_others,
    all_targets_may_fail,
    every_kind_of_failure_is_told_with_its_whole_chain_and_the_worker_lives_on,
    a_cid_is_returned_as_it_came,
    two_fan_outs_with_one_cid_end_with_their_own_results,
    metadata_reaches_every_target_and_callback,
    no_targets_end_at_once_with_empty_data,
    one_target,
    one_service_fifty_times_by_key,
    targets_as_a_map,
    keys_in_any_script_keep_the_callers_order,
    a_waiting_caller_needs_no_final_callback,
    a_waiting_caller_and_a_final_callback_are_told_the_same,
    a_wait_that_times_out_leaves_the_fan_out_to_its_end,
);

const CID: &str = "63e7c3a2ba616badecb125ce";

/// A message with all that the protocol puts on it, and nothing else.
fn message(kind: &str, id: &str, headers: &[(&str, &str)], body: impl Into<String>) -> Message {
    let properties = Properties {
        content_type: Some("application/json".into()),
        correlation_id: Some(CID.into()),
        message_id: Some(format!("{CID}/{id}").into()),
        kind: Some(kind.into()),
        ..Properties::default()
    };
    let texts = headers.iter().map(|(name, value)| (*name, HeaderValue::from(*value)));
    let version = ("fanfare-version", HeaderValue::Int(1));
    Message { properties, headers: texts.chain([version]).collect(), body: body.into().into() }
}

fn issued_by(source: &str, at: Option<WireTime>, mut message: Message) -> Message {
    message.properties.app_id = Some(source.into());
    message.properties.timestamp = at.map(WireTime::timestamp);
    message
}

/// The time in a header, which must be of this minute.
fn recent(text: &str) -> WireTime {
    let time: WireTime = text.parse().expect("YYYY-MM-DD HH:MM:SS");
    let age = WireTime::from(chrono::Utc::now()).timestamp().abs_diff(time.timestamp());
    assert!(age < 60, "{text} is {age} s away");
    time
}

/// The result of PROTOCOL's example, as a worker in any language may send it.
fn example_result(service: &str, requested: &str) -> String {
    format!(
        r#"{{"source":"fanout1.my-service","target":"{service}","response":"My response","req_ts_utc":"{requested}","resp_ts_utc":"2025-01-19 19:55:46","ok":true,"exception":null,"cid":"{CID}"}}"#
    )
}

async fn every_message_of_a_fan_out_is_the_protocols_byte_for_byte(stack: Stack) {
    const SOURCE: &str = "fanout1.my-service";
    let mut targets = [stack.record("my.service1").await, stack.record("my.service2").await];
    let mut finals = [stack.record("my.cb1").await, stack.record("helpers.input-logger").await];
    let mut on_target = stack.record("my.progress").await;
    let fanout = stack.publisher().fanout(SOURCE).cid(CID);
    let accepted = fanout
        .add(Target::raw("my.service1", r#"{"untouched" : [1.50, "é"]}"#))
        .target("my.service2", Value::Null)
        .on_target("my.progress")
        .on_final(["my.cb1", "helpers.input-logger"])
        .without_deadline()
        .invoke()
        .await
        .expect("accepted");
    let run = accepted.run.to_string();
    let (queue, sentinel) = match stack.is_shared() {
        true => (format!("{}.shard.{}", stack.names().prefix(), QueueNames::shard_of(&accepted.cid, 2)), ""),
        false => (format!("{}.agg.{CID}.{run}", stack.names().prefix()), r#","sentinel":true"#),
    };

    // The requests.
    let mut requested = String::new();
    let bodies = [("my.service1", r#"{"untouched" : [1.50, "é"]}"#), ("my.service2", "null")];
    for (place, (service, body)) in bodies.into_iter().enumerate() {
        let request = targets[place].next().await;
        requested = request.text("fanfare-req-ts").expect("a time").to_owned();
        let headers = [
            ("fanfare-run", run.as_str()),
            ("fanfare-channel", "fanout-call"),
            ("fanfare-source", SOURCE),
            ("fanfare-target", service),
            ("fanfare-key", service),
            ("fanfare-req-ts", &requested),
        ];
        let mut expected = message("fanfare.request", &place.to_string(), &headers, body);
        expected.properties.reply_to = Some(queue.as_str().into());
        assert_eq!(request, issued_by(SOURCE, Some(recent(&requested)), expected));
    }

    // The manifest, which is given back to the coordinator as it was.
    let manifest_queue = stack.manifests_of(&accepted);
    let mut manifests = stack.record_queue(&manifest_queue).await;
    let manifest = manifests.next().await;
    drop(manifests);
    let body = format!(
        r#"{{"cid":"{CID}","run":"{run}","source":"{SOURCE}","req_ts_utc":"{requested}","channel":"fanout-call","targets":[{{"key":"my.service1","service":"my.service1"}},{{"key":"my.service2","service":"my.service2"}}],"on_target":["my.progress"],"on_final":["my.cb1","helpers.input-logger"],"reply_to":"{queue}"{sentinel}}}"#
    );
    let expected = message("fanfare.manifest", "manifest", &[("fanfare-run", &run)], body);
    assert_eq!(manifest, issued_by(SOURCE, Some(recent(&requested)), expected));
    stack.publish(&manifest_queue, manifest).await;
    let coordinator = stack.coordinator();

    // The results, and what on-target callbacks make of them.
    for (place, (service, _)) in bodies.into_iter().enumerate() {
        let body = example_result(service, &requested);
        let headers = [("fanfare-key", service), ("fanfare-run", run.as_str())];
        let result = message("fanfare.result", &format!("{place}/result"), &headers, body.clone());
        stack.publish(&queue, result).await;
        let headers = [
            ("fanfare-run", run.as_str()),
            ("fanfare-channel", "fanout-on-target"),
            ("fanfare-source", SOURCE),
            ("fanfare-req-ts", &requested),
            ("fanfare-key", service),
            ("fanfare-target", service),
        ];
        let expected = message("fanfare.callback", &format!("{place}/on-target/my.progress"), &headers, body);
        assert_eq!(on_target.next().await, issued_by(SOURCE, None, expected));
    }

    // The final callbacks.
    let [first, second] = bodies.map(|(service, _)| example_result(service, &requested));
    let payload = format!(
        r#"{{"source":"{SOURCE}","req_ts_utc":"{requested}","on_target":["my.progress"],"on_final":["my.cb1","helpers.input-logger"],"data":{{"my.service1":{first},"my.service2":{second}}}}}"#
    );
    for (callback, name) in finals.iter_mut().zip(["my.cb1", "helpers.input-logger"]) {
        let headers = [
            ("fanfare-run", run.as_str()),
            ("fanfare-channel", "fanout-on-final"),
            ("fanfare-source", SOURCE),
            ("fanfare-req-ts", &requested),
        ];
        let expected = message("fanfare.callback", &format!("on-final/{name}"), &headers, payload.clone())
            .with_header("fanfare-targets", 2)
            .with_header("fanfare-failed", 0);
        assert_eq!(callback.next().await, issued_by(SOURCE, None, expected));
    }
    stack.ended([&accepted], coordinator).await;
    for recorder in targets.iter_mut().chain(&mut finals).chain([&mut on_target]) {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_rust_worker_answers_with_the_protocols_bytes(stack: Stack) {
    let answer = |_: Context, _: Value| async { Ok("My response") };
    let refuse = |_: Context, _: Value| async { Err::<(), _>("no \"stock\"".into()) };
    let _worker = stack.worker([service("my.service1", answer), service("my.service2", refuse)]).await;
    let _callback = stack.record("my.cb1").await;
    let fanout = stack.publisher().fanout("fanout1.my-service").cid(CID);
    let fanout = fanout.target("my.service1", 1).target("my.service2", 2).on_final("my.cb1");
    let accepted = fanout.invoke().await.expect("accepted");
    // There is no coordinator: the results stay where they went.
    let queue = stack.results_of(&accepted);
    let mut recorder = stack.record_queue(&queue).await;
    let mut results = BTreeMap::new();
    while results.len() < 3 {
        let message = recorder.next().await;
        let messages = match message.kind() {
            header::TYPE_RESULTS => Bundle::decode(&message).expect("well-formed"),
            _ => vec![message],
        };
        results.extend(messages.into_iter().map(by_id));
    }
    let run_text = accepted.run.to_string();
    if stack.is_shared() {
        let manifest = results.remove(&format!("{CID}/manifest")).expect("it is there too");
        assert_eq!(manifest.kind(), header::TYPE_MANIFEST);
    } else {
        let sentinel = message("fanfare.sentinel", "sentinel", &[("fanfare-run", &run_text)], "{}");
        assert_eq!(results.remove(&format!("{CID}/sentinel")), Some(sentinel));
    }
    for (place, service, outcome) in [
        (
            "0",
            "my.service1",
            r#""response":"My response","req_ts_utc":"REQ","resp_ts_utc":"RESP","ok":true,"exception":null"#,
        ),
        (
            "1",
            "my.service2",
            r#""response":null,"req_ts_utc":"REQ","resp_ts_utc":"RESP","ok":false,"exception":"no \"stock\"""#,
        ),
    ] {
        let id = format!("{place}/result");
        let result = results.remove(&format!("{CID}/{id}")).expect("a result of this id");
        let body: Value = serde_json::from_slice(&result.body).expect("JSON");
        let (requested, responded) = (&body["req_ts_utc"], &body["resp_ts_utc"]);
        let [requested, responded] = [requested, responded].map(|time| time.as_str().expect("a time"));
        recent(requested);
        let outcome = outcome.replace("REQ", requested).replace("RESP", responded);
        let body =
            format!(r#"{{"source":"fanout1.my-service","target":"{service}",{outcome},"cid":"{CID}"}}"#);
        let headers = [("fanfare-key", service), ("fanfare-run", run_text.as_str())];
        let mut expected = message("fanfare.result", &id, &headers, body);
        expected.properties.timestamp = Some(recent(responded).timestamp());
        assert_eq!(result, expected);
    }
    stack.bystander().delete(&queue).await.expect("deleted");
}

fn by_id(message: Message) -> (String, Message) {
    (message.properties.message_id.as_ref().expect("every message has one").to_string(), message)
}

async fn two_targets_and_two_callbacks(stack: Stack) {
    let mut callbacks = [stack.record("my.cb1").await, stack.record("my.cb2").await];
    let _worker = stack.worker([services::echo(), services::sleep()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source");
    let fanout = fanout.target("test.echo", json!({"a": 1})).target("test.sleep", 5);
    let accepted = fanout.on_final(["my.cb1", "my.cb2"]).invoke().await.expect("accepted");
    for callback in &mut callbacks {
        let payload = callback.next_final().await;
        assert_eq!(payload.source, "my.source");
        assert_eq!(payload.on_target, [""; 0]);
        assert_eq!(payload.on_final, ["my.cb1", "my.cb2"]);
        assert_eq!(payload.get::<Value>("test.echo").expect("it answered"), json!({"a": 1}));
        assert_eq!(payload.get::<u64>("test.sleep").expect("it answered"), 5);
    }
    stack.ended([&accepted], coordinator).await;
    for callback in &mut callbacks {
        assert_eq!(callback.rest().await, []);
    }
}

async fn a_target_that_fails_at_once_does_not_hinder_the_others(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail(), services::sleep()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.fail", "out of stock");
    let fanout = fanout.target("test.sleep", 150).target("test.echo", "here");
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let message = done.next().await;
    assert_eq!((message.int("fanfare-targets"), message.int("fanfare-failed")), (Some(3), Some(1)));
    let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
    assert_eq!(failures(&payload), [("test.fail".to_owned(), "out of stock".to_owned())]);
    assert_eq!(payload.get::<u64>("test.sleep").expect("it answered"), 150);
    assert_eq!(payload.get::<String>("test.echo").expect("it answered"), "here");
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn all_targets_may_fail(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::fail()]).await;
    let coordinator = stack.coordinator();
    let targets = (0..5).map(|n| Target::new("test.fail", format!("reason {n}")).key(n.to_string()));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), fanfare_publisher::Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let expected: Vec<_> = (0..5).map(|n| (n.to_string(), format!("reason {n}"))).collect();
    assert_eq!(failures(&done.next_final().await), expected);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

fn failures(payload: &FinalPayload) -> Vec<(String, String)> {
    payload.failures().map(|failure| (failure.key, failure.exception)).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("the order cannot be priced")]
struct Unpriceable(#[source] std::num::ParseIntError);

/// Services that fail, each in its own way.
fn failing() -> Vec<Registration> {
    vec![
        service("fails.std", |_: Context, text: String| async move {
            Ok(text.parse::<u32>().map_err(Unpriceable)?)
        }),
        service("fails.anyhow", |_: Context, text: String| async move {
            use anyhow::Context as _;
            let parsed = text.parse::<u32>().context("reading the amount").context("pricing the order");
            Ok(parsed?)
        }),
        service("fails.panic", |_: Context, text: String| async move {
            if !text.is_empty() {
                panic!("cannot stand {text:?}");
            }
            Ok(())
        }),
        service("fails.timeout", |context: Context, _: Value| async move {
            context.cancellation().cancelled().await;
            Ok(())
        })
        .timeout(Duration::from_millis(100)),
    ]
}

async fn every_kind_of_failure_is_told_with_its_whole_chain_and_the_worker_lives_on(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker(failing().into_iter().chain([services::sleep()])).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").targets([
        ("fails.std", json!("x")),
        ("fails.anyhow", json!("x")),
        ("fails.panic", json!("x")),
        ("fails.timeout", json!("x")),
        ("test.sleep", json!("no number")),
    ]);
    let first = fanout.on_final("my.done").invoke().await.expect("accepted");
    let payload = done.next_final().await;
    let exceptions: BTreeMap<_, _> = failures(&payload).into_iter().collect();
    for (service, exception) in [
        ("fails.std", "the order cannot be priced: invalid digit found in string"),
        ("fails.anyhow", "pricing the order: reading the amount: invalid digit found in string"),
        ("fails.panic", "the service panicked: cannot stand \"x\""),
        ("fails.timeout", "timed out after 100ms"),
        (
            "test.sleep",
            "the payload is not what this service takes: invalid type: string \"no number\", expected u64",
        ),
    ] {
        let told = &exceptions[service];
        assert!(told.starts_with(exception), "{service}: {told}");
        assert_eq!(payload.data.get(service).expect("a result").response.get(), "null");
    }

    let fanout = stack.publisher().fanout("my.source").target("fails.std", "7").target("fails.anyhow", "8");
    let fanout = fanout.target("fails.panic", "").target("test.sleep", 1);
    let second = fanout.on_final("my.done").invoke().await.expect("accepted");
    assert_eq!(failures(&done.next_final().await), []);
    stack.ended([&first, &second], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn a_cid_is_returned_as_it_came(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let longest = "Order:2025-01_".chars().cycle().take(100).collect::<String>();
    for cid in ["x", &longest] {
        let fanout = stack.publisher().fanout("my.source").cid(cid).target("test.echo", 1);
        let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
        assert_eq!(accepted.cid.as_str(), cid);
        let message = done.next().await;
        assert_eq!(message.properties.correlation_id.as_deref(), Some(cid));
        let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
        assert_eq!(payload.data.get("test.echo").expect("a result").cid.as_str(), cid);
        stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    }
    stack.ended([], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn two_fan_outs_with_one_cid_end_with_their_own_results(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let invoke = |n: u32| {
        let fanout = publisher.fanout("my.source").cid("the-same").target("test.echo", n);
        fanout.on_final("my.done").invoke()
    };
    let (first, second) = tokio::join!(invoke(1), invoke(2));
    let (first, second) = (first.expect("accepted"), second.expect("accepted"));
    assert_ne!(first.run, second.run);
    let mut answers = BTreeMap::new();
    for _ in 0..2 {
        let message = done.next().await;
        let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
        answers.insert(message.run().expect("a run"), payload.get::<u32>("test.echo").expect("it answered"));
    }
    assert_eq!(answers, BTreeMap::from([(first.run, 1), (second.run, 2)]));
    stack.ended([&first, &second], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn metadata_reaches_every_target_and_callback(stack: Stack) {
    let mut recorders = Vec::new();
    for name in ["my.target1", "my.target2", "my.progress", "my.done"] {
        recorders.push(stack.record(name).await);
    }
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").metadata("tenant", "ä 7").metadata("attempts", 3);
    let fanout = fanout.target("my.target1", 1).target("my.target2", 2).on_target("my.progress");
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let metadata = Headers::from([("tenant", "ä 7".into()), ("attempts", "3".into())]);
    for target in ["0", "1"] {
        let request = recorders[target.parse::<usize>().expect("a place")].next().await;
        assert_eq!(request.headers["fanfare-metadata"], HeaderValue::Table(metadata.clone()));
        answer(&stack, &request, 1).await;
        let progress = recorders[2].next().await;
        assert_eq!(progress.headers["fanfare-metadata"], HeaderValue::Table(metadata.clone()));
    }
    let done = recorders[3].next().await;
    assert_eq!(done.headers["fanfare-metadata"], HeaderValue::Table(metadata));
    assert_eq!(done.properties.app_id.as_deref(), Some("my.source"));
    stack.ended([&accepted], coordinator).await;
}

async fn no_targets_end_at_once_with_empty_data(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let message = done.next().await;
    assert!(message.body.ends_with(br#","on_target":"","on_final":["my.done"],"data":{}}"#), "{message:?}");
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn one_target(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", [1, 2, 3]);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.get::<Vec<u32>>("test.echo").expect("it answered"), [1, 2, 3]);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn one_service_fifty_times_by_key(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let targets = (0..50).map(|n| Target::new("test.echo", n).key(format!("customer {n}")));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), fanfare_publisher::Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), 50);
    for (n, (key, result)) in payload.data.iter().enumerate() {
        assert_eq!(key, format!("customer {n}"), "in the caller's order");
        assert_eq!(result.response::<usize>().expect("it answered"), n);
        assert_eq!(result.target, "test.echo");
    }
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn targets_as_a_map(stack: Stack) {
    let _worker = stack.worker([services::echo(), services::sleep()]).await;
    let _coordinator = stack.coordinator();
    let targets = BTreeMap::from([("test.sleep", json!(1)), ("test.echo", json!({"deep": [null]}))]);
    let waiting = stack.publisher().fanout("my.source").targets(&targets);
    let payload = waiting.invoke_and_wait(Duration::from_secs(60)).await.expect("it ends");
    for (service, answer) in targets {
        assert_eq!(payload.get::<Value>(service).expect("it answered"), answer);
    }
}

async fn keys_in_any_script_keep_the_callers_order(stack: Stack) {
    let _worker = stack.worker([services::echo()]).await;
    let _coordinator = stack.coordinator();
    let longest = "鍵".repeat(85);
    let keys = ["zebra", "données/ファイル 1.txt", "a\"b\\c", "10", "9", " ", &longest];
    let targets = keys.iter().map(|key| Target::new("test.echo", key).key(key));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), fanfare_publisher::Fanout::add);
    let payload = fanout.invoke_and_wait(Duration::from_secs(60)).await.expect("it ends");
    assert_eq!(payload.data.iter().map(|(key, _)| key).collect::<Vec<_>>(), keys);
    for key in keys {
        assert_eq!(payload.get::<String>(key).expect("it answered"), key);
    }
}

async fn a_waiting_caller_needs_no_final_callback(stack: Stack) {
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", "x").target("test.fail", "no");
    let payload = fanout.invoke_and_wait(Duration::from_secs(60)).await.expect("it ends");
    assert_eq!(payload.get::<String>("test.echo").expect("it answered"), "x");
    let failed = payload.get::<Value>("test.fail").expect_err("it failed");
    assert_eq!(failed.to_string(), "target \"test.fail\" failed: no");
    assert_eq!(payload.on_final, [""; 0]);
    coordinator.stop().await;
    assert_eq!(stack.record_queue(&stack.names().fanin_queue()).await.rest().await, []);
}

async fn a_waiting_caller_and_a_final_callback_are_told_the_same(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", "x").on_final("my.done");
    let waited = fanout.invoke_and_wait(Duration::from_secs(60)).await.expect("it ends");
    let called = done.next_final().await;
    assert_eq!(json!(waited), json!(called));
    assert_eq!(waited.on_final, ["my.done"], "the waiter is no callback");
    coordinator.stop().await;
    assert_eq!(done.rest().await, []);
}

async fn a_wait_that_times_out_leaves_the_fan_out_to_its_end(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1).on_final("my.done");
    let error = fanout.invoke_and_wait(Duration::from_millis(700)).await.expect_err("nobody answers");
    let WaitError::TimedOut { cid, run, timeout } = error else { panic!("{error:?}") };
    assert_eq!(timeout, Duration::from_millis(700));
    let request = target.next().await;
    assert_eq!((request.cid(), request.run()), (Ok(cid.clone()), Ok(run)));
    eventually("the manifest is taken", || async {
        let queue = stack.bystander().inspect(&stack.names().fanin_queue()).await;
        matches!(queue, Ok(Some(state)) if state.messages == 0)
    })
    .await;
    answer(&stack, &request, 1).await;
    assert_eq!(done.next_final().await.get::<u32>("my.target").expect("it answered"), 1);
    stack.ended([&Accepted { cid, run }], coordinator).await;
    assert_eq!(done.rest().await, []);
}
