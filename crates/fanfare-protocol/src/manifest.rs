use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::message::{HeaderValue, Message};
use crate::name::{Cid, RunId, ServiceName, Source, TargetKey};
use crate::queue::QueueNames;
use crate::{Channel, CompletionPolicy, Malformed, Metadata, TraceParent, WireTime, header, limits};

/// The message that commits a fan-out: it exists if and only if its manifest is confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The correlation ID.
    pub cid: Cid,
    /// This invocation.
    pub run: RunId,
    /// Who issued the fan-out.
    pub source: Source,
    /// When it was issued.
    pub req_ts_utc: WireTime,
    /// `fanout-call` or `parallel-exec-call`.
    #[serde(with = "channel_as_header")]
    pub channel: Channel,
    /// The targets, in the caller's order.
    #[serde(deserialize_with = "crate::object::list")]
    pub targets: Vec<ManifestTarget>,
    /// Services invoked each time a target completes.
    pub on_target: Vec<ServiceName>,
    /// Services invoked when all targets have completed.
    pub on_final: Vec<ServiceName>,
    /// The aggregation queue, or the shard.
    pub reply_to: String,
    /// Milliseconds from the manifest's first delivery until what is missing counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The same as a point in time, set when a coordinator renews the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_utc: Option<WireTime>,
    /// A queue that receives the final payload too, and is not in `on_final`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiter: Option<String>,
    /// Whether that queue is told how far the fan-out has come, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub progress: bool,
    /// Whether a [`Sentinel`](crate::Sentinel) was put into the aggregation queue before this manifest into its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sentinel: bool,
    /// Whether the aggregation queue is a quorum queue, which hands out only what would survive the broker's death.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replicated: bool,
    /// When it is complete before all targets have responded; never, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::object::maybe")]
    pub completion: Option<CompletionPolicy>,
    /// What the caller tells all targets and callbacks.
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// Where the caller is traced.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "TraceParent::read")]
    pub traceparent: Option<TraceParent>,
}

/// One target, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestTarget {
    /// Its key, unique in the fan-out.
    pub key: TargetKey,
    /// The service that it invokes.
    pub service: ServiceName,
}

