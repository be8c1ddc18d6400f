use std::time::Duration;

use fanfare_broker::{BrokerError, PublishError};
use fanfare_protocol::Prefix;

/// What to say where the broker takes no messages.
pub(crate) const PRESSED: &str =
    "the broker takes no messages, being short of memory or disk; see `rabbitmq-diagnostics alarms`";

/// What is parked could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookError {
    /// Somebody else does. Two at a time would see half of it each, and mix up its order.
    #[error(
        "somebody else is looking at what is parked, and has not ended within {} s: see that they end (`fanfare parked`, `explain`, \
         `gc` and the page look, and have queue `{queue}` meanwhile), and try again", waited.as_secs()
    )]
    Busy {
        /// The queue that whoever looks has to itself.
        queue: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The queue cannot be consumed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// What an operator asked was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// There is no queue for the answers, or it was lost. To ask again is harmless.
    #[error("there is no queue for the answers")]
    NoMailbox(#[source] BrokerError),
    /// The question could not be sent.
    #[error("nobody could be asked")]
    NotSent(#[source] PublishError),
    /// No coordinator listens.
    #[error(
        "no coordinator can be asked under the prefix `{prefix}`: start one, and ask again; where one runs, its exchange was deleted, and comes back within 30 s"
    )]
    NoCoordinator {
        /// How its queues' names would begin.
        prefix: Prefix,
    },
    /// Coordinators answer certain users only.
    #[error("coordinators do not tell: {0}")]
    Refused(String),
    /// Coordinators that listen have not answered.
    #[error("no coordinator has answered within {waited:?}: {}", silence(*.blocked))]
    NoAnswer {
        /// How long they had.
        waited: Duration,
        /// Whether the broker takes no messages, being short of memory or disk: neither the question nor answers.
        blocked: bool,
    },
}

/// Why nobody may have answered, and what to do.
const fn silence(blocked: bool) -> &'static str {
    if blocked {
        PRESSED
    } else {
        "they stand still, are of a version that cannot answer, or the broker is slow: ask again, and restart those that stay silent"
    }
}

impl AskError {
    /// Whether there was no connection to the broker.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        let cause = match self {
            Self::NoMailbox(cause) | Self::NotSent(PublishError::NotSent(cause)) => cause,
            _ => return false,
        };
        matches!(cause, BrokerError::Unreachable(_))
    }
}
