//! Final payloads that are too large for one message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fanfare_coordinator::Limits;
use fanfare_operator::ParkedQuery;
use fanfare_protocol::{FinalPayload, LargePayload, Message};
use fanfare_publisher::{Accepted, Fanout, Target};
use fanfare_tests::{Node, Recorder, Running, Stack, eventually, full, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, Registration, Retry, service};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

on_both_brokers!(
    a_large_payload_is_the_same_whole_streamed_and_on_the_wire,
    a_small_payload_can_be_streamed_too,
    parts_stay_through_retries_and_among_the_parked_and_go_when_a_callback_has_succeeded,
    a_caller_who_waits_is_told_all_of_a_large_payload,
    a_callback_whose_worker_dies_while_it_streams_reads_all_of_it_again,
    parts_of_a_parked_callback_go_with_it,
);

mod in_processes {
    use super::*;

    fanfare_tests::on_rabbitmq!(a_receiver_that_streams_stays_small);
    fanfare_tests::in_shards_on_rabbitmq!(a_receiver_that_streams_stays_small);
}

in_shards!(
    a_large_payload_is_the_same_whole_streamed_and_on_the_wire,
    a_small_payload_can_be_streamed_too,
    parts_stay_through_retries_and_among_the_parked_and_go_when_a_callback_has_succeeded,
    a_caller_who_waits_is_told_all_of_a_large_payload,
    a_callback_whose_worker_dies_while_it_streams_reads_all_of_it_again,
    parts_of_a_parked_callback_go_with_it,
);

const TARGETS: usize = 60;
/// Characters of each answer.
const CHARACTERS: usize = 1_000;

/// A coordinator that sends whatever has more than a few results in parts.
fn coordinator(stack: &Stack) -> Running {
    let config = stack.coordinator_config();
    let limits = Limits { large_payload_bytes: 10_000, ..config.limits };
    stack.coordinator_with(fanfare_coordinator::Config { limits, ..config })
}

fn answers() -> Registration {
    service("my.target", |_: Context, n: usize| async move { Ok(format!("{n}").repeat(CHARACTERS)) })
}

fn fan_out(stack: &Stack, targets: usize) -> Fanout {
    let targets = (0..targets).map(|n| Target::new("my.target", n % 10).key(n.to_string()));
    targets.fold(stack.publisher().fanout("my.source"), Fanout::add)
}

/// The queue that a callback message's payload is in.
fn parts_of(stack: &Stack, message: &Message) -> String {
    let large = LargePayload::of(message).expect("well-formed").expect("it is in parts");
    assert!(large.parts > 1 && large.bytes > TARGETS * CHARACTERS, "{large:?}");
    stack.names().payload(&message.cid().expect("a CID"), message.run().expect("a run"), large.writer).name
}

/// A service that hands over its payload as it is.
fn whole(name: &str, to: mpsc::UnboundedSender<String>) -> Registration {
    service(name, move |_: Context, payload: Box<RawValue>| {
        let to = to.clone();
        async move { Ok(to.send(payload.get().to_owned())?) }
    })
}

/// A service that hands over each result as it reads it, and a word at the end.
fn streaming(name: &str, to: mpsc::UnboundedSender<String>) -> Registration {
    let function = move |context: Context, _: IgnoredAny| {
        let to = to.clone();
        async move {
            let mut results = context.results()?;
            while let Some((key, result)) = results.next().await? {
                to.send(format!("{key}={}", serde_json::to_string(&result)?))?;
            }
            Ok(to.send("end".to_owned())?)
        }
    };
    service(name, function).streaming()
}

async fn next(seen: &mut mpsc::UnboundedReceiver<String>) -> String {
    let next = tokio::time::timeout(fanfare_tests::PATIENCE, seen.recv()).await;
    next.expect("it is called").expect("the service is there")
}

/// What a stream of these results comes to.
fn as_streamed(payload: &str) -> Vec<String> {
    let payload: FinalPayload = serde_json::from_str(payload).expect("a final payload");
    let entries = payload.data.iter();
    let entries =
        entries.map(|(key, result)| format!("{key}={}", serde_json::to_string(result).expect("JSON")));
    entries.chain(["end".to_owned()]).collect()
}

