use std::time::Duration;

use fanfare_broker::{BrokerError, PublishError};
use fanfare_protocol::{
    Cid, InvalidMetadata, InvalidName, InvalidPolicy, Prefix, RunId, ServiceName, TargetKey, limits,
};

use crate::publisher::SHARED_TIME_LIMIT;

/// An invocation did not succeed. The variants tell what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvokeError {
    /// Something about it is wrong. Nothing was sent.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The fan-out does not exist: no callback will come, and it may be invoked again. Where requests were sent already,
    /// some of its targets may have run.
    #[error("the invocation was not accepted, so no callback will come{}", ran(*.requests_sent))]
    NotAccepted {
        /// The correlation ID.
        cid: Cid,
        /// The run that was given up.
        run: RunId,
        /// Whether any request was sent: if not, no target has run either.
        requests_sent: bool,
        /// Why.
        source: Failure,
    },
    /// The last message was sent, and no answer came: the fan-out may exist or not. To invoke it again may run it twice.
    #[error(
        "whether the invocation was accepted is unknown (CID {cid}, run {run}); to invoke it again may run it twice"
    )]
    Unknown {
        /// The correlation ID.
        cid: Cid,
        /// The run, which tells this invocation from another with the same CID.
        run: RunId,
        /// What was seen of the broker.
        source: PublishError,
    },
}

impl InvokeError {
    /// Whether there was no broker to be reached from the start, so that nothing was sent.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::NotAccepted {
                requests_sent: false,
                source: Failure::PreparationLimit(_)
                    | Failure::Broker(BrokerError::Unreachable(_))
                    | Failure::Request { source: PublishError::NotSent(BrokerError::Unreachable(_)), .. },
                ..
            }
        )
    }
}

fn ran(requests_sent: bool) -> &'static str {
    if requests_sent { "; some of its targets may have run" } else { "; nothing was sent" }
}

/// What to say where the broker takes no messages.
pub(crate) fn pressed(blocked: bool) -> &'static str {
    if blocked {
        ": the broker takes no messages, being short of memory or disk; see `rabbitmq-diagnostics alarms`"
    } else {
        ""
    }
}

