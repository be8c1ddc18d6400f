//! Declaring, inspecting and deleting queues, and the exchanges that lead to them.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fanfare_protocol::{ExchangeSpec, QueueSpec};
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use tokio::sync::Semaphore;

use super::failure::{self, Right};
use super::trunk::{Connections, Line, Trunk};
use super::wire;
use crate::{BrokerError, QueueState};

/// Operations at a time. Declaring takes some 10 ms, and the broker does about this many beside one another.
const CHANNELS: usize = 16;
/// Operations on one channel: lapin remembers every queue that was declared or inspected on a channel for as long as that lives.
const OPERATIONS_PER_CHANNEL: u32 = 1_000;
/// To which queues are bound, and by which key, to see whether they are there.
const PROBE_EXCHANGE: &str = "amq.direct";
const PROBE_KEY: &str = "fanfare.is-it-there";
/// How long one operation may take.
pub(super) const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Works on queues and exchanges through channels of its own. An error ends a channel, and these have no consumers to lose.
#[derive(Debug)]
pub(super) struct Declaring {
    channels: Arc<Channels>,
    /// Exchanges that were there when they were last looked at. A process uses a handful.
    exchanges: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
struct Channels {
    connections: Arc<Connections>,
    trunk: Trunk,
    slots: Semaphore,
    idle: Mutex<Vec<Used>>,
    /// Set once the broker has refused to let this user look at a queue that it may write to.
    may_not_look: AtomicBool,
}

#[derive(Debug)]
struct Used {
    line: Line,
    operations: u32,
}

impl Declaring {
    pub(super) fn new(connections: Arc<Connections>) -> Self {
        let channels = Channels {
            trunk: Trunk::new(connections.clone(), CHANNELS),
            connections,
            slots: Semaphore::new(CHANNELS),
            idle: Mutex::default(),
            may_not_look: AtomicBool::new(false),
        };
        Self { channels: Arc::new(channels), exchanges: Mutex::default() }
    }

    pub(super) async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let name = wire::short("queue", &queue.name)?;
        let arguments = wire::arguments(queue);
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let dead_letters = queue.arguments.contains_key("x-dead-letter-exchange");
        let right = if dead_letters { Right::ConfigureOrRead } else { Right::Configure };
        self.on_queue(&queue.name, right, move |channel: Channel| async move {
            channel.queue_declare(name, options, arguments).await
        })
        .await
        .map(drop)
    }

