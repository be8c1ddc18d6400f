//! What the broker does through plain lapin, without any of Fanfare: the same messages, and the coming and going of queues.
//!
//! Nothing waits for anything else here: every kind of message is published at once, in the shares that it has in a fan-out, with
//! confirms and acks pipelined. So this is what no fan-out could exceed on the machine, clients included.

mod plain;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fanfare::{Prefix, QueueNames};
use fanfare_protocol::QueueSpec;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeleteOptions,
};
use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, PublisherConfirm};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::case::{Case, Kind, ON_FINAL, TARGET, name, on_target_name};
use super::process::Usage;
use super::publisher::Quantiles;
use super::role::{Load, Order, Rounds};
use crate::configuration::Aggregation;
pub(super) use plain::uri;
use plain::{ack, bare, confirmed, connect, consume, declare, delivered, labels, publish};

/// Publishers, each with its connections and its queue of results.
const LANES: usize = 4;
/// Messages of one lane that are published and not confirmed yet, and bytes of them.
const UNCONFIRMED: usize = 1_000;
const UNCONFIRMED_BYTES: usize = 32 * 1024 * 1024;
/// Deliveries of one consumer that are not acked yet, and those that one ack stands for.
const PREFETCH: u16 = 500;
const ACKED_AT_ONCE: usize = 100;
/// Queues that come and go at a time. The rate does not grow beyond this.
const QUEUES_AT_ONCE: usize = 32;
/// The service whose queue stands for that of the final callback where one message at a time is under way.
const HOP: &str = "bench.hop";
/// How long what was published may be on its way.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of a round.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Messages without properties and headers.
    #[serde(flatten)]
    pub(super) bare: Flow,
    /// The same messages with those that the protocol gives them.
    pub(super) labelled: Flow,
    /// None where no queue comes and goes with a fan-out.
    pub(super) queues: Option<Queues>,
}

/// Messages published, confirmed, delivered and acked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Flow {
    pub(super) messages_per_s: f64,
    pub(super) cpu: Cost,
}

/// CPU time that a message takes, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Cost {
    /// Of the plain client, which publishes and consumes.
    pub(super) client_us: f64,
    /// Of the broker; nothing where its process is not known.
    pub(super) broker_us: f64,
}

/// Queues declared, consumed, cancelled and deleted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Queues {
    /// Such as have held nothing.
    pub(super) empty_per_s: f64,
    /// Such as have each held one persistent message.
    pub(super) used_per_s: f64,
}

/// What came of a round with one message at a time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Hops {
    /// From the publication of a result to its delivery, and from that of a final callback to its delivery.
    pub(super) two_hops: Quantiles,
}

struct Raw {
    names: QueueNames,
    case: Case,
    /// The broker's process.
    broker: Option<u32>,
    lanes: Vec<Lane>,
    acked: Arc<AtomicU64>,
    consumers: JoinSet<Result<()>>,
    /// The connections that it consumes on.
    consuming: Vec<Connection>,
}

struct Lane {
    connection: Connection,
    /// On which it publishes.
    channel: Channel,
    results: ShortString,
}

/// What the queues that come and go are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    None,
    OneMessage,
}

/// What a message says of itself beside its body.
#[derive(Debug, Clone, Copy)]
enum Labels {
    None,
    OfTheProtocol,
}

/// What messages of a kind are like.
struct Sample {
    kind: Kind,
    bytes: usize,
    labels: BasicProperties,
    queue: ShortString,
}

/// Where the lanes are in the messages of the fan-outs.
struct Cursor {
    kinds: Vec<Kind>,
    next: AtomicUsize,
    until: Instant,
    done: AtomicBool,
}

pub(super) async fn run(
    mut rounds: Rounds,
    case: Case,
    uri: &AMQPUri,
    prefix: &str,
    shards: u32,
    broker: Option<u32>,
) -> Result<()> {
    let names = QueueNames::new(Prefix::new(prefix)?);
    let shards = match case.aggregation {
        Aggregation::PerCid => LANES,
        Aggregation::Shared => LANES.min(usize::try_from(shards)?),
    };
    let mut raw = Raw::start(names, case, uri, shards, broker).await?;
    while let Some(Order { load, length }) = rounds.next().await {
        match load {
            Load::Full => rounds.report(&raw.limits(length).await?)?,
            _ => rounds.report(&Hops { two_hops: raw.hops(length).await? })?,
        }
    }
    raw.clear().await
}

