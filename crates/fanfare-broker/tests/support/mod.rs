//! What the tests against a real broker share.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod log;
pub(crate) mod proxy;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::amqp::{AmqpBroker, Config};
use fanfare_broker::{Broker, Consumer, ConsumerChannel, Delivery, System};
use fanfare_protocol::queue::Argument;
use fanfare_protocol::{Message, QueueSpec};
use uuid::Uuid;

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The URL of the broker to test against.
pub(crate) fn url() -> String {
    std::env::var("FANFARE_TEST_BROKER").expect("set FANFARE_TEST_BROKER or run `cargo xtask test`")
}

/// A broker's URL in parts: its scheme, its user and password with an `@` if it has any, its host and port, and the rest.
pub(crate) fn split(url: &str) -> (&str, &str, String, &str) {
    let (scheme, rest) = url.split_once("://").expect("a URL has a scheme");
    let (credentials, rest) = rest.split_at(rest.rfind('@').map_or(0, |at| at + 1));
    let (broker, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let port = if broker.contains(':') { "" } else { ":5672" };
    (scheme, credentials, format!("{broker}{port}"), path)
}

pub(crate) fn config(urls: &str) -> Config {
    Config::parse(urls).expect("the addresses are valid")
}

pub(crate) fn broker(config: Config) -> Arc<AmqpBroker> {
    Arc::new(AmqpBroker::new(config, Arc::new(System)))
}

/// A queue of its own for each test, which goes away if the test fails to delete it.
pub(crate) fn queue(kind: &'static str) -> QueueSpec {
    let arguments = BTreeMap::from([
        ("x-queue-type", Argument::from(kind)),
        ("x-expires", Argument::from(10 * 60 * 1000)),
    ]);
    QueueSpec { name: format!("fanfare-test.{}", Uuid::new_v4()), exclusive: false, arguments }
}

pub(crate) async fn declared(broker: &dyn Broker, kind: &'static str) -> String {
    let queue = queue(kind);
    broker.declare(&queue).await.expect("the queue is declared");
    queue.name
}

pub(crate) fn message(id: impl ToString) -> Message {
    let mut message = Message::default();
    message.properties.message_id = Some(id.to_string().into());
    message.body = b"{}".as_slice().into();
    message
}

pub(crate) fn id(delivery: &Delivery) -> &str {
    delivery.message.properties.message_id.as_deref().expect("the message has an id")
}

/// The next delivery, which has to come.
pub(crate) async fn next(consumer: &mut Consumer) -> Delivery {
    within("a delivery", consumer.next()).await.expect("the consumer is there").expect("the channel is there")
}

pub(crate) async fn consume(broker: &dyn Broker, queue: &str) -> (Arc<dyn ConsumerChannel>, Consumer) {
    let channel = broker.open().await.expect("a channel is opened");
    let consumer = channel.consume(queue, 100).await.expect("the queue is consumed");
    (channel, consumer)
}

/// What a future comes to, which it has to do in time.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Tries again until an operation succeeds.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    within(what, async {
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
}
