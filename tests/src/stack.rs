use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanfare_broker::amqp::{self, AmqpBroker};
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, QueueState, System};
use fanfare_coordinator::{Coordinator, ShardSettings};
use fanfare_operator::{Config as OperatorConfig, Operator};
use fanfare_protocol::queue::DELAY_STEPS;
use fanfare_protocol::{Ended, ExchangeSpec, Message, Prefix, QueueNames, RunId, ServiceName};
use fanfare_publisher::{Accepted, Aggregation, Publisher, QueueType};
use fanfare_worker::{Registration, Worker};
use futures_util::FutureExt;
use futures_util::future::join_all;

use crate::{Doomed, Mortal, Node, Recorder, Running};

/// A broker, and queue names that no other test has. Every part of Fanfare that is started on it has a connection of its
/// own, as separate programs would.
#[derive(Debug, Clone)]
pub struct Stack {
    on: On,
    names: QueueNames,
    /// Shards that all fan-outs are gathered in; 0 where each has a queue of its own.
    shards: u32,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Clone)]
enum On {
    Memory(Arc<MemoryBroker>),
    RabbitMq(String),
}

#[derive(Debug, Default)]
struct Shared {
    services: BTreeSet<String>,
    /// Whether there may be delay queues.
    retries: bool,
    connections: Vec<Arc<dyn Broker>>,
    /// For what the test itself looks at and publishes.
    bystander: Option<Arc<dyn Broker>>,
}