impl Manifest {
    /// The message as the manifest queue takes it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let body = crate::result::to_json(self);
        let mut message =
            Message::of(header::TYPE_MANIFEST, &self.cid, format!("{}/manifest", self.cid), body);
        message.properties.app_id = Some((&self.source).into());
        message.properties.timestamp = Some(self.req_ts_utc.timestamp());
        message.headers.insert(header::RUN, self.run);
        message
    }

    /// The copy that a coordinator publishes to renew what it holds, with the deadline made absolute.
    #[must_use]
    pub fn encode_renewed(&self, deadline: Option<WireTime>) -> Message {
        let renewed = Self { deadline_utc: deadline.or(self.deadline_utc), ..self.clone() };
        let mut message = renewed.encode().with_header(header::RENEWED, HeaderValue::Bool(true));
        if let Some(deadline) = renewed.deadline_utc {
            message = message.with_header(header::DEADLINE_UTC, deadline.to_string());
        }
        message
    }

    /// Whether it shares its queue with other fan-outs.
    #[must_use]
    pub fn is_shared(&self, names: &QueueNames) -> bool {
        names.shard_number(&self.reply_to).is_some()
    }

    /// The name of the queue that it goes to itself: the shard, or the one for manifests.
    #[must_use]
    pub fn queue(&self, names: &QueueNames) -> String {
        if self.is_shared(names) { self.reply_to.clone() } else { names.fanin_queue() }
    }

    /// Whether a coordinator published this message to renew a manifest.
    #[must_use]
    pub fn is_renewed(message: &Message) -> bool {
        message.headers.contains_key(header::RENEWED)
    }

    /// Decodes a message of the manifest queue and checks all that a coordinator relies on.
    ///
    /// # Errors
    /// Where it is not a manifest, or names queues that are not its own: its results are gathered in the aggregation queue
    /// of its CID and run under `names`, or in a shard, which the coordinator compares with where it read the manifest, and it
    /// answers only to a waiter's queue.
    pub fn decode(message: &Message, names: &QueueNames) -> Result<Self, Malformed> {
        if message.kind() != header::TYPE_MANIFEST {
            return Err(Malformed::new(message.mistyped("is not fanfare.manifest")));
        }
        let mut manifest: Self = crate::result::from_json("manifest", &message.body)?;
        // They are held for as long as the fan-out is open, and have grown by doubling.
        manifest.targets.shrink_to_fit();
        manifest.check(names)?;
        Ok(manifest)
    }

    /// Checks a further manifest of the same run, which came in `message`. What a coordinator has renewed is never refused: the
    /// delivery that it replaces may be acked already.
    ///
    /// # Errors
    /// Where it says anything else than this one, but for `deadline_utc`: part of the fan-out may have happened by this one.
    pub fn check_repeated(&self, message: &Message, repeated: &Self) -> Result<(), Malformed> {
        let deadline_utc = self.deadline_utc;
        if Self::is_renewed(message) || *self == (Self { deadline_utc, ..repeated.clone() }) {
            return Ok(());
        }
        Err(Malformed::new(format!(
            "another manifest of run {} came before and says something else, and the first stands: draw a run for each invocation",
            self.run
        )))
    }

    fn check(&self, names: &QueueNames) -> Result<(), Malformed> {
        if !names.is_reply_queue(&self.reply_to, &self.cid, self.run) {
            let own = names.aggregation(&self.cid, self.run).name;
            return Err(Malformed::new(format!("reply_to {:?} is neither {own} nor a shard", self.reply_to)));
        }
        if let Some(waiter) = self.waiter.as_deref().filter(|waiter| !names.is_wait(waiter)) {
            return Err(Malformed::new(format!(
                "waiter {waiter:?} does not match {}.wait.*",
                names.prefix()
            )));
        }
        if !self.channel.is_call() {
            return Err(Malformed::new(format!(
                "channel {} is not that of a fan-out",
                self.channel.as_header()
            )));
        }
        if self.targets.len() > limits::TARGETS {
            let (is, most) = (self.targets.len(), limits::TARGETS);
            return Err(Malformed::new(format!("the manifest lists {is} targets, and {most} is the most")));
        }
        for (name, callbacks) in [("on_target", &self.on_target), ("on_final", &self.on_final)] {
            if callbacks.len() > limits::CALLBACKS {
                let (is, most) = (callbacks.len(), limits::CALLBACKS);
                return Err(Malformed::new(format!("{name} lists {is} callbacks, and {most} is the most")));
            }
            let mut names = BTreeSet::new();
            if let Some(twice) = callbacks.iter().find(|callback| !names.insert(*callback)) {
                return Err(Malformed::new(format!(
                    "{name} lists {twice} twice, which would invoke it twice with the same message: list it once"
                )));
            }
        }
        if let (Channel::ParallelExecCall, Some(callback)) = (self.channel, self.on_final.first()) {
            return Err(Malformed::new(format!(
                "on_final lists {callback}, and a parallel execution has no final callbacks: use channel {}",
                Channel::FanoutCall.as_header()
            )));
        }
        if let Some(policy) = &self.completion {
            policy.check(self.targets.len()).map_err(|rule| Malformed::new(rule.to_string()))?;
        }
        let mut keys = BTreeSet::new();
        match self.targets.iter().find(|target| !keys.insert(&target.key)) {
            Some(twice) => Err(Malformed::new(format!("key {:?} is there twice", twice.key.as_str()))),
            None => Ok(()),
        }
    }
}

mod channel_as_header {
    use super::Channel;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(channel: &Channel, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(channel.as_header())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Channel, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
