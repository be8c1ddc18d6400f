//! Messages that break the protocol, in every queue: kept for a person with the reason, and no hindrance to others.

use std::time::{Duration, Instant};

use fanfare_protocol::{
    Cid, FinalPayload, HeaderValue, Headers, Manifest, Message, QueueNames, Request, RunId, ServiceName,
    Source, TargetOf, WireTime,
};
use fanfare_publisher::Accepted;
use fanfare_tests::{Log, Recorder, Stack, answer, eventually_seen, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, service};
use serde_json::{Value, json};

on_both_brokers!(
    malformed_messages_of_a_service_are_parked_with_the_reason_and_logged_once,
    a_plain_invocation_that_is_not_json_is_parked,
    malformed_manifests_are_parked_with_the_reason_and_logged_once,
    malformed_messages_among_results_are_parked_and_the_fan_out_ends,
    a_malformed_result_completes_its_target_as_failed,
    results_of_nobody_are_ignored,
    a_message_of_a_type_to_come_is_neither_parked_nor_in_the_way,
    garbage_right_before_the_last_result_is_parked_all_the_same,
    a_request_that_names_a_foreign_queue_is_parked_and_not_answered,
    a_malformed_request_that_says_where_it_belongs_is_answered_with_a_failure,
    a_service_keeps_its_pace_behind_hundreds_of_malformed_messages,
    a_coordinator_keeps_its_pace_behind_hundreds_of_malformed_manifests,
);

// The others are about what workers do, wherever results are gathered.
in_shards!(
    malformed_manifests_are_parked_with_the_reason_and_logged_once,
    malformed_messages_among_results_are_parked_and_the_fan_out_ends,
    a_malformed_result_completes_its_target_as_failed,
    results_of_nobody_are_ignored,
    a_message_of_a_type_to_come_is_neither_parked_nor_in_the_way,
    garbage_right_before_the_last_result_is_parked_all_the_same,
    a_malformed_request_that_says_where_it_belongs_is_answered_with_a_failure,
    a_coordinator_keeps_its_pace_behind_hundreds_of_malformed_manifests,
);

const TEN_MEGABYTES: usize = 10_000_000;
/// Within which a fan-out behind garbage must end. It takes a fraction of a second; a consumer that handled one
/// malformed message after the other with pauses, or kept their slots, would take far longer.
const PACE: Duration = Duration::from_secs(15);

fn body(body: impl Into<Vec<u8>>) -> Message {
    Message { body: body.into().into(), ..Message::default() }
}

/// A request of a target of `service`, in which nothing is wrong.
fn request(stack: &Stack, service: &str) -> Message {
    let (cid, run) = (Cid::new("my-cid").expect("a CID"), RunId::from(uuid::Uuid::new_v4()));
    let service = ServiceName::new(service).expect("a name");
    let reply_to = stack.names().aggregation(&cid, run).name;
    let key = service.clone().into();
    Request {
        target: Some(TargetOf { parallel: false, key, place: 0, reply_to }),
        cid,
        run,
        source: Source::new("my.source").expect("a name"),
        requested_at: WireTime::from(chrono::Utc::now()),
        metadata: fanfare_protocol::Metadata::default(),
        traceparent: None,
        body: "1".into(),
        service,
    }
    .encode()
}

fn without_header(mut message: Message, name: &str) -> Message {
    message.headers.remove(name).expect("it was there");
    message
}

fn without_address(mut message: Message) -> Message {
    message.properties.reply_to = None;
    message
}

