//! The in-memory broker passes the suite; and what only it offers: virtual time, and connections that are cut at will.

use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::conformance::{Harness, Kill};
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, BrokerError, PublishError};
use fanfare_protocol::queue::Argument;
use fanfare_protocol::{Message, QueueSpec};
use futures_util::FutureExt;

struct Memory(MemoryBroker);

#[async_trait::async_trait]
impl Harness for Memory {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(self.0.connect())
    }

    fn user(&self) -> String {
        MemoryBroker::DEFAULT_USER.to_owned()
    }

    async fn connect_mortal(&self) -> (Arc<dyn Broker>, Kill) {
        let client = Arc::new(self.0.connect());
        (Arc::clone(&client) as Arc<dyn Broker>, Box::new(move || client.isolate()))
    }
}

fanfare_broker::conformance_tests!(Memory(MemoryBroker::new()));

fn queue(name: &str, arguments: &[(&'static str, Argument)]) -> QueueSpec {
    QueueSpec { name: name.to_owned(), exclusive: false, arguments: arguments.iter().cloned().collect() }
}

fn message(body: &str) -> Message {
    Message { body: body.to_owned().into(), ..Message::default() }
}

#[tokio::test(start_paused = true)]
async fn a_queue_expires_only_when_unused_for_the_whole_time() {
    let broker = MemoryBroker::new();
    broker.declare(&queue("q", &[("x-expires", Argument::Int(10_000))])).await.unwrap();
    let channel = broker.open().await.unwrap();
    let consumer = channel.consume("q", 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    channel.cancel(consumer.tag()).await.unwrap();
    broker.publish("q", message("kept")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(9_900)).await;
    assert!(broker.inspect("q").await.unwrap().is_some(), "to look at it renews it");
    tokio::time::sleep(Duration::from_millis(9_900)).await;
    broker.publish("q", message("does not renew it")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(broker.inspect("q").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_expires_is_dead_lettered_with_the_reason_in_the_order_of_the_queue() {
    let broker = MemoryBroker::new();
    broker.declare(&queue("dead", &[])).await.unwrap();
    let arguments = [
        ("x-message-ttl", Argument::Int(1_000)),
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-routing-key", "dead".into()),
    ];
    broker.declare(&queue("delay", &arguments)).await.unwrap();
    let channel = broker.open().await.unwrap();
    let mut dead = channel.consume("dead", 10).await.unwrap();
    let start = tokio::time::Instant::now();
    for body in ["1", "2", "3"] {
        broker.publish("delay", message(body)).await.unwrap();
    }
    for body in ["1", "2", "3"] {
        let delivery = dead.next().await.unwrap().unwrap();
        assert_eq!(delivery.message.body, body);
        assert_eq!(delivery.message.text("x-first-death-reason"), Some("expired"));
        assert_eq!(delivery.message.text("x-first-death-queue"), Some("delay"));
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_waits_for_its_queue_where_at_least_once_is_asked_for() {
    let broker = MemoryBroker::new();
    let arguments = [
        ("x-queue-type", "quorum".into()),
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-routing-key", "dead".into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
    ];
    broker.declare(&queue("q", &arguments)).await.unwrap();
    let mut short_lived = message("late");
    short_lived.properties.expiration = Some("5".into());
    broker.publish("q", short_lived).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(broker.inspect("q").await.unwrap().unwrap().messages, 0);
    broker.declare(&queue("dead", &[])).await.unwrap();
    assert_eq!(broker.inspect("dead").await.unwrap().unwrap().messages, 1);
}

#[tokio::test]
async fn an_isolated_client_reaches_nothing_until_it_rejoins_and_others_go_on() {
    let broker = MemoryBroker::new();
    let other = broker.connect();
    broker.declare(&queue("q", &[])).await.unwrap();
    broker.publish("q", message("1")).await.unwrap();
    let channel = broker.open().await.unwrap();
    let mut consumer = channel.consume("q", 1).await.unwrap();
    let held = consumer.next().await.unwrap().unwrap();

    broker.isolate();
    channel.ended().await;
    assert!(consumer.next().await.unwrap().unwrap_err().is_outage());
    assert!(consumer.next().await.is_none());
    held.receipt.ack().await;
    assert!(broker.open().await.unwrap_err().is_outage());
    let refused = broker.publish("q", message("2")).await;
    assert!(matches!(refused, Err(PublishError::NotSent(BrokerError::Unreachable(_)))));
    assert_eq!(other.inspect("q").await.unwrap().unwrap().messages, 1, "what it held is back");

    broker.rejoin();
    broker.publish("q", message("2")).await.unwrap();
    assert_eq!(other.inspect("q").await.unwrap().unwrap().messages, 2);
}

#[tokio::test]
async fn an_answer_given_twice_ends_the_channel() {
    let broker = MemoryBroker::new();
    broker.declare(&queue("q", &[])).await.unwrap();
    broker.publish("q", message("1")).await.unwrap();
    let channel = broker.open().await.unwrap();
    let delivery = channel.consume("q", 1).await.unwrap().next().await.unwrap().unwrap();
    delivery.receipt.ack().await;
    delivery.receipt.ack().await;
    channel.ended().await;
}

#[tokio::test]
async fn a_client_that_is_dropped_gives_back_what_it_held() {
    let broker = MemoryBroker::new();
    broker.declare(&queue("q", &[])).await.unwrap();
    broker.publish("q", message("1")).await.unwrap();
    let client = broker.connect();
    let channel = client.open().await.unwrap();
    let mut consumer = channel.consume("q", 1).await.unwrap();
    let _held = consumer.next().await.unwrap().unwrap();
    assert_eq!(broker.inspect("q").await.unwrap().unwrap().messages, 0);
    drop(client);
    assert_eq!(broker.inspect("q").await.unwrap().unwrap().messages, 1);
    assert!(matches!(consumer.next().await, Some(Err(BrokerError::Closed))));
}

#[tokio::test]
async fn a_deaf_client_publishes_and_hears_of_nothing_until_it_notices() {
    let broker = MemoryBroker::new();
    let other = broker.connect();
    broker.declare(&queue("q", &[])).await.unwrap();
    broker.publish("q", message("1")).await.unwrap();
    let channel = broker.open().await.unwrap();
    let mut consumer = channel.consume("q", 1).await.unwrap();
    let held = consumer.next().await.unwrap().unwrap();

    broker.deafen();
    assert_eq!(other.inspect("q").await.unwrap().unwrap().messages, 1, "what it held is back");
    held.receipt.ack().await;
    broker.publish("q", message("2")).await.unwrap();
    assert_eq!(other.inspect("q").await.unwrap().unwrap().messages, 2);
    assert!(consumer.next().now_or_never().is_none());
    assert!(channel.ping().now_or_never().is_none());
    assert!(channel.ended().now_or_never().is_none());
    broker.open().await.unwrap().ping().await.unwrap();

    broker.notice();
    channel.ended().await;
    assert!(channel.ping().await.unwrap_err().is_outage());
    assert!(consumer.next().await.unwrap().unwrap_err().is_outage());
}
