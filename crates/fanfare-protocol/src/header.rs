//! Header names and message types of the protocol.

/// Version of the protocol, 1 on every message.
pub const VERSION: &str = "fanfare-version";
/// The value of [`VERSION`].
pub const VERSION_1: i64 = 1;
/// The run: 32 hexadecimal digits, drawn at each invocation.
pub const RUN: &str = "fanfare-run";
/// How a service is invoked: see [`Channel`](crate::Channel).
pub const CHANNEL: &str = "fanfare-channel";
/// Who invoked.
pub const SOURCE: &str = "fanfare-source";
/// The service that a request is for.
pub const TARGET: &str = "fanfare-target";
/// The key of a target in its fan-out.
pub const KEY: &str = "fanfare-key";
/// When the fan-out was invoked: see [`WireTime`](crate::WireTime).
pub const REQUESTED_AT: &str = "fanfare-req-ts";
/// A table of strings that the caller gave.
pub const METADATA: &str = "fanfare-metadata";
/// Where the caller is traced, as W3C's Trace Context has it: see [`TraceParent`](crate::TraceParent).
pub const TRACEPARENT: &str = "traceparent";
/// On a final callback: the spans of its targets, each written as [`TRACEPARENT`].
pub const LINKS: &str = "fanfare-links";
/// 2, 3, ... on a retry.
pub const ATTEMPT: &str = "fanfare-attempt";
/// On a manifest that a coordinator published again to renew it.
pub const RENEWED: &str = "fanfare-renewed";
/// On a renewed manifest, when the fan-out must end: see [`WireTime`](crate::WireTime).
pub const DEADLINE_UTC: &str = "deadline_utc";
/// On a parked message: why it is there.
pub const REASON: &str = "fanfare-reason";
/// On a parked message: the queue that it was read from or meant for.
pub const PARKED_FROM: &str = "fanfare-parked-from";
/// On a parked message: when it was parked; see [`WireTime`](crate::WireTime).
pub const PARKED_AT: &str = "fanfare-parked-at";
/// On a parked message: a UUID that no other parked message has.
pub const PARKED_ID: &str = "fanfare-parked-id";
/// On a message that was parked and put back: its [`PARKED_ID`] from then, which tells it from its earlier runs.
pub const REPLAYED: &str = "fanfare-replayed";
/// On a parked message that had a `user_id`: that.
pub const PARKED_USER: &str = "fanfare-parked-user";
/// On a final callback: how many targets the fan-out had.
pub const TARGETS: &str = "fanfare-targets";
/// On a final callback: how many of its targets failed.
pub const FAILED: &str = "fanfare-failed";
/// On a final callback whose payload is in parts, and on each part: who wrote them; see
/// [`LargePayload`](crate::LargePayload).
pub const PAYLOAD: &str = "fanfare-payload";
/// On such a callback: how many parts there are.
pub const PAYLOAD_PARTS: &str = "fanfare-payload-parts";
/// On such a callback: bytes of the whole payload.
pub const PAYLOAD_BYTES: &str = "fanfare-payload-bytes";
/// On a part: its number, from 0.
pub const PAYLOAD_PART: &str = "fanfare-payload-part";
/// Set by a broker that dead-letters: where and why the message died, the latest death first.
pub const DEATHS: &str = "x-death";
/// Set by a broker that dead-letters: why the message died first.
pub const FIRST_DEATH_REASON: &str = "x-first-death-reason";
/// Set by a broker that dead-letters: the queue in which the message died first.
pub const FIRST_DEATH_QUEUE: &str = "x-first-death-queue";
/// On the final callback of a fan-out that ended before all targets had responded, and on a result that a coordinator wrote for that
/// reason in a target's place: see [`EndedBy`](crate::EndedBy).
pub const ENDED_BY: &str = "fanfare-ended-by";
/// On such a callback: how many targets had not responded.
pub const MISSING: &str = "fanfare-missing";
/// Set by a quorum queue: how often the message was delivered before.
pub const DELIVERY_COUNT: &str = "x-delivery-count";

/// `type` of a request.
pub const TYPE_REQUEST: &str = "fanfare.request";
/// `type` of a result.
pub const TYPE_RESULT: &str = "fanfare.result";
/// `type` of several results in one message.
pub const TYPE_RESULTS: &str = "fanfare.results";
/// `type` of a manifest.
pub const TYPE_MANIFEST: &str = "fanfare.manifest";
/// `type` of a callback message.
pub const TYPE_CALLBACK: &str = "fanfare.callback";
/// `type` of a part of a final payload.
pub const TYPE_PAYLOAD_PART: &str = "fanfare.payload-part";
/// `type` of what tells a waiting caller how far its fan-out has come.
pub const TYPE_PROGRESS: &str = "fanfare.progress";
/// `type` of a checkpoint.
pub const TYPE_CHECKPOINT: &str = "fanfare.checkpoint";
/// `type` of a fence.
pub const TYPE_FENCE: &str = "fanfare.fence";
/// `type` of what lies in an aggregation queue until that is deleted.
pub const TYPE_SENTINEL: &str = "fanfare.sentinel";
/// `type` of the record, in a shard, that fan-outs have ended.
pub const TYPE_ENDED: &str = "fanfare.ended";
/// `type` of what a coordinator tells the others of itself.
pub const TYPE_PRESENCE: &str = "fanfare.presence";
/// `type` of a request to cancel a fan-out.
pub const TYPE_CANCEL: &str = "fanfare.cancel";
/// `type` of what a coordinator answers to that.
pub const TYPE_CANCEL_ANSWER: &str = "fanfare.cancel-answer";
/// `type` of what workers are told of a fan-out that was cancelled.
pub const TYPE_CANCELLED: &str = "fanfare.cancelled";
/// `type` of what coordinators are asked about the fan-outs that they hold.
pub const TYPE_STATUS: &str = "fanfare.status";
/// `type` of what a coordinator answers to that.
pub const TYPE_STATUS_ANSWER: &str = "fanfare.status-answer";
/// `type` of what coordinators and workers are asked about one fan-out.
pub const TYPE_EXPLAIN: &str = "fanfare.explain";
/// `type` of what a coordinator answers to that.
pub const TYPE_EXPLAIN_ANSWER: &str = "fanfare.explain-answer";
/// `type` of what a worker answers to that.
pub const TYPE_WORKER_ANSWER: &str = "fanfare.worker-answer";

/// Whether a broker sets this header for the delivery at hand. A copy that is published anew must not carry it: a consumer
/// would take it for what the broker says about the copy.
#[must_use]
pub fn is_of_delivery(name: &str) -> bool {
    [DEATHS, DELIVERY_COUNT, "x-acquired-count"].contains(&name)
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}
