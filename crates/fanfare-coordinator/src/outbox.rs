//! Publishes until a message is safe: in its queue, or, where that is gone, among the parked ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_broker::{Aftercare, Backoff, Broker, Environment, PublishError, absence};
use fanfare_protocol::{Message, QueueNames, limits};

use crate::telemetry;

/// What a queue's absence means for a message on its way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// A service that nobody serves any more: the message is parked.
    Parks,
    /// A caller who no longer waits: the message is dropped.
    Drops,
    /// A queue without which nobody needs this message: it is dropped once the absence is proven.
    Late,
    /// The fan-out's own queue: its consumer learns of it, so this waits to be told.
    Waits,
    /// A queue of Fanfare's own: it is declared.
    Declares,
}

/// What became of a message, at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is safe.
    Safe {
        /// Whether it was published more than once: another copy may be there, or may have been.
        again: bool,
    },
    /// It is dropped, with its queue gone: nobody is there any more whom it could reach.
    Gone,
    /// It is in no queue, and never will be: the broker takes bodies of so many bytes. The protocol's own limit is kept to by
    /// all that a coordinator publishes; this is an operator's, which is lower.
    TooLarge(usize),
}

/// A cheap handle on the way out.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) aftercare: Aftercare,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) names: QueueNames,
    pub(crate) absence_pause: Duration,
    /// See [`Config::replicated_payloads`](crate::Config::replicated_payloads).
    pub(crate) replicated_payloads: bool,
    pub(crate) refusals: Arc<Refusals>,
}

/// Messages that their queues refuse.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Those that wait for another try, and are in no queue for sure.
    refused: AtomicUsize,
    /// Whether they are not tried again for now.
    pub(crate) rest: AtomicBool,
}

/// One of [`Refusals::refused`], until this is dropped.
struct Refused<'a>(&'a AtomicUsize);

impl Refusals {
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn count(&self) -> Refused<'_> {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Refused(&self.refused)
    }
}

impl Drop for Refused<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Outbox {
    /// Returns when the message is safe, however long that takes, or cannot be.
    pub(crate) async fn publish(&self, queue: &str, message: Message, absence: Absence) -> Outcome {
        let mut backoff = Backoff::default();
        let (mut told, mut again, mut in_doubt) = (false, false, false);
        loop {
            let error = match self.broker.publish(queue, message.clone()).await {
                Ok(()) => return Outcome::Safe { again },
                Err(error) => error,
            };
            again = true;
            match (&error, absence) {
                (PublishError::Unroutable(_), Absence::Drops) => return Outcome::Gone,
                (PublishError::Unroutable(_), Absence::Parks) if self.is_gone(queue).await => {
                    tracing::warn!(
                        queue,
                        message_id = message.properties.message_id.as_deref(),
                        "message parked: its queue is gone"
                    );
                    let reason = if self.names.shard_number(queue).is_some() {
                        format!(
                            "queue `{queue}` does not exist: no coordinator has declared it, which takes as many shards as its \
                             publisher has, or it was deleted"
                        )
                    } else {
                        format!(
                            "queue `{queue}` does not exist: no worker has declared it, or it was deleted"
                        )
                    };
                    Box::pin(self.park(message, queue, &reason)).await;
                    return Outcome::Safe { again };
                }
                (PublishError::Unroutable(_), Absence::Late) if self.is_gone(queue).await => {
                    return Outcome::Gone;
                }
                (PublishError::Unroutable(_), Absence::Declares) => self.declare_own(queue).await,
                (PublishError::TooLarge { most, .. }, _) => {
                    let message_id = message.properties.message_id.as_deref();
                    tracing::error!(queue, message_id, %error, "a message is too large for this broker: raise its max_message_size");
                    return Outcome::TooLarge(*most);
                }
                _ => {}
            }
            if !std::mem::replace(&mut told, true) {
                let message_id = message.properties.message_id.as_deref();
                if is_refusal(&error) {
                    tracing::error!(queue, message_id, %error, "a message is refused; publishing it again until it is taken");
                } else {
                    tracing::debug!(queue, message_id, %error, "publishing again until it is safe");
                }
            }
            in_doubt |= matches!(error, PublishError::Unknown(_));
            let is_refused = matches!(error, PublishError::Refused(_) | PublishError::Unroutable(_));
            let refused = (is_refused && !in_doubt).then(|| self.refusals.count());
            backoff.wait(&*self.environment).await;
            while refused.is_some() && self.refusals.rest.load(Ordering::Relaxed) {
                backoff.wait(&*self.environment).await;
            }
        }
    }

    /// Keeps a copy of a message for a person to look at.
    pub(crate) async fn park(&self, mut message: Message, from: &str, reason: &str) {
        telemetry::parked();
        let parked = self.names.parked().name;
        let bytes = message.body.len();
        let mut reason = reason.to_owned();
        if bytes > limits::MESSAGE_BYTES {
            // An older broker may take larger messages than a newer one, and a parked message must fit everywhere.
            message.body.truncate(limits::RESULT_BYTES);
            reason = format!("cut from {bytes} to {} bytes; {reason}", limits::RESULT_BYTES);
        }
        let (at, id) = (self.environment.now().into(), self.environment.unique());
        let mut copy = message.parked(from, &reason, at, id);
        while let Outcome::TooLarge(most) = self.publish(&parked, copy.clone(), Absence::Declares).await
            && !copy.body.is_empty()
        {
            // What is kept is that it was there, and why.
            let reason =
                format!("{reason}; its body of {bytes} bytes is left out, since this broker takes {most}");
            copy.body.clear();
            copy = copy.parked(from, &reason, at, id);
        }
    }

    /// Whether a queue is proven to be gone. An outage proves nothing.
    pub(crate) async fn is_gone(&self, queue: &str) -> bool {
        matches!(absence::is_gone(&*self.broker, queue, self.absence_pause).await, Ok(true))
    }

    async fn declare_own(&self, queue: &str) {
        let shard = self.names.shard_number(queue).map(|number| self.names.shard(number));
        for spec in [self.names.fanin(), self.names.parked(), self.names.full()].into_iter().chain(shard) {
            if spec.name == queue
                && let Err(error) = self.broker.declare(&spec).await
            {
                tracing::warn!(queue, %error, "cannot declare");
            }
        }
    }
}

/// Whether nothing but an operator can make this message pass.
fn is_refusal(error: &PublishError) -> bool {
    match error {
        PublishError::NotSent(cause) | PublishError::Unknown(cause) => !cause.is_outage(),
        _ => false,
    }
}
