use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, Consumer, ConsumerChannel};
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};

use crate::{LookError, Operator};

/// How long another may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The right to look at what is parked, which one operator of all processes has at a time: an exclusive queue, which goes with
/// the process that declared it.
pub(super) struct Turn<'a> {
    channel: Arc<dyn ConsumerChannel>,
    queue: String,
    /// The queue would expire without one.
    _consumer: Consumer,
    /// A queue is exclusive to a connection, which operators of one process share.
    _here: MutexGuard<'a, ()>,
}

impl<'a> Turn<'a> {
    /// Waits until it is this one's.
    pub(super) async fn take(operator: &'a Operator) -> Result<Self, LookError> {
        let queue = operator.config.names.parked_look();
        let busy = || LookError::Busy { queue: queue.name.clone(), waited: PATIENCE };
        let until = Instant::now() + PATIENCE;
        let here = timeout_at(until, operator.looking.lock()).await.map_err(|_| busy())?;
        let mut backoff = Backoff::default();
        loop {
            let channel = operator.broker.open().await?;
            match channel.declare_exclusive(&queue).await {
                Ok(()) => {
                    let consumer = channel.consume(&queue.name, 1).await?;
                    return Ok(Self { channel, queue: queue.name, _consumer: consumer, _here: here });
                }
                // Nothing else that takes long is somebody else's doing.
                Err(BrokerError::Locked(_)) if Instant::now() >= until => return Err(busy()),
                Err(BrokerError::Locked(_)) => backoff.wait(&*operator.environment).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets the next one look.
    pub(super) async fn end(self) {
        if let Err(error) = self.channel.delete(&self.queue).await {
            tracing::debug!(queue = self.queue, %error, "the queue goes with its connection");
        }
        self.channel.close().await;
    }
}
