//! A channel of a simulated connection. What is done on it has its effect later, but in its order.

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_broker::{Acknowledge, BrokerError, Consumer, ConsumerChannel, Delivery, Receipt};
use fanfare_protocol::{Cid, Manifest, Message, QueueSpec, Sentinel};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::defects::Defect;
use super::handed_out::HandedOut;
use super::link::{Link, unreachable, wait};
use crate::oracle::{Disturbance, Event, Role};

/// A channel: a pipe to the broker, through which acks and operations travel one after the other. An ack is sent and not
/// waited for, as on a real connection, so that it is lost where its sender dies right after it.
pub(super) struct SimulatedChannel {
    pipe: Arc<Pipe>,
    /// Taken out when the handle is dropped, which closes the channel after all that was sent before.
    inner: Option<Arc<dyn ConsumerChannel>>,
}

pub(super) struct Pipe {
    link: Arc<Link>,
    inner: Weak<dyn ConsumerChannel>,
    operations: mpsc::UnboundedSender<(Instant, BoxFuture<'static, ()>)>,
    state: Mutex<State>,
}

struct State {
    last_arrival: Option<Instant>,
    handed_out: HandedOut,
    /// The tag of the latest consumer.
    consumer: Option<String>,
}

impl SimulatedChannel {
    pub(super) fn new(link: Arc<Link>, inner: Arc<dyn ConsumerChannel>) -> Self {
        let (operations, arriving) = mpsc::unbounded_channel();
        tokio::spawn(run(Arc::clone(&link), arriving));
        let handed_out = HandedOut::new(link.shared.defect);
        let state = Mutex::new(State { last_arrival: None, handed_out, consumer: None });
        let pipe = Pipe { link, inner: Arc::downgrade(&inner), operations, state };
        Self { pipe: Arc::new(pipe), inner: Some(inner) }
    }

    fn inner(&self) -> Arc<dyn ConsumerChannel> {
        self.inner.clone().expect("it is there until the handle is dropped")
    }

    /// Takes a step in the channel's order, and waits for its answer.
    async fn operate<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, BrokerError>> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let link = &self.pipe.link;
        link.alive(async {
            link.shared.journal.trace(|| format!("{}: {}", link.name, what()));
            self.pipe.step();
            if link.is_over() {
                return pending().await;
            }
            let (answer, answered) = oneshot::channel();
            self.pipe.send(Box::pin(async move {
                let _ = answer.send(work.await);
            }));
            let outcome = answered.await.unwrap_or_else(|_| Err(unreachable()));
            self.pipe.step();
            link.shared.travel().await;
            outcome
        })
        .await
    }
}

