use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Broker, Environment};
use fanfare_protocol::QueueNames;
use tokio::sync::Mutex;

/// Asks coordinators and workers what they know, and sees to what they have left for a person. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use fanfare_broker::{System, memory::MemoryBroker};
/// use fanfare_operator::{AskError, Config, Operator};
/// use fanfare_protocol::StatusQuery;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let operator = Operator::new(Arc::new(MemoryBroker::new()), Arc::new(System), Config::default());
/// let nobody = operator.status(&StatusQuery::default()).await;
/// assert!(matches!(nobody, Err(AskError::NoCoordinator { .. })));
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Operator {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) config: Config,
    /// One looks at what is parked at a time. For other processes there is a queue.
    pub(crate) looking: Arc<Mutex<()>>,
}

/// What an [`Operator`] is to be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names the queues.
    pub names: QueueNames,
    /// The login that this program has at the broker, where coordinators answer certain users only.
    pub user_id: Option<String>,
    /// Shards of the prefix, so that a fan-out's shard can be looked at; 0 where there are none, or nobody says how many.
    pub shards: u32,
    /// How long those who are asked have for their answers. It is waited for those who are known and silent. 3 s.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { names: QueueNames::default(), user_id: None, shards: 0, patience: Duration::from_secs(3) }
    }
}

impl Operator {
    /// An operator on a broker. Nothing is sent before it is asked something.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>, environment: Arc<dyn Environment>, config: Config) -> Self {
        Self { broker, environment, config, looking: Arc::default() }
    }

    /// The names of the queues.
    #[must_use]
    pub const fn names(&self) -> &QueueNames {
        &self.config.names
    }
}
