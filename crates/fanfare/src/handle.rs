use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::Broker;
use fanfare_coordinator::{Config as CoordinatorConfig, Coordinator};
use fanfare_operator::{Config as OperatorConfig, Operator};
use fanfare_protocol::{Cancellation, QueueNames, RunId};
use fanfare_publisher::{
    Accepted, Aggregation, CancelError, Config as PublisherConfig, Fanout, InvokeError, Publisher, QueueType,
};
use fanfare_worker::{Config as WorkerConfig, Worker};
use serde::Serialize;

use crate::{Builder, ConnectError};

/// How long closing may take over what the broker is asked to delete.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The way into Fanfare: invokes fan-outs and plain services, and makes workers and coordinators. Cheap to clone.
///
/// ```no_run
/// use fanfare::Fanfare;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fanfare = Fanfare::connect("amqp://localhost").await?;
/// let accepted = fanfare
///     .fanout("orders.intake")
///     .target("price.quote", ["shoe", "sock"])
///     .on_final("order.enriched")
///     .invoke()
///     .await?;
/// println!("{}", accepted.cid);
/// fanfare.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Fanfare {
    publisher: Publisher,
}

impl Fanfare {
    /// Connects to RabbitMQ: an `amqp://` or `amqps://` URL, or a comma-separated list of the nodes of one broker, which are
    /// tried in turn. It reconnects by itself from then on.
    ///
    /// # Errors
    /// [`ConnectError`], also where no broker answers. [`Builder::build`] makes a handle that waits for one.
    pub async fn connect(urls: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(urls).connect().await
    }

    /// Starts a handle that is to be told more: a prefix, certificates, limits.
    pub fn builder(urls: impl Into<String>) -> Builder {
        Builder::urls(urls)
    }

    /// A handle on a new broker in this process's memory. It and its clones are the only ones to use it, and nothing
    /// outlives them: it is for tests, first steps and demonstrations.
    #[must_use]
    pub fn in_memory() -> Self {
        Builder::memory().build().expect("there is nothing to get wrong")
    }

    /// Starts a handle on a broker that is there already, in memory for instance.
    pub fn on(broker: Arc<dyn Broker>) -> Builder {
        Builder::on(broker)
    }

    pub(crate) const fn new(publisher: Publisher) -> Self {
        Self { publisher }
    }

    /// Starts a fan-out: its final callbacks are invoked once, when all of its targets have completed.
    ///
    /// The source is the service or program that issues it.
    pub fn fanout(&self, source: impl AsRef<str>) -> Fanout {
        self.publisher.fanout(source)
    }

    /// Starts a parallel execution: its on-target callbacks are invoked each time a target completes, and there are no
    /// final ones.
    pub fn parallel(&self, source: impl AsRef<str>) -> Fanout {
        self.publisher.parallel(source)
    }

    /// Invokes one service. Nobody answers: what it returns is dropped.
    ///
    /// # Errors
    /// [`InvokeError`], as for a fan-out; `NotAccepted` means that the service will not run, and `Unknown` that it may.
    pub async fn send(
        &self,
        source: impl AsRef<str>,
        service: impl AsRef<str>,
        payload: impl Serialize,
    ) -> Result<Accepted, InvokeError> {
        self.publisher.send(source, service, payload).await
    }

    /// Ends a fan-out without waiting for any more of its targets: see [`Publisher::cancel`].
    ///
    /// ```
    /// use fanfare::{EndedBy, Fanfare};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fanfare = Fanfare::in_memory();
    /// tokio::spawn(fanfare.coordinator().run_until(std::future::pending()));
    /// let fanout = fanfare.fanout("nightly").target("report.write", 7).on_final("report.done");
    /// let accepted = fanout.declare_missing().invoke().await?;
    ///
    /// let cancellation = fanfare.cancel(&accepted).await?;
    /// assert_eq!((cancellation.responded, cancellation.missing), (0, 1));
    /// assert_eq!(cancellation.ended_by, Some(EndedBy::Cancel));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CancelError`] tells what is known of the fan-out.
    pub async fn cancel(&self, fan_out: &Accepted) -> Result<Cancellation, CancelError> {
        self.publisher.cancel(fan_out).await
    }

    /// Ends all fan-outs with this CID that are open: see [`Publisher::cancel_all`].
    ///
    /// # Errors
    /// [`CancelError`] tells what is known of them.
    pub async fn cancel_all(
        &self,
        cid: impl AsRef<str>,
    ) -> Result<BTreeMap<RunId, Cancellation>, CancelError> {
        self.publisher.cancel_all(cid).await
    }

    /// A worker without services yet.
    pub fn worker(&self) -> Worker {
        self.worker_with(WorkerConfig::default())
    }

    /// A worker that is told how much to run at a time, and how to stop.
    pub fn worker_with(&self, config: WorkerConfig) -> Worker {
        Worker::new(self.publisher.clone(), config)
    }

    /// A coordinator. At least one has to run for fan-outs to end; any number may.
    #[must_use]
    pub fn coordinator(&self) -> Coordinator {
        self.coordinator_with(CoordinatorConfig::default())
    }

    /// A coordinator with limits of its own. The names of its queues are always those of this handle; and so are its shards,
    /// where this handle shares them, and the type of its queues for large payloads, where this handle's are replicated.
    #[must_use]
    pub fn coordinator_with(&self, config: CoordinatorConfig) -> Coordinator {
        let shards = self.shards().unwrap_or(config.shards);
        let is_replicated = self.publisher.config().queue_type == QueueType::Quorum;
        let replicated_payloads = config.replicated_payloads || is_replicated;
        let config = CoordinatorConfig { names: self.names().clone(), shards, replicated_payloads, ..config };
        Coordinator::new(Arc::clone(self.broker()), Arc::clone(self.publisher.environment()), config)
    }

    /// What asks coordinators and workers how things are, and sees to what they have left for a person.
    #[must_use]
    pub fn operator(&self) -> Operator {
        self.operator_with(OperatorConfig::default())
    }

    /// An operator with a patience of its own, or who is told how many shards there are. The names of the queues and the login are
    /// always those of this handle; and so are the shards, where this handle shares them.
    #[must_use]
    pub fn operator_with(&self, config: OperatorConfig) -> Operator {
        let PublisherConfig { names, user_id, .. } = self.publisher.config();
        let shards = self.shards().unwrap_or(config.shards);
        let config = OperatorConfig { names: names.clone(), user_id: user_id.clone(), shards, ..config };
        Operator::new(Arc::clone(self.broker()), Arc::clone(self.publisher.environment()), config)
    }

    /// How many shards there are, where it shares them.
    fn shards(&self) -> Option<u32> {
        match self.publisher.config().aggregation {
            Aggregation::Shared { shards } => Some(shards),
            Aggregation::PerCid => None,
        }
    }

    /// What it invokes with.
    #[must_use]
    pub const fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// The broker.
    #[must_use]
    pub fn broker(&self) -> &Arc<dyn Broker> {
        self.publisher.broker()
    }

    /// The names of the queues.
    #[must_use]
    pub fn names(&self) -> &QueueNames {
        &self.publisher.config().names
    }

    /// Closes the connections, of all clones and of the workers and coordinators that it made. Closing twice is harmless.
    pub async fn close(&self) {
        // What an outage keeps there goes by itself.
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.publisher.close()).await;
        self.broker().close().await;
    }
}
