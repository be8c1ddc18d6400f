//! One worker on a broker in memory, and a caller that speaks the protocol to it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{
    Broker, BrokerError, ConsumerChannel, Delivery, PublishError, QueueState, ServerInfo, System,
};
use fanfare_protocol::{
    Bundle, Cid, ExchangeSpec, Message, QueueNames, QueueSpec, Request, RunId, ServiceName, Source, TargetOf,
    TargetResult, WireTime, header,
};
use fanfare_publisher::Publisher;
use fanfare_worker::{Config, Registration, Worker, WorkerError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longer than anything here takes; the tests' time is paused.
const PATIENCE: Duration = Duration::from_secs(600);

/// A broker with a worker's connection and a caller's.
pub(crate) struct Bench {
    pub(crate) caller: MemoryBroker,
    pub(crate) worker: Arc<Flaky>,
    pub(crate) names: QueueNames,
    pub(crate) run: RunId,
    /// Results that came together with others, and were not looked at.
    more: Mutex<VecDeque<Message>>,
}

/// A worker that runs in a task.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("the worker runs");
        within(self.task).await.expect("the worker does not panic").expect("the worker ends well");
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let caller = MemoryBroker::new();
        let worker = Arc::new(Flaky { memory: caller.connect(), failures: Mutex::default() });
        let run = RunId::from(uuid::Uuid::from_u128(7));
        Self { caller, worker, names: QueueNames::default(), run, more: Mutex::default() }
    }

    pub(crate) fn publisher(&self) -> Publisher {
        Publisher::new(self.worker.clone(), Arc::new(System), fanfare_publisher::Config::default())
    }

    /// Starts a worker and waits until it serves.
    pub(crate) async fn start<const N: usize>(&self, services: [Registration; N]) -> Running {
        self.start_with(Config::default(), services).await
    }

    pub(crate) async fn start_with<const N: usize>(
        &self,
        config: Config,
        services: [Registration; N],
    ) -> Running {
        let (stop, stopped) = oneshot::channel();
        let worker = Worker::new(self.publisher(), config).services(services);
        let task = tokio::spawn(worker.run_until(async {
            stopped.await.ok();
        }));
        Running { stop, task }
    }

    pub(crate) fn cid(&self) -> Cid {
        Cid::new("order-7").unwrap()
    }

    pub(crate) fn service_queue(&self, service: &str) -> QueueSpec {
        self.names.service(&ServiceName::new(service).unwrap())
    }

    pub(crate) fn aggregation_queue(&self) -> QueueSpec {
        self.names.aggregation(&self.cid(), self.run)
    }

    /// A request as a publisher builds it, whose key is `<service> <place>`.
    pub(crate) fn request(&self, service: &str, place: usize, body: impl Into<Bytes>) -> Message {
        Request {
            cid: self.cid(),
            run: self.run,
            source: Source::new("shop").unwrap(),
            service: ServiceName::new(service).unwrap(),
            requested_at: "2025-01-19 19:55:45".parse::<WireTime>().unwrap(),
            metadata: fanfare_protocol::Metadata::default(),
            traceparent: None,
            body: body.into(),
            target: Some(TargetOf {
                parallel: false,
                key: format!("{service} {place}").parse().unwrap(),
                place,
                reply_to: self.aggregation_queue().name,
            }),
        }
        .encode()
    }

    /// Puts a message into a service's queue.
    pub(crate) async fn send(&self, service: &str, message: Message) {
        let queue = self.service_queue(service);
        self.caller.declare(&queue).await.unwrap();
        self.caller.publish(&queue.name, message).await.unwrap();
    }

    /// Puts requests into a service's queue, one for each body.
    pub(crate) async fn call<const N: usize>(&self, service: &str, bodies: [&'static str; N]) {
        self.caller.declare(&self.aggregation_queue()).await.unwrap();
        for (place, body) in bodies.into_iter().enumerate() {
            self.send(service, self.request(service, place, body)).await;
        }
    }

    /// The next results, in the order in which they come.
    pub(crate) async fn results(&self, count: usize) -> Vec<TargetResult> {
        let queue = self.aggregation_queue();
        let mut results = Vec::new();
        while results.len() < count {
            let more = self.more.lock().unwrap().pop_front();
            let message = match more {
                Some(message) => message,
                None => self.take(&queue, 1).await.remove(0).message,
            };
            match message.kind() {
                header::TYPE_RESULTS => self.more.lock().unwrap().extend(Bundle::decode(&message).unwrap()),
                _ => results.push(TargetResult::from_body(&message.body).unwrap()),
            }
        }
        results
    }

    pub(crate) async fn result(&self) -> TargetResult {
        self.results(1).await.remove(0)
    }

    /// Takes messages from a queue, waiting for them.
    pub(crate) async fn take(&self, queue: &QueueSpec, count: usize) -> Vec<Delivery> {
        self.caller.declare(queue).await.unwrap();
        let channel = self.caller.open().await.unwrap();
        let mut consumer = channel.consume(&queue.name, 1).await.unwrap();
        let mut taken = Vec::new();
        while taken.len() < count {
            let delivery = within(consumer.next()).await.unwrap().unwrap();
            delivery.receipt.ack().await;
            taken.push(delivery);
        }
        taken
    }

    /// Delivers the first messages of a service's queue so often, to workers that die of them.
    pub(crate) async fn deliver(&self, service: &str, messages: u16, times: usize) {
        let queue = self.service_queue(service).name;
        for _ in 0..times {
            let channel = self.caller.open().await.unwrap();
            let mut consumer = channel.consume(&queue, messages).await.unwrap();
            for _ in 0..messages {
                within(consumer.next()).await.unwrap().unwrap();
            }
            channel.close().await;
        }
    }

    /// Holds the first message of a service's queue until the channel is closed, which delivers it once more.
    pub(crate) async fn hide(&self, service: &str) -> Arc<dyn ConsumerChannel> {
        let channel = self.caller.open().await.unwrap();
        let mut consumer = channel.consume(&self.service_queue(service).name, 1).await.unwrap();
        within(consumer.next()).await.unwrap().unwrap();
        // Dropped, it would be given back.
        std::mem::forget(consumer);
        channel
    }

    /// Messages that wait in a queue.
    pub(crate) async fn waiting(&self, queue: &QueueSpec) -> u64 {
        self.caller.inspect(&queue.name).await.unwrap().map_or(0, |state| state.messages)
    }
}

