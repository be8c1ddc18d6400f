//! Waiting for the final payload of a fan-out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_broker::{Broker, memory::MemoryBroker};
use fanfare_protocol::{
    Callback, CallbackKind, Ending, FinalPayloadBuilder, Manifest, QueueNames, RunId, TargetResult,
};
use fanfare_publisher::{Fanout, InvokeError, WaitError, WhileWaiting, Yielded};
use harness::Faulty;
use serde_json::value::RawValue;

/// More than any payload here has.
const MOST: usize = fanfare_protocol::limits::MESSAGE_BYTES;

const MINUTE: Duration = Duration::from_secs(60);

async fn served() -> Arc<Faulty> {
    let broker = Faulty::new();
    broker.serve(&["price", "done"]).await;
    broker
}

fn question(broker: &Arc<Faulty>) -> Fanout {
    broker.publisher().fanout("shop").target("price", 1)
}

/// Reads the next manifest, as a coordinator does.
async fn manifest(broker: &MemoryBroker) -> Manifest {
    let names = QueueNames::default();
    broker.declare(&names.fanin()).await.unwrap();
    let channel = broker.open().await.unwrap();
    let delivery = channel.consume(&names.fanin_queue(), 1).await.unwrap().next().await.unwrap().unwrap();
    delivery.receipt.ack().await;
    Manifest::decode(&delivery.message, &names).unwrap()
}

/// Sends the waiter a final payload in which the target answered `response`.
async fn conclude(broker: &MemoryBroker, manifest: &Manifest, response: &str) {
    let result = TargetResult {
        source: manifest.source.to_string(),
        target: "price".to_owned(),
        response: RawValue::from_string(response.to_owned()).unwrap(),
        req_ts_utc: manifest.req_ts_utc,
        resp_ts_utc: manifest.req_ts_utc,
        ok: true,
        exception: None,
        cid: manifest.cid.clone(),
        ended_by: None,
    }
    .to_body();
    let mut payload = FinalPayloadBuilder::new(manifest);
    payload.push(&result);
    let kind = CallbackKind::OnFinal { callback: None, ending: Ending::default() };
    let message = Callback { manifest, kind, body: payload.finish(MOST, MOST).joined() }.encode();
    broker.publish(manifest.waiter.as_deref().unwrap(), message).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_payload_comes_to_the_waiter_without_a_final_callback_and_its_queue_goes() {
    let broker = served().await;
    let coordinator = broker.memory.connect();
    let (payload, waiter) = tokio::join!(question(&broker).invoke_and_wait(MINUTE), async {
        let manifest = manifest(&coordinator).await;
        conclude(&coordinator, &manifest, "42").await;
        manifest.waiter.unwrap()
    });
    assert_eq!(payload.unwrap().get::<u32>("price").unwrap(), 42);
    tokio::time::timeout(MINUTE, async {
        while broker.memory.inspect(&waiter).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the queue to wait on is deleted");
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_run_is_not_taken_for_this_one() {
    let broker = served().await;
    let coordinator = broker.memory.connect();
    let (payload, ()) = tokio::join!(question(&broker).cid("c").invoke_and_wait(MINUTE), async {
        let manifest = manifest(&coordinator).await;
        let other = Manifest { run: RunId::from(uuid::Uuid::from_u128(99)), ..manifest.clone() };
        conclude(&coordinator, &other, "1").await;
        conclude(&coordinator, &manifest, "2").await;
    });
    assert_eq!(payload.unwrap().get::<u32>("price").unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_times_out_says_that_the_fan_out_goes_on() {
    let broker = served().await;
    let error = question(&broker).cid("c").on_final("done").invoke_and_wait(MINUTE).await.unwrap_err();
    assert!(matches!(&error, WaitError::TimedOut { cid, .. } if cid.as_str() == "c"), "{error:?}");
    assert!(error.to_string().contains("it goes on"), "{error}");
    let manifest = manifest(&broker.memory).await;
    assert_eq!(manifest.on_final.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_that_of_the_run_that_was_accepted_though_another_was_planned() {
    let broker = served().await;
    broker.cut_declarations(2);
    let (publisher, coordinator) = (broker.publisher(), broker.memory.connect());
    // The second one finds a queue that is ready.
    for _ in 0..2 {
        let question = publisher.fanout("shop").target("price", 1);
        let (payload, ()) = tokio::join!(question.invoke_and_wait(MINUTE), async {
            let manifest = manifest(&coordinator).await;
            conclude(&coordinator, &manifest, "42").await;
        });
        assert_eq!(payload.unwrap().get::<u32>("price").unwrap(), 42);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_ends_the_wait_and_not_the_fan_out() {
    let broker = served().await;
    let coordinator = broker.memory.connect();
    let (outcome, ()) = tokio::join!(question(&broker).cid("order-7").invoke_and_wait(MINUTE), async {
        manifest(&coordinator).await;
        broker.memory.cut();
    });
    let error = outcome.unwrap_err();
    assert!(matches!(error, WaitError::Lost { .. }), "{error:?}");
    assert_eq!(broker.aggregation_queues().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_broker_there_is_nothing_to_wait_on() {
    let broker = served().await;
    broker.memory.isolate();
    let error = question(&broker).invoke_and_wait(MINUTE).await.unwrap_err();
    assert!(matches!(&error, WaitError::Invoke(error) if error.is_unreachable()), "{error:?}");
}

/// Counts waits that began and that ended.
#[derive(Debug, Default, Clone)]
struct Counting(Arc<(AtomicUsize, AtomicUsize)>);

impl WhileWaiting for Counting {
    fn begin(&self) -> Box<dyn Yielded> {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        Box::new(self.clone())
    }
}

#[async_trait]
impl Yielded for Counting {
    async fn end(self: Box<Self>) {
        self.0.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_gives_way_while_it_waits_is_told_of_every_end() {
    let broker = served().await;
    let counting = Counting::default();
    let timed_out = question(&broker).while_waiting(Arc::new(counting.clone())).invoke_and_wait(MINUTE).await;
    assert!(matches!(timed_out, Err(WaitError::TimedOut { .. })));
    let refused = question(&broker)
        .target("nobody", 1)
        .while_waiting(Arc::new(counting.clone()))
        .invoke_and_wait(MINUTE)
        .await;
    assert!(matches!(refused, Err(WaitError::Invoke(InvokeError::Invalid(_)))));
    assert_eq!(counting.0.0.load(Ordering::Relaxed), 2);
    assert_eq!(counting.0.1.load(Ordering::Relaxed), 2);
}
