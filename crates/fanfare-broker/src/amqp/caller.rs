//! Whom to tell what became of a message.

use tokio::sync::oneshot;

use crate::{BrokerError, PublishError};

type Outcome = Result<(), PublishError>;

/// Whoever waits for the outcome of a message. Dropping this tells it that the message was not sent, or that nothing more
/// is known of it where it was.
#[derive(Debug)]
pub(super) struct Caller {
    waiting: Option<oneshot::Sender<Outcome>>,
    sent: bool,
}

impl Caller {
    /// A caller, and where it learns the outcome.
    pub(super) fn new() -> (Self, oneshot::Receiver<Outcome>) {
        let (waiting, outcome) = oneshot::channel();
        (Self { waiting: Some(waiting), sent: false }, outcome)
    }

    /// The message is handed to the connection.
    pub(super) const fn sent(mut self) -> Self {
        self.sent = true;
        self
    }

    /// Whether nobody waits any more.
    pub(super) fn is_gone(&self) -> bool {
        self.waiting.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub(super) fn tell(mut self, outcome: Outcome) {
        self.tell_once(outcome);
    }

    fn tell_once(&mut self, outcome: Outcome) {
        if let Some(waiting) = self.waiting.take() {
            // It may have gone away, which is its right.
            let _ = waiting.send(outcome);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let closed = BrokerError::Closed;
        self.tell_once(Err(match self.sent {
            false => PublishError::NotSent(closed),
            true => PublishError::Unknown(closed),
        }));
    }
}
