//! RabbitMQ, through lapin.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use fanfare_broker::amqp::{AmqpBroker, Config};
//! use fanfare_broker::{Broker, System};
//!
//! let broker = AmqpBroker::new(Config::parse("amqp://localhost")?, Arc::new(System));
//! println!("{}", broker.server().await?.version);
//! # Ok(())
//! # }
//! ```
//!
//! Each role has connections of its own, from one pool, made when they are first needed. One task publishes to queues, and
//! another to exchanges, where to publish to one that is missing ends the channel (`publishing`), in a window of messages
//! under way (`window`) whose answers it pairs (`ledger`), and tells each outcome once (`caller`). A few channels declare and
//! inspect queues, and are replaced when an error closes them (`declaring`). Others consume (`consuming`), many on one
//! connection (`trunk`), one after the other used for one thing at a time, and tell the broker of many answers at once
//! (`answers`, `acks`). lapin's own recovery is off: it would bring back queues that were deleted, and it does not tell what
//! became of a message. Whoever lost a channel opens another.

mod acks;
mod address;
mod answers;
mod caller;
mod config;
mod connection;
mod consumed;
mod consuming;
mod declaring;
mod dial;
mod failure;
mod greeting;
mod ledger;
mod publishing;
mod trunk;
mod window;
mod wire;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use self::address::{Address, InvalidAddress, redacted};
pub use self::config::{ClientCertificate, Config, Tls};
use self::consuming::Consuming;
use self::declaring::Declaring;
use self::publishing::Publishing;
use self::trunk::Connections;
use crate::{Broker, BrokerError, ConsumerChannel, Environment, PublishError, QueueState, ServerInfo};

/// How long closing may take.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(30);

/// A RabbitMQ broker. It connects by itself, on a Tokio runtime, and again when a connection is lost.
///
/// While the broker is away, operations fail within seconds, and attempts to connect are some seconds apart.
pub struct AmqpBroker {
    config: Config,
    connections: Arc<Connections>,
    declaring: Declaring,
    consuming: Arc<Consuming>,
    /// To queues.
    publishing: OnceLock<Publishing>,
    /// To exchanges.
    publishing_through: OnceLock<Publishing>,
    tasks: TaskTracker,
    /// What the broker said about itself, by the address that it said it at.
    server: Mutex<Option<ServerInfo>>,
}

impl AmqpBroker {
    /// A broker that is not connected yet.
    #[must_use]
    pub fn new(config: Config, environment: Arc<dyn Environment>) -> Self {
        let connections = Arc::new(Connections::new(config.clone(), environment));
        let name = config.connection_name.clone();
        Self {
            config,
            declaring: Declaring::new(connections.clone()),
            consuming: Arc::new(Consuming::new(connections.clone(), name)),
            connections,
            publishing: OnceLock::new(),
            publishing_through: OnceLock::new(),
            tasks: TaskTracker::new(),
            server: Mutex::default(),
        }
    }

    fn started<'a>(&self, publishing: &'a OnceLock<Publishing>) -> &'a Publishing {
        let Config { send_timeout, in_flight, .. } = self.config;
        publishing
            .get_or_init(|| Publishing::start(self.connections.clone(), send_timeout, in_flight, &self.tasks))
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        self.started(&self.publishing).publish("", queue, message, latest).await
    }

    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError> {
        match self.declaring.expect_exchange(exchange).await {
            Ok(()) => {}
            Err(BrokerError::NoExchange(name)) => return Err(PublishError::NoExchange(name)),
            // Where a release wants the right to configure for a look, as 4.3 does for queues: publishing tells.
            Err(BrokerError::Denied(_)) => {}
            Err(error) => return Err(PublishError::NotSent(error)),
        }
        let publishing = self.started(&self.publishing_through);
        let outcome = publishing.publish(exchange, routing_key, message, None).await;
        if matches!(outcome, Err(PublishError::Unknown(_) | PublishError::NotSent(_))) {
            self.declaring.doubt_exchange(exchange);
        }
        outcome
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        self.declaring.declare(queue).await
    }

    async fn exists(&self, queue: &str) -> Result<bool, BrokerError> {
        self.declaring.exists(queue).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.declaring.inspect(queue).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        self.declaring.delete(queue).await
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        self.declaring.declare_exchange(exchange).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        self.declaring.bind(queue, exchange).await
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        self.declaring.delete_exchange(exchange).await
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        Ok(Arc::new(self.consuming.open().await?))
    }

    fn is_blocked(&self) -> bool {
        self.connections.are_blocked()
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        let line = self.declaring.line().await?;
        let address = line.link().address();
        let known = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.address == address.to_string()) {
            return Ok(known);
        }
        let (product, version) = greeting::read(address, &self.config.tls)
            .await
            .map_err(|error| BrokerError::Unreachable(format!("{address}: {error}")))?;
        let server = ServerInfo { product, version, address: address.to_string() };
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.clone());
        Ok(server)
    }

    async fn close(&self) {
        self.connections.closed().cancel();
        self.tasks.close();
        self.declaring.close();
        self.consuming.close();
        let closing = async {
            // The task that publishes waits for the confirms of what is under way, and closes its own connection.
            self.tasks.wait().await;
            self.connections.close().await;
        };
        let _ = tokio::time::timeout(CLOSING_TIMEOUT, closing).await;
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpBroker").field("urls", &self.config.urls).finish_non_exhaustive()
    }
}
