use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::name::{Cid, RunId};
use crate::{Cancellation, Malformed, QueueNames, header};

/// Asks all coordinators to cancel a fan-out. Whoever asks again gets the answer again, and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// Its correlation ID.
    pub cid: Cid,
    /// Which of the fan-outs with this CID; all that are open, where there is none.
    pub run: Option<RunId>,
    /// The queue of whoever waits for the answer.
    pub reply_to: String,
}

/// What one coordinator answers to a [`CancelRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelAnswer {
    /// Drawn by the coordinator when it started: it tells the coordinators apart.
    pub coordinator: RunId,
    /// What has become of it.
    #[serde(flatten)]
    pub state: CancelState,
}

/// What has become of a cancel, as one coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CancelState {
    /// It holds no such fan-out, and has ended none lately.
    Unknown,
    /// It takes no cancel from whoever asked.
    Refused {
        /// Why.
        reason: String,
    },
    /// It holds the fan-out, and will cancel it: another answer follows, unless it ends before.
    Found {
        /// The fan-out's run.
        run: RunId,
    },
    /// The fan-out ends without waiting for any target, whoever dies from here on, or has ended.
    Ended {
        /// The fan-out's run.
        run: RunId,
        /// How.
        #[serde(flatten)]
        cancellation: Cancellation,
    },
}

/// Tells all workers that a fan-out was cancelled: nobody wants the results of its targets any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    /// The fan-out's correlation ID.
    pub cid: Cid,
    /// Its run.
    pub run: RunId,
}

impl CancelRequest {
    /// The message as coordinators take it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let mut message = Message::of(header::TYPE_CANCEL, &self.cid, format!("{}/cancel", self.cid), EMPTY);
        message.properties.reply_to = Some(self.reply_to.as_str().into());
        match self.run {
            Some(run) => message.with_header(header::RUN, run.to_string()),
            None => message,
        }
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed, or names a queue that is no waiter's.
    pub fn decode(message: &Message, names: &QueueNames) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_CANCEL)?;
        let (cid, run) = (message.cid()?, message.run_if_any()?);
        Ok(Self { cid, run, reply_to: message.waiter(names)? })
    }
}

impl CancelAnswer {
    /// The message as whoever asked takes it.
    #[must_use]
    pub fn encode(&self, cid: &Cid) -> Message {
        let id = format!("{cid}/cancel-answer/{}", self.coordinator);
        Message::of(header::TYPE_CANCEL_ANSWER, cid, id, crate::result::to_json(self))
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_CANCEL_ANSWER)?;
        crate::result::from_json("answer", &message.body)
    }
}

impl Cancelled {
    /// The message as workers take it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let mut message =
            Message::of(header::TYPE_CANCELLED, &self.cid, format!("{}/cancelled", self.cid), EMPTY);
        message.headers.insert(header::RUN, self.run);
        message
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_CANCELLED)?;
        Ok(Self { cid: message.cid()?, run: message.run()? })
    }
}

/// The body of a message whose properties and headers say everything.
const EMPTY: &str = "{}";
