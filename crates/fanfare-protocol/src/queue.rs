//! The queues and exchanges: their names, and the arguments that everyone declares them with.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use smol_str::SmolStr;

use crate::hash::crc32;
use crate::limits::{PREFIX_CHARS, SHARDS};
use crate::name::{Cid, Prefix, RunId, ServiceName};

/// Redeliveries that a quorum queue allows: as good as unlimited, and understood by RabbitMQ 3.10 to 4.3 alike. Where it is
/// left out, 4.x drops a message after 20; -1 loses it at the first redelivery on 3.10.
pub const DELIVERY_LIMIT: i64 = 2_147_483_647;

/// Milliseconds that an aggregation queue outlives its last use: seven days.
pub const AGGREGATION_EXPIRES_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Milliseconds for which it counts that a shard was full: coordinators say so again every two seconds.
pub const FULL_MS: i64 = 5_000;

/// Milliseconds that the parts of a final payload outlive their last use: 28 days, in which a parked callback can be replayed.
pub const PAYLOAD_EXPIRES_MS: i64 = 28 * 24 * 60 * 60 * 1000;

/// Milliseconds that the queue of a coordinator or a worker outlives the channel that it was declared on: a minute.
pub const EAR_EXPIRES_MS: i64 = 60 * 1000;

/// Seconds that a retry can wait. Each step has a delay queue of its own, which is declared when it is first used; they are close
/// enough for a wait to be spread over two or three of them, and few enough for all to exist.
pub const DELAY_STEPS: [u32; 30] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768,
];

/// Bytes of most names: those of aggregation queues with a drawn CID have 77.
const NAME_ABOUT: usize = 80;

/// Names the queues of one prefix.
///
/// ```
/// use fanfare_protocol::{QueueNames, ServiceName};
///
/// let names = QueueNames::default();
/// assert_eq!(names.service(&ServiceName::new("price.quote")?).name, "fanfare.service.price.quote");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueNames {
    prefix: Prefix,
}

/// A queue and how to declare it. A broker refuses to declare a queue again with other arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// The queue's name.
    pub name: String,
    /// Whether it belongs to its connection and goes with it. All others are durable.
    pub exclusive: bool,
    /// Its `x-` arguments.
    pub arguments: BTreeMap<&'static str, Argument>,
}

impl QueueSpec {
    /// Whether its messages are replicated, and on the disk before they are confirmed.
    #[must_use]
    pub fn is_quorum(&self) -> bool {
        self.arguments.get("x-queue-type") == Some(&"quorum".into())
    }
}

/// A durable fanout exchange: a message published to it goes to every queue that is bound to it, and keeps its routing key,
/// which may name another queue for later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeSpec {
    /// The exchange's name.
    pub name: String,
}

