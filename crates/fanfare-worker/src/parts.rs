//! Reads a final payload that is too large for one message.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfare_broker::{Backoff, Broker, BrokerError, ConsumerChannel, Environment, absence};
use fanfare_protocol::{Assembly, Invocation, LargePayload, Part, QueueNames};
use fanfare_publisher::Publisher;
use tokio::time::Instant;

use crate::ServiceError;

/// How long a part may be missing: whoever was handed the callback before may still hold it, until the broker notices that it is
/// gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// The parts of a payload, in their order. They are taken one at a time and never acked: when this is dropped they go back to
/// their queue, where another attempt reads them again.
pub(crate) struct PartReader {
    broker: Arc<dyn Broker>,
    environment: Arc<dyn Environment>,
    queue: String,
    payload: LargePayload,
    /// The number of the next part.
    next: usize,
    /// None where it is still to be opened, or was lost.
    channel: Option<Arc<dyn ConsumerChannel>>,
}

/// The parts of a payload cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartsError {
    #[error(
        "the parts of this payload are gone with queue `{0}`: a worker has settled this callback before, nobody came for them \
         in 28 days, or somebody has deleted it"
    )]
    Gone(String),
    #[error("part {number} of {parts} is not in queue `{queue}`: another holds it, or has taken it out")]
    Missing { number: usize, parts: usize, queue: String },
}

/// The queue that the parts of an invocation's payload are in.
pub(crate) fn queue_of(invocation: &Invocation, payload: &LargePayload, names: &QueueNames) -> String {
    names.payload(&invocation.cid, invocation.run, payload.writer).name
}

impl PartReader {
    pub(crate) fn new(publisher: &Publisher, invocation: &Invocation, payload: LargePayload) -> Self {
        Self {
            broker: Arc::clone(publisher.broker()),
            environment: Arc::clone(publisher.environment()),
            queue: queue_of(invocation, &payload, &publisher.config().names),
            payload,
            next: 0,
            channel: None,
        }
    }

    /// The body of the next part; none behind the last. It takes as long as an outage does.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ServiceError> {
        if self.next == self.payload.parts {
            return Ok(None);
        }
        let mut missing_since = None;
        let mut backoff = Backoff::default();
        loop {
            match self.take().await {
                Ok(Some(part)) if part.number == self.next => {
                    self.next += 1;
                    return Ok(Some(part.body));
                }
                // It was read before the channel was lost, or written twice.
                Ok(Some(part)) if part.number < self.next => continue,
                Ok(_) if missing_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                    let (number, parts, queue) = (self.next, self.payload.parts, self.queue.clone());
                    return Err(PartsError::Missing { number, parts, queue }.into());
                }
                Ok(_) => {}
                Err(BrokerError::NoQueue(_)) => {
                    let gone = absence::is_gone(&*self.broker, &self.queue, absence::PAUSE).await;
                    if matches!(gone, Ok(true)) {
                        return Err(ServiceError::fatal(PartsError::Gone(self.queue.clone())));
                    }
                }
                Err(error) if error.is_outage() => {
                    tracing::debug!(queue = self.queue, %error, "reading the parts of a payload again");
                }
                Err(error) => return Err(error.into()),
            }
            // What was taken goes back to its place, and all is taken anew.
            self.close().await;
            backoff.wait(&*self.environment).await;
        }
    }

    async fn take(&mut self) -> Result<Option<Part>, BrokerError> {
        let channel = match &self.channel {
            Some(channel) => channel,
            None => self.channel.insert(self.broker.open().await?),
        };
        let delivery = channel.get(&self.queue).await?;
        // A stranger's message is like a part that is missing.
        Ok(delivery.and_then(|delivery| Part::decode(&delivery.message).ok()))
    }

    async fn close(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.close().await;
        }
    }

    /// All of the payload, in the bytes that one message would have had.
    pub(crate) async fn assemble(mut self, head: &[u8]) -> Result<Bytes, ServiceError> {
        let mut assembly = Assembly::new(head, self.payload)?;
        while let Some(part) = self.next().await? {
            assembly.push(&part);
        }
        self.close().await;
        Ok(assembly.finish()?)
    }
}
