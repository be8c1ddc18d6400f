//! What a worker does that is told of a cancelled fan-out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_broker::{Broker, PublishError};
use fanfare_protocol::{Cancelled, Message};
use fanfare_worker::{Context, service};
use harness::{Bench, within};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Between two looks at the broker, in paused time.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Tells the workers something, once there is one who listens.
async fn tell(bench: &Bench, message: Message) {
    let workers = bench.names.workers().name;
    while let Err(error) = bench.caller.publish_through(&workers, "", message.clone()).await {
        assert!(matches!(error, PublishError::NoExchange(_) | PublishError::Unbound(_)), "{error}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[tokio::test(start_paused = true)]
async fn targets_are_told_to_end_and_not_begun_with_and_callbacks_run_all_the_same() {
    let bench = Bench::new();
    let (token, mut tokens) = mpsc::unbounded_channel::<CancellationToken>();
    let begun = Arc::new(AtomicUsize::new(0));
    let deaf = {
        let begun = Arc::clone(&begun);
        // It does not look at its token, and would never end.
        service("deaf", move |context: Context, _: Value| {
            begun.fetch_add(1, Ordering::Relaxed);
            token.send(context.cancellation().clone()).unwrap();
            async { pending::<fanfare_worker::Result<()>>().await }
        })
    };
    let (called, mut calls) = mpsc::unbounded_channel();
    let callback = service("callback", move |context: Context, _: Value| {
        called.send(context.run()).unwrap();
        async { Ok(()) }
    });
    bench.call("deaf", ["1"]).await;
    let worker = bench.start([deaf.concurrency(1), callback]).await;
    let token = within(tokens.recv()).await.unwrap();
    tell(&bench, Message::default()).await;
    tell(&bench, Cancelled { cid: bench.cid(), run: bench.run }.encode()).await;
    within(token.cancelled()).await;

    bench.call("deaf", ["2", "3"]).await;
    let mut message = bench.request("callback", 0, "{}");
    message.properties.kind = Some("fanfare.callback".into());
    message.properties.reply_to = None;
    message.headers.insert("fanfare-channel", "fanout-on-final");
    bench.send("callback", message).await;
    assert_eq!(within(calls.recv()).await, Some(bench.run));
    // It comes after them, and is no target.
    let mut plain = bench.request("deaf", 3, "4").with_header("fanfare-channel", "invoke");
    plain.properties.reply_to = None;
    bench.send("deaf", plain).await;
    within(tokens.recv()).await.unwrap();
    worker.stop().await;
    assert_eq!(begun.load(Ordering::Relaxed), 2, "of the targets, only the first was begun with");
    assert_eq!(bench.waiting(&bench.service_queue("deaf")).await, 1, "the last one goes back");
    assert_eq!(bench.waiting(&bench.aggregation_queue()).await, 0, "nobody is answered");
}

#[tokio::test(start_paused = true)]
async fn targets_of_another_run_go_on() {
    let bench = Bench::new();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let echo = service("echo", move |context: Context, answer: Value| {
        begun.send(context.cancellation().clone()).unwrap();
        async move { Ok(answer) }
    });
    bench.caller.declare(&bench.aggregation_queue()).await.unwrap();
    let worker = bench.start([echo]).await;
    let another = fanfare_protocol::RunId::from(uuid::Uuid::from_u128(8));
    tell(&bench, Cancelled { cid: bench.cid(), run: another }.encode()).await;
    bench.call("echo", ["1"]).await;
    assert_eq!(bench.result().await.response::<u32>().unwrap(), 1);
    assert!(within(begins.recv()).await.is_some());
    worker.stop().await;
}
