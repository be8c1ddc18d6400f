use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fanfare_protocol::queue::{Argument, DELIVERY_LIMIT};
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Harness, Kill};
use crate::{Broker, Consumer, ConsumerChannel, Delivery, PublishError, QueueState};

/// Longer than anything takes that works, on a busy machine too.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long between two looks at a condition that only the broker knows of.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After which queues go that a failed case left behind.
const LEFT_BEHIND_MS: i64 = 10 * 60 * 1000;

/// Both types of queue, for what holds on both.
pub(super) const KINDS: [&str; 2] = ["classic", "quorum"];

/// What a case works with: a client of its own, and queues that no other case has.
pub(super) struct Bench<'a> {
    harness: &'a dyn Harness,
    pub(super) broker: Arc<dyn Broker>,
    prefix: String,
    queues: Mutex<Vec<String>>,
    exchanges: Mutex<Vec<String>>,
}

impl<'a> Bench<'a> {
    pub(super) async fn new(harness: &'a dyn Harness) -> Self {
        let broker = harness.connect().await;
        let prefix = format!("fanfare-conformance.{}", Uuid::new_v4().simple());
        Self { harness, broker, prefix, queues: Mutex::default(), exchanges: Mutex::default() }
    }

    pub(super) async fn finish(self) {
        for queue in self.queues.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.broker.delete(&queue).await.unwrap();
        }
        for exchange in self.exchanges.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.broker.delete_exchange(&exchange).await.unwrap();
        }
        self.broker.close().await;
    }

    /// Whom the clients log in as.
    pub(super) fn user(&self) -> String {
        self.harness.user()
    }

    pub(super) async fn connect(&self) -> Arc<dyn Broker> {
        self.harness.connect().await
    }

    pub(super) async fn connect_mortal(&self) -> (Arc<dyn Broker>, Kill) {
        self.harness.connect_mortal().await
    }

    /// A queue that is not declared.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// A queue to declare, with these arguments beside those that the protocol gives all queues of its type.
    pub(super) fn spec(&self, name: &str, kind: &str, more: &[(&'static str, Argument)]) -> QueueSpec {
        let mut arguments = BTreeMap::from([
            ("x-queue-type", Argument::from(kind)),
            ("x-expires", Argument::from(LEFT_BEHIND_MS)),
        ]);
        if kind == "quorum" {
            arguments.insert("x-delivery-limit", DELIVERY_LIMIT.into());
        }
        arguments.extend(more.iter().cloned());
        let name = self.name(name);
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        QueueSpec { name, exclusive: false, arguments }
    }

    /// Declares a queue.
    pub(super) async fn declare(&self, name: &str, kind: &str, more: &[(&'static str, Argument)]) -> String {
        let spec = self.spec(name, kind, more);
        self.broker.declare(&spec).await.unwrap();
        spec.name
    }

    /// Declares an exchange.
    pub(super) async fn declare_exchange(&self, name: &str) -> String {
        let spec = ExchangeSpec { name: self.name(name) };
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).push(spec.name.clone());
        self.broker.declare_exchange(&spec).await.unwrap();
        spec.name
    }

    /// Publishes messages that hold these numbers, in this order.
    pub(super) async fn fill(&self, queue: &str, numbers: impl IntoIterator<Item = usize>) {
        for number in numbers {
            self.broker.publish(queue, message(number)).await.unwrap();
        }
    }

    /// Publishes many messages, in any order.
    pub(super) async fn fill_at_once(&self, queue: &str, count: usize) {
        let all = join_all((0..count).map(|number| self.broker.publish(queue, message(number)))).await;
        all.into_iter().for_each(Result::unwrap);
    }

    /// Waits until a queue is in a state.
    pub(super) async fn until(&self, queue: &str, what: &str, is: impl Fn(&QueueState) -> bool) {
        within(what, async {
            while !self.broker.inspect(queue).await.unwrap().as_ref().is_some_and(&is) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
        .await;
    }

    /// Waits until a queue holds so many messages that are not out for delivery.
    pub(super) async fn until_ready(&self, queue: &str, messages: u64) {
        self.until(queue, &format!("{messages} messages that wait"), |state| state.messages == messages)
            .await;
    }

    /// Waits until a queue is gone, without looking at it: that would count as use of it.
    pub(super) async fn until_gone(&self, queue: &str) {
        within("the end of the queue", async {
            loop {
                match self.broker.publish(queue, Message::default()).await {
                    // It refuses what it had in hand when it went.
                    Ok(()) | Err(PublishError::Refused(_)) => tokio::time::sleep(LOOK_EVERY).await,
                    Err(PublishError::Unroutable(_)) => break,
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
        .await;
    }
}

/// Opens a channel and consumes a queue on it.
pub(super) async fn consume(
    broker: &Arc<dyn Broker>,
    queue: &str,
    prefetch: u16,
) -> (Arc<dyn ConsumerChannel>, Consumer) {
    let channel = broker.open().await.unwrap();
    let consumer = channel.consume(queue, prefetch).await.unwrap();
    (channel, consumer)
}

/// A message that holds a number.
pub(super) fn message(number: usize) -> Message {
    let mut message = Message { body: number.to_string().into(), ..Message::default() };
    message.properties.message_id = Some(format!("message/{number}").into());
    message
}

/// The number that a message holds.
pub(super) fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(&delivery.message.body).unwrap().parse().unwrap()
}

/// The next delivery.
pub(super) async fn next(consumer: &mut Consumer) -> Delivery {
    within("the next delivery", consumer.next()).await.expect("the consumer goes on").unwrap()
}

/// The next deliveries.
pub(super) async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for _ in 0..count {
        deliveries.push(next(consumer).await);
    }
    deliveries
}

/// The numbers that deliveries hold.
pub(super) fn numbers(deliveries: &[Delivery]) -> Vec<usize> {
    deliveries.iter().map(number).collect()
}

/// What a future comes to, in time.
pub(super) async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come within {} s", PATIENCE.as_secs()))
}
