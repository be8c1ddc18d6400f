//! Workers, callbacks and publishers in Python, written from `docs/protocol.md`, together with Fanfare's own.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fanfare_protocol::{HeaderValue, Message, WireTime};
use fanfare_publisher::{Accepted, Fanout, Target};
use fanfare_tests::{PATIENCE, Stack, on_rabbitmq, services};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

on_rabbitmq!(
    a_python_worker_serves_half_of_the_targets,
    a_python_worker_answers_for_failures_and_malformed_messages,
    a_python_callback_is_given_the_protocols_messages,
    a_python_callback_reads_a_large_payload_from_its_parts,
    a_python_publisher_invokes_rust_and_python_services,
    a_python_publisher_sends_nothing_where_a_service_is_unknown,
);

const LONG: Duration = Duration::from_secs(60);

/// A program of `tests/python`, with the broker and the prefix as its arguments.
fn python(program: &str, stack: &Stack) -> Command {
    let python = std::env::var("FANFARE_TEST_PYTHON").expect(
        "this test needs a Python with pika: run `cargo xtask test`, or set FANFARE_TEST_PYTHON to one",
    );
    let mut command = Command::new(python);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(program))
        .args([stack.url(), stack.names().prefix().as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The worker in Python. Killed when it is dropped.
struct PythonWorker {
    _child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl PythonWorker {
    /// Starts it, and returns when it serves.
    async fn start(stack: &Stack) -> Self {
        let mut child = python("worker.py", stack).spawn().expect("Python starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        for service in ["python.title", "python.divide", "python.log"] {
            stack.service_exists(service).await;
        }
        Self { _child: child, output }
    }

    /// The next message that `python.log` was given.
    async fn next_logged(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await.expect("a line in time");
        let line = line.expect("the worker runs").expect("the worker runs");
        serde_json::from_str(&line).expect("JSON")
    }
}

/// Runs the publisher in Python. What it prints, or the error that it ends with.
async fn publish_in_python(stack: &Stack, invocation: &str) -> Result<Accepted, String> {
    let mut child = python("publisher.py", stack).stderr(Stdio::piped()).spawn().expect("Python starts");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(invocation.as_bytes()).await.expect("the publisher reads");
    drop(input);
    let output = child.wait_with_output().await.expect("the publisher ends");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let accepted: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |field: &str| accepted[field].as_str().expect("a string").to_owned();
    Ok(Accepted { cid: text("cid").parse().expect("a CID"), run: text("run").parse().expect("a run") })
}

async fn a_python_worker_serves_half_of_the_targets(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _python = PythonWorker::start(&stack).await;
    let _rust = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let targets = (0..20).map(|n| {
        let service = if n % 2 == 0 { "python.title" } else { "test.echo" };
        Target::new(service, format!("élan vital {n}")).key(format!("target {n}"))
    });
    let fanout = targets.fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), 20);
    for (n, (key, result)) in payload.data.iter().enumerate() {
        assert_eq!(key, format!("target {n}"));
        let [service, words] =
            if n % 2 == 0 { ["python.title", "Élan Vital"] } else { ["test.echo", "élan vital"] };
        assert_eq!(result.response::<String>().expect("it answered"), format!("{words} {n}"));
        assert_eq!((result.source.as_str(), result.target.as_str()), ("my.source", service));
        assert_eq!((&result.cid, result.req_ts_utc), (&accepted.cid, payload.req_ts_utc));
    }
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn a_python_worker_answers_for_failures_and_malformed_messages(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut foreign = stack.record("my.foreign").await;
    let _python = PythonWorker::start(&stack).await;
    let _coordinator = stack.coordinator();
    let divide = |key: &str, payload: Value| Target::new("python.divide", payload).key(key);
    let fanout = stack.publisher().fanout("my.source");
    let fanout = fanout.add(divide("by zero", json!({"dividend": 1, "divisor": 0})));
    let fanout = fanout.add(divide("unreadable", json!("no numbers")));
    let fanout = fanout.add(divide("fine", json!({"dividend": 1, "divisor": 4})));
    let payload = fanout.invoke_and_wait(LONG).await.expect("it ends");
    assert!((payload.get::<f64>("fine").expect("it answered") - 0.25).abs() < f64::EPSILON);
    for (key, error) in [("by zero", "ZeroDivisionError"), ("unreadable", "TypeError")] {
        let exception = payload.data.get(key).expect("a result").exception.as_deref().expect("it failed");
        assert!(exception.starts_with("Traceback") && exception.contains(error), "{exception}");
    }

    let queue = format!("{}.service.python.title", stack.names().prefix());
    let foreign_queue = format!("{}.service.my.foreign", stack.names().prefix());
    let mut greedy = Message { body: "\"x\"".into(), ..Message::default() };
    greedy.properties.reply_to = Some(foreign_queue.as_str().into());
    greedy.properties.correlation_id = Some("my-cid".into());
    let greedy = greedy.with_header("fanfare-channel", "fanout-call").with_header("fanfare-run", "r");
    let garbage = Message { body: "no JSON".into(), ..Message::default() };
    for (message, words) in [(greedy, foreign_queue.as_str()), (garbage, "malformed")] {
        stack.publish(&queue, message.clone()).await;
        let copy = parked.next().await;
        assert_eq!(copy.body, message.body);
        let reason = copy.text("fanfare-reason").expect("why");
        assert!(reason.contains(words), "{reason}");
        assert_eq!(copy.text("fanfare-parked-from"), Some(queue.as_str()));
    }
    assert_eq!(foreign.rest().await, []);
}

async fn a_python_callback_is_given_the_protocols_messages(stack: Stack) {
    let mut python = PythonWorker::start(&stack).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").cid("my-cid").metadata("tenant", "ä");
    let fanout = fanout.target("python.title", "x").on_target("python.log").on_final("python.log");
    let accepted = fanout.invoke().await.expect("accepted");
    let result = python.next_logged().await;
    let payload = python.next_logged().await;
    let requested = result["payload"]["req_ts_utc"].as_str().expect("a time");
    assert!(requested.parse::<WireTime>().is_ok(), "{requested}");
    let properties = |id: &str, channel: &str, more: Value| {
        let mut headers = json!({"fanfare-version": 1, "fanfare-run": accepted.run, "fanfare-channel": channel,
            "fanfare-source": "my.source", "fanfare-req-ts": requested, "fanfare-metadata": {"tenant": "ä"}});
        headers.as_object_mut().expect("a table").extend(more.as_object().expect("a table").clone());
        json!({"content_type": "application/json", "content_encoding": null, "headers": headers,
            "delivery_mode": 2, "priority": null, "correlation_id": "my-cid", "reply_to": null,
            "expiration": null, "message_id": format!("my-cid/{id}"), "timestamp": null,
            "type": "fanfare.callback", "user_id": null, "app_id": "my.source", "cluster_id": null})
    };
    let more = json!({"fanfare-key": "python.title", "fanfare-target": "python.title"});
    let expected = properties("0/on-target/python.log", "fanout-on-target", more);
    assert_eq!(result["properties"], expected);
    assert_eq!(result["payload"]["response"], "X");
    let more = json!({"fanfare-targets": 1, "fanfare-failed": 0});
    assert_eq!(payload["properties"], properties("on-final/python.log", "fanout-on-final", more));
    let expected = json!({"source": "my.source", "req_ts_utc": requested, "on_target": ["python.log"],
        "on_final": ["python.log"], "data": {"python.title": result["payload"]}});
    assert_eq!(payload["payload"], expected);
    stack.ended([&accepted], coordinator).await;
}

async fn a_python_callback_reads_a_large_payload_from_its_parts(stack: Stack) {
    const TARGETS: usize = 40;
    let mut python = PythonWorker::start(&stack).await;
    let _rust = stack.worker([services::echo()]).await;
    let mut config = stack.coordinator_config();
    config.limits.large_payload_bytes = 2_000;
    let coordinator = stack.coordinator_with(config);
    let targets = (0..TARGETS).map(|n| Target::new("test.echo", n).key(format!("ключ {n}")));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted = fanout.on_final("python.log").invoke().await.expect("accepted");
    let logged = python.next_logged().await;
    let data = logged["payload"]["data"].as_object().expect("an object");
    let keys: Vec<&str> = data.keys().map(String::as_str).collect();
    assert_eq!((keys.len(), &logged["payload"]["data"]["ключ 17"]["response"]), (TARGETS, &json!(17)));
    let headers = &logged["properties"]["headers"];
    assert!(headers["fanfare-payload-parts"].as_u64() > Some(1), "{headers}");
    let writer =
        headers["fanfare-payload"].as_str().and_then(|writer| writer.parse().ok()).expect("a writer");
    stack.queue_is_gone(&stack.names().payload(&accepted.cid, accepted.run, writer).name).await;
    stack.ended([&accepted], coordinator).await;
}

async fn a_python_publisher_invokes_rust_and_python_services(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut progress = stack.record("my.progress").await;
    let _python = PythonWorker::start(&stack).await;
    let _rust = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let invocation = r#"{"source": "a.python.program", "on_final": ["my.done"], "on_target": ["my.progress"],
        "targets": {"test.echo": {"a": ["ä", null]}, "python.title": "two words"}, "metadata": {"tenant": "7"}}"#;
    let accepted = publish_in_python(&stack, invocation).await.expect("accepted");
    for _ in 0..2 {
        assert_eq!(progress.next_result().await.source, "a.python.program");
    }
    let message = done.next().await;
    let tenant = [("tenant", HeaderValue::from("7"))].into();
    assert_eq!(message.headers["fanfare-metadata"], HeaderValue::Table(tenant));
    assert_eq!((message.cid(), message.run()), (Ok(accepted.cid.clone()), Ok(accepted.run)));
    let payload: fanfare_protocol::FinalPayload =
        serde_json::from_slice(&message.body).expect("a final payload");
    let keys: Vec<_> = payload.data.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["test.echo", "python.title"], "in the caller's order");
    assert_eq!(payload.get::<Value>("test.echo").expect("it answered"), json!({"a": ["ä", null]}));
    assert_eq!(payload.get::<String>("python.title").expect("it answered"), "Two Words");
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut done, &mut progress] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_python_publisher_sends_nothing_where_a_service_is_unknown(stack: Stack) {
    let mut known = stack.record("my.known").await;
    let invocation = r#"{"source": "s", "targets": {"my.known": 1}, "on_final": ["my.unknown"]}"#;
    let error = publish_in_python(&stack, invocation).await.expect_err("nobody serves it");
    assert!(error.contains("my.unknown"), "{error}");
    assert_eq!(known.rest().await, []);
}