    pub(super) async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.exchange(&exchange.name, options).await
    }

    /// Makes sure, without declaring it, that an exchange is there: to publish to one that is missing ends the channel, with
    /// everything that is under way on it.
    pub(super) async fn expect_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        if self.exchanges().contains(exchange) {
            return Ok(());
        }
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        self.exchange(exchange, options).await
    }

    /// The exchange may be gone: look again before it is next published to.
    pub(super) fn doubt_exchange(&self, exchange: &str) {
        self.exchanges().remove(exchange);
    }

    pub(super) async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        self.doubt_exchange(exchange);
        let name = wire::short("exchange", exchange)?;
        let deleted = self
            .on_exchange(exchange, move |channel: Channel| async move {
                channel.exchange_delete(name, ExchangeDeleteOptions::default()).await
            })
            .await;
        // Somebody may have looked meanwhile.
        self.doubt_exchange(exchange);
        match deleted {
            Ok(()) | Err(BrokerError::NoExchange(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        let (from, to) = (wire::short("exchange", exchange)?, wire::short("queue", queue)?);
        let (queue_name, exchange_name) = (queue.to_owned(), exchange.to_owned());
        self.run(
            queue,
            move |error| failure::on_binding(error, &queue_name, &exchange_name),
            move |channel: Channel| async move {
                channel
                    .queue_bind(to, from, "".into(), QueueBindOptions::default(), FieldTable::default())
                    .await
            },
        )
        .await
    }

    pub(super) async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        let name = wire::short("queue", queue)?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looked = self
            .on_queue(queue, Right::Configure, move |channel: Channel| async move {
                channel.queue_declare(name, options, FieldTable::default()).await
            })
            .await;
        match looked {
            Ok(queue) => Ok(Some(QueueState {
                messages: queue.message_count().into(),
                consumers: queue.consumer_count().into(),
            })),
            Err(BrokerError::NoQueue(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is a queue.
    ///
    /// To look at a queue needs some right to it on RabbitMQ 4.3; nobody should need that to configure, which is the right to delete, for
    /// a queue that is another's. To bind a queue needs the right to write to it, which means nothing beside
    /// the default exchange, and fails in the same way where there is none.
    pub(super) async fn exists(&self, queue: &str) -> Result<bool, BrokerError> {
        let channels = &self.channels;
        let binding_first = channels.may_not_look.load(Ordering::Relaxed);
        let found = if binding_first { self.try_to_bind(queue).await } else { self.look(queue).await };
        let found = match found {
            Err(BrokerError::Denied(_)) if binding_first => self.look(queue).await,
            Err(BrokerError::Denied(_)) => {
                let found = self.try_to_bind(queue).await;
                channels.may_not_look.store(!matches!(found, Err(BrokerError::Denied(_))), Ordering::Relaxed);
                found
            }
            found => found,
        };
        match found {
            Ok(()) => Ok(true),
            Err(BrokerError::NoQueue(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn look(&self, queue: &str) -> Result<(), BrokerError> {
        self.inspect(queue).await?.map(drop).ok_or_else(|| BrokerError::NoQueue(queue.to_owned()))
    }

    /// Binds a queue to an exchange that every broker has, by a key that nobody uses, and unbinds it again.
    async fn try_to_bind(&self, queue: &str) -> Result<(), BrokerError> {
        let name = wire::short("queue", queue)?;
        self.on_queue(queue, Right::Write, move |channel: Channel| async move {
            let (exchange, key) = (PROBE_EXCHANGE, PROBE_KEY);
            let options = QueueBindOptions::default();
            channel
                .queue_bind(name.clone(), exchange.into(), key.into(), options, FieldTable::default())
                .await?;
            channel.queue_unbind(name, exchange.into(), key.into(), FieldTable::default()).await
        })
        .await
    }

    pub(super) async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let name = wire::short("queue", queue)?;
        let deleted = self
            .on_queue(queue, Right::Configure, move |channel: Channel| async move {
                channel.queue_delete(name, QueueDeleteOptions::default()).await
            })
            .await;
        match deleted {
            Ok(_) | Err(BrokerError::NoQueue(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens a channel, which connects where there is no connection, and tells where to.
    pub(super) async fn line(&self) -> Result<Line, BrokerError> {
        let channels = &self.channels;
        let _slot = channels.slots.acquire().await.map_err(|_| BrokerError::Closed)?;
        let used = channels.take().await?;
        let line = used.line.clone();
        channels.keep(used);
        Ok(line)
    }

    /// Drops the channels that wait for work.
    pub(super) fn close(&self) {
        self.channels.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn exchange(&self, exchange: &str, options: ExchangeDeclareOptions) -> Result<(), BrokerError> {
        let name = wire::short("exchange", exchange)?;
        self.on_exchange(exchange, move |channel: Channel| async move {
            channel.exchange_declare(name, ExchangeKind::Fanout, options, FieldTable::default()).await
        })
        .await?;
        self.exchanges().insert(exchange.to_owned());
        Ok(())
    }

    fn exchanges(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn on_queue<T, F>(
        &self,
        queue: &str,
        right: Right,
        operation: impl FnOnce(Channel) -> F + Send + 'static,
    ) -> Result<T, BrokerError>
    where
        T: Send + 'static,
        F: Future<Output = lapin::Result<T>> + Send + 'static,
    {
        let name = queue.to_owned();
        self.run(queue, move |error| failure::on_queue(error, &name, right), operation).await
    }

    async fn on_exchange<F>(
        &self,
        exchange: &str,
        operation: impl FnOnce(Channel) -> F + Send + 'static,
    ) -> Result<(), BrokerError>
    where
        F: Future<Output = lapin::Result<()>> + Send + 'static,
    {
        let name = exchange.to_owned();
        self.run(exchange, move |error| failure::on_exchange(error, &name, Right::Configure), operation).await
    }

    /// Runs an operation to its end, also where the caller goes before: to drop a channel while the broker closes it because
    /// of an error ends its connection, since lapin then closes it twice.
    async fn run<T, F>(
        &self,
        name: &str,
        failure: impl FnOnce(&lapin::Error) -> BrokerError + Send + 'static,
        operation: impl FnOnce(Channel) -> F + Send + 'static,
    ) -> Result<T, BrokerError>
    where
        T: Send + 'static,
        F: Future<Output = lapin::Result<T>> + Send + 'static,
    {
        let (channels, name) = (self.channels.clone(), name.to_owned());
        let work = async move {
            let work = channels.run(failure, operation);
            tokio::time::timeout(OPERATION_TIMEOUT, work).await.unwrap_or_else(|_| Err(no_answer(&name)))
        };
        // An error means that the runtime ends.
        tokio::spawn(work).await.unwrap_or(Err(BrokerError::Closed))
    }
}

impl Channels {
    async fn run<T, F>(
        &self,
        failure: impl FnOnce(&lapin::Error) -> BrokerError,
        operation: impl FnOnce(Channel) -> F,
    ) -> Result<T, BrokerError>
    where
        F: Future<Output = lapin::Result<T>>,
    {
        let _slot = self.slots.acquire().await.map_err(|_| BrokerError::Closed)?;
        let mut used = self.take().await?;
        used.operations += 1;
        // On an error, the broker has closed the channel.
        let result = operation(used.line.channel.clone())
            .await
            .map_err(|error| self.connections.reason(failure(&error)))?;
        self.keep(used);
        Ok(result)
    }

    async fn take(&self) -> Result<Used, BrokerError> {
        loop {
            let used = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match used {
                Some(used) if used.line.is_open() => return Ok(used),
                Some(_) => {}
                None => return Ok(Used { line: self.trunk.open().await?, operations: 0 }),
            }
        }
    }

    fn keep(&self, used: Used) {
        let worn = used.operations >= OPERATIONS_PER_CHANNEL || !used.line.link().is_usable();
        if !worn && !self.connections.closed().is_cancelled() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(used);
        }
    }
}

/// The broker has not answered in time.
pub(super) fn no_answer(queue: &str) -> BrokerError {
    BrokerError::Unavailable {
        queue: queue.to_owned(),
        reason: format!("the broker has not answered within {OPERATION_TIMEOUT:?}"),
    }
}