/// Runs a test on a stack, and takes its queues away afterwards, however it ended.
pub async fn run<F: Future<Output = ()>>(stack: Stack, test: impl FnOnce(Stack) -> F) {
    let outcome = async {
        stack.declare_shards().await;
        test(stack.clone()).await;
    };
    let outcome = AssertUnwindSafe(outcome).catch_unwind().await;
    stack.clean_up().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Stack {
    /// On a broker in this process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(On::Memory(Arc::new(MemoryBroker::new())))
    }

    /// On the RabbitMQ that `FANFARE_TEST_BROKER` names.
    ///
    /// # Panics
    /// Where it is not set.
    #[must_use]
    pub fn on_rabbitmq() -> Self {
        let url = std::env::var("FANFARE_TEST_BROKER")
            .expect("this test needs a RabbitMQ: run `cargo xtask test`, or set FANFARE_TEST_BROKER");
        Self::at(url)
    }

    /// On the RabbitMQ at a URL.
    #[must_use]
    pub fn at(url: String) -> Self {
        Self::new(On::RabbitMq(url))
    }

    fn new(on: On) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let prefix = Prefix::new(format!("test-{}", &unique[..12])).expect("a proper prefix");
        Self { on, names: QueueNames::new(prefix), shards: 0, shared: Arc::default() }
    }

    /// The same, with fan-outs that are gathered in so many shards.
    #[must_use]
    pub fn sharing(self, shards: u32) -> Self {
        Self { shards, ..self }
    }

    pub(crate) fn shards(&self) -> u32 {
        self.shards
    }

    /// Declares the shards, as if a coordinator had run before: so that a test can invoke before it starts one.
    async fn declare_shards(&self) {
        for shard in 0..self.shards {
            self.bystander().declare(&self.names.shard(shard)).await.expect("the queue can be declared");
        }
    }

    /// The names of this stack's queues.
    #[must_use]
    pub fn names(&self) -> &QueueNames {
        &self.names
    }

    /// The queue that the results of a fan-out go to.
    #[must_use]
    pub fn results_of(&self, Accepted { cid, run }: &Accepted) -> String {
        match self.shards {
            0 => self.names.aggregation(cid, *run).name,
            shards => self.names.shard(QueueNames::shard_of(cid, shards)).name,
        }
    }

    /// The queue that the manifest of a fan-out goes to.
    #[must_use]
    pub fn manifests_of(&self, accepted: &Accepted) -> String {
        match self.shards {
            0 => self.names.fanin_queue(),
            _ => self.results_of(accepted),
        }
    }

    /// Whether fan-outs are gathered in shards.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shards > 0
    }

    /// The URL of the RabbitMQ.
    ///
    /// # Panics
    /// Where this stack is in memory.
    #[must_use]
    pub fn url(&self) -> &str {
        match &self.on {
            On::RabbitMq(url) => url,
            On::Memory(_) => panic!("a broker in memory has no URL"),
        }
    }

    /// The broker takes bodies of at most so many bytes from now on.
    ///
    /// # Panics
    /// Where this stack is on RabbitMQ, whose limit is everybody's.
    pub fn limit_messages(&self, most_bytes: usize) {
        match &self.on {
            On::Memory(broker) => broker.limit_messages(most_bytes),
            On::RabbitMq(url) => panic!("the limit of {url} is not this test's to change"),
        }
    }

    /// Whom everyone on this stack logs in as.
    #[must_use]
    pub fn user(&self) -> &str {
        match &self.on {
            On::Memory(_) => MemoryBroker::DEFAULT_USER,
            On::RabbitMq(url) => {
                let (_, rest) = url.split_once("://").unwrap_or_default();
                let login = rest.rsplit_once('@').map(|(login, _)| login);
                login.and_then(|login| login.split(':').next()).unwrap_or("guest")
            }
        }
    }

    /// Another connection to the broker.
    #[must_use]
    pub fn connect(&self) -> Arc<dyn Broker> {
        let broker: Arc<dyn Broker> = match &self.on {
            On::Memory(broker) => Arc::new(broker.connect()),
            On::RabbitMq(url) => Arc::new(AmqpBroker::new(
                amqp::Config::parse(url).expect("FANFARE_TEST_BROKER is an AMQP URL"),
                Arc::new(System),
            )),
        };
        self.shared().connections.push(Arc::clone(&broker));
        broker
    }

    /// Another connection to the broker in this process, with what only that offers.
    ///
    /// # Panics
    /// Where this stack is on RabbitMQ.
    #[must_use]
    pub fn connect_in_memory(&self) -> Arc<MemoryBroker> {
        match &self.on {
            On::Memory(broker) => Arc::new(broker.connect()),
            On::RabbitMq(url) => panic!("{url} is not in this process"),
        }
    }

    /// A connection of another user.
    ///
    /// # Panics
    /// Where this stack is on RabbitMQ, whose users are everybody's.
    #[must_use]
    pub fn connect_as(&self, user: &str) -> Arc<dyn Broker> {
        let broker: Arc<dyn Broker> = match &self.on {
            On::Memory(broker) => Arc::new(broker.connect_as(user)),
            On::RabbitMq(url) => panic!("the users of {url} are not this test's to add"),
        };
        self.shared().connections.push(Arc::clone(&broker));
        broker
    }

    /// The connection with which the test looks on: the same each time.
    #[must_use]
    pub fn bystander(&self) -> Arc<dyn Broker> {
        let known = self.shared().bystander.clone();
        known.unwrap_or_else(|| {
            let broker = self.connect();
            self.shared().bystander.insert(broker).clone()
        })
    }

    /// A publisher with a connection of its own.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher_on(self.connect())
    }

    /// A publisher with a connection of its own, whose aggregation queues are of a type.
    #[must_use]
    pub fn publisher_of(&self, queue_type: QueueType) -> Publisher {
        let config = fanfare_publisher::Config { queue_type, ..self.publisher_config() };
        Publisher::new(self.connect(), Arc::new(System), config)
    }

    /// A publisher with a connection of its own, and a bound on what may wait for a coordinator.
    #[must_use]
    pub fn publisher_bounded(&self, most_waiting: u64) -> Publisher {
        let config = fanfare_publisher::Config { most_waiting, ..self.publisher_config() };
        Publisher::new(self.connect(), Arc::new(System), config)
    }

    /// An operator with a connection of its own, who waits so long for those who do not answer.
    #[must_use]
    pub fn operator(&self, patience: Duration) -> Operator {
        self.operator_with(OperatorConfig { patience, ..Default::default() })
    }

    /// An operator who says who it is.
    #[must_use]
    pub fn operator_of(&self, user: &str) -> Operator {
        let user_id = Some(user.to_owned());
        self.operator_with(OperatorConfig { user_id, patience: crate::PATIENCE, ..Default::default() })
    }

    fn operator_with(&self, config: OperatorConfig) -> Operator {
        let config = OperatorConfig { names: self.names.clone(), shards: self.shards, ..config };
        Operator::new(self.connect(), Arc::new(System), config)
    }

    fn publisher_on(&self, broker: Arc<dyn Broker>) -> Publisher {
        Publisher::new(broker, Arc::new(System), self.publisher_config())
    }

    /// A publisher's configuration for this stack.
    #[must_use]
    pub fn publisher_config(&self) -> fanfare_publisher::Config {
        let aggregation = match self.shards {
            0 => Aggregation::PerCid,
            shards => Aggregation::Shared { shards },
        };
        fanfare_publisher::Config { names: self.names.clone(), aggregation, ..Default::default() }
    }

    /// A coordinator's configuration for this stack, with waits that suit tests.
    #[must_use]
    pub fn coordinator_config(&self) -> fanfare_coordinator::Config {
        // What an invocation that was given up has left in a shard, and what is left of a fan-out that ended just before its shard went to
        // another, is let go of within a test's patience. Publishers of tests publish their manifest within that or not at all.
        let patience = fanfare_publisher::Config::default().time_limit;
        let shard_limits =
            ShardSettings { recorded: Duration::from_millis(500), patience, ..Default::default() };
        fanfare_coordinator::Config {
            names: self.names.clone(),
            shards: self.shards,
            shard_limits,
            absence_pause: Duration::from_millis(300),
            ..Default::default()
        }
    }

    /// Starts a coordinator.
    #[must_use]
    pub fn coordinator(&self) -> Running {
        self.coordinator_with(self.coordinator_config())
    }

    /// Starts a coordinator with a configuration.
    #[must_use]
    pub fn coordinator_with(&self, config: fanfare_coordinator::Config) -> Running {
        self.coordinator_on(Mortal::new(self.connect()), config)
    }

    /// Starts a coordinator that dies with a connection.
    #[must_use]
    pub fn coordinator_on(&self, broker: Arc<Mortal>, config: fanfare_coordinator::Config) -> Running {
        let connection = Arc::clone(&broker) as Arc<dyn Broker>;
        let coordinator = Coordinator::new(connection, Arc::new(System), config);
        Running::start(broker, |stopped| async move {
            coordinator.run_until(stopped).await.expect("the configuration is sound");
        })
    }

    /// Starts a coordinator to be killed. `program` is `env!("CARGO_BIN_EXE_fanfare-test-node")`.
    #[must_use]
    pub fn doomed_coordinator(&self, program: &str) -> Doomed {
        match &self.on {
            On::Memory(_) => Doomed::Task(self.coordinator()),
            On::RabbitMq(_) => Doomed::Process(Node::start(program, self, &["coordinator"])),
        }
    }

    /// Starts a worker, and returns when the queues of its services exist.
    pub async fn worker(&self, services: impl IntoIterator<Item = Registration>) -> Running {
        self.worker_with(fanfare_worker::Config::default(), services).await
    }

    /// A worker, each of whose results is a message of its own: for tests that count those.
    pub async fn worker_of_single_results(
        &self,
        services: impl IntoIterator<Item = Registration>,
    ) -> Running {
        self.worker_with(fanfare_worker::Config { bundle_results: false, ..Default::default() }, services)
            .await
    }

    async fn worker_with(
        &self,
        config: fanfare_worker::Config,
        services: impl IntoIterator<Item = Registration>,
    ) -> Running {
        let broker = Mortal::new(self.connect());
        let publisher = self.publisher_on(Arc::clone(&broker) as Arc<dyn Broker>);
        let mut worker = Worker::new(publisher, config);
        let mut names = Vec::new();
        for service in services {
            names.push(service.name().expect("tests use proper names").to_string());
            worker = worker.service(service);
        }
        let running = Running::start(broker, |stopped| async move {
            worker.run_until(stopped).await.expect("the services are sound");
        });
        for name in names {
            self.service_exists(&name).await;
        }
        running
    }

    /// Waits until the queue of a service exists and is consumed.
    pub async fn service_exists(&self, name: &str) {
        self.service_has_consumers(name, 1).await;
    }

    /// Waits until so many consumers share the queue of a service.
    pub async fn service_has_consumers(&self, name: &str, consumers: u64) {
        let queue = self.names.service_queue(&ServiceName::new(name).expect("tests use proper names"));
        self.shared().services.insert(name.to_owned());
        let broker = self.bystander();
        crate::eventually(&format!("{queue} has {consumers} consumers"), || async {
            matches!(broker.inspect(&queue).await, Ok(Some(state)) if state.consumers >= consumers)
        })
        .await;
    }

    /// Records what arrives at a service, as it is on the wire.
    pub async fn record(&self, service: &str) -> Recorder {
        self.shared().services.insert(service.to_owned());
        Recorder::new(self, service).await
    }

    /// Records what is parked.
    pub async fn record_parked(&self) -> Recorder {
        let broker = self.connect();
        broker.declare(&self.names.parked()).await.expect("the queue can be declared");
        Recorder::consume(self, broker, self.names.parked().name).await
    }

    /// Records the messages of a queue that exists.
    pub async fn record_queue(&self, queue: &str) -> Recorder {
        Recorder::consume(self, self.connect(), queue.to_owned()).await
    }

    /// Publishes a message as it is, as a foreign program might.
    pub async fn publish(&self, queue: &str, message: Message) {
        self.bystander().publish(queue, message).await.expect("the queue takes the message");
    }

    /// Waits until these fan-outs have ended, stops the coordinator, and sees to it that nothing of them is left: neither
    /// their queues nor a manifest. Whatever callbacks were to come have come then.
    pub async fn ended<'a>(&self, fan_outs: impl IntoIterator<Item = &'a Accepted>, coordinator: Running) {
        self.shards_are_empty(&coordinator).await;
        for Accepted { cid, run } in fan_outs {
            self.queue_is_gone(&self.names.aggregation(cid, *run).name).await;
        }
        coordinator.stop().await;
        let manifests = self.record_queue(&self.names.fanin_queue()).await.rest().await;
        assert!(manifests.is_empty(), "manifests are left: {manifests:?}");
    }

    /// Waits until a coordinator has read all that was in any shard. What another has let go is back there before what is published
    /// now, and what the broker has handed out is neither in a queue nor held by anyone as long as it is on its way.
    pub async fn shards_are_read(&self, by: &Mortal) {
        for shard in 0..self.shards {
            let queue = self.names.shard(shard).name;
            // It says nothing, and is acked at once.
            let coordinator = RunId::from(uuid::Uuid::new_v4());
            let mut marker = Ended { coordinator, number: 0, ended: Vec::new() }.encode(&queue);
            let id = coordinator.to_string();
            marker.properties.message_id = Some(id.as_str().into());
            by.looks_for(&id);
            self.publish(&queue, marker).await;
            crate::eventually("the coordinator reads the shard", async || by.has_acked(&id)).await;
        }
    }

    /// Waits until the broker knows of no coordinator but so many that stand by. It learns of the death of one some time later: it
    /// hands it messages until then, and has what it held back in its queue no earlier.
    pub async fn coordinators_are_gone_but(&self, standbys: u64) {
        if self.shards == 0 {
            let fanin = self.names.fanin_queue();
            self.queue_has(&fanin, "no other consumer", |state| state.consumers == standbys).await;
        }
        for shard in 0..self.shards {
            let queue = self.names.shard(shard).name;
            self.queue_has(&queue, "no other consumer", |state| state.consumers == standbys).await;
        }
    }

    async fn shards_are_empty(&self, coordinator: &Running) {
        self.shards_are_read(coordinator.mortal()).await;
        if self.shards > 0 {
            let held = async || coordinator.mortal().held_messages();
            crate::eventually_seen("the coordinator holds nothing", held, Vec::is_empty).await;
        }
    }

    /// Waits until what a broker tells about a queue is as wanted; nothing, where there is no such queue.
    pub async fn queue_has(&self, queue: &str, what: &str, wanted: impl Fn(QueueState) -> bool) {
        let broker = self.bystander();
        crate::eventually_seen(
            &format!("{queue} has {what}"),
            || broker.inspect(queue),
            |seen| matches!(seen, Ok(Some(state)) if wanted(*state)),
        )
        .await;
    }

    /// Declares the queue of a service, and returns its name.
    pub async fn declare_service(&self, service: &str) -> String {
        self.note_service(service);
        let queue = self.names.service(&ServiceName::new(service).expect("tests use proper names"));
        self.bystander().declare(&queue).await.expect("the queue can be declared");
        queue.name
    }

    /// Waits until a queue does not exist.
    pub async fn queue_is_gone(&self, queue: &str) {
        let broker = self.bystander();
        crate::eventually_seen(
            &format!("{queue} is gone"),
            || broker.inspect(queue),
            |seen| matches!(seen, Ok(None)),
        )
        .await;
    }

    /// Waits until somebody hears what is published to an exchange.
    pub async fn exchange_is_heard(&self, exchange: &ExchangeSpec) {
        let broker = self.bystander();
        crate::eventually(&format!("somebody listens to {}", exchange.name), || async {
            broker.publish_through(&exchange.name, "", Message::default()).await.is_ok()
        })
        .await;
    }

    /// Names a service whose queue this test declares by itself, so that it is taken away in the end.
    pub fn note_service(&self, service: &str) {
        self.shared().services.insert(service.to_owned());
    }

    /// Says that this test retries, so that the delay queues are taken away in the end.
    pub fn note_retries(&self) {
        self.shared().retries = true;
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("no test panics while it holds this lock")
    }

    async fn clean_up(&self) {
        // First everyone goes, or those that still run would declare again what is deleted.
        let Shared { services, retries, connections, .. } = std::mem::take(&mut *self.shared());
        join_all(connections.iter().map(|connection| connection.close())).await;
        let broker = self.connect();
        let services = services.iter().filter_map(|name| ServiceName::new(name.as_str()).ok());
        let mut queues: Vec<String> = services.map(|service| self.names.service_queue(&service)).collect();
        queues.extend((0..self.shards).map(|shard| self.names.shard(shard).name));
        queues.extend((self.shards > 0).then(|| self.names.full().name));
        queues.extend([self.names.fanin(), self.names.dead(), self.names.parked()].map(|queue| queue.name));
        for queue in queues {
            let _ = broker.delete(&queue).await;
        }
        for exchange in [self.names.coordinators(), self.names.workers()] {
            let _ = broker.delete_exchange(&exchange.name).await;
        }
        for seconds in DELAY_STEPS.into_iter().filter(|_| retries) {
            let _ = broker.delete(&self.names.delay(seconds).name).await;
            let _ = broker.delete_exchange(&self.names.delay_exchange(seconds).name).await;
        }
        broker.close().await;
    }
}