/// The value of a queue argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(SmolStr),
    /// An integer.
    Int(i64),
    /// A truth value.
    Bool(bool),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Argument {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl QueueNames {
    /// The names that start with `prefix`.
    #[must_use]
    pub const fn new(prefix: Prefix) -> Self {
        Self { prefix }
    }

    /// The prefix.
    #[must_use]
    pub const fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Requests and callback messages of a service.
    #[must_use]
    pub fn service(&self, service: &ServiceName) -> QueueSpec {
        let arguments = BTreeMap::from([
            ("x-queue-type", "quorum".into()),
            ("x-delivery-limit", DELIVERY_LIMIT.into()),
            ("x-dead-letter-exchange", "".into()),
            ("x-dead-letter-routing-key", Argument::Text(self.dead_queue().into())),
            ("x-dead-letter-strategy", "at-least-once".into()),
            ("x-overflow", "reject-publish".into()),
        ]);
        QueueSpec { name: self.service_queue(service), exclusive: false, arguments }
    }

    /// The name of the queue that [`service`](Self::service) is about.
    #[must_use]
    pub fn service_queue(&self, service: &ServiceName) -> String {
        self.named(format_args!("service.{service}"))
    }

    /// The service whose queue this is, if it is one.
    #[must_use]
    pub fn service_of(&self, queue: &str) -> Option<ServiceName> {
        let name = queue.strip_prefix(self.prefix.as_str())?.strip_prefix(".service.")?;
        ServiceName::new(name).ok()
    }

    /// Manifests.
    #[must_use]
    pub fn fanin(&self) -> QueueSpec {
        self.internal("fanin")
    }

    /// The name of the queue for [manifests](Self::fanin).
    #[must_use]
    pub fn fanin_queue(&self) -> String {
        self.named("fanin")
    }

    /// What the broker dead-lettered.
    #[must_use]
    pub fn dead(&self) -> QueueSpec {
        self.internal("dead")
    }

    /// The name of the queue for what the broker [dead-lettered](Self::dead).
    #[must_use]
    pub fn dead_queue(&self) -> String {
        self.named("dead")
    }

    /// What is kept for a person to look at.
    #[must_use]
    pub fn parked(&self) -> QueueSpec {
        self.internal("parked")
    }

    /// Held by whoever looks at what is parked, one at a time.
    #[must_use]
    pub fn parked_look(&self) -> QueueSpec {
        self.ear("parked.look")
    }

    /// Retries that wait so long, and then go to the queue that their routing key names. Bound to
    /// [`delay_exchange`](Self::delay_exchange), so that this key can be that of the service's queue.
    #[must_use]
    pub fn delay(&self, seconds: u32) -> QueueSpec {
        let mut queue = self.internal(format_args!("delay.{seconds}"));
        queue.arguments.extend([
            ("x-message-ttl", (i64::from(seconds) * 1000).into()),
            ("x-dead-letter-exchange", "".into()),
            ("x-dead-letter-strategy", "at-least-once".into()),
            ("x-overflow", "reject-publish".into()),
        ]);
        queue
    }

    /// Leads to the delay queue of the same name.
    #[must_use]
    pub fn delay_exchange(&self, seconds: u32) -> ExchangeSpec {
        ExchangeSpec { name: self.named(format_args!("delay.{seconds}")) }
    }

    /// Results and checkpoints of one fan-out.
    #[must_use]
    pub fn aggregation(&self, cid: &Cid, run: RunId) -> QueueSpec {
        let arguments = BTreeMap::from([
            ("x-queue-type", "classic".into()),
            ("x-single-active-consumer", true.into()),
            ("x-expires", AGGREGATION_EXPIRES_MS.into()),
        ]);
        QueueSpec { name: self.named(format_args!("agg.{cid}.{run}")), exclusive: false, arguments }
    }

    /// The CID and run whose aggregation queue this is, if it is one.
    #[must_use]
    pub fn aggregation_of(&self, queue: &str) -> Option<(Cid, RunId)> {
        let name = queue.strip_prefix(self.prefix.as_str())?.strip_prefix(".agg.")?;
        let (cid, run) = name.rsplit_once('.')?;
        Some((Cid::new(cid).ok()?, run.parse().ok()?))
    }

    /// The same queue replicated over the nodes of a cluster, by configuration.
    #[must_use]
    pub fn replicated_aggregation(&self, cid: &Cid, run: RunId) -> QueueSpec {
        let mut queue = self.aggregation(cid, run);
        queue.arguments.insert("x-queue-type", "quorum".into());
        queue.arguments.insert("x-delivery-limit", DELIVERY_LIMIT.into());
        queue
    }

    /// The CID, the run and the writer whose payload's queue this is, if it is one.
    #[must_use]
    pub fn payload_of(&self, queue: &str) -> Option<(Cid, RunId, RunId)> {
        let name = queue.strip_prefix(self.prefix.as_str())?.strip_prefix(".payload.")?;
        let (rest, writer) = name.rsplit_once('.')?;
        let (cid, run) = rest.rsplit_once('.')?;
        Some((Cid::new(cid).ok()?, run.parse().ok()?, writer.parse().ok()?))
    }

    /// The parts of one final payload, for one callback and written by one writer.
    #[must_use]
    pub fn payload(&self, cid: &Cid, run: RunId, writer: RunId) -> QueueSpec {
        let arguments =
            BTreeMap::from([("x-queue-type", "classic".into()), ("x-expires", PAYLOAD_EXPIRES_MS.into())]);
        QueueSpec {
            name: self.named(format_args!("payload.{cid}.{run}.{writer}")),
            exclusive: false,
            arguments,
        }
    }

    /// The same queue replicated over the nodes of a cluster, by configuration.
    #[must_use]
    pub fn replicated_payload(&self, cid: &Cid, run: RunId, writer: RunId) -> QueueSpec {
        let mut queue = self.payload(cid, run, writer);
        queue.arguments.insert("x-queue-type", "quorum".into());
        queue.arguments.insert("x-delivery-limit", DELIVERY_LIMIT.into());
        queue
    }

    /// A quorum queue that workers and coordinators declare after another for that one's sake, and delete at once.
    #[must_use]
    pub fn settling_payload(&self, id: RunId) -> QueueSpec {
        self.replicated_payload(&Self::settling(), id, id)
    }

    /// The same, for publishers.
    #[must_use]
    pub fn settling_aggregation(&self, id: RunId) -> QueueSpec {
        self.replicated_aggregation(&Self::settling(), id)
    }

    /// Manifests, results and checkpoints of many fan-outs, in shared aggregation.
    #[must_use]
    pub fn shard(&self, number: u32) -> QueueSpec {
        let mut queue = self.internal(format_args!("shard.{number}"));
        queue.arguments.insert("x-single-active-consumer", true.into());
        queue
    }

    /// The number of the shard that a fan-out belongs to, where there are so many.
    ///
    /// # Panics
    /// Where `shards` is 0.
    #[must_use]
    pub fn shard_of(cid: &Cid, shards: u32) -> u32 {
        crc32(cid.as_str().as_bytes()) % shards
    }

    /// The number of the shard that this queue is, if it is one.
    #[must_use]
    pub fn shard_number(&self, queue: &str) -> Option<u32> {
        let digits = queue.strip_prefix(self.prefix.as_str())?.strip_prefix(".shard.")?;
        // Only the one way to write the number.
        let is_plain = digits == "0" || digits.starts_with(|first: char| matches!(first, '1'..='9'));
        digits.parse().ok().filter(|number| is_plain && *number < SHARDS)
    }

    /// Is consumed for as long as one of the shards has as many open fan-outs as it may have, which publishers look for: those who
    /// may write to every queue cannot do that. What is published there expires.
    #[must_use]
    pub fn full(&self) -> QueueSpec {
        let full = self.internal("shard.full");
        let ttl = [("x-message-ttl", FULL_MS.into())];
        QueueSpec { arguments: full.arguments.into_iter().chain(ttl).collect(), ..full }
    }

    /// Whether a fan-out's results may be gathered in this queue: its own aggregation queue, or a shard.
    #[must_use]
    pub fn is_reply_queue(&self, queue: &str, cid: &Cid, run: RunId) -> bool {
        // Of each request, so without writing the one name that it may be.
        let own_run = || {
            let rest = queue.strip_prefix(self.prefix.as_str())?.strip_prefix(".agg.")?;
            rest.strip_prefix(cid.as_str())?.strip_prefix('.')
        };
        self.shard_number(queue).is_some() || own_run().is_some_and(|text| run.is_written(text))
    }

    /// The answer for one waiting caller; `id` is drawn by it.
    #[must_use]
    pub fn wait(&self, id: RunId) -> QueueSpec {
        let arguments = BTreeMap::from([("x-queue-type", "classic".into())]);
        QueueSpec { name: self.named(format_args!("wait.{id}")), exclusive: true, arguments }
    }

    /// Leads to all coordinators that run, for whoever asks something of them.
    #[must_use]
    pub fn coordinators(&self) -> ExchangeSpec {
        ExchangeSpec { name: self.named("coordinators") }
    }

    /// What one coordinator hears through [`coordinators`](Self::coordinators); `id` is drawn each time that it connects.
    #[must_use]
    pub fn coordinator(&self, id: RunId) -> QueueSpec {
        self.ear(format_args!("coordinator.{id}"))
    }

    /// Leads to all workers that run, for coordinators.
    #[must_use]
    pub fn workers(&self) -> ExchangeSpec {
        ExchangeSpec { name: self.named("workers") }
    }

    /// What one worker hears through [`workers`](Self::workers); `id` is drawn each time that it connects.
    #[must_use]
    pub fn worker(&self, id: RunId) -> QueueSpec {
        self.ear(format_args!("worker.{id}"))
    }

    /// Whether a message may name this queue as that of a waiter.
    #[must_use]
    pub fn is_wait(&self, queue: &str) -> bool {
        queue.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.starts_with(".wait."))
            && queue.len() <= 255
    }

    /// A queue that only one process reads, and that goes with it.
    fn ear(&self, name: impl Display) -> QueueSpec {
        let arguments =
            BTreeMap::from([("x-queue-type", "classic".into()), ("x-expires", EAR_EXPIRES_MS.into())]);
        QueueSpec { name: self.named(name), exclusive: true, arguments }
    }

    /// In place of a CID, where a queue is nobody's.
    fn settling() -> Cid {
        Cid::new("settling").expect("it is a proper CID")
    }

    fn internal(&self, name: impl Display) -> QueueSpec {
        let arguments =
            BTreeMap::from([("x-queue-type", "quorum".into()), ("x-delivery-limit", DELIVERY_LIMIT.into())]);
        QueueSpec { name: self.named(name), exclusive: false, arguments }
    }

    fn named(&self, rest: impl Display) -> String {
        // Every message goes to one of these, so most are written without growing on the way.
        let mut name = String::with_capacity(NAME_ABOUT);
        write!(name, "{}.{rest}", self.prefix).expect("a string takes what is written to it");
        debug_assert!(name.len() <= PREFIX_CHARS + 223, "queue names fit into an AMQP short string");
        name
    }
}