/// Publishes malformed messages to a queue and sees them parked, each as it was, with a reason that holds the given words,
/// and logged once.
async fn all_are_parked(stack: &Stack, queue: &str, malformed: Vec<(Message, &str)>) {
    let log = Log::start();
    let name = format!("{}.{queue}", stack.names().prefix());
    let mut parked = stack.record_parked().await;
    for (number, (message, words)) in malformed.iter().enumerate() {
        stack.publish(&name, message.clone()).await;
        let copy = parked.next().await;
        let reason = copy.text("fanfare-reason").expect("why");
        assert!(reason.contains(words), "{number}: {reason:?} says nothing of {words:?}");
        assert_eq!(copy.text("fanfare-parked-from"), Some(name.as_str()));
        let at = copy.text("fanfare-parked-at").expect("when").parse().expect("a time");
        let id = copy.text("fanfare-parked-id").expect("a name of its own").parse().expect("a UUID");
        let mut expected = message.clone().parked(&name, reason, at, id);
        expected.headers.retain(|name, _| !name.starts_with("x-"));
        assert_eq!(copy, expected, "it is kept as it was");
    }
    assert_eq!(parked.rest().await, []);
    let logged = log.of_queue(stack, queue);
    assert_eq!(logged.len(), malformed.len(), "each is logged once: {logged:#?}");
}

/// The name of a queue without the prefix of all of a stack's queues.
fn after_prefix<'a>(stack: &Stack, queue: &'a str) -> &'a str {
    queue.strip_prefix(&format!("{}.", stack.names().prefix())).expect("its own")
}

async fn malformed_messages_of_a_service_are_parked_with_the_reason_and_logged_once(stack: Stack) {
    let worker = stack.worker([services::echo()]).await;
    let good = || request(&stack, "test.echo");
    let mut of_another_kind = good();
    of_another_kind.properties.kind = Some("fanfare.novelty".into());
    let mut nameless = without_address(good());
    nameless.properties.message_id = None;
    let mut without_cid = good();
    without_cid.properties.correlation_id = None;
    let mut callback = good();
    callback.properties.kind = Some("fanfare.callback".into());
    callback.properties.reply_to = None;
    let malformed = vec![
        (body(b"\xff\xfe\x00 no JSON".as_slice()), "it has no type"),
        (body("{}"), "it has no type"),
        (without_address(of_another_kind), "fanfare.novelty"),
        (without_address(without_header(good(), "fanfare-channel")), "fanfare-channel"),
        (without_address(good().with_header("fanfare-channel", "fan")), "\"fan\" is unknown"),
        (without_address(good().with_header("fanfare-channel", 7)), "fanfare-channel"),
        (without_header(good(), "fanfare-run"), "header fanfare-run is missing"),
        (nameless, "message_id is missing"),
        (without_cid, "correlation_id is missing"),
        (callback, "cannot have channel fanout-call"),
        (without_address(good()), "reply_to is missing"),
        (body(vec![b'x'; TEN_MEGABYTES]), "it has no type"),
    ];
    all_are_parked(&stack, "service.test.echo", malformed).await;
    worker.stop().await;
    let left = stack.record("test.echo").await.rest().await;
    assert_eq!(left, [], "each is acked");
}

async fn a_plain_invocation_that_is_not_json_is_parked(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let worker = stack.worker([services::echo()]).await;
    let mut invoked = without_address(request(&stack, "test.echo")).with_header("fanfare-channel", "invoke");
    invoked.body = "{\"half\":".into();
    stack.publish(&format!("{}.service.test.echo", stack.names().prefix()), invoked.clone()).await;
    let copy = parked.next().await;
    assert_eq!(copy.body, invoked.body);
    let reason = copy.text("fanfare-reason").expect("why");
    assert!(reason.starts_with("test.echo failed: the payload is not JSON"), "{reason}");
    worker.stop().await;
    assert_eq!(parked.rest().await, []);
}