/// Why an invocation was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A queue could not be looked at or declared, or the broker refuses the [`Config::user_id`](crate::Config::user_id).
    #[error("no queue could be prepared")]
    Broker(#[from] BrokerError),
    /// The broker did not answer in time while queues were prepared.
    #[error("the queues could not be prepared within {0:?}: the broker does not answer")]
    PreparationLimit(Duration),
    /// As many fan-outs as may wait for a coordinator.
    #[error(
        "{waiting} fan-outs wait for a coordinator, and {most} is the most: try again later, start more coordinators, or raise \
         the publisher's most_waiting"
    )]
    Busy {
        /// Those that wait.
        waiting: u64,
        /// The limit: [`Config::most_waiting`](crate::Config::most_waiting), or twice that inside a service.
        most: u64,
    },
    /// As many fan-outs are open in a shard as may be.
    #[error(
        "as many fan-outs are open in a shard as its coordinator takes: try again later, see what they wait for (`fanfare \
         status`), or use more shards"
    )]
    Full,
    /// A shard is not there. Only coordinators declare shards.
    #[error(
        "there is no `{shard}`, where this fan-out belongs with {shards} shards: start a coordinator first, which declares them, and \
         give it and every publisher the same number of shards (`--shards`)"
    )]
    NoShard {
        /// The name of its queue.
        shard: String,
        /// Shards that the publisher was told of.
        shards: u32,
    },
    /// The request for a service could not be brought into its queue.
    #[error("the request for `{service}` could not be sent")]
    Request {
        /// The service.
        service: ServiceName,
        /// What became of it at the last try.
        source: PublishError,
    },
    /// The requests were not confirmed in time.
    #[error(
        "{confirmed} of {requests} requests were confirmed in time for the limit of {limit:?}{}", pressed(*.blocked)
    )]
    TimeLimit {
        /// Requests that are in their queues.
        confirmed: usize,
        /// Requests of the fan-out.
        requests: usize,
        /// The limit: see [`Config::time_limit`](crate::Config::time_limit).
        limit: Duration,
        /// Whether the broker took no messages in the end, because it is short of memory or disk.
        blocked: bool,
    },
    /// What shows that the aggregation queue is not emptied could not be put into it.
    #[error("the sentinel could not be put into the aggregation queue")]
    Sentinel(#[source] PublishError),
    /// The manifest could not be sent, or came back.
    #[error("the manifest could not be sent")]
    Manifest(#[source] PublishError),
}

/// An invocation that breaks a rule: names the value, the rule, and what would do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// A source, service, callback, key or CID is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Metadata is not allowed.
    #[error(transparent)]
    Metadata(#[from] InvalidMetadata),
    /// Two targets have the same key.
    #[error("two targets have the key {:?}: give one of them another with `Target::key`", key.as_str())]
    DuplicateKey {
        /// The key.
        key: TargetKey,
    },
    /// A callback is there twice, which would invoke it twice with the same message.
    #[error("`{callback}` is there twice as {kind} callback: give it once")]
    DuplicateCallback {
        /// "on-target" or "final".
        kind: &'static str,
        /// The callback.
        callback: ServiceName,
    },
    /// A fan-out has no final callback, and nobody waits for it.
    #[error("a fan-out without a final callback: give one, wait for it, or use a parallel execution")]
    NoFinalCallback,
    /// A parallel execution has no on-target callback.
    #[error("a parallel execution without an on-target callback: give one, or use a fan-out")]
    NoOnTargetCallback,
    /// A parallel execution has a final callback.
    #[error("a parallel execution has no final callbacks, and `{0}` was given as one: use a fan-out")]
    FinalCallbackOfParallel(ServiceName),
    /// A parallel execution has no final payload to wait for.
    #[error("a parallel execution has no final payload to wait for: use a fan-out")]
    WaitOfParallel,
    /// There are more targets than this: [`Config::most_targets`](crate::Config::most_targets).
    #[error("a fan-out of more than {0} targets: split it")]
    TooManyTargets(usize),
    /// There are too many callbacks of one kind.
    #[error("{count} {kind} callbacks, and {} is the most", limits::CALLBACKS)]
    TooManyCallbacks {
        /// "on-target" or "final".
        kind: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A payload cannot be written as JSON, or is not JSON.
    #[error("the payload of target {:?} is not JSON", key.as_str())]
    Payload {
        /// The target.
        key: TargetKey,
        /// Why.
        source: serde_json::Error,
    },
    /// A payload is too large.
    #[error(
        "the payload of target {:?} has {bytes} bytes, and {} is the most: store the data elsewhere and send a reference to it",
        key.as_str(), limits::MESSAGE_BYTES
    )]
    PayloadTooLarge {
        /// The target.
        key: TargetKey,
        /// Its bytes.
        bytes: usize,
    },
    /// A payload is nested too deeply for the parsers of some languages.
    #[error(
        "the payload of target {:?} has {levels} levels of arrays and objects, and {} is the most: flatten it, or send it as \
         a string",
        key.as_str(), limits::NESTING
    )]
    PayloadTooDeep {
        /// The target.
        key: TargetKey,
        /// Its levels.
        levels: usize,
    },
    /// The manifest, which lists all keys and services, is too large.
    #[error(
        "the list of targets has {bytes} bytes, and {} is the most: use shorter keys, or split the fan-out",
        limits::MESSAGE_BYTES
    )]
    ManifestTooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The time limit is more than coordinators of shards wait for.
    #[error(
        "a time limit of {0:?} in shared aggregation: give {most:?} or less, since coordinators forget results whose manifest does \
         not follow within twice that time", most = SHARED_TIME_LIMIT
    )]
    TimeLimit(Duration),
    /// A prefix cannot have so many shards.
    #[error("{0} shards are not possible: give 1 to {most}, the same number to every publisher and coordinator", most = limits::SHARDS)]
    Shards(u32),
    /// The deadline is none.
    #[error("a deadline of {0:?}: give 1 ms to 365 days, or none with `without_deadline`")]
    Deadline(Duration),
    /// A completion rule that could never be met, or that would be met before anything has happened.
    #[error(transparent)]
    Completion(#[from] InvalidPolicy),
    /// A completion rule with a share that is none.
    #[error(
        "completion when more than a share of {0} of the targets has failed: give 0 or more, and less than 1"
    )]
    CompletionShare(f64),
    /// More than one rule is broken: the first ten, in the order in which they were seen.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Invalid>),
    /// Services or callbacks have no queue.
    #[error("no worker serves {}: start one, or pass declare_missing", listed(.0))]
    Unserved(Vec<ServiceName>),
}

/// At most ten names, and how many more there are.
fn listed(names: &[ServiceName]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Waiting for a fan-out did not bring its final payload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The fan-out was not accepted, or nobody can say.
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    /// The fan-out did not end in time. It goes on, and the final callbacks that it has will come, unless a coordinator has refused
    /// its manifest, which is among the parked messages then.
    #[error(
        "the fan-out did not end within {timeout:?} (CID {cid}, run {run}); it goes on without the caller, unless its manifest was \
         refused, which is parked then: see `fanfare explain {cid}` and `fanfare parked list`"
    )]
    TimedOut {
        /// The correlation ID.
        cid: Cid,
        /// The run.
        run: RunId,
        /// What the caller gave.
        timeout: Duration,
    },
    /// The connection on which the answer would have come was lost. The fan-out goes on, and the final callbacks that it has
    /// will come; only the answer is lost.
    #[error(
        "the connection to wait on was lost (CID {cid}, run {run}); the fan-out goes on, but its final payload will not come to \
         the caller"
    )]
    Lost {
        /// The correlation ID.
        cid: Cid,
        /// The run.
        run: RunId,
        /// What was seen of the broker; none where the queue to wait on was taken away.
        source: Option<BrokerError>,
    },
    /// What came is no final payload.
    #[error("the final payload is malformed (CID {cid}, run {run})")]
    Malformed {
        /// The correlation ID.
        cid: Cid,
        /// The run.
        run: RunId,
        /// What does not fit.
        source: serde_json::Error,
    },
}