impl Raw {
    async fn start(
        names: QueueNames,
        case: Case,
        uri: &AMQPUri,
        shards: usize,
        broker: Option<u32>,
    ) -> Result<Self> {
        let acked = Arc::new(AtomicU64::new(0));
        let (mut lanes, mut consuming, mut consumers) = (Vec::new(), Vec::new(), JoinSet::new());
        for lane in 0..LANES {
            let connection = connect(uri).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let results = case.results(&names, lane % shards);
            for queue in [&results].into_iter().chain(&shared(&names, &case)) {
                declare(&channel, queue).await?;
            }
            let reader = connect(uri).await?;
            for queue in [&results].into_iter().chain(&shared(&names, &case)) {
                let channel = reader.create_channel().await?;
                channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
                let consumer = consume(&channel, &queue.name).await?;
                consumers.spawn(ack(channel, consumer, Arc::clone(&acked)));
            }
            consuming.push(reader);
            lanes.push(Lane { connection, channel, results: results.name.into() });
        }
        Ok(Self { names, case, broker, lanes, acked, consumers, consuming })
    }

    async fn limits(&mut self, length: Duration) -> Result<Limits> {
        let quarter = length / 4;
        let bare = self.messages(length / 2, Labels::None).await?;
        let labelled = self.messages(quarter, Labels::OfTheProtocol).await?;
        let queues = match self.case.aggregation {
            Aggregation::PerCid => Some(Queues {
                empty_per_s: self.queues(quarter, Use::None).await?,
                used_per_s: self.queues(quarter, Use::OneMessage).await?,
            }),
            Aggregation::Shared => None,
        };
        Ok(Limits { bare, labelled, queues })
    }