async fn malformed_manifests_are_parked_with_the_reason_and_logged_once(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut foreign = stack.record("my.foreign").await;
    let foreign_queue = format!("{}.service.my.foreign", stack.names().prefix());
    let accepted =
        stack.publisher().fanout("my.source").on_final("my.done").invoke().await.expect("accepted");
    let queue = stack.manifests_of(&accepted);
    let mut manifests = stack.record_queue(&queue).await;
    let good = manifests.next().await;
    drop(manifests);
    let coordinator = stack.coordinator();
    let changed = |field: &str, value: Value| {
        let mut manifest: Value = serde_json::from_slice(&good.body).expect("JSON");
        manifest[field] = value;
        Message { body: manifest.to_string().into(), ..good.clone() }
    };
    let target = json!({"key": "k", "service": "s"});
    let of_another_run = stack.names().aggregation(&accepted.cid, RunId::from(uuid::Uuid::nil())).name;
    let mut malformed = vec![
        (body(b"\xff\xfe\x00 no JSON".as_slice()), "it has no type"),
        (Message { body: "{\"cid\":".into(), ..good.clone() }, "malformed"),
        (Message { body: "{}".into(), ..good.clone() }, "missing field `cid`"),
        (changed("cid", json!("no name")), "' ' is not one of"),
        (changed("run", json!("7")), "32 hexadecimal digits"),
        (changed("channel", json!("invoke")), "not that of a fan-out"),
        (changed("targets", json!([target, target])), "is there twice"),
        (changed("on_final", json!("my.done")), "malformed"),
        (changed("reply_to", json!(foreign_queue)), "reply_to"),
        (changed("reply_to", json!(of_another_run)), "reply_to"),
        (changed("waiter", json!(foreign_queue)), "waiter"),
        (changed("deadline_ms", json!(-1)), "malformed"),
        (body(vec![b'['; TEN_MEGABYTES]), "it has no type"),
        (Message { body: vec![b'['; TEN_MEGABYTES].into(), ..good.clone() }, "malformed"),
    ];
    // In a shard, where coordinators talk to each other too, it waits for one of a newer version.
    if !stack.is_shared() {
        let mut of_another_kind = good.clone();
        of_another_kind.properties.kind = Some("fanfare.novelty".into());
        malformed.push((of_another_kind, "fanfare.novelty"));
    }
    all_are_parked(&stack, after_prefix(&stack, &queue), malformed).await;
    stack.publish(&queue, good).await;
    done.next_final().await;
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut done, &mut foreign] {
        assert_eq!(recorder.rest().await, []);
    }
}

/// A fan-out of one target for each key, played by hand.
struct Played {
    accepted: Accepted,
    requests: Vec<Message>,
    queue: String,
    done: Recorder,
}

async fn played(stack: &Stack, keys: &[&str]) -> Played {
    let done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let targets = keys.iter().map(|key| fanfare_publisher::Target::new("my.target", 1).key(key));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), fanfare_publisher::Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let mut requests = Vec::new();
    for _ in keys {
        requests.push(target.next().await);
    }
    requests.sort_by_key(|request| request.properties.message_id.clone());
    let queue = stack.results_of(&accepted);
    Played { accepted, requests, queue, done }
}

impl Played {
    /// A result of the target at a place, with some body.
    fn result(&self, place: usize, body: impl Into<Vec<u8>>) -> Message {
        let request = &self.requests[place];
        let mut result = Message { body: body.into().into(), ..Message::default() };
        let id = request.properties.message_id.as_deref().expect("an id");
        result.properties.kind = Some("fanfare.result".into());
        result.properties.correlation_id.clone_from(&request.properties.correlation_id);
        result.properties.message_id = Some(format!("{id}/result").into());
        for name in ["fanfare-run", "fanfare-key"] {
            result.headers.insert(name, request.headers[name].clone());
        }
        result
    }
}