/// Lets what was sent arrive, in order, until the process is dead or the channel is dropped.
async fn run(link: Arc<Link>, mut arriving: mpsc::UnboundedReceiver<(Instant, BoxFuture<'static, ()>)>) {
    let arrive = async {
        while let Some((at, operation)) = arriving.recv().await {
            tokio::time::sleep_until(at).await;
            operation.await;
        }
    };
    tokio::select! {
        biased;
        () = link.over() => {}
        () = arrive => {}
    }
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, operation: BoxFuture<'static, ()>) {
        let latency = self.link.shared.latency();
        let mut state = self.state();
        let at = (Instant::now() + latency).max(state.last_arrival.unwrap_or_else(Instant::now));
        state.last_arrival = Some(at);
        // Where nobody reads any more, the process is dead.
        let _ = self.operations.send((at, operation));
    }

    /// A moment at which the process may die, its connection be cut, or this channel be closed by the broker.
    fn step(&self) {
        let (link, shared) = (&self.link, &self.link.shared);
        link.step();
        if shared.happens(shared.faults.close_channel)
            && !link.is_over()
            && let Some(inner) = self.inner.upgrade()
        {
            shared.disturb(&link.name, link.role, Disturbance::Cut);
            tokio::spawn(async move { inner.close().await });
        }
    }

    fn hand_out(self: &Arc<Self>, mut delivery: Delivery) -> Delivery {
        let message = &delivery.message;
        let (kind, id) = (message.kind(), message.properties.message_id.as_deref().unwrap_or_default());
        let again = if delivery.redelivered { " again" } else { "" };
        self.link.shared.journal.trace(|| format!("{}: is handed {kind} {id}{again}", self.link.name));
        let tag = self.state().handed_out.insert(&mut delivery);
        if self.link.shared.has(Defect::ManifestAckedFirst) {
            self.remember_manifest(&delivery.message, tag);
        }
        Delivery { receipt: Receipt::new(Arc::clone(self) as Arc<dyn Acknowledge>, tag), ..delivery }
    }

    /// A message that the process gives itself. The broker knows nothing of it.
    fn own(self: &Arc<Self>, message: Message) -> Delivery {
        self.link.shared.journal.trace(|| format!("{}: gives itself {}", self.link.name, message.kind()));
        let receipt = Receipt::new(Arc::clone(self) as Arc<dyn Acknowledge>, 0);
        Delivery { message, redelivered: false, receipt }
    }

    fn remember_manifest(self: &Arc<Self>, message: &Message, tag: u64) {
        if let Ok(manifest) = Manifest::decode(message, &self.link.shared.names) {
            self.link.remembered().hold(manifest.run.to_string(), Arc::downgrade(self), tag);
        }
    }

    fn answer(&self, tag: u64, requeue: bool) {
        if self.link.is_over() {
            return;
        }
        let answered = self.state().handed_out.answered(tag, requeue);
        for receipt in answered {
            self.send(Box::pin(async move {
                if requeue { receipt.requeue().await } else { receipt.ack().await }
            }));
        }
    }

    /// Acks before the process does, whose own ack then goes nowhere.
    fn ack_early(&self, tag: u64) {
        let receipt = self.state().handed_out.remove(tag);
        if let Some(receipt) = receipt {
            self.send(Box::pin(async move { receipt.ack().await }));
        }
    }
}

#[async_trait]
impl ConsumerChannel for SimulatedChannel {
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        let (inner, name, shared) = (self.inner(), queue.to_owned(), Arc::clone(&self.pipe.link.shared));
        let consume = async move {
            shared.check(&name)?;
            inner.consume(&name, prefetch).await
        };
        let consumer = self.operate(|| format!("consume {queue}"), consume).await?;
        let tag = consumer.tag().to_owned();
        self.pipe.state().consumer = Some(tag.clone());
        let link = &self.pipe.link;
        let own = link.remembered().listen(queue);
        if link.shared.has(Defect::NoSentinel)
            && let Some(run) = link.shared.run_of(queue)
        {
            let (cid, run) = (Cid::new("any").expect("a CID"), run.parse().expect("a run"));
            link.remembered().say(queue, Sentinel::encode(&cid, run));
        }
        let consuming = Consuming { consumer, own, pipe: Arc::clone(&self.pipe), queue: queue.to_owned() };
        let deliveries = stream::unfold(consuming, |mut consuming| async {
            let next = consuming.next().await?;
            Some((next, consuming))
        });
        Ok(Consumer::new(tag, deliveries.boxed()))
    }

    async fn get(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let (inner, name, shared) = (self.inner(), queue.to_owned(), Arc::clone(&self.pipe.link.shared));
        let get = async move {
            shared.check(&name)?;
            inner.get(&name).await
        };
        let got = self.operate(|| format!("get from {queue}"), get).await?;
        Ok(got.map(|delivery| self.pipe.hand_out(delivery)))
    }

    async fn declare_exclusive(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let (inner, spec) = (self.inner(), queue.clone());
        let declare = async move { inner.declare_exclusive(&spec).await };
        self.operate(|| format!("declare {}", queue.name), declare).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        let (inner, name, to) = (self.inner(), queue.to_owned(), exchange.to_owned());
        let bind = async move { inner.bind(&name, &to).await };
        self.operate(|| format!("bind {queue} to {exchange}"), bind).await
    }

    async fn cancel(&self, consumer: &str) -> Result<(), BrokerError> {
        let (inner, tag) = (self.inner(), consumer.to_owned());
        self.operate(|| format!("cancel {consumer}"), async move { inner.cancel(&tag).await }).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let link = &self.pipe.link;
        if link.shared.has(Defect::CancelBeforeDelete) {
            let consumer = self.pipe.state().consumer.clone();
            self.cancel(&consumer.unwrap_or_default()).await?;
            // Who is next in line has the time to take over.
            link.alive(tokio::time::sleep(Duration::from_millis(link.shared.random.of(0..=100)))).await;
        }
        if link.shared.has(Defect::ManifestAckedFirst)
            && let Some(run) = link.shared.run_of(queue)
            && let Some((channel, tag)) = link.remembered().let_go(&run)
            && let Some(channel) = channel.upgrade()
        {
            channel.ack_early(tag);
        }
        let (inner, name, shared) = (self.inner(), queue.to_owned(), Arc::clone(&self.pipe.link.shared));
        let delete = async move { shared.delete(&*inner, &name).await };
        self.operate(|| format!("delete {queue} on its channel"), delete).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        if self.pipe.link.shared.has(Defect::ConfirmIsProof) {
            return Ok(());
        }
        let inner = self.inner();
        self.operate(|| "ping".to_owned(), async move { inner.ping().await }).await
    }

    async fn close(&self) {
        let inner = self.inner();
        let close = async move {
            inner.close().await;
            Ok(())
        };
        let _ = self.operate(|| "close a channel".to_owned(), close).await;
    }

    async fn ended(&self) {
        let inner = self.inner();
        self.pipe.link.alive(inner.ended()).await;
    }
}

