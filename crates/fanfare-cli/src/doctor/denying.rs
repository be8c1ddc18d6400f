//! A broker in memory whose user may look at little.

use std::sync::Arc;

use async_trait::async_trait;
use fanfare::BrokerError;
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, ConsumerChannel, PublishError, QueueState, ServerInfo};
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use tokio::time::Instant;

/// Denies its user to configure queues, and exchanges, and to look at queues where the broker wants that right for it.
#[derive(Debug)]
pub(super) struct Denying {
    pub(super) broker: MemoryBroker,
    pub(super) lets_look: bool,
}

fn denied<T>(what: &str) -> Result<T, BrokerError> {
    Err(BrokerError::Denied(format!("user 'u' lacks the right to configure on '{what}'")))
}

#[async_trait]
impl Broker for Denying {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        self.broker.publish_by(queue, message, latest).await
    }

    async fn publish_through(&self, exchange: &str, key: &str, message: Message) -> Result<(), PublishError> {
        self.broker.publish_through(exchange, key, message).await
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        denied(&queue.name)
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        if self.lets_look { self.broker.inspect(queue).await } else { denied(queue) }
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        denied(queue)
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        denied(&exchange.name)
    }

    async fn bind(&self, queue: &str, _: &str) -> Result<(), BrokerError> {
        denied(queue)
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        denied(exchange)
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        self.broker.open().await
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        self.broker.server().await
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}
