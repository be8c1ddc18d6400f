use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_broker::{BrokerError, absence, consumer_timeout};
use fanfare_fanin::Limits;
use fanfare_protocol::QueueNames;
use fanfare_protocol::limits::{MESSAGE_BYTES, SHARDS, TARGETS};

/// How a coordinator works. The defaults suit most.
#[derive(Debug, Clone)]
pub struct Config {
    /// The names of the queues.
    pub names: QueueNames,
    /// What one fan-out may hold unacked, for how long, and how much of it a crash may repeat.
    pub limits: Limits,
    /// What the broker's consumer time-out is, which it does not tell. `limits.renewal` must be below half of it. 30 minutes,
    /// as RabbitMQ has it.
    pub consumer_timeout: Duration,
    /// Manifests that one channel is handed before another is opened.
    pub prefetch: u16,
    /// Channels that consume manifests. With `prefetch` it bounds how many fan-outs are open here at once, 10,000 by default;
    /// the rest waits in the queue, or is taken by other coordinators. It must leave room for fan-outs that services
    /// invoke: where all places of all coordinators are taken by fan-outs that wait for others, these come to their turn when
    /// a wait times out, a deadline passes, or another coordinator is started.
    pub most_channels: usize,
    /// Targets of one fan-out. A manifest with more is parked when it is first delivered. 100,000, which is the most that there can be:
    /// give publishers the same.
    pub most_targets: usize,
    /// Shards of the prefix, in which fan-outs are gathered that are invoked with shared aggregation; 0 for none. Publishers have
    /// to be told the same number, and it cannot be changed while there are fan-outs in them: 0 to 1024.
    pub shards: u32,
    /// What one shard may hold, and for how long.
    pub shard_limits: ShardSettings,
    /// Whether the queues that large final payloads travel in are replicated over the nodes of a cluster, as aggregation queues
    /// can be. False.
    pub replicated_payloads: bool,
    /// The users whose manifests are accepted, by the `user_id` that the broker has checked; manifests of others, and those
    /// without one, are parked. So are requests to cancel accepted, and else refused. None, which is the default, accepts all. Publishers must be told to set theirs before.
    pub accepted_users: Option<BTreeSet<String>>,
    /// The login that this coordinator has at the broker, which it puts into the manifests that it publishes again.
    /// `accepted_users` needs it, and it is accepted without being listed there; where coordinators have several logins, list those
    /// of the others. The broker is asked at the start whether it takes it.
    pub user_id: Option<String>,
    /// How long lies between the two looks that prove a queue's absence.
    pub absence_pause: Duration,
    /// How long a stop may take before what is open is let go as it is, and after which a shard that another coordinator is to have is
    /// let go where all that its fan-outs still wait for are callbacks' queues that take nothing.
    pub stop_within: Duration,
    /// What operators are told that this coordinator is, such as its host and process. None, which is the default, leaves the ID
    /// that it draws when it starts.
    pub name: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: QueueNames::default(),
            limits: Limits::default(),
            consumer_timeout: consumer_timeout::DEFAULT,
            prefetch: 100,
            most_channels: 100,
            shards: 0,
            shard_limits: ShardSettings::default(),
            most_targets: TARGETS,
            replicated_payloads: false,
            accepted_users: None,
            user_id: None,
            absence_pause: absence::PAUSE,
            stop_within: Duration::from_secs(20),
            name: None,
        }
    }
}

/// What one shard may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSettings {
    /// Fan-outs that are open in one shard when publishers are told to invoke no more. 5,000. Those that services invoke, which others
    /// wait for, and what is invoked within the second that it takes to be heard come on top.
    pub most_open: usize,
    /// Unacked messages of one shard: its prefetch. 10,000. Manifests, results and checkpoints of all its fan-outs count; when
    /// it is nearly full, results are written into checkpoints. To find the message that an ack is for, RabbitMQ goes through all
    /// unacked ones before it: with 40,000 of them it is busy with little else.
    pub window: u16,
    /// How long a result waits for its manifest before it counts as late. 120 s: twice the time limit of the publishers, or
    /// more.
    pub patience: Duration,
    /// How long it is recorded in the shard that a fan-out has ended which was renewed or taken over: a stray copy of its manifest
    /// is recognised by that after a crash. 1 h.
    pub recorded: Duration,
}

impl Default for ShardSettings {
    fn default() -> Self {
        Self {
            most_open: 5_000,
            window: 10_000,
            patience: Duration::from_secs(120),
            recorded: Duration::from_secs(60 * 60),
        }
    }
}

/// A coordinator cannot work with what it was given. Outages are no errors: it waits for their end.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range.
    #[error("coordinator setting {setting} = {value} is not allowed: {rule}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// As it was given.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// The broker refuses something, and no waiting helps.
    #[error("the coordinator cannot work")]
    Broker(#[from] BrokerError),
}

impl Config {
    /// Fan-outs that may be open at once.
    pub(crate) fn most_open(&self) -> usize {
        self.most_channels.saturating_mul(self.prefetch.into())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let limits = &self.limits;
        if let (Some(users), None) = (&self.accepted_users, &self.user_id) {
            let value = users.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let rule =
                "it needs user_id, this coordinator's own login, or its renewed manifests would be refused";
            return Err(Error::Setting { setting: "accepted_users", value, rule });
        }
        let setting = |setting, value: String, rule| Err(Error::Setting { setting, value, rule });
        if self.prefetch == 0 {
            return setting("prefetch", "0".to_owned(), "give 1 to 65535");
        }
        if self.most_channels == 0 {
            return setting("most_channels", "0".to_owned(), "give at least 1");
        }
        if limits.calls_at_risk == 0 || limits.results_held == 0 {
            return setting("limits", format!("{limits:?}"), "calls_at_risk and results_held are at least 1");
        }
        if limits.results_held >= usize::from(limits.window) {
            let rule = "it must be smaller than limits.window, or no checkpoint is ever written";
            return setting("limits.results_held", limits.results_held.to_string(), rule);
        }
        if !(1..=MESSAGE_BYTES).contains(&limits.large_payload_bytes) {
            let rule = "give 1 to 16711680 bytes, which fit into a message everywhere";
            return setting("limits.large_payload_bytes", limits.large_payload_bytes.to_string(), rule);
        }
        if self.most_targets == 0 {
            return setting(
                "most_targets",
                "0".to_owned(),
                "give at least 1; 100000 is the most that there can be",
            );
        }
        if self.shards > SHARDS {
            return setting(
                "shards",
                self.shards.to_string(),
                "give 0 to 1024; as many as the broker has cores are plenty",
            );
        }
        if self.shard_limits.most_open == 0 {
            return setting("shard_limits.most_open", "0".to_owned(), "give at least 1; 5000 is the default");
        }
        if self.shard_limits.window < limits.window {
            let rule = "it must not be smaller than limits.window, which one fan-out may take of it";
            return setting("shard_limits.window", self.shard_limits.window.to_string(), rule);
        }
        if limits.renewal < Duration::from_millis(100) {
            return setting(
                "limits.renewal",
                format!("{:?}", limits.renewal),
                "give at least 100ms; 10min is the default",
            );
        }
        if limits.renewal.saturating_mul(2) >= self.consumer_timeout {
            let value =
                format!("{:?} with a consumer_timeout of {:?}", limits.renewal, self.consumer_timeout);
            let rule = "it must be below half of the broker's consumer time-out; where that was changed, say so here too";
            return setting("limits.renewal", value, rule);
        }
        Ok(())
    }
}
