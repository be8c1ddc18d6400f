use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, Fuse};
use tokio::time::Instant;

use crate::parts::{OpenParts, Parts};
use crate::{BrokerError, PublishError};

/// A message broker. Shared as `Arc<dyn Broker>`; every method may be called from many tasks at once.
///
/// An implementation connects by itself, and again when the connection is lost: an operation during an outage fails with
/// an error whose [`BrokerError::is_outage`] is true, and the next one tries anew.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// Publishes one message to a queue, persistent and mandatory, and waits until the broker confirms it.
    ///
    /// Any number may be under way at once. When this returns `Ok`, the message is safe in that queue. A message that cannot
    /// be sent for long is [`NotSent`](PublishError::NotSent). One that was sent is waited for as long as its connection
    /// lives: a confirm that is late is no reason to send anything twice. Whoever has less time drops the future, which
    /// leaves it open whether the message is sent.
    ///
    /// # Errors
    /// [`PublishError`] tells where the message is.
    async fn publish(&self, queue: &str, message: Message) -> Result<(), PublishError> {
        self.publish_by(queue, message, None).await
    }

    /// As [`publish`](Broker::publish), for a message that must not be sent any more after `latest`: it is
    /// [`NotSent`](PublishError::NotSent) then.
    ///
    /// # Errors
    /// [`PublishError`] tells where the message is.
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError>;

    /// Publishes one message to a fanout exchange, as [`publish`](Self::publish) does to a queue. When this returns `Ok`, the
    /// message is safe in every queue that is bound to the exchange. It keeps its routing key, which names the queue that
    /// takes it when one of those dead-letters it to the default exchange without a key of its own.
    ///
    /// # Errors
    /// [`PublishError::NoExchange`] and [`PublishError::Unbound`] instead of [`PublishError::Unroutable`]. Where an
    /// exchange is deleted while messages are on their way to it, these are [`PublishError::Unknown`]; messages to queues are
    /// not touched by that.
    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError>;

    /// Declares a queue; one that exists with the same arguments is left as it is.
    ///
    /// # Errors
    /// [`BrokerError::QueueDiffers`] where it exists with other arguments.
    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError>;

    /// Sees to it that a queue is there: looks first, and [declares it for good](Broker::declare_for_good) only where it is missing. So whoever
    /// may not declare it can use one that others have declared. The arguments of one that is there are not compared.
    ///
    /// # Errors
    /// As [`exists`](Broker::exists) and [`declare_for_good`](Broker::declare_for_good).
    async fn ensure(&self, queue: &QueueSpec, other: &QueueSpec) -> Result<(), BrokerError> {
        if self.exists(&queue.name).await? { Ok(()) } else { self.declare_for_good(queue, other).await }
    }

    /// Declares a queue, and then another of the same type that nobody else knows, which it deletes: so that what the first one is to hold
    /// outlives the broker, whenever that is killed.
    ///
    /// RabbitMQ writes what it needs to find a quorum queue's log again some time after the declaration (the
    /// [`names.dets`](https://github.com/rabbitmq/ra/blob/v3.1.6/src/ra_directory.erl) of its node, with an `auto_save` of 500 ms), or
    /// when it next looks for a name that it does not know. Where all members are killed before, the queue is there after the start, and
    /// empty; up to 4.2 it then has no leader, and takes nothing any more.
    ///
    /// # Errors
    /// As [`declare`](Broker::declare), of either queue, and [`delete`](Broker::delete).
    async fn declare_for_good(&self, queue: &QueueSpec, other: &QueueSpec) -> Result<(), BrokerError> {
        self.declare(queue).await?;
        self.declare(other).await?;
        self.delete(&other.name).await
    }

    /// Sees to it that the broker takes this `user_id` from whoever is logged in: of a message to no queue, since only the broker
    /// knows a login that is not by name, and who may impersonate others.
    ///
    /// # Errors
    /// [`BrokerError::WrongUser`] where it does not.
    async fn check_user_id(&self, user_id: &str) -> Result<(), BrokerError> {
        let mut message = Message::default();
        message.properties.user_id = Some(user_id.into());
        // No queue has an empty name, so the message comes back.
        match self.publish("", message).await {
            Ok(()) | Err(PublishError::Unroutable(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is a queue of this name. It needs less of a user's rights than [`inspect`](Broker::inspect) may.
    ///
    /// # Errors
    /// As [`inspect`](Broker::inspect).
    async fn exists(&self, queue: &str) -> Result<bool, BrokerError> {
        Ok(self.inspect(queue).await?.is_some())
    }

    /// Looks at a queue. `None` only where the broker says that there is none of this name.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] where it cannot be said.
    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError>;

    /// Deletes a queue with what it holds. Deleting one that does not exist succeeds.
    ///
    /// # Errors
    /// Where the broker cannot say that it is gone.
    async fn delete(&self, queue: &str) -> Result<(), BrokerError>;

    /// Declares an exchange; one that exists is left as it is.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] where one of this name is of another kind.
    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError>;

    /// Binds a durable queue to an exchange: it takes what is published to that from now on. To bind it again changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::NoQueue`] and [`BrokerError::NoExchange`] where one of them is missing.
    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError>;

    /// Deletes an exchange and its bindings. Deleting one that does not exist succeeds.
    ///
    /// # Errors
    /// Where the broker cannot say that it is gone.
    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError>;

    /// Opens a channel to consume on. What it hands out belongs to it.
    ///
    /// # Errors
    /// Where no connection or channel is to be had.
    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError>;

    /// Whether the broker takes no messages from this client for now, because it is short of memory or disk. What it holds
    /// is safe, and it goes on by itself when it has room again.
    fn is_blocked(&self) -> bool {
        false
    }

    /// What is at the other end.
    ///
    /// # Errors
    /// Where no connection is to be had.
    async fn server(&self) -> Result<ServerInfo, BrokerError>;

    /// Closes all connections. Operations under way and later ones fail with [`BrokerError::Closed`]. Closing twice is
    /// harmless.
    async fn close(&self);
}

/// A channel that consumes. When it ends, for whatever reason, what it handed out and was not acked goes back to its
/// queue. Dropping the last handle closes it.
///
/// An error of [`consume`](ConsumerChannel::consume), [`bind`](ConsumerChannel::bind) or
/// [`delete`](ConsumerChannel::delete) can end the channel with all its consumers: where many share one, look first, with
/// [`Broker::inspect`].
#[async_trait]
pub trait ConsumerChannel: Send + Sync + fmt::Debug {
    /// Starts to consume a queue. At most `prefetch` deliveries of this consumer are unacked at any time; 0 is refused.
    ///
    /// # Errors
    /// [`BrokerError::NoQueue`], or an outage.
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError>;

    /// Takes the next message of a queue, where there is one, without a consumer. No prefetch bounds what is taken in this way.
    ///
    /// Where the future is dropped, a message may have been taken that nobody sees; it goes back when the channel ends.
    ///
    /// # Errors
    /// [`BrokerError::NoQueue`], or an outage. Either ends the channel.
    async fn get(&self, queue: &str) -> Result<Option<Delivery>, BrokerError>;

    /// Declares an exclusive queue, which lives as long as the connection of this channel.
    ///
    /// # Errors
    /// [`BrokerError::Locked`] where another connection has it.
    async fn declare_exclusive(&self, queue: &QueueSpec) -> Result<(), BrokerError>;

    /// Binds a queue to an exchange, as [`Broker::bind`] does: for an exclusive queue, which only its own connection may bind.
    ///
    /// # Errors
    /// [`BrokerError::NoQueue`] and [`BrokerError::NoExchange`] where one of them is missing.
    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError>;

    /// Stops a consumer, by its [tag](Consumer::tag). Its stream ends after what was on its way; what it handed out stays
    /// with this channel.
    ///
    /// # Errors
    /// Where the channel has ended.
    async fn cancel(&self, consumer: &str) -> Result<(), BrokerError>;

    /// Deletes a queue on this channel. A consumer of it on this channel need not be cancelled before: its stream ends
    /// with `None`.
    ///
    /// # Errors
    /// Where the channel ends before the broker has answered: the queue may then be there or not.
    async fn delete(&self, queue: &str) -> Result<(), BrokerError>;

    /// Asks the broker for an answer on this channel, and returns when it has come: when this was called, the broker had not
    /// given back what the channel has handed out. It tells nothing of any queue. Where the connection has died without a word, no answer comes.
    ///
    /// # Errors
    /// Where the channel has ended, or ends before the answer.
    async fn ping(&self) -> Result<(), BrokerError>;

    /// Closes the channel. What it handed out and was not acked goes back to its queue.
    async fn close(&self);

    /// Returns when the channel has ended.
    async fn ended(&self);
}

/// Deliveries of one queue, in its order.
///
/// Dropping it cancels nothing: the broker's consumer lives on, and what it is handed stays with the channel, until that ends or
/// the consumer is [cancelled](ConsumerChannel::cancel). So whoever consumes the queue next is handed everything, in its order.
pub struct Consumer {
    tag: String,
    deliveries: Fuse<BoxStream<'static, Result<Delivery, BrokerError>>>,
}

impl Consumer {
    /// A consumer from what an implementation delivers.
    #[must_use]
    pub fn new(tag: String, deliveries: BoxStream<'static, Result<Delivery, BrokerError>>) -> Self {
        Self { tag, deliveries: deliveries.fuse() }
    }

    /// What the channel knows it by.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The next delivery. `None` where the consumer was cancelled, by its owner or by the broker (its queue was deleted,
    /// or lost its node); an error where the channel ended. After either there is nothing more.
    ///
    /// Cancel safe: a delivery is not lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        self.deliveries.next().await
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// A message handed to a consumer, which owes the broker an answer.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Whether the broker may have handed it out before.
    pub redelivered: bool,
    /// With which it is answered. Dropping it answers nothing.
    pub receipt: Receipt,
}

/// Answers one delivery, on the channel that handed it out and on no other.
#[derive(Debug, Clone)]
pub struct Receipt {
    channel: Arc<dyn Acknowledge>,
    tag: u64,
}

impl Receipt {
    /// A receipt for a delivery tag of a channel.
    #[must_use]
    pub fn new(channel: Arc<dyn Acknowledge>, tag: u64) -> Self {
        Self { channel, tag }
    }

    /// The message is done with: the broker forgets it. On a channel that has ended this does nothing, since the broker
    /// has taken the message back already.
    pub async fn ack(&self) {
        self.channel.ack(self.tag).await;
    }

    /// The message goes back to its queue. On a channel that has ended this does nothing.
    pub async fn requeue(&self) {
        self.channel.requeue(self.tag).await;
    }

    /// Whether an answer may still reach the broker. Where it may not, the broker has taken the message back, or is about to.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.channel.is_live(self.tag)
    }

    /// One receipt for each of so many parts of the message: it is acked when all of them are, and goes back with any of them. Without
    /// parts it is never answered. `open` counts them until they are acked, or let go of.
    #[must_use]
    pub fn split(self, parts: usize, open: &OpenParts) -> Vec<Self> {
        let split: Arc<dyn Acknowledge> = Arc::new(Parts::new(self, parts, open));
        (0u64..).take(parts).map(|part| Self::new(Arc::clone(&split), part)).collect()
    }

    /// Tells a [`Subscription`](crate::Subscription) that the delivery will be held for long, so that it makes room
    /// for others beside it. Elsewhere this does nothing. The hold ends when it is dropped.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.channel.hold(self.tag);
        Hold { receipt: self.clone() }
    }
}

/// See [`Receipt::hold`].
#[derive(Debug)]
pub struct Hold {
    receipt: Receipt,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.receipt.channel.release(self.receipt.tag);
    }
}

