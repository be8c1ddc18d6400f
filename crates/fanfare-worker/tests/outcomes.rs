//! Whatever a service does, its caller is answered and its worker lives on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use fanfare_broker::Broker;
use fanfare_protocol::{
    Callback, CallbackKind, Channel, Manifest, ManifestTarget, Message, Properties, ServiceName,
    TargetResult, header,
};
use fanfare_worker::{Config, Context, Registration, Retry, Worker, WorkerError, service};
use harness::{Bench, within};
use serde_json::value::RawValue;

/// Answers with one more than it is given.
fn increment() -> Registration {
    service("increment", |_: Context, number: u32| async move { Ok(number + 1) })
}

#[tokio::test(start_paused = true)]
async fn a_result_is_what_the_protocol_says() {
    let bench = Bench::new();
    bench.call("increment", ["41"]).await;
    let worker = bench.start([increment()]).await;
    let message = bench.take(&bench.aggregation_queue(), 1).await.remove(0).message;
    let properties = &message.properties;
    assert_eq!(properties.correlation_id.as_deref(), Some("order-7"));
    assert_eq!(properties.message_id.as_deref(), Some("order-7/0/result"));
    assert_eq!(properties.kind.as_deref(), Some("fanfare.result"));
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(message.text(header::KEY), Some("increment 0"));
    assert_eq!(message.text(header::RUN), Some("00000000000000000000000000000007"));
    let body = std::str::from_utf8(&message.body).unwrap();
    let (before, after) = body.split_once(r#""resp_ts_utc":""#).unwrap();
    assert_eq!(
        before,
        r#"{"source":"shop","target":"increment","response":42,"req_ts_utc":"2025-01-19 19:55:45","#
    );
    assert_eq!(&after["2025-01-19 19:55:46".len()..], r#"","ok":true,"exception":null,"cid":"order-7"}"#);
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn results_that_their_queue_does_not_take_keep_no_other_fan_out_waiting() {
    let bench = Bench::new();
    let mut full = bench.aggregation_queue();
    full.arguments.extend([("x-max-length", 1.into()), ("x-overflow", "reject-publish".into())]);
    bench.caller.declare(&full).await.unwrap();
    bench.caller.publish(&full.name, Message::default()).await.unwrap();
    let shard = bench.names.shard(0);
    bench.caller.declare(&shard).await.unwrap();
    // More than the worker is handed unanswered, and one behind them.
    for place in 0..12 {
        bench.send("increment", bench.request("increment", place, "1")).await;
    }
    let mut other = bench.request("increment", 0, "41");
    other.properties.reply_to = Some(shard.name.as_str().into());
    bench.send("increment", other).await;
    let worker = bench.start([increment().concurrency(2).prefetch(4)]).await;
    let result = bench.take(&shard, 1).await.remove(0).message;
    assert_eq!(TargetResult::from_body(&result.body).unwrap().response::<u32>().unwrap(), 42);
    bench.caller.delete(&full.name).await.unwrap();
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn input_that_does_not_parse_is_answered_with_where_and_why() {
    let bench = Bench::new();
    bench.call("increment", [r#""x""#, "{", "", "1"]).await;
    let _worker = bench.start([increment().concurrency(1)]).await;
    let results = bench.results(4).await;
    let exceptions: Vec<&str> =
        results[..3].iter().map(|result| result.exception.as_deref().unwrap()).collect();
    assert_eq!(
        exceptions,
        [
            "the payload is not what this service takes: invalid type: string \"x\", expected u32 at line 1 column 3",
            "the payload is not JSON: EOF while parsing an object at line 1 column 1",
            "the payload is not JSON: EOF while parsing a value at line 1 column 0",
        ]
    );
    assert_eq!(results[3].response::<u32>().unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn errors_panics_and_time_outs_are_failed_results_and_the_worker_lives_on() {
    let bench = Bench::new();
    let moody = service("moody", |_: Context, mood: String| async move {
        match &*mood {
            "text" => Err("no such order".into()),
            "chain" => Err(std::io::Error::other("disk full")).context("cannot write")?,
            "panic" => panic!("index {} is off", 7),
            "hang" => std::future::pending().await,
            _ => Ok(mood),
        }
    })
    .concurrency(1)
    .timeout(Duration::from_secs(30));
    bench.call("moody", [r#""text""#, r#""chain""#, r#""panic""#, r#""hang""#, r#""fine""#]).await;
    let _worker = bench.start([moody]).await;
    let results = bench.results(5).await;
    let exceptions: Vec<&str> = results
        .iter()
        .filter_map(|result| result.exception.as_deref())
        .map(|exception| exception.split("\n\n").next().unwrap())
        .collect();
    assert_eq!(
        exceptions,
        [
            "no such order",
            "cannot write: disk full",
            "the service panicked: index 7 is off",
            "timed out after 30s",
        ]
    );
    assert!(results[..4].iter().all(|result| !result.ok && result.response.get() == "null"));
    assert_eq!(results[4].response::<String>().unwrap(), "fine");
}

#[tokio::test(start_paused = true)]
async fn a_time_out_cancels_the_token_that_spawned_work_holds() {
    let bench = Bench::new();
    let (sender, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    let slow = service("slow", move |context: Context, (): ()| {
        let (sender, token) = (sender.clone(), context.cancellation().clone());
        tokio::spawn(async move {
            token.cancelled().await;
            sender.send(()).ok();
        });
        std::future::pending::<fanfare_worker::Result<()>>()
    })
    .timeout(Duration::from_secs(1));
    bench.call("slow", ["null"]).await;
    let _worker = bench.start([slow]).await;
    assert!(!bench.result().await.ok);
    within(cancelled.recv()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn raw_json_goes_through_untouched() {
    let bench = Bench::new();
    let echo = service("echo", |_: Context, raw: Box<RawValue>| async move { Ok(raw) });
    bench.call("echo", [r#"{ "b" : 1.0, "a" : 12345678901234567890123 }"#]).await;
    let _worker = bench.start([echo]).await;
    assert_eq!(bench.result().await.response.get(), r#"{ "b" : 1.0, "a" : 12345678901234567890123 }"#);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_large_fails_its_target() {
    let bench = Bench::new();
    let large = service("large", |_: Context, (): ()| async move { Ok("x".repeat(9 << 20)) });
    bench.call("large", ["null"]).await;
    let _worker = bench.start([large]).await;
    assert!(bench.result().await.exception.unwrap().contains("the response is too large"));
}

#[tokio::test(start_paused = true)]
async fn a_worker_can_be_told_to_send_smaller_results() {
    let bench = Bench::new();
    let large = service("large", |_: Context, (): ()| async move { Ok("x".repeat(2_000)) });
    bench.call("large", ["null"]).await;
    let _worker = bench.start_with(Config { most_result_bytes: 1_000, ..Config::default() }, [large]).await;
    let exception = bench.result().await.exception.unwrap();
    assert!(exception.contains(" bytes, and 1000 is the most that this worker sends; store"), "{exception}");
}

#[tokio::test(start_paused = true)]
async fn a_context_tells_how_the_service_was_invoked() {
    let bench = Bench::new();
    let told = service("told", |context: Context, (): ()| async move {
        Ok(format!(
            "{} {} {} {} {} {} {} {} {} {}",
            context.channel(),
            context.cid(),
            context.run(),
            context.source(),
            context.key().unwrap(),
            context.service(),
            context.attempt(),
            context.message_id(),
            context.metadata().get("order").unwrap(),
            context.requested_at().unwrap(),
        ))
    });
    bench.call("told", []).await;
    let mut request = bench.request("told", 3, "null").with_header(header::ATTEMPT, 2);
    let metadata = [("order".to_owned(), "o-1".into())].into();
    request.headers.insert(header::METADATA, fanfare_protocol::HeaderValue::Table(metadata));
    bench.send("told", request).await;
    let _worker = bench.start([told]).await;
    assert_eq!(
        bench.result().await.response::<String>().unwrap(),
        "FANOUT_CALL order-7 00000000000000000000000000000007 shop told 3 told 2 order-7/3 o-1 2025-01-19 19:55:45"
    );
}

/// The message that a coordinator invokes a final callback with.
fn callback(bench: &Bench, name: &str, body: &'static str) -> Message {
    let name = ServiceName::new(name).unwrap();
    let manifest = Manifest {
        cid: bench.cid(),
        run: bench.run,
        source: "shop".parse().unwrap(),
        req_ts_utc: "2025-01-19 19:55:45".parse().unwrap(),
        channel: Channel::FanoutCall,
        targets: vec![ManifestTarget { key: "k".parse().unwrap(), service: name.clone() }],
        on_target: vec![],
        on_final: vec![name.clone()],
        reply_to: bench.aggregation_queue().name,
        deadline_ms: None,
        deadline_utc: None,
        waiter: None,
        progress: false,
        sentinel: false,
        replicated: false,
        completion: None,
        metadata: fanfare_protocol::Metadata::default(),
        traceparent: None,
    };
    let kind = CallbackKind::OnFinal { callback: Some(&name), ending: fanfare_protocol::Ending::default() };
    Callback { manifest: &manifest, kind, body: body.into() }.encode()
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_fails_is_parked_with_its_exception_and_hinders_no_other() {
    let bench = Bench::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let done = service("done", move |context: Context, number: u32| {
        let sink = Arc::clone(&sink);
        async move {
            if number == 1 {
                return Err("not today".into());
            }
            sink.lock().unwrap().push((context.channel(), number));
            Ok(())
        }
    })
    .concurrency(1)
    .retry(Retry::exponential(1));
    for body in ["1", "2"] {
        bench.send("done", callback(&bench, "done", body)).await;
    }
    let worker = bench.start([done]).await;
    let parked = bench.take(&bench.names.parked(), 1).await.remove(0).message;
    assert_eq!(parked.text(header::REASON), Some("done failed: not today"));
    assert_eq!(parked.text(header::PARKED_FROM), Some("fanfare.service.done"));
    assert_eq!(parked.body, "1".as_bytes());
    within(async {
        while seen.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(*seen.lock().unwrap(), [(Channel::FanoutOnFinal, 2)]);
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("done")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn malformed_messages_are_parked_once_and_do_not_stop_the_service() {
    let bench = Bench::new();
    bench.call("increment", []).await;
    let garbage = Message { body: vec![0xff; 10 << 20].into(), ..Message::default() };
    let mut elsewhere = bench.request("increment", 0, "1");
    elsewhere.properties.reply_to = Some("fanfare.fanin".into());
    let mut nameless = bench.request("increment", 0, "1");
    nameless.properties = Properties { message_id: None, ..nameless.properties };
    nameless.headers.remove(header::KEY);
    for message in [garbage, elsewhere, nameless, bench.request("increment", 5, "5")] {
        bench.send("increment", message).await;
    }
    let worker = bench.start([increment().concurrency(1)]).await;
    assert_eq!(bench.result().await.response::<u32>().unwrap(), 6);
    let parked = bench.take(&bench.names.parked(), 3).await;
    assert_eq!(parked[0].message.body.len(), 10 << 20);
    for (delivery, reason) in parked.iter().zip(["type", "reply_to \"fanfare.fanin\"", "message_id"]) {
        let given = delivery.message.text(header::REASON).unwrap();
        assert!(given.contains(reason), "{given}");
    }
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.service_queue("increment")).await, 0);
    assert_eq!(bench.caller.inspect("fanfare.fanin").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_request_that_says_where_to_answer_is_answered() {
    let bench = Bench::new();
    bench.call("increment", []).await;
    bench
        .send("increment", bench.request("increment", 0, "1").with_header(header::CHANNEL, "telegram"))
        .await;
    let mut nameless = bench.request("increment", 1, "1");
    nameless.properties = Properties { message_id: None, ..nameless.properties };
    bench.send("increment", nameless).await;
    let _worker = bench.start([increment().concurrency(1)]).await;
    for (result, words) in bench.results(2).await.into_iter().zip(["telegram", "message_id is missing"]) {
        let exception = result.exception.unwrap();
        assert!(
            exception.starts_with("the request is malformed:") && exception.contains(words),
            "{exception}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_invokes_another_with_itself_as_the_source() {
    let bench = Bench::new();
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let first = service("first", |context: Context, (): ()| async move {
        let accepted = context.send("second", 5).await?;
        Ok(accepted.cid.to_string())
    });
    let second = service("second", move |context: Context, number: u32| {
        sender.send((context.channel(), context.source().to_string(), number)).unwrap();
        async { Ok(()) }
    });
    bench.call("first", ["null"]).await;
    let _worker = bench.start([first, second]).await;
    assert!(bench.result().await.ok);
    let told = within(told.recv()).await.unwrap();
    assert_eq!(told, (Channel::Invoke, "first".to_owned(), 5));
}

#[tokio::test(start_paused = true)]
async fn registrations_that_break_a_rule_are_refused_when_the_worker_starts() {
    let bench = Bench::new();
    let run = async |config, services: Vec<Registration>| {
        let worker = Worker::new(bench.publisher(), config).services(services);
        within(worker.run_until(std::future::pending())).await.unwrap_err()
    };
    let nothing = |_: Context, (): ()| async { Ok(()) };
    let error = run(Config::default(), vec![increment(), increment()]).await;
    assert_eq!(error.to_string(), "service `increment` is registered twice: give one of them another name");
    assert!(matches!(run(Config::default(), vec![]).await, WorkerError::NoServices));
    let error = run(Config::default(), vec![service("a b", nothing)]).await;
    assert!(error.to_string().contains(r#"service name "a b" is not allowed"#), "{error}");
    assert!(matches!(
        run(Config::default(), vec![increment().concurrency(0)]).await,
        WorkerError::Nothing { .. }
    ));
    let error = run(Config::default(), vec![increment().retry(Retry::exponential(0))]).await;
    let expected = "service `increment` cannot be retried: 0 attempts would never run it: give 1 or more";
    assert_eq!(error.to_string(), expected);
    let config = Config { concurrency: 0, ..Config::default() };
    assert!(matches!(run(config, vec![increment()]).await, WorkerError::NoConcurrency));
}