async fn malformed_messages_among_results_are_parked_and_the_fan_out_ends(stack: Stack) {
    let coordinator = stack.coordinator();
    let mut played = played(&stack, &["a"]).await;
    let mut checkpoint = played.result(0, "{}");
    checkpoint.properties.kind = Some("fanfare.checkpoint".into());
    let mut fence = played.result(0, "no JSON");
    fence.properties.kind = Some("fanfare.fence".into());
    let mut bundle = played.result(0, r#"{"a list": "no"}"#);
    bundle.properties.kind = Some("fanfare.results".into());
    let mut of_no_target = without_header(played.result(0, "{}"), "fanfare-key");
    of_no_target.properties.message_id = Some("unheard-of".into());
    let malformed = vec![
        (body(b"\xff\xfe\x00 no JSON".as_slice()), "it has no type"),
        (of_no_target, "neither fanfare-key nor a place"),
        (checkpoint, "the checkpoint is malformed"),
        (fence, "the fence is malformed"),
        (bundle, "the results are malformed: invalid type: map, expected a sequence"),
        (body(vec![b'x'; TEN_MEGABYTES]), "it has no type"),
    ];
    all_are_parked(&stack, after_prefix(&stack, &played.queue), malformed).await;
    answer(&stack, &played.requests[0], "fine").await;
    let payload = played.done.next_final().await;
    assert_eq!(payload.get::<String>("a").expect("it answered"), "fine");
    stack.ended([&played.accepted], coordinator).await;
    assert_eq!(played.done.rest().await, []);
}

async fn a_malformed_result_completes_its_target_as_failed(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let coordinator = stack.coordinator();
    let keys = ["no JSON", "no field", "huge", "no exception", "no response", "by place", "sound"];
    let mut played = played(&stack, &keys).await;
    let result = |ok: bool, exception: Value, response: Value| {
        json!({"source": "s", "target": "my.target", "response": response, "ok": ok, "exception": exception,
            "req_ts_utc": "2025-01-19 19:55:45", "resp_ts_utc": "2025-01-19 19:55:46", "cid": "c"})
        .to_string()
    };
    let bodies = [
        b"\xff\xfe".to_vec(),
        b"{\"source\":\"s\"}".to_vec(),
        vec![b'x'; TEN_MEGABYTES],
        result(false, Value::Null, Value::Null).into(),
        result(false, json!("why"), json!(1)).into(),
    ];
    for (place, body) in bodies.into_iter().enumerate() {
        stack.publish(&played.queue, played.result(place, body)).await;
    }
    stack.publish(&played.queue, without_header(played.result(5, "[]"), "fanfare-key")).await;
    answer(&stack, &played.requests[6], "fine").await;
    let message = played.done.next().await;
    assert_eq!(message.int("fanfare-failed"), Some(6));
    let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
    assert_eq!(payload.get::<String>("sound").expect("it answered"), "fine");
    for (key, words) in [
        ("no JSON", "the result is malformed"),
        ("no field", "missing field"),
        ("huge", "the result has 10000000 bytes, and 8355840 is the most"),
        ("no exception", "there is no `exception`"),
        ("no response", "`response` is not null"),
        ("by place", "the result is malformed"),
    ] {
        let failed = payload.data.get(key).expect("a result");
        let exception = failed.exception.as_deref().expect("it failed");
        assert!(exception.contains(words), "{key}: {exception}");
        assert_eq!((failed.ok, failed.response.get(), failed.target.as_str()), (false, "null", "my.target"));
    }
    stack.ended([&played.accepted], coordinator).await;
    for recorder in [&mut played.done, &mut parked] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn results_of_nobody_are_ignored(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut config = stack.coordinator_config();
    // A result of another run may be ahead of its manifest in a shard, and waits for that.
    config.shard_limits.patience = Duration::from_millis(200);
    let coordinator = stack.coordinator_with(config);
    let mut played = played(&stack, &["a", "b"]).await;
    answer(&stack, &played.requests[0], "first").await;
    let [of_a, of_b] = [0, 1].map(|place| played.requests[place].clone());
    let another_run = RunId::from(uuid::Uuid::new_v4()).to_string();
    let mut of_another_run = played.result(1, "no JSON").with_header("fanfare-run", another_run);
    of_another_run.properties.correlation_id = Some("another".into());
    let mut of_another_cid = played.result(1, "no JSON");
    of_another_cid.properties.correlation_id = Some("another".into());
    for result in [
        of_another_run,
        of_another_cid,
        played.result(1, "no JSON").with_header("fanfare-key", "stranger"),
        played.result(0, "a second answer, which comes late"),
    ] {
        stack.publish(&played.queue, result).await;
    }
    answer(&stack, &of_a, "second").await;
    answer(&stack, &of_b, "own").await;
    let payload = played.done.next_final().await;
    assert_eq!(payload.get::<String>("a").expect("it answered"), "first");
    assert_eq!(payload.get::<String>("b").expect("it answered"), "own");
    assert_eq!(payload.data.len(), 2);
    stack.ended([&played.accepted], coordinator).await;
    for recorder in [&mut played.done, &mut parked] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_message_of_a_type_to_come_is_neither_parked_nor_in_the_way(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let coordinator = stack.coordinator();
    let mut played = played(&stack, &["a"]).await;
    let mut novelty = played.result(0, "{}");
    novelty.properties.kind = Some("fanfare.novelty".into());
    stack.publish(&played.queue, novelty.clone()).await;
    answer(&stack, &played.requests[0], 1).await;
    assert_eq!(played.done.next_final().await.get::<u32>("a").expect("it answered"), 1);
    if stack.is_shared() {
        // It outlives the fan-out, for a coordinator of a newer version that takes the shard over.
        let id = novelty.properties.message_id.as_deref().expect("an id");
        let held = async || coordinator.mortal().held_messages();
        eventually_seen("nothing else is held", held, |held| *held == [id]).await;
        coordinator.stop().await;
        let mut left = stack.record_queue(&played.queue).await.rest().await;
        // The broker counts how often it was handed out.
        left.iter_mut().for_each(|message| message.headers.retain(|name, _| !name.starts_with("x-")));
        assert_eq!(left, [novelty]);
    } else {
        stack.ended([&played.accepted], coordinator).await;
    }
    for recorder in [&mut played.done, &mut parked] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn garbage_right_before_the_last_result_is_parked_all_the_same(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut played = played(&stack, &["a"]).await;
    // All of it is there before a coordinator looks, so that the fan-out ends while the garbage is being parked.
    const PIECES: usize = 20;
    for _ in 0..PIECES {
        stack.publish(&played.queue, body(vec![b'x'; 500_000])).await;
    }
    answer(&stack, &played.requests[0], 1).await;
    let coordinator = stack.coordinator();
    played.done.next_final().await;
    stack.ended([&played.accepted], coordinator).await;
    assert_eq!(parked.rest().await.len(), PIECES);
}

async fn a_request_that_names_a_foreign_queue_is_parked_and_not_answered(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut foreign = stack.record("my.foreign").await;
    let worker = stack.worker([services::echo()]).await;
    let mut greedy = request(&stack, "test.echo");
    let foreign_queue = format!("{}.service.my.foreign", stack.names().prefix());
    greedy.properties.reply_to = Some(foreign_queue.as_str().into());
    stack.publish(&format!("{}.service.test.echo", stack.names().prefix()), greedy.clone()).await;
    let copy = parked.next().await;
    assert_eq!(copy.body, greedy.body);
    let reason = copy.text("fanfare-reason").expect("why");
    assert!(reason.contains(&foreign_queue), "{reason}");
    worker.stop().await;
    assert_eq!(foreign.rest().await, []);
}

async fn a_malformed_request_that_says_where_it_belongs_is_answered_with_a_failure(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let coordinator = stack.coordinator();
    let mut played = played(&stack, &["channel", "metadata", "body", "attempt", "id"]).await;
    let echo = service("my.target", |_: Context, payload: Value| async move { Ok(payload) });
    let _worker = stack.worker([echo]).await;
    let changes = [
        ("fanfare-channel", HeaderValue::from("fan")),
        ("fanfare-metadata", HeaderValue::Table(Headers::from([("n", HeaderValue::Int(1))]))),
        ("fanfare-key", HeaderValue::from("body")),
        ("fanfare-attempt", HeaderValue::from("second")),
        ("fanfare-key", HeaderValue::from("id")),
    ];
    for (request, (header, value)) in played.requests.iter().zip(changes) {
        let mut request = request.clone().with_header(header, value);
        if request.text("fanfare-key") == Some("body") {
            request.body = "{\"half\":".into();
        }
        if request.text("fanfare-key") == Some("id") {
            request.properties.message_id = None;
        }
        stack.publish(&format!("{}.service.my.target", stack.names().prefix()), request).await;
    }
    let payload = played.done.next_final().await;
    for (key, words) in [
        ("channel", "the request is malformed: header fanfare-channel: channel \"fan\" is unknown"),
        ("metadata", "the request is malformed: entry \"n\" of header fanfare-metadata is not a string"),
        ("body", "the payload is not JSON"),
        ("attempt", "the request is malformed: header fanfare-attempt"),
        ("id", "the request is malformed: message_id is missing"),
    ] {
        let failed = payload.get::<Value>(key).expect_err("it failed").to_string();
        assert!(failed.contains(words), "{failed}");
    }
    stack.ended([&played.accepted], coordinator).await;
    for recorder in [&mut played.done, &mut parked] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_service_keeps_its_pace_behind_hundreds_of_malformed_messages(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let queue = format!("{}.service.test.echo", stack.names().prefix());
    let started = Instant::now();
    publish_garbage(&stack, &queue).await;
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 1);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    done.next_final().await;
    assert!(started.elapsed() < PACE, "it took {:?}", started.elapsed());
    stack.ended([&accepted], coordinator).await;
    assert_garbage_is_parked(&stack).await;
}

async fn a_coordinator_keeps_its_pace_behind_hundreds_of_malformed_manifests(stack: Stack) {
    let mut done = stack.record("my.done").await;
    stack.bystander().declare(&stack.names().fanin()).await.expect("the queue can be declared");
    let coordinator = stack.coordinator();
    let started = Instant::now();
    let cid = Cid::new("my-cid").expect("a CID");
    let manifests = match stack.is_shared() {
        true => stack.names().shard(QueueNames::shard_of(&cid, 2)).name,
        false => stack.names().fanin_queue(),
    };
    publish_garbage(&stack, &manifests).await;
    let fanout = stack.publisher().fanout("my.source").cid(cid.as_str()).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    done.next_final().await;
    assert!(started.elapsed() < PACE, "it took {:?}", started.elapsed());
    stack.ended([&accepted], coordinator).await;
    assert_garbage_is_parked(&stack).await;
}

/// More than any consumer is handed before it has answered for some.
const GARBAGE: usize = 250;

async fn publish_garbage(stack: &Stack, queue: &str) {
    let garbage = (0..GARBAGE).map(|_| stack.publish(queue, body("garbage")));
    futures_util::future::join_all(garbage).await;
}

async fn assert_garbage_is_parked(stack: &Stack) {
    let mut parked = stack.record_parked().await;
    for _ in 0..GARBAGE {
        parked.next().await;
    }
    assert_eq!(parked.rest().await, []);
}

/// The manifests that these tests change are ones which a coordinator takes.
#[tokio::test]
async fn the_manifest_of_a_publisher_is_sound() {
    let stack = Stack::in_memory();
    let _done = stack.record("my.done").await;
    stack.publisher().fanout("my.source").on_final("my.done").invoke().await.expect("accepted");
    let manifest = stack.record_queue(&stack.names().fanin_queue()).await.next().await;
    assert!(Manifest::decode(&manifest, stack.names()).is_ok());
}