    /// Messages published, confirmed, delivered and acked per second, and what one takes.
    async fn messages(&mut self, length: Duration, labels: Labels) -> Result<Flow> {
        let used = || [Some(std::process::id()), self.broker].map(|process| process.and_then(Usage::of));
        let used_before = used();
        let before = self.acked.load(Ordering::Relaxed);
        let started = Instant::now();
        let cursor = Cursor {
            kinds: self.case.messages().collect(),
            next: AtomicUsize::new(0),
            until: started + length,
            done: AtomicBool::new(false),
        };
        let publishing = self.lanes.iter().map(|lane| self.publish(lane, &cursor, labels));
        let published: u64 = futures_util::future::try_join_all(publishing).await?.into_iter().sum();
        while self.acked.load(Ordering::Relaxed) < before + published {
            if let Some(ended) = self.consumers.try_join_next() {
                ended??;
                bail!("a consumer was cancelled");
            }
            ensure!(started.elapsed() < length + PATIENCE, "messages are missing after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let messages_per_s = published as f64 / started.elapsed().as_secs_f64();
        let mut microseconds = used_before.into_iter().zip(used()).map(|(before, after)| {
            let (Some(before), Some(after)) = (before, after) else { return 0.0 };
            (after.cpu_seconds - before.cpu_seconds) * 1e6 / published as f64
        });
        let mut next = || microseconds.next().unwrap_or_default();
        Ok(Flow { messages_per_s, cpu: Cost { client_us: next(), broker_us: next() } })
    }

    async fn publish(&self, lane: &Lane, cursor: &Cursor, labels: Labels) -> Result<u64> {
        let body = vec![b'x'; cursor.kinds.iter().map(|kind| self.case.bytes(*kind)).max().unwrap_or(0)];
        let sample = |kind| Sample {
            kind,
            bytes: self.case.bytes(kind),
            labels: labels.of(&self.case, kind),
            queue: self.queue(kind, lane),
        };
        let samples: Vec<Sample> = kinds().map(sample).collect();
        let mut unconfirmed: VecDeque<(PublisherConfirm, usize)> = VecDeque::new();
        let (mut bytes, mut published) = (0, 0);
        while let Some(kind) = cursor.next() {
            let Sample { bytes: size, labels, queue, .. } =
                samples.iter().find(|sample| sample.kind == kind).context("every kind has a sample")?;
            let confirm = publish(&lane.channel, queue.clone(), labels.clone(), &body[..*size]).await?;
            unconfirmed.push_back((confirm, *size));
            bytes += size;
            published += 1;
            while unconfirmed.len() >= UNCONFIRMED || bytes > UNCONFIRMED_BYTES {
                bytes -= confirmed(unconfirmed.pop_front()).await?;
            }
        }
        while !unconfirmed.is_empty() {
            confirmed(unconfirmed.pop_front()).await?;
        }
        Ok(published)
    }

    /// The queue that a message of a kind goes to.
    fn queue(&self, kind: Kind, lane: &Lane) -> ShortString {
        match kind {
            Kind::Result => lane.results.clone(),
            Kind::Manifest => match self.case.aggregation {
                Aggregation::PerCid => self.names.fanin_queue().into(),
                Aggregation::Shared => lane.results.clone(),
            },
            Kind::Request => self.names.service_queue(&name(TARGET)).into(),
            Kind::OnTarget => self.names.service_queue(&name(&on_target_name(1))).into(),
            Kind::OnFinal => self.names.service_queue(&name(ON_FINAL)).into(),
        }
    }

    /// Queues per second that are declared, consumed, cancelled and deleted.
    async fn queues(&self, length: Duration, used: Use) -> Result<f64> {
        let result = &vec![b'x'; self.case.bytes(Kind::Result)];
        let started = Instant::now();
        let coming_and_going = (0..QUEUES_AT_ONCE).map(|place| async move {
            let channel = self.lanes[place % LANES].connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let queue = self.case.results(&self.names, LANES + place);
            let mut done = 0_u64;
            while started.elapsed() < length {
                declare(&channel, &queue).await?;
                let mut consumer = consume(&channel, &queue.name).await?;
                if used == Use::OneMessage {
                    let confirm = publish(&channel, queue.name.as_str().into(), bare(), result).await?;
                    let tag = delivered(&mut consumer).await?;
                    channel.basic_ack(tag, BasicAckOptions::default()).await?;
                    confirmed(Some((confirm, 0))).await?;
                }
                channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
                drop(consumer);
                channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await?;
                done += 1;
            }
            channel.close(200, "OK".into()).await?;
            anyhow::Ok(done)
        });
        let done: u64 = futures_util::future::try_join_all(coming_and_going).await?.into_iter().sum();
        Ok(done as f64 / started.elapsed().as_secs_f64())
    }

    /// How long a result and then a final callback take from their publication to their delivery, with nothing beside them.
    async fn hops(&self, length: Duration) -> Result<Quantiles> {
        let bodies = [Kind::Result, Kind::OnFinal].map(|kind| vec![b'x'; self.case.bytes(kind)]);
        let queues = [self.case.results(&self.names, LANES), self.names.service(&name(HOP))];
        let channel = self.lanes[0].connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let reading = self.consuming[0].create_channel().await?;
        let mut consumers = Vec::new();
        for queue in &queues {
            declare(&channel, queue).await?;
            consumers.push(consume(&reading, &queue.name).await?);
        }
        let started = Instant::now();
        let mut samples = Vec::new();
        while started.elapsed() < length || samples.is_empty() {
            let began = Instant::now();
            let mut hops = Vec::new();
            for ((queue, body), consumer) in queues.iter().zip(&bodies).zip(&mut consumers) {
                let confirm = publish(&channel, queue.name.as_str().into(), bare(), body).await?;
                hops.push((confirm, delivered(consumer).await?));
            }
            samples.push(began.elapsed().as_secs_f64() * 1_000.0);
            for (confirm, tag) in hops {
                confirmed(Some((confirm, 0))).await?;
                reading.basic_ack(tag, BasicAckOptions::default()).await?;
            }
        }
        for (queue, consumer) in queues.iter().zip(consumers) {
            reading.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        Ok(Quantiles::of(samples))
    }

    /// Deletes its queues.
    async fn clear(mut self) -> Result<()> {
        self.consumers.abort_all();
        let results = (0..LANES).map(|lane| self.case.results(&self.names, lane));
        for queue in results.chain(shared(&self.names, &self.case)) {
            let channel = &self.lanes[0].channel;
            channel.queue_delete(queue.name.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }
}

impl Labels {
    fn of(self, case: &Case, kind: Kind) -> BasicProperties {
        match self {
            Self::None => bare(),
            Self::OfTheProtocol => labels(&case.sample(kind)),
        }
    }
}

impl Cursor {
    /// The next message, up to the end of the fan-out in which the time was over.
    fn next(&self) -> Option<Kind> {
        let place = self.next.fetch_add(1, Ordering::Relaxed) % self.kinds.len();
        if place == 0 && Instant::now() >= self.until {
            self.done.store(true, Ordering::Relaxed);
        }
        (!self.done.load(Ordering::Relaxed)).then(|| self.kinds[place])
    }
}

/// The queues of all lanes: of the requests, the manifests and the callbacks.
fn shared(names: &QueueNames, case: &Case) -> Vec<QueueSpec> {
    let services = [TARGET, ON_FINAL].map(str::to_owned).into_iter().chain(case.on_target().take(1));
    let services = services.map(|service| names.service(&name(&service)));
    services.chain((case.aggregation == Aggregation::PerCid).then(|| names.fanin())).collect()
}

fn kinds() -> impl Iterator<Item = Kind> {
    [Kind::Request, Kind::Result, Kind::OnTarget, Kind::Manifest, Kind::OnFinal].into_iter()
}