async fn a_large_payload_is_the_same_whole_streamed_and_on_the_wire(stack: Stack) {
    let ((to_whole, mut wholes), (to_stream, mut streamed)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let worker =
        stack.worker([answers(), whole("my.whole", to_whole), streaming("my.stream", to_stream)]).await;
    let mut wire = stack.record("my.wire").await;
    let coordinator = coordinator(&stack);
    let accepted = fan_out(&stack, TARGETS).on_final(["my.whole", "my.stream", "my.wire"]).invoke().await;
    let whole = next(&mut wholes).await;
    let message = wire.next().await;
    assert_eq!(wire.payload_of(&message).await, whole);
    let expected = as_streamed(&whole);
    assert_eq!(expected.len(), TARGETS + 1);
    for entry in expected {
        assert_eq!(next(&mut streamed).await, entry);
    }
    stack.ended([&accepted.expect("accepted")], coordinator).await;
    worker.stop().await;
}

async fn a_small_payload_can_be_streamed_too(stack: Stack) {
    let ((to_whole, mut wholes), (to_stream, mut streamed)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let worker =
        stack.worker([answers(), whole("my.whole", to_whole), streaming("my.stream", to_stream)]).await;
    let coordinator = coordinator(&stack);
    let accepted = fan_out(&stack, 3).on_final(["my.whole", "my.stream"]).invoke().await.expect("accepted");
    for entry in as_streamed(&next(&mut wholes).await) {
        assert_eq!(next(&mut streamed).await, entry);
    }
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
}

/// Invokes a fan-out with a callback, and returns the queue that the callback's payload is in, and the callback's message, which
/// goes on to its service.
async fn intercepted(stack: &Stack, wire: &mut Recorder, service: &str) -> (Accepted, String, Message) {
    let accepted = fan_out(stack, TARGETS).on_final([service]).invoke().await.expect("accepted");
    let message = wire.next().await;
    (accepted, parts_of(stack, &message), message)
}

async fn parts_stay_through_retries_and_among_the_parked_and_go_when_a_callback_has_succeeded(stack: Stack) {
    const FAILURES: u32 = 4;
    stack.note_retries();
    let attempts = Arc::new(AtomicU32::new(0));
    let fails = {
        let attempts = Arc::clone(&attempts);
        service("my.failing", move |_: Context, payload: FinalPayload| {
            let attempts = Arc::clone(&attempts);
            async move {
                assert_eq!(payload.data.len(), TARGETS);
                match attempts.fetch_add(1, Ordering::Relaxed) {
                    ..FAILURES => Err("not yet".into()),
                    _ => Ok(()),
                }
            }
        })
    };
    let mut wire = stack.record("my.failing").await;
    let targets = stack.worker([answers()]).await;
    let coordinator = coordinator(&stack);
    let (accepted, parts, message) = intercepted(&stack, &mut wire, "my.failing").await;
    stack.ended([&accepted], coordinator).await;
    drop(wire);
    let retry = Retry::exponential(2).first_delay(Duration::from_secs(1));
    let worker = stack.worker([fails.retry(retry)]).await;
    stack.publish(&stack.declare_service("my.failing").await, message).await;
    let operator = stack.operator(Duration::from_secs(1));
    for failed in [2, 4] {
        eventually("it is parked", async || {
            attempts.load(Ordering::Relaxed) == failed
                && operator.parked(&ParkedQuery::default(), 10).await.is_ok_and(|parked| parked.matching == 1)
        })
        .await;
        stack.queue_has(&parts, "all of its parts", |state| state.messages > 1).await;
        let replayed = operator.replay(&ParkedQuery::default()).await.expect("it can be put back");
        assert!(replayed.len() == 1 && replayed[0].outcome.is_ok(), "{replayed:?}");
    }
    stack.queue_is_gone(&parts).await;
    assert_eq!(attempts.load(Ordering::Relaxed), FAILURES + 1);
    worker.stop().await;
    targets.stop().await;
}

async fn a_callback_whose_worker_dies_while_it_streams_reads_all_of_it_again(stack: Stack) {
    let targets = stack.worker([answers()]).await;
    let mut wire = stack.record("my.stream").await;
    let coordinator = coordinator(&stack);
    let (accepted, parts, message) = intercepted(&stack, &mut wire, "my.stream").await;
    stack.ended([&accepted], coordinator).await;
    drop(wire);
    let (begun, mut begins) = mpsc::unbounded_channel();
    let hangs = service("my.stream", move |context: Context, _: IgnoredAny| {
        let begun = begun.clone();
        async move {
            let mut results = context.results()?;
            for _ in 0..TARGETS / 2 {
                results.next().await?.ok_or("there are more")?;
            }
            begun.send(())?;
            std::future::pending::<fanfare_worker::Result<()>>().await
        }
    });
    let doomed = stack.worker([hangs.streaming()]).await;
    stack.publish(&stack.declare_service("my.stream").await, message).await;
    begins.recv().await.expect("it begins");
    doomed.kill().await;
    let (to_stream, mut streamed) = mpsc::unbounded_channel();
    let worker = stack.worker([streaming("my.stream", to_stream)]).await;
    for n in 0..TARGETS {
        assert!(next(&mut streamed).await.starts_with(&format!("{n}={{")));
    }
    assert_eq!(next(&mut streamed).await, "end");
    stack.queue_is_gone(&parts).await;
    worker.stop().await;
    targets.stop().await;
}

async fn parts_of_a_parked_callback_go_with_it(stack: Stack) {
    let fails = service("my.failing", |_: Context, _: IgnoredAny| async { Err::<(), _>("no".into()) });
    let worker = stack.worker([answers(), fails.retry(Retry::exponential(1))]).await;
    let coordinator = coordinator(&stack);
    let accepted = fan_out(&stack, TARGETS).on_final(["my.failing"]).invoke().await.expect("accepted");
    stack.queue_has(&stack.names().parked().name, "a message", |queue| queue.messages == 1).await;
    let operator = stack.operator(Duration::from_secs(1));
    let parked = operator.parked(&ParkedQuery::default(), 1).await.expect("it can be looked at");
    let (_, message) =
        operator.parked_message(&parked.messages[0].id).await.expect("it can be looked at").expect("there");
    let parts = parts_of(&stack, &message);
    stack.queue_has(&parts, "all of its parts", |state| state.messages > 1).await;
    let purged = operator.purge(&ParkedQuery::default()).await.expect("it can be dropped");
    assert_eq!(purged.len(), 1);
    stack.queue_is_gone(&parts).await;
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
}

/// 200 MB into each of two final callbacks with `--full`, 20 MB else: more than a message holds in any case.
#[expect(clippy::print_stdout, reason = "the figures of docs/guarantees.md")]
async fn a_receiver_that_streams_stays_small(stack: Stack) {
    const CHARACTERS: usize = 10_000;
    const MOST_BYTES: u64 = 64 * 1024 * 1024;
    let targets = if full() { 20_000 } else { 2_000 };
    let program = env!("CARGO_BIN_EXE_fanfare-test-node");
    let mut receipts = stack.record("test.receipts").await;
    let _whole = Node::start(program, &stack, &["receiver"]);
    let _stream = Node::start(program, &stack, &["receiver", "--streams"]);
    for service in ["test.whole", "test.stream"] {
        stack.service_exists(service).await;
    }
    let coordinator = Node::start(program, &stack, &["coordinator"]);
    let worker = stack.worker([services::text().prefetch(500)]).await;
    let fan_out = stack.publisher().fanout("my.source").on_final(["test.whole", "test.stream"]);
    let all = (0..targets).map(|n| Target::new("test.text", CHARACTERS).key(n.to_string()));
    let accepted = all.fold(fan_out, Fanout::add).invoke().await.expect("accepted");
    for _ in 0..2 {
        let receipt: services::Receipt =
            serde_json::from_slice(&receipts.next().await.body).expect("a receipt");
        println!("{receipt:?}");
        assert_eq!((receipt.results, receipt.characters), (targets, targets * CHARACTERS));
        let streams = receipt.service == "test.stream";
        assert!(!streams || receipt.peak_bytes < MOST_BYTES, "{receipt:?}");
    }
    let id = coordinator.id().expect("it runs").to_string();
    let peak_bytes = services::peak_bytes(&id).expect("the system tells");
    println!("the coordinator had {peak_bytes} bytes");
    // What it holds of results it holds once; the rest is what the broker's client and checkpoints take on the way.
    let most_bytes = 2 * (targets * CHARACTERS) as u64 + 2 * MOST_BYTES;
    assert!(peak_bytes < most_bytes, "{peak_bytes} of {most_bytes}");
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    assert!(coordinator.terminate().await.success());
    worker.stop().await;
}

async fn a_caller_who_waits_is_told_all_of_a_large_payload(stack: Stack) {
    let worker = stack.worker([answers()]).await;
    let coordinator = coordinator(&stack);
    let payload = fan_out(&stack, TARGETS).invoke_and_wait(fanfare_tests::PATIENCE).await.expect("it ends");
    assert_eq!((payload.data.len(), payload.failures().count()), (TARGETS, 0));
    assert_eq!(payload.get::<String>("17").expect("it answered"), "7".repeat(CHARACTERS));
    coordinator.stop().await;
    worker.stop().await;
}
