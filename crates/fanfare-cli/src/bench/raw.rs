//! What the broker does through plain lapin, without any of Fanfare: the same messages, and the coming and going of queues.
//!
//! Nothing waits for anything else here: every kind of message is published at once, in the shares that it has in a fan-out, with
//! confirms and acks pipelined. So this is what no fan-out could exceed on the machine, clients included.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fanfare::{Prefix, QueueNames, ServiceName};
use fanfare_broker::amqp::Address;
use fanfare_protocol::QueueSpec;
use fanfare_protocol::queue::Argument;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::case::{Case, Kind, ON_FINAL, TARGET, on_target_name};
use super::process::Usage;
use super::publisher::Quantiles;
use super::role::{Load, Order, Rounds};
use crate::configuration::Aggregation;
use crate::exit::Failure;
use crate::settings::Settings;

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
const PERSISTENT: u8 = 2;
/// The service whose queue stands for that of the final callback where one message at a time is under way.
const HOP: &str = "bench.hop";
/// How long what was published may be on its way.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of a round.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) messages_per_s: f64,
    pub(super) cpu: Cost,
    /// None where no queue comes and goes with a fan-out.
    pub(super) queues: Option<Queues>,
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
        Ok(match self.case.aggregation {
            Aggregation::PerCid => {
                let (messages_per_s, cpu) = self.messages(length / 2).await?;
                let empty_per_s = self.queues(length / 4, Use::None).await?;
                let used_per_s = self.queues(length / 4, Use::OneMessage).await?;
                Limits { messages_per_s, cpu, queues: Some(Queues { empty_per_s, used_per_s }) }
            }
            Aggregation::Shared => {
                let (messages_per_s, cpu) = self.messages(length).await?;
                Limits { messages_per_s, cpu, queues: None }
            }
        })
    }

    /// Messages published, confirmed, delivered and acked per second, and what one takes.
    async fn messages(&mut self, length: Duration) -> Result<(f64, Cost)> {
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
        let publishing = self.lanes.iter().map(|lane| self.publish(lane, &cursor));
        let published: u64 = futures_util::future::try_join_all(publishing).await?.into_iter().sum();
        while self.acked.load(Ordering::Relaxed) < before + published {
            if let Some(ended) = self.consumers.try_join_next() {
                ended??;
                bail!("a consumer was cancelled");
            }
            ensure!(started.elapsed() < length + PATIENCE, "messages are missing after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let per_s = published as f64 / started.elapsed().as_secs_f64();
        let mut microseconds = used_before.into_iter().zip(used()).map(|(before, after)| {
            let (Some(before), Some(after)) = (before, after) else { return 0.0 };
            (after.cpu_seconds - before.cpu_seconds) * 1e6 / published as f64
        });
        let mut next = || microseconds.next().unwrap_or_default();
        Ok((per_s, Cost { client_us: next(), broker_us: next() }))
    }

    async fn publish(&self, lane: &Lane, cursor: &Cursor) -> Result<u64> {
        let body = vec![b'x'; cursor.kinds.iter().map(|kind| self.case.bytes(*kind)).max().unwrap_or(0)];
        let sizes: Vec<(Kind, usize, ShortString)> =
            kinds().map(|kind| (kind, self.case.bytes(kind), self.queue(kind, lane))).collect();
        let mut unconfirmed: VecDeque<(PublisherConfirm, usize)> = VecDeque::new();
        let (mut bytes, mut published) = (0, 0);
        while let Some(kind) = cursor.next() {
            let (_, size, queue) =
                sizes.iter().find(|(of, ..)| *of == kind).context("every kind has a size")?;
            let confirm = publish(&lane.channel, queue.clone(), &body[..*size]).await?;
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
                Aggregation::PerCid => self.names.fanin().name.into(),
                Aggregation::Shared => lane.results.clone(),
            },
            Kind::Request => self.names.service(&name(TARGET)).name.into(),
            Kind::OnTarget => self.names.service(&name(&on_target_name(1))).name.into(),
            Kind::OnFinal => self.names.service(&name(ON_FINAL)).name.into(),
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
                    let confirm = publish(&channel, queue.name.as_str().into(), result).await?;
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
                let confirm = publish(&channel, queue.name.as_str().into(), body).await?;
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

/// The address that Fanfare connects to, for lapin.
pub(super) fn uri(settings: &Settings) -> Result<AMQPUri, Failure> {
    let urls = settings.broker_urls();
    let address = settings.broker_address()?;
    let (Some(address), 1) = (address, Address::list(urls).map_or(0, |list| list.len())) else {
        return Err(Failure::bad_input(anyhow!(
            "--broker names several addresses: give one, so that all of the benchmark is on one node"
        )));
    };
    let mut uri: AMQPUri = urls.trim().parse().map_err(|error: String| Failure::bad_input(anyhow!(error)))?;
    uri.authority.userinfo.password = address.password().to_owned();
    uri.vhost = address.virtual_host().to_owned();
    Ok(uri)
}

async fn connect(uri: &AMQPUri) -> Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name("fanfare bench raw".into());
    Connection::connect_uri(uri.clone(), properties).await.context("plain lapin cannot connect")
}

/// Declares a queue with the arguments that Fanfare declares it with.
async fn declare(channel: &Channel, queue: &QueueSpec) -> Result<()> {
    let mut arguments = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Int(number) => AMQPValue::LongLongInt(*number),
            Argument::Bool(value) => AMQPValue::Boolean(*value),
        };
        arguments.insert((*name).into(), value);
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.name.as_str().into(), options, arguments).await?;
    Ok(())
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    Ok(channel.basic_consume(queue.into(), "".into(), options, arguments).await?)
}

/// Publishes as Fanfare does: persistent, mandatory, to a queue.
async fn publish(channel: &Channel, queue: ShortString, body: &[u8]) -> Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    Ok(channel.basic_publish("".into(), queue, options, body, properties).await?)
}

/// The tag of the next delivery.
async fn delivered(consumer: &mut Consumer) -> Result<u64> {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.context("a message is missing")?;
    Ok(delivery.context("a consumer was cancelled")??.delivery_tag)
}

/// Acks all that a consumer is handed: many at once where they come at once.
async fn ack(channel: Channel, mut consumer: Consumer, acked: Arc<AtomicU64>) -> Result<()> {
    while let Some(delivery) = consumer.next().await {
        let mut last = delivery?.delivery_tag;
        let mut count = 1;
        while count < ACKED_AT_ONCE
            && let Some(Some(delivery)) = consumer.next().now_or_never()
        {
            last = delivery?.delivery_tag;
            count += 1;
        }
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
        acked.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

async fn confirmed(oldest: Option<(PublisherConfirm, usize)>) -> Result<usize> {
    let Some((confirm, bytes)) = oldest else { return Ok(0) };
    let confirmation = confirm.await?;
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "a message was not taken: {confirmation:?}");
    Ok(bytes)
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

fn name(service: &str) -> ServiceName {
    ServiceName::new(service).expect("the names of the benchmark keep the rules")
}
