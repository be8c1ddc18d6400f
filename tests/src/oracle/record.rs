use fanfare_protocol::CompletionPolicy;
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When: milliseconds since an origin that all who write share.
    pub at_ms: u64,
    /// Who wrote it: a process, such as `worker-2`.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The name of one invocation, drawn by whoever invokes. It is not the CID, which two may share.
pub type Invocation = String;

/// What a record tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// `invoke` is about to be called.
    Invoking {
        /// Which invocation.
        invocation: Invocation,
        /// What is invoked.
        plan: Plan,
    },
    /// `invoke` has returned. Where the caller was killed before, there is no such record, and the outcome is unknown.
    Returned {
        /// Which invocation.
        invocation: Invocation,
        /// With what.
        outcome: Outcome,
    },
    /// The manifest came into its queue: the fan-out exists. Only who sees the broker from inside can tell.
    Committed {
        /// Which invocation.
        invocation: Invocation,
        /// Its run.
        run: String,
    },
    /// A caller who waited was handed the final payload.
    Waited {
        /// Which invocation.
        invocation: Invocation,
        /// The payload as JSON.
        payload: String,
    },
    /// A target began to run.
    Started {
        /// Which invocation.
        invocation: Invocation,
        /// Its run.
        run: String,
        /// The target's key.
        key: String,
        /// 1, and more on a retry.
        #[serde(default = "first_attempt")]
        attempt: u32,
        /// Names this execution. Its [`mark`] stands in the answer.
        execution: String,
    },
    /// A callback message came into its queue. Only who sees the broker from inside can tell; where nobody does,
    /// repetitions are counted by what callbacks saw.
    Published {
        /// Which invocation.
        invocation: Invocation,
        /// Its run.
        run: String,
        /// The message.
        message_id: String,
    },
    /// A callback was invoked.
    Called {
        /// Which invocation.
        invocation: Invocation,
        /// Its run.
        run: String,
        /// The CID.
        cid: String,
        /// The callback's service.
        callback: String,
        /// As on the wire: `fanout-on-target`, `fanout-on-final` or `parallel-exec-on-target`.
        channel: String,
        /// The target's key, of an on-target callback.
        key: Option<String>,
        /// The message.
        message_id: String,
        /// The payload, byte for byte.
        body: String,
        /// Whether the broker marked the message as handed out before: such a repetition is owed to the callback's own
        /// worker, and not to a coordinator.
        redelivered: bool,
    },
    /// Something was killed, cut or restarted.
    Disturbed {
        /// What it was.
        role: Role,
        /// Which one.
        name: String,
        /// How.
        how: Disturbance,
    },
    /// An operator deleted an aggregation queue.
    QueueDeleted {
        /// Of which run.
        run: String,
    },
    /// The broker ended a coordinator's consumer of an aggregation queue that had handed it nothing. Only who sees the
    /// broker from inside can tell.
    EndedUnread {
        /// Of which run.
        run: String,
    },
    /// At the end, an aggregation queue is there.
    QueueLeft {
        /// Of which run.
        run: String,
    },
    /// At the end, a message is in another queue.
    MessageLeft {
        /// The queue's name without the prefix, such as `fanin`, `parked` or `service.my.done`.
        queue: String,
        /// Its `type`.
        kind: String,
        /// Its run.
        run: Option<String>,
        /// Its `message_id`.
        message_id: Option<String>,
        /// Why it is parked.
        reason: Option<String>,
    },
}

const fn first_attempt() -> u32 {
    1
}

/// What is invoked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The CID.
    pub cid: String,
    /// Whether it is a parallel execution, without final callbacks.
    #[serde(default)]
    pub parallel: bool,
    /// The targets, in order.
    pub targets: Vec<PlannedTarget>,
    /// On-target callbacks.
    #[serde(default)]
    pub on_target: Vec<String>,
    /// Final callbacks.
    #[serde(default)]
    pub on_final: Vec<String>,
    /// The deadline, where it has one.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// When it is complete before all targets have responded, if ever.
    #[serde(default)]
    pub completion: Option<CompletionPolicy>,
    /// Parts of the exceptions with which a target of this plan may fail without any answer of its own, beside those
    /// that the log itself explains.
    #[serde(default)]
    pub excuses: Vec<String>,
    /// Whether somebody may cancel it.
    #[serde(default)]
    pub cancelled: bool,
}

/// One target of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTarget {
    /// Its key.
    pub key: String,
    /// Its service.
    pub service: String,
    /// The attempt whose outcome is the target's: those before it fail, and are made again.
    #[serde(default = "first_attempt")]
    pub attempts: u32,
}

/// What `invoke` returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The fan-out exists.
    Accepted {
        /// Its run.
        run: String,
    },
    /// It does not: no callback may come.
    NotAccepted,
    /// Nobody can say.
    Unknown {
        /// Its run.
        run: String,
    },
}

/// What can be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Whoever invokes.
    Publisher,
    /// A worker.
    Worker,
    /// A coordinator.
    Coordinator,
    /// The broker, and with it everyone.
    Broker,
}

/// How something is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disturbance {
    /// Its process was killed.
    Killed,
    /// Its connection was cut, or one of its channels ended by the broker.
    Cut,
    /// Of the broker: it was restarted.
    Restarted,
    /// A message was taken, and whoever published it was not told.
    ConfirmLost,
    /// The connection that it consumes on has died without a word: others are handed what it holds, and it goes on publishing.
    Deafened,
    /// It was asked to stop, and its time for that ran out.
    StopCutShort,
}

/// What a target puts into its response, or into its error, so that the result is known to be of this execution.
#[must_use]
pub fn mark(execution: &str) -> String {
    format!("[{execution}]")
}