/// A consumer of the process.
struct Consuming {
    consumer: Consumer,
    /// What the process gives itself.
    own: mpsc::UnboundedReceiver<Message>,
    pipe: Arc<Pipe>,
    queue: String,
}

impl Consuming {
    /// The next delivery, when it has arrived. The broker may take the consumer away while its queue is out.
    async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        let Self { consumer, own, pipe, queue } = self;
        let (link, shared) = (&pipe.link, &pipe.link.shared);
        link.alive(async {
            let next = tokio::select! {
                biased;
                () = shared.outage_begins(queue) => None,
                Some(message) = own.recv() => return Some(Ok(pipe.own(message))),
                next = consumer.next() => next,
            };
            let Some(next) = next else {
                pipe.ended_by_broker(queue);
                return None;
            };
            let delivery = next.map(|delivery| pipe.hand_out(delivery));
            wait(shared.latency()).await;
            pipe.step();
            link.hear();
            Some(delivery)
        })
        .await
    }
}

impl Pipe {
    /// Tells the oracle of an aggregation queue's consumer that has been handed nothing. Each has a channel of its own.
    fn ended_by_broker(&self, queue: &str) {
        let Link { shared, name, role, .. } = &*self.link;
        if *role == Role::Coordinator
            && self.state().handed_out.is_empty()
            && let Some(run) = shared.run_of(queue)
        {
            shared.journal.record(name, Event::EndedUnread { run });
        }
    }
}

impl Drop for SimulatedChannel {
    fn drop(&mut self) {
        let inner = self.inner.take();
        self.pipe.send(Box::pin(async move { drop(inner) }));
    }
}

#[async_trait]
impl Acknowledge for Pipe {
    async fn ack(&self, tag: u64) {
        self.link.alive(async { self.step() }).await;
        self.answer(tag, false);
    }

    async fn requeue(&self, tag: u64) {
        self.link.alive(async { self.step() }).await;
        self.answer(tag, true);
    }

    fn is_live(&self, tag: u64) -> bool {
        self.state().handed_out.is_live(tag)
    }
}

impl fmt::Debug for SimulatedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedChannel").field("of", &self.pipe.link.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").field("of", &self.link.name).finish_non_exhaustive()
    }
}
