use std::sync::Arc;

use fanfare_protocol::{ExchangeSpec, QueueSpec, RunId};

use crate::{Broker, BrokerError, ConsumerChannel, Environment};

/// Where the deliveries of a subscription come from.
#[derive(Clone)]
pub(super) enum Source {
    Queue(QueueSpec),
    /// Through a queue that is declared afresh for each channel.
    Exchange {
        exchange: ExchangeSpec,
        queue: Arc<dyn Fn(RunId) -> QueueSpec + Send + Sync>,
    },
}

impl Source {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Queue(queue) => &queue.name,
            Self::Exchange { exchange, .. } => &exchange.name,
        }
    }

    pub(super) fn exchange(&self) -> Option<String> {
        match self {
            Self::Queue(_) => None,
            Self::Exchange { exchange, .. } => Some(exchange.name.clone()),
        }
    }

    /// Opens a channel, and sees to the queue that is to be consumed on it.
    pub(super) async fn open(
        &self,
        broker: &dyn Broker,
        environment: &dyn Environment,
    ) -> Result<(Arc<dyn ConsumerChannel>, String), BrokerError> {
        let (exchange, queue) = match self {
            Self::Queue(queue) => {
                broker.declare(queue).await?;
                return Ok((broker.open().await?, queue.name.clone()));
            }
            Self::Exchange { exchange, queue } => (exchange, queue),
        };
        let bind = || async {
            let queue = queue(RunId::from(environment.unique()));
            let channel = broker.open().await?;
            channel.declare_exclusive(&queue).await?;
            if let Err(error) = channel.bind(&queue.name, &exchange.name).await {
                discard(broker, &queue.name).await;
                return Err(error);
            }
            Ok((channel, queue.name))
        };
        match bind().await {
            // Only then: whoever may declare it may delete it, and need not be allowed to.
            Err(BrokerError::NoExchange(_)) => {
                broker.declare_exchange(exchange).await?;
                bind().await
            }
            bound => bound,
        }
    }
}

/// Deletes an exclusive queue whose channel has ended: it would live as long as the connection, which goes on with others. A channel
/// that is opened now shares that; where it has gone, so has the queue.
async fn discard(broker: &dyn Broker, queue: &str) {
    let deleted = async {
        let channel = broker.open().await?;
        let deleted = channel.delete(queue).await;
        channel.close().await;
        deleted
    };
    if let Err(error) = deleted.await {
        tracing::debug!(queue, %error, "a queue that nobody will use is left to its connection");
    }
}
