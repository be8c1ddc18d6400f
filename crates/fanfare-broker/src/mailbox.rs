use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fanfare_protocol::{Message, QueueSpec};

use crate::{Broker, BrokerError, Consumer, ConsumerChannel, Receipt};

/// How long removing a queue that was waited on may take. It goes with its connection at the latest.
const REMOVAL_LIMIT: Duration = Duration::from_secs(10);

/// The queue of one caller who waits for answers. It is removed when the mailbox is dropped.
pub struct Mailbox {
    queue: String,
    /// Gone once it is dropped.
    channel: Option<Arc<dyn ConsumerChannel>>,
    consumer: Option<Consumer>,
    /// Of the message that was read last.
    unanswered: Option<Receipt>,
}

impl Mailbox {
    /// Declares an exclusive queue, and consumes it.
    ///
    /// # Errors
    /// As of the operations that this takes.
    pub async fn open(broker: &dyn Broker, queue: &QueueSpec) -> Result<Self, BrokerError> {
        let channel = broker.open().await?;
        // Whoever stops waiting for this drops it.
        let mut mailbox = Self {
            queue: queue.name.clone(),
            channel: Some(Arc::clone(&channel)),
            consumer: None,
            unanswered: None,
        };
        channel.declare_exclusive(queue).await?;
        mailbox.consumer = Some(channel.consume(&queue.name, 1).await?);
        Ok(mailbox)
    }

    /// The queue's name.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Waits for a message. Cancel safe.
    ///
    /// # Errors
    /// Where the queue or its connection is lost; none where the queue was taken away.
    pub async fn next(&mut self) -> Result<Message, Option<BrokerError>> {
        if let Some(receipt) = &self.unanswered {
            receipt.ack().await;
            self.unanswered = None;
        }
        let consumer = self.consumer.as_mut().expect("a mailbox consumes until it is dropped");
        let delivery = consumer.next().await.ok_or(None)??;
        self.unanswered = Some(delivery.receipt);
        Ok(delivery.message)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Drop for Mailbox {
    /// An exclusive queue lives as long as its connection, which others share; so it is deleted, whoever drops the wait.
    fn drop(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let (Some(channel), Ok(runtime)) = (self.channel.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (consumer, unanswered) = (self.consumer.take(), self.unanswered.take());
        runtime.spawn(tokio::time::timeout(REMOVAL_LIMIT, async move {
            // Nothing but a channel on which all is answered serves the next who needs one.
            if let Some(receipt) = unanswered {
                receipt.ack().await;
            }
            if channel.delete(&queue).await.is_ok()
                && let Some(mut consumer) = consumer
            {
                // The broker's own cancel is awaited: one of ours for a deleted queue could end the connection.
                while let Some(Ok(_)) = consumer.next().await {}
            }
            channel.close().await;
        }));
    }
}
