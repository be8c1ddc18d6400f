use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, Readiness, consumer_timeout};
use fanfare_protocol::{RunId, limits};
use fanfare_publisher::Publisher;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::Answers;
use crate::bundler::Bundler;
use crate::cancelled::CancelledRuns;
use crate::gone::GoneRuns;
use crate::history::History;
use crate::lane::Lane;
use crate::listener::Listener;
use crate::pipeline::{Pipeline, Stop};
use crate::registration::Registered;
use crate::slot::{AllSlots, Slots};
use crate::telemetry::Telemetry;
use crate::whereabouts::Whereabouts;
use crate::{Registration, WorkerError};

/// What is not ready before the worker has declared its queues.
const QUEUES: &str = "the worker's queues";
/// How long an invocation that was told to end has for it before it is dropped.
pub(crate) const CANCELLATION_GRACE: Duration = Duration::from_secs(1);
/// How long it may take to put back what was dropped. What is not put back by then comes back with the connection.
const REQUEUE_LIMIT: Duration = Duration::from_secs(5);

/// Runs services: consumes their queues, and answers for every message in them. Any number of workers share a queue.
///
/// ```
/// use std::sync::Arc;
/// use fanfare_broker::{System, memory::MemoryBroker};
/// use fanfare_publisher::{Config as PublisherConfig, Publisher};
/// use fanfare_worker::{Config, Context, Worker, service};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let publisher = Publisher::new(Arc::new(MemoryBroker::new()), Arc::new(System), PublisherConfig::default());
/// let worker = Worker::new(publisher, Config::default())
///     .service(service("price.quote", |_: Context, items: Vec<String>| async move { Ok(items.len() * 5) }))
///     .service(service("audit.log", |context: Context, _: serde_json::Value| async move {
///         println!("{} of {}", context.channel(), context.cid());
///         Ok(())
///     }));
/// // A program waits for a signal here.
/// worker.run_until(async {}).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a worker does nothing before `run_until`"]
pub struct Worker {
    publisher: Publisher,
    config: Config,
    services: Vec<Registration>,
    readiness: Readiness,
}

/// What a [`Worker`] is to be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Invocations of all services together that run at the same time: 1 or more. 64.
    pub concurrency: usize,
    /// What the broker's consumer time-out is, which it does not tell: how long a request may stay unacked before the
    /// broker hands it out again. A service that may take longer is warned of at the start. 30 minutes, as RabbitMQ has it.
    pub consumer_timeout: Duration,
    /// How long a worker that stops lets its invocations finish. What still runs then is told to end, dropped and put
    /// back into its queue. 30 s.
    pub shutdown_deadline: Duration,
    /// How often a message may be delivered again, because its worker died, lost its connection or stopped, before it is given
    /// up: a failed result, and a copy among the parked messages. 20, since a rolling restart redelivers whatever was handed
    /// out. From the third delivery on it runs alone in its worker, so that one which kills its worker takes no others with it.
    pub redelivery_limit: u32,
    /// How long a message that runs alone keeps the others of its worker waiting: for so long at most it waits for what runs to end, and for
    /// so long at most no other begins once it runs. What runs beside it after that is delivered again where it still kills its
    /// worker. 30 s.
    pub alone_limit: Duration,
    /// Bytes of one result: a target fails with a larger one. 8,355,840, which is the most that there can be.
    pub most_result_bytes: usize,
    /// Bytes of the largest final payload that is put together where it came in parts, for services that do not
    /// [stream](Registration::streaming) it; the callback fails with a larger one. Each that runs takes up a few times as much memory.
    /// 256 MiB.
    pub most_payload_bytes: usize,
    /// Whether results that are ready at the same time for the same queue travel as one message, which is cheaper for everyone. True.
    /// Coordinators from before there was such a message would hold it without reading it.
    pub bundle_results: bool,
    /// What operators are told that this worker is, who ask where a target runs. None, which is the default, leaves it at an ID.
    pub name: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            concurrency: 64,
            consumer_timeout: consumer_timeout::DEFAULT,
            shutdown_deadline: Duration::from_secs(30),
            redelivery_limit: 20,
            alone_limit: Duration::from_secs(30),
            most_result_bytes: limits::RESULT_BYTES,
            most_payload_bytes: 256 * 1024 * 1024,
            bundle_results: true,
            name: None,
        }
    }
}

