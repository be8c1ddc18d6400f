//! A broker in this process, for a first run, for tests and for simulation. **Not for production.**
//!
//! It behaves as RabbitMQ does, as far as Fanfare uses RabbitMQ: the same suite (feature `conformance`) runs over both.
//! But it is one process, and nothing of it is on disk: what it holds is gone when the process ends, and no other process
//! can reach it.
//!
//! - Queues honour the arguments of the protocol's queues (type, single active consumer, expiry, time to live,
//!   dead-lettering, delivery limit). An argument that it does not know is refused, not ignored.
//! - A message that comes back goes to the place where it was, marked as redelivered, and from a quorum queue with
//!   `x-delivery-count`. (On RabbitMQ a quorum queue keeps places only where it has a delivery limit, as all of
//!   Fanfare's have.)
//! - To answer a delivery twice ends the channel, as it does on RabbitMQ.
//! - Time is `tokio::time`'s, so that a test can pause it.

mod arguments;
mod channel;
mod dead_letter;
mod exchange;
mod queue;
mod server;
mod state;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use tokio::time::Instant;

use self::channel::MemoryChannel;
use self::queue::Route;
use self::server::Server;
use self::state::{ClientId, State};
use crate::{Broker, BrokerError, ConsumerChannel, PublishError, QueueState, ServerInfo};

/// One client of a broker in memory. It stands for one process: what its channels hold goes back, and its exclusive queues
/// go, when it is closed or dropped. [`connect`](MemoryBroker::connect) gives another client of the same broker.
///
/// ```
/// use fanfare_broker::{Broker, memory::MemoryBroker};
/// use fanfare_protocol::{Message, QueueNames};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryBroker::new();
/// let parked = QueueNames::default().parked();
/// broker.declare(&parked).await?;
/// broker.publish(&parked.name, Message::default()).await?;
///
/// let another = broker.connect();
/// assert_eq!(another.inspect(&parked.name).await?.map(|queue| queue.messages), Some(1));
/// # Ok(())
/// # }
/// ```
pub struct MemoryBroker {
    server: Arc<Server>,
    client: ClientId,
}

impl MemoryBroker {
    /// The user that a client logs in as unless it says another, as RabbitMQ's default is.
    pub const DEFAULT_USER: &str = "guest";

    /// The first client of a new broker, which lives as long as any client of it.
    #[must_use]
    pub fn new() -> Self {
        Self::client_of(Server::new(), Self::DEFAULT_USER)
    }

    /// Another client of the same broker.
    #[must_use]
    pub fn connect(&self) -> Self {
        self.connect_as(Self::DEFAULT_USER)
    }

    /// Another client of the same broker, which logs in as a user. Everyone may do everything here, but a message's
    /// `user_id` is checked.
    #[must_use]
    pub fn connect_as(&self, user: &str) -> Self {
        Self::client_of(Arc::clone(&self.server), user)
    }

    /// Cuts this client's connection, as a network does: its channels end, what they held goes back, its exclusive queues
    /// go. The next operation finds the broker again.
    pub fn cut(&self) {
        let reason = BrokerError::Unreachable("the connection was cut".to_owned());
        self.server.with(|state, now| state.cut(self.client, &reason, now));
    }

    /// Cuts this client's connection and keeps it from connecting until it [rejoins](MemoryBroker::rejoin).
    pub fn isolate(&self) {
        self.server.with(|state, _| state.isolate(self.client, true));
        self.cut();
    }

    /// Lets this client reach the broker again.
    pub fn rejoin(&self) {
        self.server.with(|state, _| state.isolate(self.client, false));
    }

    /// Ends this client's channels without its hearing of it until it [notices](MemoryBroker::notice): no delivery and no answer comes
    /// any more, and what they held goes to others. All else goes on. So it is where a process consumes on one connection and publishes on
    /// another, and the first dies without a word.
    pub fn deafen(&self) {
        self.server.with(|state, now| state.deafen(self.client, now));
    }

    /// Lets this client hear of the end of the channels on which it was [deaf](MemoryBroker::deafen).
    pub fn notice(&self) {
        let reason = BrokerError::Unreachable("the connection has not been heard of for long".to_owned());
        self.server.with(|state, _| state.notice(self.client, &reason));
    }

    /// Takes no bodies of more than so many bytes from now on, as a broker whose operator has lowered the limit.
    pub fn limit_messages(&self, most_bytes: usize) {
        self.server.with(|state, _| state.most_bytes = most_bytes);
    }

    /// The place that the next message of a queue takes: all that is in it has a lower one.
    #[must_use]
    pub fn next_place(&self, queue: &str) -> u64 {
        self.server.with(|state, _| state.next_place(queue))
    }

    /// Loses those that wait in a queue of which this is so, by their place and what they are, as a broker that is killed before it has written
    /// them to its disk. What is handed out stays: let the connections end before.
    pub fn lose(&self, queue: &str, is_lost: impl Fn(u64, &Message) -> bool) {
        self.server.with(|state, _| state.lose(queue, is_lost));
    }

    /// How many messages of a queue are handed out and not answered yet. No client of a real broker is told.
    #[must_use]
    pub fn unacked(&self, queue: &str) -> usize {
        self.server.with(|state, _| state.unacked(queue))
    }

    fn client_of(server: Arc<Server>, user: &str) -> Self {
        let client = server.with(|state, _| state.connect(user));
        Self { server, client }
    }

    /// Takes one step. The budget makes a task that publishes without pause let others run.
    async fn step<T>(&self, step: impl FnOnce(&mut State, ClientId, Instant) -> T) -> T {
        tokio::task::consume_budget().await;
        self.server.with(|state, now| step(state, self.client, now))
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        self.step(|state, client, now| state.publish(client, queue, message, latest, now)).await
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        if queue.exclusive {
            return Err(BrokerError::Refused(format!(
                "queue `{}` is exclusive: declare it on the channel that consumes it",
                queue.name
            )));
        }
        self.step(|state, client, now| state.declare(client, queue, now)).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.step(|state, client, now| state.inspect(client, queue, now)).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        self.step(|state, client, _| state.delete(client, queue)).await
    }

    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError> {
        let route = Route { exchange: exchange.to_owned(), key: routing_key.to_owned() };
        self.step(|state, client, now| state.publish_through(client, &route, &message, now)).await
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        self.step(|state, client, _| state.declare_exchange(client, &exchange.name)).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        self.step(|state, client, _| state.bind(client, queue, exchange)).await
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        self.step(|state, client, _| state.delete_exchange(client, exchange)).await
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        let (id, end) = self.step(|state, client, _| state.open(client)).await?;
        Ok(Arc::new(MemoryChannel::new(Arc::clone(&self.server), id, end)))
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        self.step(|state, client, _| state.check(client)).await?;
        Ok(ServerInfo {
            product: "Fanfare in memory".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: "memory://".to_owned(),
        })
    }

    async fn close(&self) {
        self.step(|state, client, now| state.close(client, now)).await;
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryBroker {
    fn drop(&mut self) {
        self.server.with(|state, now| state.close(self.client, now));
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").field("client", &self.client).finish_non_exhaustive()
    }
}
