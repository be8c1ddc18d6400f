use std::fmt;
use std::sync::Arc;

use fanfare_broker::amqp::{self, AmqpBroker, InvalidAddress, Tls};
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, BrokerError, Environment, System};
use fanfare_protocol::{InvalidName, Prefix, QueueNames};
use fanfare_publisher::{Aggregation, Config as PublisherConfig, Publisher, QueueType};

use crate::Fanfare;

/// Puts a [`Fanfare`] handle together.
///
/// ```
/// use fanfare::Fanfare;
///
/// let fanfare = Fanfare::builder("amqps://shop:secret@one,amqps://shop:secret@two")
///     .prefix("shop")
///     .connection_name("orders")
///     .build()?;
/// # drop(fanfare);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is done before `connect` or `build`"]
pub struct Builder {
    at: At,
    tls: Tls,
    password: Option<String>,
    connection_name: Option<String>,
    prefix: Option<String>,
    publisher: PublisherConfig,
    environment: Arc<dyn Environment>,
}

enum At {
    Urls(String),
    Broker(Arc<dyn Broker>),
}

/// A [`Fanfare`] handle cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What should be the broker's URL is none.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// The prefix of the queue names is not allowed.
    #[error(transparent)]
    Prefix(#[from] InvalidName),
    /// The broker in memory was asked for by a URL.
    #[error(
        "memory:// is no broker to connect to: it lives in one process, so take `Fanfare::in_memory()` there"
    )]
    Memory,
    /// No broker could be reached.
    #[error("no connection")]
    Broker(#[from] BrokerError),
}

impl fmt::Debug for Builder {
    /// Without its URLs, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("publisher", &self.publisher).finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn urls(urls: impl Into<String>) -> Self {
        Self::new(At::Urls(urls.into()))
    }

    pub(crate) fn memory() -> Self {
        Self::on(Arc::new(MemoryBroker::new()))
    }

    pub(crate) fn on(broker: Arc<dyn Broker>) -> Self {
        Self::new(At::Broker(broker))
    }

    fn new(at: At) -> Self {
        Self {
            at,
            tls: Tls::default(),
            password: None,
            connection_name: None,
            prefix: None,
            publisher: PublisherConfig::default(),
            environment: Arc::new(System),
        }
    }

    /// Sets how every queue name begins, so that several systems can share a broker: 1 to 32 characters, `fanfare` where it
    /// is left out.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Sets the certificates for `amqps://` URLs.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Sets the password of all URLs, in place of what they say, so that it need not stand in them. It is not encoded in any
    /// way.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Sets what the broker's management page calls the connections; `fanfare` where it is left out.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.connection_name = Some(name.into());
        self
    }

    /// Declares the queues of services that no worker has declared yet, instead of refusing to invoke them. For starting
    /// programs in any order.
    pub fn declare_missing(mut self) -> Self {
        self.publisher.declare_missing = true;
        self
    }

    /// Sets the login that fan-outs are invoked with, for coordinators that accept certain users only: see
    /// [`PublisherConfig::user_id`].
    pub fn user_id(mut self, login: impl Into<String>) -> Self {
        self.publisher.user_id = Some(login.into());
        self
    }

    /// Sets the type of aggregation queues: [`QueueType::Quorum`] replicates them over the nodes of a cluster.
    pub fn queue_type(mut self, queue_type: QueueType) -> Self {
        self.publisher.queue_type = queue_type;
        self
    }

    /// Sets where the results of fan-outs are gathered: [`Aggregation::Shared`] is for many small ones.
    pub fn aggregation(mut self, aggregation: Aggregation) -> Self {
        self.publisher.aggregation = aggregation;
        self
    }

    /// Sets the limits of invocations. Its names are replaced by what [`prefix`](Self::prefix) says, if it says anything.
    pub fn publisher(mut self, config: PublisherConfig) -> Self {
        self.publisher = config;
        self
    }

    /// Sets the clock and the randomness; the system's where it is left out.
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    /// The handle, connected: it fails where no broker answers.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(self) -> Result<Fanfare, ConnectError> {
        let fanfare = self.build()?;
        fanfare.broker().server().await?;
        Ok(fanfare)
    }

    /// The handle, which connects when it is first used. Workers and coordinators then wait until there is a broker;
    /// invocations fail where there is none.
    ///
    /// # Errors
    /// [`ConnectError`], but never [`ConnectError::Broker`].
    pub fn build(self) -> Result<Fanfare, ConnectError> {
        let mut publisher = self.publisher;
        if let Some(prefix) = self.prefix {
            publisher.names = QueueNames::new(Prefix::new(prefix)?);
        }
        let broker: Arc<dyn Broker> = match self.at {
            At::Broker(broker) => broker,
            At::Urls(urls) if urls.trim_start().starts_with("memory:") => return Err(ConnectError::Memory),
            At::Urls(urls) => {
                let mut config = amqp::Config::parse(&urls)?;
                if let Some(password) = &self.password {
                    let urls = config.urls.into_iter();
                    config.urls = urls.map(|address| address.with_password(password)).collect();
                }
                config.tls = self.tls;
                if let Some(name) = self.connection_name {
                    config.connection_name = name;
                }
                Arc::new(AmqpBroker::new(config, Arc::clone(&self.environment)))
            }
        };
        Ok(Fanfare::new(Publisher::new(broker, self.environment, publisher)))
    }
}