impl Worker {
    /// A worker without services on a publisher's broker, whose queue names it uses. The publisher is also what its
    /// services invoke others with.
    pub fn new(publisher: Publisher, config: Config) -> Self {
        let readiness = Readiness::waiting(QUEUES, "it has not started yet");
        Self { publisher, config, services: Vec::new(), readiness }
    }

    /// Whether it consumes the queues of its services, for whoever asks while it runs.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Adds a service.
    pub fn service(mut self, registration: Registration) -> Self {
        self.services.push(registration);
        self
    }

    /// Adds services.
    pub fn services(mut self, registrations: impl IntoIterator<Item = Registration>) -> Self {
        self.services.extend(registrations);
        self
    }

    /// Runs the services until `shutdown` completes, through every outage of the broker.
    ///
    /// It then takes no more messages, lets what runs finish under [`Config::shutdown_deadline`], and puts the rest back.
    ///
    /// # Errors
    /// [`WorkerError`]: a registration breaks a rule, or the broker refuses what no waiting changes. An outage is
    /// no error.
    ///
    /// # Cancel safety
    /// Where the future is dropped, what runs is dropped and put back at once.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let Self { publisher, config, services, readiness } = self;
        let services = check(services, &config)?;
        let mut shutdown = pin!(shutdown);
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            prepared = prepare(&publisher, &services, &readiness) => prepared?,
        }
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            () = warn_of_long_services(&publisher, &services, config.consumer_timeout) => {}
        }
        for service in &services {
            let (name, concurrency) = (&service.name, service.concurrency);
            tracing::info!(service = %name, concurrency, prefetch = service.prefetch, "serving");
        }
        let mut running = Running::start(publisher, &config, services, &readiness);
        readiness.clear(QUEUES);
        let ended = tokio::select! {
            biased;
            () = &mut shutdown => Ok(()),
            ended = running.lanes_ended() => ended,
        };
        tracing::info!(invocations = running.invocations.len(), "the worker stops");
        running.stop(config.shutdown_deadline).await;
        tracing::info!("the worker has stopped");
        Ok(ended?)
    }
}

fn check(services: Vec<Registration>, config: &Config) -> Result<Vec<Registered>, WorkerError> {
    if services.is_empty() {
        return Err(WorkerError::NoServices);
    }
    if config.concurrency == 0 {
        return Err(WorkerError::NoConcurrency);
    }
    let services: Vec<Registered> =
        services.into_iter().map(Registration::check).collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    match services.iter().find(|service| !names.insert(&service.name)) {
        Some(twice) => Err(WorkerError::Duplicate(twice.name.clone())),
        None => Ok(services),
    }
}

/// Declares the queues of the services, and sees to it that those are there which take what cannot be handled, and that the broker
/// takes the manifests of what services invoke. Waits for as long as there is no broker.
async fn prepare(
    publisher: &Publisher,
    services: &[Registered],
    readiness: &Readiness,
) -> Result<(), WorkerError> {
    let names = &publisher.config().names;
    let broker = publisher.broker();
    // They are everyone's: a worker needs no right to declare them, which would be one to delete them.
    let other = || names.settling_payload(RunId::from(publisher.environment().unique()));
    for queue in [names.dead(), names.parked()] {
        let ensure = || async { broker.ensure(&queue, &other()).await };
        through_outages(publisher, &queue.name, readiness, ensure).await?;
    }
    for service in services {
        let queue = names.service(&service.name);
        let declare = || async {
            broker.ensure(&queue, &other()).await?;
            // Whether it is as it should be.
            broker.declare(&queue).await
        };
        through_outages(publisher, &queue.name, readiness, declare).await?;
    }
    if let Some(user_id) = &publisher.config().user_id {
        through_outages(publisher, "user_id", readiness, || broker.check_user_id(user_id)).await?;
    }
    Ok(())
}

async fn through_outages<F: Future<Output = Result<(), BrokerError>>>(
    publisher: &Publisher,
    of: &str,
    readiness: &Readiness,
    attempt: impl Fn() -> F,
) -> Result<(), WorkerError> {
    let mut backoff = Backoff::default();
    while let Err(error) = attempt().await {
        if !error.is_outage() {
            return Err(error.into());
        }
        readiness.hinder(QUEUES, error.to_string());
        tracing::warn!(of, %error, "waiting for the broker");
        backoff.wait(&**publisher.environment()).await;
    }
    Ok(())
}

