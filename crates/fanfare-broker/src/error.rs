/// An operation on the broker failed. The variants tell what the caller can do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// There is no connection, or it was lost during the operation: try again, the next attempt reconnects.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    /// The broker is there, but this queue is not to be had at the moment (its node is down, a time-out): try again.
    #[error("queue `{queue}` is unavailable for now: {reason}")]
    Unavailable {
        /// The queue.
        queue: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker answered `NOT_FOUND - no queue`. Once is no proof: see [`absence`](crate::absence).
    #[error("there is no queue `{0}`")]
    NoQueue(String),
    /// The broker answered `NOT_FOUND - no exchange`.
    #[error("there is no exchange `{0}`")]
    NoExchange(String),
    /// The queue exists with other arguments: an operator has to look at it.
    #[error(
        "queue `{queue}` exists with other arguments than Fanfare's: {reason}; delete it, or use another prefix"
    )]
    QueueDiffers {
        /// The queue.
        queue: String,
        /// What the broker said.
        reason: String,
    },
    /// The queue belongs to another connection.
    #[error("queue `{0}` is exclusive to another connection")]
    Locked(String),
    /// The user may not do this.
    #[error(
        "the broker refuses access: {0}; check user and password, and that the user has the permissions of its role \
         (deploy/rabbitmq/definitions.json has them; `fanfare doctor` tries them)"
    )]
    Denied(String),
    /// A message says under `user_id` that another user than this one publishes it.
    #[error("the broker refuses a user_id: {0}; set it to this login, or leave it out")]
    WrongUser(String),
    /// This broker handle was closed by its owner.
    #[error("the broker handle is closed")]
    Closed,
    /// The broker refuses the operation for another reason.
    #[error("the broker refuses: {0}")]
    Refused(String),
}

impl BrokerError {
    /// Whether the same operation may succeed later without anyone doing anything.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unavailable { .. })
    }
}

/// A message was not confirmed in its queue. The variants tell where it is.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It never left: it is in no queue, and publishing it again repeats nothing.
    #[error("the message was not sent")]
    NotSent(#[source] BrokerError),
    /// It came back: no queue of this name could take it. The queue may be gone, or its node may be down; only
    /// [`absence`](crate::absence) tells. It is in no queue.
    #[error("the message came back: no queue `{0}` could take it")]
    Unroutable(String),
    /// There is no exchange of this name. It is in no queue.
    #[error("there is no exchange `{0}`")]
    NoExchange(String),
    /// It came back: no queue that is bound to this exchange could take it. It is in no queue.
    #[error("the message came back: exchange `{0}` leads to no queue that could take it")]
    Unbound(String),
    /// The broker refused it (a full queue, or one that is down). It is in no queue as far as the broker knows.
    #[error("`{0}` did not take the message")]
    Refused(String),
    /// It is larger than the broker takes.
    #[error("the message has {bytes} bytes, and {most} is the most")]
    TooLarge {
        /// Bytes of its body.
        bytes: usize,
        /// Bytes that a body may have.
        most: usize,
    },
    /// It was sent, and no answer came: it may be in its queue or not. Publishing it again may repeat it.
    #[error("whether the message was taken is unknown")]
    Unknown(#[source] BrokerError),
}

impl From<PublishError> for BrokerError {
    /// For whoever wants to know whether it may publish, and not what became of the message.
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::NotSent(cause) | PublishError::Unknown(cause) => cause,
            error => Self::Refused(error.to_string()),
        }
    }
}

impl PublishError {
    /// What the broker refuses, where it does so and no waiting helps.
    #[must_use]
    pub const fn refusal(&self) -> Option<&BrokerError> {
        match self {
            Self::NotSent(cause) | Self::Unknown(cause) if !cause.is_outage() => Some(cause),
            _ => None,
        }
    }

    /// Whether the same message may be taken later without anyone doing anything.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        match self {
            Self::NotSent(cause) | Self::Unknown(cause) => cause.is_outage(),
            Self::Refused(_) => true,
            _ => false,
        }
    }

    /// The error with its cause, in one line for a log.
    #[must_use]
    pub fn with_cause(&self) -> String {
        match self {
            Self::NotSent(cause) | Self::Unknown(cause) => format!("{self}: {cause}"),
            _ => self.to_string(),
        }
    }
}
