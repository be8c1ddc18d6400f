//! What policies do to Fanfare's queues that they should not.

use fanfare::QueueNames;
use fanfare_protocol::queue::{AGGREGATION_EXPIRES_MS, PAYLOAD_EXPIRES_MS};
use serde::Deserialize;

use super::finding::Verdict;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Definition {
    message_ttl: Option<i64>,
    expires: Option<i64>,
    max_length: Option<i64>,
    max_length_bytes: Option<i64>,
    overflow: Option<String>,
    delivery_limit: Option<i64>,
}

/// What a queue of Fanfare's is, as far as policies matter to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It dead-letters to Fanfare's own queue, and refuses what it has no room for.
    Service,
    /// It passes on what expires.
    Delay,
    /// It goes by itself when nobody has used it for long.
    Aggregation,
    /// The same, with parts that a callback still refers to.
    Payload,
    /// Who runs hears through it, or is answered.
    Ear,
    /// Manifests, shards, dead letters, parked messages: whatever leaves it without an ack is lost.
    Own,
}

impl Kind {
    pub(super) fn of(queue: &str, names: &QueueNames) -> Option<Self> {
        let rest = queue.strip_prefix(names.prefix().as_str())?.strip_prefix('.')?;
        match rest.split_once('.').map_or(rest, |(kind, _)| kind) {
            "service" => Some(Self::Service),
            "delay" => Some(Self::Delay),
            "agg" => Some(Self::Aggregation),
            "payload" => Some(Self::Payload),
            "fanin" | "shard" | "dead" | "parked" => Some(Self::Own),
            "wait" | "coordinator" | "worker" => Some(Self::Ear),
            _ => None,
        }
    }

    /// Arguments of the queue, which go before any policy.
    const fn refuses_when_full(self) -> bool {
        matches!(self, Self::Service | Self::Delay)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Harm {
    pub(super) verdict: Verdict,
    pub(super) setting: &'static str,
    pub(super) does: &'static str,
}

const LOSES_WORDS: &str = "loses answers to callers and operators, and cancels on their way to workers";

/// What policies do to a queue that they should not.
pub(super) fn harms(kind: Kind, policy: &Definition) -> Vec<Harm> {
    let mut harms = Vec::new();
    let mut add = |verdict, setting, does| harms.push(Harm { verdict, setting, does });
    if policy.message_ttl.is_some() {
        match kind {
            Kind::Service => {
                add(
                    Verdict::Warn,
                    "message-ttl",
                    "fails targets and parks callbacks that wait for a worker so long",
                );
            }
            Kind::Delay => {
                add(Verdict::Note, "message-ttl", "makes retries come early where it is the shorter time")
            }
            Kind::Ear => add(Verdict::Warn, "message-ttl", LOSES_WORDS),
            Kind::Aggregation | Kind::Payload | Kind::Own => {
                add(Verdict::Wrong, "message-ttl", "loses what waits so long");
            }
        }
    }
    match (kind, policy.expires) {
        // Somebody uses it for as long as it is of use.
        (Kind::Ear, _) => {}
        (Kind::Aggregation, Some(milliseconds)) if milliseconds >= AGGREGATION_EXPIRES_MS => {}
        (Kind::Payload, Some(milliseconds)) if milliseconds >= PAYLOAD_EXPIRES_MS => {}
        (Kind::Payload, Some(_)) => add(
            Verdict::Warn,
            "expires",
            "parks callbacks with large payloads that wait for a worker so long",
        ),
        (_, Some(_)) => {
            add(Verdict::Wrong, "expires", "deletes the queue with all that it holds when nobody uses it")
        }
        (_, None) => {}
    }
    let refuses = kind.refuses_when_full() || policy.overflow.as_deref() == Some("reject-publish");
    for (setting, limit) in [("max-length", policy.max_length), ("max-length-bytes", policy.max_length_bytes)]
    {
        match limit {
            Some(_) if refuses => {
                add(Verdict::Note, setting, "makes publishers wait or fail while the queue is full")
            }
            Some(_) if kind == Kind::Ear => add(Verdict::Warn, setting, LOSES_WORDS),
            Some(_) => {
                add(Verdict::Wrong, setting, "drops the oldest messages: it needs overflow reject-publish")
            }
            None => {}
        }
    }
    match (kind, policy.delivery_limit) {
        // A classic queue does not count; a replicated one loses results.
        (_, None | Some(..=-1)) | (Kind::Delay | Kind::Ear, _) => {}
        (Kind::Service, Some(_)) => add(
            Verdict::Warn,
            "delivery-limit",
            "fails, with a target that kills its worker, all others that the worker held: workers have a limit of their own",
        ),
        (Kind::Aggregation | Kind::Payload | Kind::Own, Some(_)) => {
            add(
                Verdict::Wrong,
                "delivery-limit",
                "loses what was redelivered as often, by restarts for instance",
            );
        }
    }
    harms
}
