//! Connections, and the pool that they come from.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use deadpool::managed::{Manager, RecycleError, RecycleResult};
use deadpool_lapin::Metrics;
use futures_util::{Stream, StreamExt};
use lapin::{ChannelStatus, ConnectionProperties, ErrorKind, Event};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::consumed::Consumed;
use super::{Address, Config, dial, failure};
use crate::{BrokerError, Environment, telemetry};

/// How long a broker that accepted a connection may take for the rest of the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to opening or closing a channel or a connection may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to rest after no address could be reached: at first, and at most. It doubles in between.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(3);
/// lapin reports whatever happens to a connection, but for a close that it does not understand: look from time to time.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Makes connections for the pool.
///
/// `deadpool_lapin::Manager` knows one address and no authorities of one's own. This manager stands in its place, with the same
/// pool around it and the same `lapin::Connection` inside, and tries a list of addresses.
pub(super) struct Connector {
    config: Config,
    environment: Arc<dyn Environment>,
    /// One attempt at a time: those who wait learn from the first that the broker is away.
    dialling: Semaphore,
    attempts: Mutex<Attempts>,
    links: Mutex<Vec<Weak<Link>>>,
}

/// What the last attempts came to.
#[derive(Default)]
struct Attempts {
    /// The index of the address that worked last.
    first: usize,
    failures: u32,
    rest: Option<(Instant, BrokerError)>,
}

/// One connection.
pub(super) struct Link {
    connection: lapin::Connection,
    address: Address,
    channels_opened: AtomicUsize,
    /// Set once the broker has closed a channel: its number is lost.
    numbers_lost: Arc<AtomicBool>,
    consumed: Consumed,
    /// Set once it is being closed by whoever had it.
    closing: Arc<AtomicBool>,
    /// Changes whenever something happened to the connection or to one of its channels.
    events: watch::Receiver<()>,
}

impl Connector {
    pub(super) fn new(config: Config, environment: Arc<dyn Environment>) -> Self {
        Self {
            config,
            environment,
            dialling: Semaphore::new(1),
            attempts: Mutex::default(),
            links: Mutex::default(),
        }
    }