/// Tells of services whose targets the broker may hand out again while they still run.
async fn warn_of_long_services(publisher: &Publisher, services: &[Registered], limit: Duration) {
    let long = services.iter().filter(|service| service.timeout.is_none_or(|timeout| timeout >= limit));
    let long: Vec<&str> = long.map(|service| service.name.as_str()).collect();
    if long.is_empty() {
        return;
    }
    // Only where it can be told at once: that no broker answers is told by those who need it.
    let Ok(server) = publisher.broker().server().await else { return };
    if server.is_rabbitmq() {
        tracing::warn!(
            services = long.join(", "),
            consumer_timeout = ?limit,
            remedy = consumer_timeout::how_to_raise(&server, publisher.config().names.prefix()),
            "these services have no time-out below the broker's consumer time-out: a target that takes longer is handed out \
             again, and may run twice (it counts once). Give them a time-out, or raise the broker's"
        );
    }
}

/// A worker at work: one lane per service, and the invocations that they started.
struct Running {
    lanes: JoinSet<Result<(), BrokerError>>,
    /// Listens to what all workers are told, until this is dropped.
    _listener: JoinSet<()>,
    invocations: TaskTracker,
    stopping: CancellationToken,
    stop: Stop,
}

impl Running {
    fn start(
        publisher: Publisher,
        config: &Config,
        services: Vec<Registered>,
        readiness: &Readiness,
    ) -> Self {
        let cancelled = CancelledRuns::default();
        let whereabouts = Whereabouts::default();
        let listener = Listener {
            worker: RunId::from(publisher.environment().unique()),
            name: config.name.clone(),
            cancelled: cancelled.clone(),
            whereabouts: whereabouts.clone(),
            broker: Arc::clone(publisher.broker()),
            environment: Arc::clone(publisher.environment()),
            names: publisher.config().names.clone(),
        };
        let running = Self {
            lanes: JoinSet::new(),
            _listener: [listener.run()].into_iter().collect(),
            invocations: TaskTracker::new(),
            stopping: CancellationToken::new(),
            stop: Stop::default(),
        };
        let all = AllSlots::new(config.concurrency, config.alone_limit);
        let results = Bundler::start(Arc::clone(publisher.broker()), config.bundle_results);
        services.into_iter().fold(running, |mut running, registered| {
            let names = publisher.config().names.clone();
            let lane = Lane {
                readiness: readiness.clone(),
                queue: names.service(&registered.name),
                slots: Slots::new(registered.concurrency, all.clone()),
                redelivery_limit: config.redelivery_limit,
                stopping: running.stopping.clone(),
                invocations: running.invocations.clone(),
                pipeline: Arc::new(Pipeline {
                    queue: names.service_queue(&registered.name),
                    answers: Answers {
                        telemetry: Telemetry::of(&registered.name),
                        broker: Arc::clone(publisher.broker()),
                        results: results.clone(),
                        environment: Arc::clone(publisher.environment()),
                        names,
                        most_bytes: config.most_result_bytes,
                        gone: GoneRuns::default(),
                    },
                    registered,
                    publisher: publisher.clone(),
                    most_payload_bytes: config.most_payload_bytes,
                    stop: running.stop.clone(),
                    history: History::default(),
                    cancelled: cancelled.clone(),
                    whereabouts: whereabouts.clone(),
                }),
            };
            running.lanes.spawn(lane.run());
            running
        })
    }

    /// Returns when all lanes have ended, not before they are stopped, or when one was denied its queue. One that panics takes
    /// the worker with it, for nobody would serve its service any more.
    async fn lanes_ended(&mut self) -> Result<(), BrokerError> {
        while let Some(ended) = self.lanes.join_next().await {
            match ended {
                Ok(ended) => ended?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// No more messages; then time to finish; then word to end; then the rest is dropped and put back.
    async fn stop(mut self, deadline: Duration) {
        self.stopping.cancel();
        self.invocations.close();
        let invocations = self.invocations.clone();
        let finished = async {
            while self.lanes_ended().await.is_err() {}
            invocations.wait().await;
        };
        if timeout(deadline, finished).await.is_ok() {
            return;
        }
        tracing::warn!(invocations = self.invocations.len(), ?deadline, "invocations did not finish in time");
        self.stop.cancel.cancel();
        if timeout(CANCELLATION_GRACE, self.invocations.wait()).await.is_ok() {
            return;
        }
        self.stop.abort.cancel();
        if timeout(REQUEUE_LIMIT, self.invocations.wait()).await.is_err() {
            tracing::warn!(invocations = self.invocations.len(), "left to the broker to put back");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopping.cancel();
        self.stop.cancel.cancel();
        self.stop.abort.cancel();
    }
}