/// Waits for something that happens, and fails where it does not.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

/// A broker in memory whose publishes fail where a test says so.
#[derive(Debug)]
pub(crate) struct Flaky {
    pub(crate) memory: MemoryBroker,
    /// Queue or exchange, and the failures that its next publishes have.
    failures: Mutex<Vec<(String, PublishError)>>,
}

impl Flaky {
    pub(crate) fn fail(&self, queue: &str, errors: impl IntoIterator<Item = PublishError>) {
        let failures = errors.into_iter().map(|error| (queue.to_owned(), error));
        self.failures.lock().unwrap().extend(failures);
    }

    fn next_failure(&self, of: &str) -> Option<PublishError> {
        let mut failures = self.failures.lock().unwrap();
        let next = failures.iter().position(|(failing, _)| failing == of);
        next.map(|at| failures.remove(at).1)
    }

    pub(crate) fn failures_left(&self) -> usize {
        self.failures.lock().unwrap().len()
    }
}

#[async_trait]
impl Broker for Flaky {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        match self.next_failure(queue) {
            Some(error) => Err(error),
            None => self.memory.publish_by(queue, message, latest).await,
        }
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        self.memory.declare(queue).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        self.memory.inspect(queue).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        self.memory.delete(queue).await
    }

    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError> {
        match self.next_failure(exchange) {
            Some(error) => Err(error),
            None => self.memory.publish_through(exchange, routing_key, message).await,
        }
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        self.memory.declare_exchange(exchange).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        self.memory.bind(queue, exchange).await
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        self.memory.delete_exchange(exchange).await
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        self.memory.open().await
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        self.memory.server().await
    }

    async fn close(&self) {
        self.memory.close().await;
    }
}