/// A fan-out was not cancelled, or nobody can say. To cancel again is harmless in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CancelError {
    /// The CID is none. Nobody was asked.
    #[error(transparent)]
    Invalid(#[from] InvalidName),
    /// There is no queue for the answer. Nobody was asked.
    #[error("no coordinator was asked")]
    Unprepared(#[source] Failure),
    /// The request could not be sent.
    #[error("no coordinator could be asked")]
    NotSent(#[source] PublishError),
    /// No coordinator listens: the fan-out goes on once one is started.
    #[error(
        "no coordinator can be asked under the prefix `{prefix}`: start one, and cancel again; where one runs, its exchange was deleted, and comes back within 30 s"
    )]
    NoCoordinator {
        /// How its queues' names would begin.
        prefix: Prefix,
    },
    /// Coordinators accept certain users only.
    #[error("the request to cancel {cid} was refused: {reason}")]
    Refused {
        /// The correlation ID.
        cid: Cid,
        /// What the coordinator says.
        reason: String,
    },
    /// The fan-out has ended, too long ago for any coordinator to know how: its queue is gone.
    #[error(
        "the fan-out has ended already, and no coordinator remembers how, or it never was: see that CID and run belong \
         together (CID {cid}, run {run})"
    )]
    Ended {
        /// The correlation ID.
        cid: Cid,
        /// The run.
        run: RunId,
    },
    /// No coordinator knows the fan-out.
    #[error(
        "no coordinator knows a fan-out {cid} ({}): it has ended some time ago, was never invoked under this prefix, was \
         invoked with other --shards than the coordinators have, or waits for a coordinator to take it, in which case cancel it again when one has", answers(*.answered, *.waited)
    )]
    Unknown {
        /// The correlation ID.
        cid: Cid,
        /// Coordinators that said so.
        answered: usize,
        /// How long they were waited for.
        waited: Duration,
    },
    /// No coordinator that has answered knows the fan-out, and others have not answered.
    #[error(
        "whether {cid} was cancelled is unknown: no coordinator that has answered knows it ({}), and {} more {} not, which may hold \
         it and hear of this yet: cancel again to know, and restart one that stays silent, so that another takes up what it holds",
        answers(*.answered, *.waited), .silent, if *.silent == 1 { "has" } else { "have" }
    )]
    Silent {
        /// The correlation ID.
        cid: Cid,
        /// Coordinators that do not know it.
        answered: usize,
        /// Others that the broker counts.
        silent: usize,
        /// How long they were waited for.
        waited: Duration,
    },
    /// No coordinator has answered, and one may hear of it yet.
    #[error(
        "whether {cid} was cancelled is unknown: no coordinator has answered within {} s, and one may hear of it yet{}; cancel again \
         to know", waited.as_secs(), pressed(*.blocked)
    )]
    Unanswered {
        /// The correlation ID.
        cid: Cid,
        /// How long coordinators were waited for.
        waited: Duration,
        /// Whether the broker takes no messages, being short of memory or disk.
        blocked: bool,
    },
    /// A coordinator holds the fan-out and is to cancel it, but has not said that it is done.
    #[error(
        "the cancel of {cid} was not confirmed within {waited:?}: it takes effect unless the coordinator that holds the fan-out \
         ends before; cancel again to know"
    )]
    Unconfirmed {
        /// The correlation ID.
        cid: Cid,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection on which the answer would have come was lost.
    #[error("the connection was lost before {cid} was known to be cancelled: cancel again to know")]
    Lost {
        /// The correlation ID.
        cid: Cid,
        /// What was seen of the broker; none where the queue for the answer was taken away.
        source: Option<BrokerError>,
    },
}

impl CancelError {
    /// Whether there was no broker to be reached from the start, so that nobody was asked.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unprepared(Failure::PreparationLimit(_) | Failure::Broker(BrokerError::Unreachable(_)))
                | Self::NotSent(PublishError::NotSent(BrokerError::Unreachable(_)))
        )
    }
}

fn answers(answered: usize, waited: Duration) -> String {
    let seconds = waited.as_secs();
    match answered {
        1 => format!("one has answered within {seconds} s"),
        more => format!("{more} have answered within {seconds} s"),
    }
}
