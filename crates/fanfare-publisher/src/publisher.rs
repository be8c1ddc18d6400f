use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Aftercare, Broker, Environment};
use fanfare_protocol::{Cancellation, Cid, QueueNames, QueueSpec, RunId, limits};
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::backlog::Backlog;
use crate::known_queues::KnownQueues;
use crate::spares::Spares;
use crate::{Accepted, CancelError, Fanout, Invalid, InvokeError, Target, cancelling, invocation};

/// Invokes services: the way into Fanfare for a program, and for a service that invokes others. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use fanfare_broker::{System, memory::MemoryBroker};
/// use fanfare_publisher::{Config, Publisher};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = Arc::new(MemoryBroker::new());
/// let publisher = Publisher::new(broker, Arc::new(System), Config { declare_missing: true, ..Config::default() });
/// let accepted = publisher
///     .fanout("orders.intake")
///     .target("price.quote", ["shoe", "sock"])
///     .on_final("order.enriched")
///     .invoke()
///     .await?;
/// println!("{}", accepted.cid);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Publisher {
    pub(crate) shared: Arc<Shared>,
}

/// What a [`Publisher`] is to be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names the queues.
    pub names: QueueNames,
    /// Whether to declare the queues of services and callbacks that no worker has declared yet, instead of refusing the
    /// invocation. For starting programs in any order.
    pub declare_missing: bool,
    /// The most that an invocation takes, from its start to its outcome. The last tenth is for the manifest's confirm: what could
    /// not be sent before is given up. 60 s, as the protocol says, and no more where fan-outs are shared: a coordinator
    /// forgets results in a shard whose manifest does not follow within twice this time. More than a year counts as that.
    pub time_limit: Duration,
    /// The most of that time for looking at queues and declaring them before anything is sent, tries again during an outage
    /// included. To cancel has as much for this. 10 s.
    pub preparation_limit: Duration,
    /// Targets of one fan-out. 100,000, which is the most that there can be.
    pub most_targets: usize,
    /// The deadline of a fan-out that sets none itself, from its manifest's first delivery; none for no deadline. 24 h.
    pub deadline: Option<Duration>,
    /// The most that a cancel may take, once a coordinator has said that it holds the fan-out. 30 s.
    pub cancel_limit: Duration,
    /// Fan-outs that may wait for a coordinator, of all publishers together: where so many do, an invocation is refused with
    /// [`Failure::Busy`](crate::Failure::Busy) before anything is sent. Each of them has a queue at the broker, which takes up
    /// to two of its file descriptors, and a broker that has none left closes everybody's connections. Services may
    /// invoke until it is twice as many, so that what has begun can end. 10,000; [`u64::MAX`] for no limit.
    pub most_waiting: u64,
    /// The login that this program has at the broker, to be put into its manifests and requests to cancel as `user_id`, which the
    /// broker checks: before the first invocation, so that nothing is sent where it refuses it. Coordinators can be told to accept those of certain users only. None, which is the default, puts in nothing.
    pub user_id: Option<String>,
    /// The type of aggregation queues. Classic.
    pub queue_type: QueueType,
    /// Where results are gathered. In a queue for each fan-out.
    pub aggregation: Aggregation,
}

/// Where the results of a fan-out are gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// In a queue that each fan-out has for itself. A broker creates and deletes some hundreds of queues a second.
    #[default]
    PerCid,
    /// In a fixed number of queues that all fan-outs of a prefix share: for many small ones. Coordinators have to be told the same
    /// number, and so has every publisher that shares. Coordinators declare them: before one has run, what is invoked is refused with
    /// [`Failure::NoShard`](crate::Failure::NoShard).
    Shared {
        /// How many: 1 to 1024. As many as the broker has cores are plenty.
        shards: u32,
    },
}

/// Of which type the queues are that results are gathered in. All others are quorum queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueType {
    /// Classic queues, which are cheap and live on one node. In a cluster, a fan-out whose queue is on a node that is
    /// down waits for its return, and then goes on with nothing lost.
    #[default]
    Classic,
    /// Quorum queues, which are replicated over a cluster's nodes, and cost two to three times as much.
    Quorum,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: QueueNames::default(),
            declare_missing: false,
            time_limit: Duration::from_secs(60),
            preparation_limit: Duration::from_secs(10),
            deadline: Some(Duration::from_secs(24 * 60 * 60)),
            cancel_limit: Duration::from_secs(30),
            most_targets: limits::TARGETS,
            most_waiting: 10_000,
            user_id: None,
            queue_type: QueueType::default(),
            aggregation: Aggregation::default(),
        }
    }
}

/// Half of what coordinators wait for the manifest of results in a shard.
pub(crate) const SHARED_TIME_LIMIT: Duration = Duration::from_secs(60);

