use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::name::{Cid, RunId, ServiceName, TargetKey};
use crate::{EndedBy, FanOutStatus, Malformed, QueueNames, WireTime, header};

/// Asks all coordinators, or all workers, what they know of one fan-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainRequest {
    /// Its correlation ID.
    pub cid: Cid,
    /// Which of the fan-outs with this CID; all, where there is none.
    pub run: Option<RunId>,
    /// The queue of whoever waits for the answers.
    pub reply_to: String,
    /// How many targets of each fan-out are wanted, [`limits::TOLD`](crate::limits::TOLD) at most.
    pub limit: usize,
}

#[derive(Serialize, Deserialize)]
struct Body {
    limit: usize,
}

/// What one coordinator answers to an [`ExplainRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainAnswer {
    /// Drawn by the coordinator when it started: it tells the coordinators apart.
    pub coordinator: RunId,
    /// What whoever runs it calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How many fan-outs it knows of those that are meant.
    pub matching: usize,
    /// The first [`limits::EXPLAINED`](crate::limits::EXPLAINED) of them: those that are open, then those that ended last.
    pub fan_outs: Vec<Explained>,
}

/// What a coordinator knows of one fan-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// How far it has come.
    #[serde(flatten)]
    pub status: FanOutStatus,
    /// The first of the targets that have no result. There are `targets` less `done`.
    #[serde(rename = "missing_targets", deserialize_with = "crate::object::list")]
    pub missing: Vec<MissingTarget>,
    /// The first of the targets that have a result, whoever wrote it. There are `done`.
    #[serde(
        default,
        rename = "responded_targets",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::object::list"
    )]
    pub responded: Vec<RespondedTarget>,
    /// The first [`limits::FAILURES_TOLD`](crate::limits::FAILURES_TOLD) of the targets that have failed. There are `failed`.
    #[serde(rename = "failed_targets", deserialize_with = "crate::object::list")]
    pub failures: Vec<FailedTarget>,
}

/// A target that has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingTarget {
    /// Its place in the manifest.
    pub place: usize,
    /// Its key.
    pub key: TargetKey,
    /// The service that it invokes.
    pub service: ServiceName,
}

/// A target that has a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RespondedTarget {
    /// Its place in the manifest.
    pub place: usize,
    /// Its key.
    pub key: TargetKey,
    /// The service that it invokes.
    pub service: ServiceName,
    /// Whether it succeeded.
    pub ok: bool,
    /// When it responded, by its worker's clock.
    pub at_utc: WireTime,
    /// Where a coordinator wrote the result in its place: why.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "EndedBy::read")]
    pub ended_by: Option<EndedBy>,
}

/// A target that has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTarget {
    /// Its key.
    pub key: TargetKey,
    /// The service that it invokes.
    pub service: ServiceName,
    /// The first [`limits::EXCEPTION_TOLD_CHARS`](crate::limits::EXCEPTION_TOLD_CHARS) characters of its exception.
    pub exception: String,
}

/// What one worker answers to an [`ExplainRequest`], where it knows of any target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerAnswer {
    /// Drawn by the worker when it started: it tells the workers apart.
    pub worker: RunId,
    /// What whoever runs it calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many targets it knows of.
    pub matching: usize,
    /// The first of them.
    pub targets: Vec<AtWorker>,
}

/// A target at a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtWorker {
    /// The run of its fan-out.
    pub run: RunId,
    /// Its key.
    pub key: TargetKey,
    /// The service that it invokes.
    pub service: ServiceName,
    /// Which attempt it is at, from 1.
    pub attempt: u32,
    /// What becomes of it.
    #[serde(flatten)]
    pub doing: Doing,
}

/// What a worker does with a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doing", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Doing {
    /// It runs it.
    Running {
        /// Since when.
        since_utc: WireTime,
    },
    /// It has failed, and waits in the broker for its next attempt.
    Retrying {
        /// Until about when.
        until_utc: WireTime,
        /// Why it failed, at most [`limits::EXCEPTION_TOLD_CHARS`](crate::limits::EXCEPTION_TOLD_CHARS) characters.
        exception: String,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

impl ExplainRequest {
    /// The message as coordinators and workers take it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let id = format!("{}/explain", self.cid);
        let body = crate::result::to_json(&Body { limit: self.limit });
        let mut message = Message::of(header::TYPE_EXPLAIN, &self.cid, id, body);
        message.properties.reply_to = Some(self.reply_to.as_str().into());
        if let Some(run) = self.run {
            message.headers.insert(header::RUN, run);
        }
        message
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed, or names a queue that is no waiter's.
    pub fn decode(message: &Message, names: &QueueNames) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_EXPLAIN)?;
        let Body { limit } = crate::result::from_json("question", &message.body)?;
        let (cid, run) = (message.cid()?, message.run_if_any()?);
        Ok(Self { cid, run, reply_to: message.waiter(names)?, limit })
    }
}

impl ExplainAnswer {
    /// The message as whoever asked takes it.
    #[must_use]
    pub fn encode(&self, cid: &Cid) -> Message {
        let id = format!("{cid}/explain-answer/{}", self.coordinator);
        Message::of(header::TYPE_EXPLAIN_ANSWER, cid, id, crate::result::to_json(self))
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_EXPLAIN_ANSWER)?;
        crate::result::from_json("answer", &message.body)
    }
}

impl WorkerAnswer {
    /// The message as whoever asked takes it.
    #[must_use]
    pub fn encode(&self, cid: &Cid) -> Message {
        let id = format!("{cid}/worker-answer/{}", self.worker);
        Message::of(header::TYPE_WORKER_ANSWER, cid, id, crate::result::to_json(self))
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_WORKER_ANSWER)?;
        crate::result::from_json("answer", &message.body)
    }
}
