//! What Fanfare needs of a message broker: [`Broker`], on RabbitMQ ([`amqp`]) and in this process ([`memory`]).
//!
//! Three things make up the whole of it. A [`Broker`] publishes one message, to a queue or through a fanout exchange, and knows
//! what became of it; and it declares, inspects and deletes queues. A [`ConsumerChannel`] hands out deliveries; what it handed out and was not acked goes
//! back to its queue, in order, when it ends. A [`Subscription`] consumes one queue, or what is published to an exchange, for as long as its owner lives,
//! through every reconnect.
//!
//! Both brokers pass one suite, the module of the feature `conformance`, so that neither can drift from the other.

pub mod absence;
mod aftercare;
pub mod amqp;
mod backoff;
mod broker;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod consumer_timeout;
mod environment;
mod error;
mod mailbox;
pub mod memory;
mod parts;
mod readiness;
mod reminder;
mod subscription;
mod telemetry;
pub mod trace;

pub use aftercare::Aftercare;
pub use backoff::Backoff;
pub use broker::{
    Acknowledge, Broker, Consumer, ConsumerChannel, Delivery, Hold, QueueState, Receipt, ServerInfo,
};
pub use environment::{Environment, System};
pub use error::{BrokerError, PublishError};
pub use mailbox::Mailbox;
pub use parts::OpenParts;
pub use readiness::Readiness;
pub use reminder::Reminder;
pub use subscription::{Subscription, SubscriptionOptions};
pub use telemetry::describe_metrics;