/// The side of a channel that takes answers.
#[async_trait]
pub trait Acknowledge: Send + Sync + fmt::Debug {
    /// Acks one delivery.
    async fn ack(&self, tag: u64);
    /// Puts one delivery back into its queue.
    async fn requeue(&self, tag: u64);
    /// Whether the channel has not ended, and the delivery is not answered.
    fn is_live(&self, tag: u64) -> bool;
    /// One more delivery is held for long.
    fn hold(&self, _tag: u64) {}
    /// A delivery is no longer held for long.
    fn release(&self, _tag: u64) {}
}

/// What a broker tells about a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages ready for delivery.
    pub messages: u64,
    /// Consumers.
    pub consumers: u64,
}

/// What a broker tells about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Such as `RabbitMQ`.
    pub product: String,
    /// Such as `4.0.5`.
    pub version: String,
    /// Where it is reached, without any password.
    pub address: String,
}

impl ServerInfo {
    /// Major and minor version, where they can be read.
    #[must_use]
    pub fn release(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// Whether it is a RabbitMQ.
    #[must_use]
    pub fn is_rabbitmq(&self) -> bool {
        self.product == "RabbitMQ"
    }

    /// Whether the declaration of a classic queue that was answered outlives the broker, whenever that is killed. Khepri, which is all that RabbitMQ has for its list of queues
    /// [from 4.3 on](https://github.com/rabbitmq/rabbitmq-server/blob/v4.3.0/release-notes/4.3.0.md), has written it before it answers. Mnesia
    /// may still have a part of it to write.
    #[must_use]
    pub fn has_written_declarations(&self) -> bool {
        self.is_rabbitmq() && self.release().is_some_and(|release| release >= (4, 3))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        let release = |version: &str| {
            let product = "RabbitMQ".to_owned();
            ServerInfo { product, version: version.to_owned(), address: String::new() }.release()
        };
        assert!(release("3.9.27") < Some((3, 10)));
        assert!(release("3.10.8") >= Some((3, 10)) && release("4.0.5-rc.1") >= Some((4, 0)));
        assert_eq!(release("unknown"), None);
    }

    #[tokio::test]
    async fn a_consumer_that_has_ended_can_be_asked_again() {
        let ended = stream::unfold((), |()| async { None });
        let mut consumer = Consumer::new("tag".to_owned(), ended.boxed());
        assert!(consumer.next().await.is_none());
        assert!(consumer.next().await.is_none());
    }
}
