//! A broker that fails when told to and remembers what was asked of it, and an environment without chance.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{
    Broker, BrokerError, ConsumerChannel, Environment, PublishError, QueueState, ServerInfo,
};
use fanfare_protocol::{ExchangeSpec, Message, QueueNames, QueueSpec, ServiceName, WireTime};
use fanfare_publisher::{Config, Publisher};
use tokio::time::Instant;
use uuid::Uuid;

/// The time never passes, and ids count up.
#[derive(Debug, Default)]
pub(crate) struct Fixed(AtomicU64);

impl Fixed {
    fn next(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1)
    }
}

impl Environment for Fixed {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        "2025-01-19 19:55:45".parse::<WireTime>().unwrap().to_utc()
    }
    fn unique(&self) -> Uuid {
        self.next()
    }
    fn sequential(&self) -> Uuid {
        self.next()
    }
    fn jitter(&self) -> f64 {
        0.0
    }
}

/// What happens to a publish instead of what should.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It fails, and the message is in no queue.
    Fails(PublishError),
    /// It fails, and the message is in its queue nevertheless.
    TakenBut(PublishError),
    /// The broker takes no messages: it fails when it is too late to send the message.
    Blocks,
    /// It never ends.
    Hangs,
}

/// A broker in memory with faults.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) memory: MemoryBroker,
    asked: Mutex<Vec<String>>,
    /// Queue, publishes that still succeed, publishes that then fail.
    faults: Mutex<Vec<(String, usize, usize, Fault)>>,
    /// Declarations of aggregation queues whose answer is yet to be lost.
    cut_declarations: AtomicU64,
    /// Whether those are refused.
    denies_declarations: AtomicBool,
    /// How long a deletion takes.
    deletion: Mutex<Duration>,
    /// The RabbitMQ that it says it is.
    version: Mutex<Option<&'static str>>,
}

impl Faulty {
    pub(crate) fn new() -> Arc<Self> {
        let memory = MemoryBroker::new();
        let (asked, faults, cut_declarations, denies_declarations, deletion, version) = Default::default();
        Arc::new(Self { memory, asked, faults, cut_declarations, denies_declarations, deletion, version })
    }

    /// It says that it is a RabbitMQ of this version.
    pub(crate) fn call_itself(&self, version: &'static str) {
        *self.version.lock().unwrap() = Some(version);
    }

    /// Deletions take effect after so long.
    pub(crate) fn delay_deletions(&self, by: Duration) {
        *self.deletion.lock().unwrap() = by;
    }

    /// The next `times` declarations of an aggregation queue take effect, but nobody is told.
    pub(crate) fn cut_declarations(&self, times: u64) {
        self.cut_declarations.store(times, Ordering::Relaxed);
    }

    /// Its user may declare no aggregation queue.
    pub(crate) fn deny_declarations(&self) {
        self.denies_declarations.store(true, Ordering::Relaxed);
    }

    /// Publishes to `queue` fail `times` times, after the first `after`.
    pub(crate) fn fail(&self, queue: &str, after: usize, times: usize, fault: Fault) {
        self.faults.lock().unwrap().push((queue.to_owned(), after, times, fault));
    }

    /// What was asked of it, in order: "publish fanfare.fanin" and so on.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        self.asked().iter().filter(|asked| asked.starts_with(what)).count()
    }

    fn note(&self, operation: &str, queue: &str) {
        self.asked.lock().unwrap().push(format!("{operation} {queue}"));
    }

    fn fault(&self, queue: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (_, after, times, fault) =
            faults.iter_mut().find(|(of, _, times, _)| of == queue && *times > 0)?;
        if *after > 0 {
            *after -= 1;
            return None;
        }
        *times -= 1;
        Some(fault.clone())
    }

    pub(crate) async fn serve(&self, services: &[&str]) {
        for service in services {
            let queue = QueueNames::default().service(&ServiceName::new(*service).unwrap());
            self.memory.declare(&queue).await.unwrap();
        }
    }

    pub(crate) fn publisher(self: &Arc<Self>) -> Publisher {
        self.publisher_with(Config::default())
    }

    pub(crate) fn publisher_with(self: &Arc<Self>, config: Config) -> Publisher {
        Publisher::new(self.clone(), Arc::new(Fixed::default()), config)
    }

    /// All messages of a queue, which stay there.
    pub(crate) async fn messages(&self, queue: &str) -> Vec<Message> {
        let waiting = self.memory.inspect(queue).await.unwrap().map_or(0, |state| state.messages);
        let channel = self.memory.open().await.unwrap();
        let mut consumer = channel.consume(queue, u16::MAX).await.unwrap();
        let mut messages = Vec::new();
        for _ in 0..waiting {
            messages.push(consumer.next().await.unwrap().unwrap().message);
        }
        messages
    }

    /// The names of the aggregation queues of fan-out `order-7` that there are, of those that were declared.
    pub(crate) async fn aggregation_queues(&self) -> Vec<String> {
        let mut queues = Vec::new();
        for asked in self.asked() {
            if let Some(queue) =
                asked.strip_prefix("declare ").filter(|q| q.starts_with("fanfare.agg.order-7."))
                && self.memory.inspect(queue).await.unwrap().is_some()
            {
                queues.push(queue.to_owned());
            }
        }
        queues
    }
}

#[async_trait]
impl Broker for Faulty {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        self.note("publish", queue);
        match self.fault(queue) {
            None => self.memory.publish_by(queue, message, latest).await,
            Some(Fault::Fails(error)) => Err(error),
            Some(Fault::TakenBut(error)) => {
                self.memory.publish_by(queue, message, latest).await?;
                Err(error)
            }
            Some(Fault::Blocks) => {
                tokio::time::sleep_until(latest.expect("it may wait for some time only")).await;
                Err(PublishError::NotSent(BrokerError::Unreachable("blocked".to_owned())))
            }
            Some(Fault::Hangs) => std::future::pending().await,
        }
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        self.note("declare", &queue.name);
        let of_fan_out = queue.name.starts_with("fanfare.agg.");
        if of_fan_out && self.denies_declarations.load(Ordering::Relaxed) {
            return Err(BrokerError::Denied("configure".to_owned()));
        }
        self.memory.declare(queue).await?;
        let cut = |left: u64| left.checked_sub(1);
        match of_fan_out
            && self.cut_declarations.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cut).is_ok()
        {
            true => Err(lost()),
            false => Ok(()),
        }
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.note("inspect", queue);
        self.memory.inspect(queue).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        self.note("delete", queue);
        let takes = *self.deletion.lock().unwrap();
        tokio::time::sleep(takes).await;
        self.memory.delete(queue).await
    }

    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError> {
        self.memory.publish_through(exchange, routing_key, message).await
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        self.memory.declare_exchange(exchange).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        self.memory.bind(queue, exchange).await
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        self.memory.delete_exchange(exchange).await
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        self.memory.open().await
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        let server = self.memory.server().await?;
        Ok(match *self.version.lock().unwrap() {
            None => server,
            Some(version) => {
                ServerInfo { product: "RabbitMQ".to_owned(), version: version.to_owned(), ..server }
            }
        })
    }

    async fn close(&self) {
        self.memory.close().await;
    }
}

pub(crate) fn lost() -> BrokerError {
    BrokerError::Unreachable("connection lost".to_owned())
}
