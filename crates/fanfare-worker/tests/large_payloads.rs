//! Final payloads that come in parts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfare_broker::Broker;
use fanfare_protocol::{LargePayload, Message, Part, QueueSpec, RunId, header};
use fanfare_worker::{Config, Context, Registration, Retry, service};
use harness::{Bench, within};
use serde::de::IgnoredAny;
use tokio::sync::{Notify, mpsc};

const HEAD: &str =
    r#"{"source":"shop","req_ts_utc":"2025-01-19 19:55:45","on_target":"","on_final":["done"]}"#;

fn entry(key: &str) -> String {
    format!(
        r#""{key}":{{"source":"shop","target":"t","response":"{key}","req_ts_utc":"2025-01-19 19:55:45","resp_ts_utc":"2025-01-19 19:55:46","ok":true,"exception":null,"cid":"order-7"}}"#
    )
}

/// Declares the queue of a payload of three results, and puts a callback message that refers to it into its service's queue.
async fn refer(bench: &Bench) -> QueueSpec {
    let writer = RunId::from(uuid::Uuid::from_u128(9));
    let queue = bench.names.payload(&bench.cid(), bench.run, writer);
    let whole =
        format!("{},\"data\":{{{}}}}}", &HEAD[..HEAD.len() - 1], ["a", "b", "c"].map(entry).join(","));
    let large = LargePayload { writer, parts: 3, bytes: whole.len() };
    let mut message = bench.request("done", 0, HEAD).with_header(header::CHANNEL, "fanout-on-final");
    message.properties.kind = Some(header::TYPE_CALLBACK.into());
    message.properties.reply_to = None;
    message.headers.remove(header::KEY);
    bench.send("done", large.refer(message)).await;
    queue
}

fn part(bench: &Bench, number: usize) -> Message {
    let writer = RunId::from(uuid::Uuid::from_u128(9));
    let body = Bytes::from(format!("{{{}}}", entry(["a", "b", "c"][number])));
    Part { writer, number, body }.encode(&bench.cid(), bench.run)
}

/// The same, with its parts in the queue. Those whose number is given twice were published again.
async fn refer_to(bench: &Bench, numbers: &[usize]) -> QueueSpec {
    let queue = refer(bench).await;
    bench.caller.declare(&queue).await.unwrap();
    for number in numbers {
        bench.caller.publish(&queue.name, part(bench, *number)).await.unwrap();
    }
    queue
}

/// A service that tells the keys of the results that it is given, in their order.
fn whole() -> (Registration, mpsc::UnboundedReceiver<String>) {
    let (keys, seen) = mpsc::unbounded_channel();
    let done = service("done", move |_: Context, payload: fanfare_protocol::FinalPayload| {
        let keys = keys.clone();
        async move {
            let all: Vec<&str> = payload.data.iter().map(|(key, _)| key).collect();
            Ok(keys.send(all.join(" "))?)
        }
    });
    (done, seen)
}

async fn until_gone(bench: &Bench, queue: &QueueSpec) {
    within(async {
        while bench.caller.exists(&queue.name).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Why the callback was parked.
async fn reason(bench: &Bench) -> String {
    let parked = bench.take(&bench.names.parked(), 1).await.remove(0).message;
    assert!(parked.headers.contains_key(header::PAYLOAD), "it can be put back");
    parked.text(header::REASON).unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn parts_are_read_in_their_order_past_those_that_were_published_twice_and_deleted() {
    let bench = Bench::new();
    let queue = refer_to(&bench, &[0, 0, 1, 1, 2]).await;
    let (done, mut seen) = whole();
    let worker = bench.start([done]).await;
    assert_eq!(within(seen.recv()).await.unwrap(), "a b c");
    until_gone(&bench, &queue).await;
    worker.stop().await;
    assert_eq!(bench.waiting(&bench.names.parked()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn parts_that_another_still_holds_are_waited_for() {
    let bench = Bench::new();
    let queue = refer_to(&bench, &[0, 1, 2]).await;
    let other = bench.caller.open().await.unwrap();
    for _ in 0..2 {
        other.get(&queue.name).await.unwrap().unwrap();
    }
    let (done, mut seen) = whole();
    let worker = bench.start([done]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(seen.try_recv().is_err(), "there is no more than the last part");
    other.close().await;
    assert_eq!(within(seen.recv()).await.unwrap(), "a b c");
    until_gone(&bench, &queue).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_payload_whose_parts_are_gone_is_parked_at_once() {
    let bench = Bench::new();
    refer(&bench).await;
    let (done, _seen) = whole();
    let worker = bench.start([done]).await;
    let reason = reason(&bench).await;
    assert!(reason.starts_with("done failed: the parts of this payload are gone with queue"), "{reason}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_lacks_a_part_is_parked_in_the_end() {
    let bench = Bench::new();
    let queue = refer_to(&bench, &[0, 2]).await;
    let (done, _seen) = whole();
    let worker = bench.start([done.retry(Retry::exponential(2))]).await;
    let reason = reason(&bench).await;
    assert!(reason.starts_with("done failed 2 times: part 1 of 3 is not in queue"), "{reason}");
    worker.stop().await;
    assert_eq!(bench.waiting(&queue).await, 2, "what is there stays");
}

#[tokio::test(start_paused = true)]
async fn a_payload_above_the_workers_limit_is_parked_unless_it_is_streamed() {
    let bench = Bench::new();
    let queue = refer_to(&bench, &[0, 1, 2]).await;
    let (done, _seen) = whole();
    let config = || Config { most_payload_bytes: 100, ..Config::default() };
    let worker = bench.start_with(config(), [done]).await;
    let reason = reason(&bench).await;
    assert!(reason.contains("and 100 is the most that this worker puts together"), "{reason}");
    worker.stop().await;
    assert_eq!(bench.waiting(&queue).await, 3);

    let (keys, mut seen) = mpsc::unbounded_channel();
    let streams = service("done", move |context: Context, _: IgnoredAny| {
        let keys = keys.clone();
        async move {
            let mut results = context.results()?;
            while let Some((key, _)) = results.next().await? {
                keys.send(key)?;
            }
            Ok(())
        }
    });
    refer(&bench).await;
    let worker = bench.start_with(config(), [streams.streaming()]).await;
    for key in ["a", "b", "c"] {
        assert_eq!(within(seen.recv()).await.unwrap(), key);
    }
    until_gone(&bench, &queue).await;
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_after_its_connection_was_lost_and_the_parts_go_with_the_redelivery() {
    let bench = Bench::new();
    let queue = refer_to(&bench, &[0, 1, 2]).await;
    let (keys, mut seen) = mpsc::unbounded_channel();
    let goes_on = Arc::new(Notify::new());
    let waits = Arc::clone(&goes_on);
    let streams = service("done", move |context: Context, _: IgnoredAny| {
        let (keys, waits) = (keys.clone(), Arc::clone(&waits));
        async move {
            let mut results = context.results()?;
            while let Some((key, _)) = results.next().await? {
                keys.send(key)?;
                waits.notified().await;
            }
            Ok(())
        }
    });
    let worker = bench.start([streams.streaming()]).await;
    assert_eq!(within(seen.recv()).await.unwrap(), "a");
    bench.worker.memory.cut();
    for key in ["b", "c"] {
        goes_on.notify_one();
        assert_eq!(within(seen.recv()).await.unwrap(), key);
    }
    goes_on.notify_one();
    until_gone(&bench, &queue).await;
    worker.stop().await;
    assert!(seen.recv().await.is_none(), "the redelivery is not run again");
    assert_eq!(bench.waiting(&bench.service_queue("done")).await, 0);
}