    /// Closes all connections that are in use.
    pub(super) async fn close(&self) {
        let links: Vec<_> = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.drain(..).filter_map(|link| link.upgrade()).collect()
        };
        futures_util::future::join_all(links.iter().map(|link| link.close())).await;
    }

    /// Whether the broker takes no messages on one of the connections.
    pub(super) fn any_blocked(&self) -> bool {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.iter().filter_map(Weak::upgrade).any(|link| link.is_connected() && link.is_blocked())
    }

    async fn connect(&self, address: &Address) -> Result<Arc<Link>, BrokerError> {
        let properties =
            ConnectionProperties::default().with_connection_name(self.config.connection_name.as_str().into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| failure::plain(&error))?;
        let tls = self.config.tls.clone();
        let limit = dial::timeout(address.uri()) + GREETING_TIMEOUT;
        let connecting = lapin::Connection::connector(
            address.uri().clone(),
            runtime,
            async move |uri, runtime| Ok(dial::dial(&uri, &tls, &runtime).await?),
            properties,
        );
        let connection = tokio::time::timeout(limit, connecting)
            .await
            .map_err(|_| BrokerError::Unreachable(format!("no greeting within {limit:?}")))?
            .map_err(|error| failure::plain(&error))?;
        telemetry::connection_opened();
        tracing::info!(broker = %address, "connected");
        let link = Arc::new(Link::new(connection, address.clone()));
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&link));
        Ok(link)
    }

    /// The error of the last attempt while it is too early for another.
    fn resting(&self) -> Option<BrokerError> {
        let attempts = self.attempts();
        let (until, error) = attempts.rest.as_ref()?;
        (Instant::now() < *until).then(|| error.clone())
    }

    fn succeeded(&self, index: usize) {
        *self.attempts() = Attempts { first: index, ..Attempts::default() };
    }

    fn failed(&self, error: &BrokerError) {
        let jitter = 0.5 + self.environment.jitter() / 2.0;
        let mut attempts = self.attempts();
        let rest =
            FIRST_REST.saturating_mul(1 << attempts.failures.min(10)).min(LONGEST_REST).mul_f64(jitter);
        attempts.failures += 1;
        attempts.rest = Some((Instant::now() + rest, error.clone()));
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager for Connector {
    type Type = Arc<Link>;
    type Error = BrokerError;

    async fn create(&self) -> Result<Arc<Link>, BrokerError> {
        let _turn = self.dialling.acquire().await.map_err(|_| BrokerError::Closed)?;
        if let Some(error) = self.resting() {
            return Err(error);
        }
        let addresses = &self.config.urls;
        let first = self.attempts().first;
        let mut errors = Vec::new();
        for index in (first..addresses.len()).chain(0..first) {
            match self.connect(&addresses[index]).await {
                Ok(link) => {
                    self.succeeded(index);
                    return Ok(link);
                }
                Err(error) => errors.push((&addresses[index], error)),
            }
        }
        let error = summary(&errors);
        self.failed(&error);
        Err(error)
    }

    async fn recycle(&self, link: &mut Arc<Link>, _: &Metrics) -> RecycleResult<BrokerError> {
        if link.is_usable() && !link.connection.status().blocked() {
            Ok(())
        } else {
            Err(RecycleError::message("the connection has ended or is worn out"))
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("urls", &self.config.urls).finish_non_exhaustive()
    }
}

/// What to say where every address failed. Only where all refuse for good is it no outage.
fn summary(errors: &[(&Address, BrokerError)]) -> BrokerError {
    let reasons: Vec<_> = errors
        .iter()
        .map(|(address, error)| match error {
            BrokerError::Unreachable(reason) | BrokerError::Denied(reason) | BrokerError::Refused(reason) => {
                format!("{address}: {reason}")
            }
            error => format!("{address}: {error}"),
        })
        .collect();
    let reasons = reasons.join("; ");
    if errors.iter().all(|(_, error)| matches!(error, BrokerError::Denied(_))) {
        BrokerError::Denied(reasons)
    } else if errors.iter().all(|(_, error)| !error.is_outage()) {
        BrokerError::Refused(reasons)
    } else {
        BrokerError::Unreachable(reasons)
    }
}

impl Link {
    fn new(connection: lapin::Connection, address: Address) -> Self {
        let (changed, events) = watch::channel(());
        let status = connection.status().clone();
        let numbers_lost = Arc::new(AtomicBool::new(false));
        let consumed = Consumed::default();
        let closing = Arc::new(AtomicBool::new(false));
        let events_listener = connection.events_listener();
        let observed = Observed {
            broker: address.clone(),
            numbers_lost: numbers_lost.clone(),
            consumed: consumed.clone(),
            closing: closing.clone(),
        };
        tokio::spawn(observe(events_listener, status, observed, changed));
        let channels_opened = AtomicUsize::new(0);
        Self { connection, address, channels_opened, numbers_lost, consumed, closing, events }
    }

    /// The queues that are read on it.
    pub(super) const fn consumed(&self) -> &Consumed {
        &self.consumed
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Whether the broker takes no messages from this connection for now, because it is short of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Whether another channel may be opened.
    ///
    /// lapin never uses the number of a channel again that the broker closed, but tries to once all numbers have been used: opening
    /// a channel then fails with the *old* error, such as "no queue". So where the broker has closed one, no number is used
    /// twice; otherwise a connection lasts for any number of channels.
    pub(super) fn is_usable(&self) -> bool {
        let fresh = self.channels_opened.load(Ordering::Relaxed) < self.channel_max().into();
        self.is_connected() && (fresh || !self.numbers_lost.load(Ordering::Relaxed))
    }

    /// How many channels the broker allows at a time.
    pub(super) fn channel_max(&self) -> u16 {
        self.connection.configuration().channel_max()
    }

    pub(super) async fn open_channel(&self) -> Result<lapin::Channel, BrokerError> {
        self.channels_opened.fetch_add(1, Ordering::Relaxed);
        tokio::time::timeout(ANSWER_TIMEOUT, self.connection.create_channel())
            .await
            .map_err(|_| BrokerError::Unreachable(format!("no channel within {ANSWER_TIMEOUT:?}")))?
            .map_err(|error| BrokerError::Unreachable(format!("no channel could be opened: {error}")))
    }

    /// Changes whenever something happened to the connection or to one of its channels.
    pub(super) fn events(&self) -> watch::Receiver<()> {
        self.events.clone()
    }

    /// Returns when the channel, or the connection, has ended.
    pub(super) async fn ended(&self, channel: &ChannelStatus) {
        let mut events = self.events();
        while channel.connected() && self.is_connected() && events.changed().await.is_ok() {}
    }

    pub(super) async fn close(&self) {
        // One that is lost already was not ended by this.
        if self.is_connected() {
            self.closing.store(true, Ordering::Relaxed);
        }
        let closing = self.connection.close(200, "OK".into());
        // lapin writes nothing while the broker takes no messages, so there would be no answer.
        let patience = if self.is_blocked() { Duration::ZERO } else { ANSWER_TIMEOUT };
        // An error means that it is closed already.
        let _ = tokio::time::timeout(patience, closing).await;
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What is known of a connection by whoever observes it.
struct Observed {
    broker: Address,
    numbers_lost: Arc<AtomicBool>,
    consumed: Consumed,
    closing: Arc<AtomicBool>,
}

/// Passes on what happens to a connection, and logs each event once.
async fn observe(
    events: impl Stream<Item = Event>,
    status: lapin::ConnectionStatus,
    Observed { broker, numbers_lost, consumed, closing }: Observed,
    changed: watch::Sender<()>,
) {
    let mut events = std::pin::pin!(events);
    let mut blocked = telemetry::Blocked::default();
    loop {
        match tokio::time::timeout(LOOK_EVERY, events.next()).await {
            Ok(Some(Event::ConnectionBlocked(reason))) => {
                blocked.set(true);
                tracing::warn!(%broker, %reason, "the broker takes no messages for now: publishing waits");
            }
            Ok(Some(Event::ConnectionUnblocked)) => {
                blocked.set(false);
                tracing::warn!(%broker, "the broker takes messages again");
            }
            // lapin forgets the channels at once, and takes what the broker has on its way to one of them for an error.
            Ok(Some(Event::Error(error))) if status.errored() && closing.load(Ordering::Relaxed) => {
                tracing::debug!(%broker, reason = %failure::plain(&error), "connection lost while it was being closed");
            }
            Ok(Some(Event::Error(error))) if status.errored() => {
                telemetry::connection_lost();
                tracing::warn!(%broker, reason = %failure::plain(&error), "connection lost");
                if matches!(error.kind(), ErrorKind::ParsingError(_)) && !consumed.is_empty() {
                    tracing::error!(
                        %broker,
                        queues = %consumed,
                        "one of these queues holds a message that cannot be read, and that comes again until it is taken out: \
                         see docs/operations.md, \"A message that clients cannot read\""
                    );
                }
            }
            // Of a channel.
            Ok(Some(Event::Error(_))) => numbers_lost.store(true, Ordering::Relaxed),
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => return,
        }
        changed.send_replace(());
        if !status.connected() {
            return;
        }
    }
}