impl Config {
    /// The queue in which the results of a fan-out are gathered.
    pub(crate) fn gathering(&self, cid: &Cid, run: RunId) -> Result<QueueSpec, Invalid> {
        match (self.aggregation, self.queue_type) {
            (Aggregation::Shared { .. }, _) if self.time_limit > SHARED_TIME_LIMIT => {
                Err(Invalid::TimeLimit(self.time_limit))
            }
            (Aggregation::Shared { shards }, _) if (1..=limits::SHARDS).contains(&shards) => {
                Ok(self.names.shard(QueueNames::shard_of(cid, shards)))
            }
            (Aggregation::Shared { shards }, _) => Err(Invalid::Shards(shards)),
            (Aggregation::PerCid, QueueType::Classic) => Ok(self.names.aggregation(cid, run)),
            (Aggregation::PerCid, QueueType::Quorum) => Ok(self.names.replicated_aggregation(cid, run)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) aftercare: Aftercare,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) config: Config,
    pub(crate) known: KnownQueues,
    /// Set once the broker has taken the `user_id`.
    pub(crate) user_id_taken: OnceCell<()>,
    pub(crate) backlog: Backlog,
    pub(crate) spares: Spares,
}

impl Publisher {
    /// A publisher on a broker. Nothing is sent or declared before the first invocation.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>, environment: Arc<dyn Environment>, config: Config) -> Self {
        let (known, user_id_taken, backlog, spares) = Default::default();
        let aftercare = Aftercare::new(Arc::clone(&broker));
        let shared = Shared { broker, aftercare, environment, config, known, user_id_taken, backlog, spares };
        Self { shared: Arc::new(shared) }
    }

    /// Starts a fan-out: its final callbacks are invoked once, when all of its targets have completed.
    ///
    /// The source is the service or program that issues it.
    pub fn fanout(&self, source: impl AsRef<str>) -> Fanout {
        Fanout::new(self.clone(), false, source.as_ref())
    }

    /// Starts a parallel execution: its on-target callbacks are invoked each time a target completes, and there are no
    /// final ones.
    pub fn parallel(&self, source: impl AsRef<str>) -> Fanout {
        Fanout::new(self.clone(), true, source.as_ref())
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
        let target = Target::new(service, payload);
        invocation::send(Arc::clone(&self.shared), source.as_ref().to_owned(), target).await
    }

    /// Ends a fan-out, or a parallel execution, without waiting for any more of its targets. Those that have not responded fail, with the exception
    /// `cancelled`, and its callbacks are invoked with what there is. Workers are told not to begin with them, and services
    /// that run for them to end early, by the cancellation token of their context; that reaches whoever is connected, and what
    /// runs all the same is late, and dropped. Fan-outs that its targets have invoked are fan-outs of their own, and go on.
    ///
    /// When this returns, the fan-out ends whatever dies from then on. To cancel again changes nothing, and neither does
    /// cancelling what has ended lately; what it returns tells which it was.
    ///
    /// It takes a coordinator that holds the fan-out: one that still waits for a coordinator is unknown to all. Each of
    /// them has 5 s to answer, and [`Config::cancel_limit`] where it holds the fan-out.
    ///
    /// # Errors
    /// [`CancelError`] tells what is known of the fan-out.
    ///
    /// # Cancel safety
    /// A request that was sent takes effect also where the future is dropped.
    pub async fn cancel(&self, fan_out: &Accepted) -> Result<Cancellation, CancelError> {
        cancelling::cancel(Arc::clone(&self.shared), fan_out.clone()).await
    }

    /// As [`cancel`](Self::cancel), for all fan-outs with this CID that are open. It returns, by run, what came of those that
    /// coordinators told of within a second. Where a coordinator holds none that is open, it tells of the latest ten that have ended there.
    ///
    /// # Errors
    /// As for [`cancel`](Self::cancel). Without the run, one that has ended long ago cannot be told from one that never was.
    pub async fn cancel_all(
        &self,
        cid: impl AsRef<str>,
    ) -> Result<BTreeMap<RunId, Cancellation>, CancelError> {
        let cid = Cid::new(cid.as_ref()).map_err(CancelError::Invalid)?;
        cancelling::cancel_all(Arc::clone(&self.shared), cid, None).await
    }

    /// Deletes the queues that it keeps ready for its next fan-outs, and keeps none from now on. It goes on invoking. Those of a program
    /// that ends without this go by themselves after seven days.
    pub async fn close(&self) {
        self.shared.close_spares().await;
    }

    /// The broker that it publishes to.
    #[must_use]
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.shared.broker
    }

    /// Its clock and randomness.
    #[must_use]
    pub fn environment(&self) -> &Arc<dyn Environment> {
        &self.shared.environment
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }
}
