//! A connection that can die at a chosen moment, with whoever uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use fanfare_broker::{
    Acknowledge, Broker, BrokerError, Consumer, ConsumerChannel, Delivery, PublishError, QueueState, Receipt,
    ServerInfo,
};
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A step that its user takes on the broker, and that a crash can come before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A message is published to a queue and confirmed.
    Publish,
    /// One is published through an exchange: coordinators of shards do so every two seconds, to say that they are there.
    Announce,
    /// A queue or an exchange is declared, a queue looked at, bound or consumed, or a channel opened or asked: nothing that another process would notice.
    Prepare,
    /// A queue or an exchange is deleted.
    Delete,
    /// A delivery is acked or put back, a consumer cancelled or a channel closed.
    Settle,
}

/// When a connection dies.
#[derive(Debug, Clone, Copy)]
pub struct Death {
    /// Which step it is that it dies at, from 1, counted from [`Mortal::dies_at`] on.
    pub nth: usize,
    /// Which steps count; all, where this is `None`.
    pub of: Option<Step>,
    /// Whether that step takes effect first.
    pub takes_effect: bool,
}

/// A connection to a broker that, once it is dead, does nothing any more for whoever uses it: every operation waits for
/// ever. The process that it stands for is as good as killed; closing the connection then shows that to the broker.
pub struct Mortal {
    inner: Arc<dyn Broker>,
    life: Arc<Life>,
}

#[derive(Default)]
struct Life {
    /// Nothing that its user does has an effect any more, but for a step that it dies after.
    over: CancellationToken,
    /// That step has taken effect, too.
    dead: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    death: Option<Death>,
    /// Steps that counted since the death was set.
    steps: usize,
    channels: Vec<Weak<Held>>,
    /// See [`Mortal::looks_for`].
    looks_for: BTreeSet<String>,
    /// See [`Mortal::half_deletes`].
    half_deletes: Option<(String, BoxFuture<'static, ()>)>,
    /// See [`Mortal::at_an_ack`].
    at_an_ack: Option<(bool, BoxFuture<'static, ()>)>,
}

/// What one channel has handed out.
struct Held {
    life: Arc<Life>,
    deliveries: Mutex<Deliveries>,
}

#[derive(Default)]
struct Deliveries {
    last_tag: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Clone)]
struct Open {
    receipt: Receipt,
    message_id: Option<String>,
}

impl Mortal {
    /// Over a connection that nobody else uses.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>) -> Arc<Self> {
        Arc::new(Self { inner, life: Arc::default() })
    }

    /// Sets when it dies.
    pub fn dies_at(&self, death: Death) {
        let mut state = self.life.state();
        (state.death, state.steps) = (Some(death), 0);
    }

    /// It is not to die any more, unless it has.
    pub fn spare(&self) {
        self.life.state().death = None;
    }

    /// The next channel that deletes this queue ends over that, and something else is done to the queue: as where a broker is killed
    /// before it has written the deletion down.
    pub fn half_deletes(&self, queue: &str, instead: impl Future<Output = ()> + Send + 'static) {
        self.life.state().half_deletes = Some((queue.to_owned(), instead.boxed()));
    }

    /// When its user acks next, something else happens as well. Where the ack is forgotten, the delivery goes back when its channel
    /// ends, as from a channel of RabbitMQ that is closed while the queue is behind.
    pub fn at_an_ack(&self, forgotten: bool, also: impl Future<Output = ()> + Send + 'static) {
        self.life.state().at_an_ack = Some((forgotten, also.boxed()));
    }

    /// It dies now.
    pub fn die(&self) {
        self.life.end();
    }

    /// Returns when it is dead.
    pub async fn dead(&self) {
        self.life.dead.cancelled().await;
    }

    /// Remembers when its user acks the message with this id.
    pub fn looks_for(&self, message_id: &str) {
        self.life.state().looks_for.insert(message_id.to_owned());
    }

    /// Whether its user has acked that message since.
    #[must_use]
    pub fn has_acked(&self, message_id: &str) -> bool {
        !self.life.state().looks_for.contains(message_id)
    }

    /// The IDs of the messages that its user holds.
    #[must_use]
    pub fn held_messages(&self) -> Vec<String> {
        let state = self.life.state();
        let mut messages = Vec::new();
        for held in state.channels.iter().filter_map(Weak::upgrade) {
            messages.extend(
                held.deliveries().open.values().map(|open| open.message_id.clone().unwrap_or_default()),
            );
        }
        messages
    }

    /// Deliveries that its user holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held_messages().len()
    }
}

impl Life {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it dies at this step, and how.
    fn reaches(&self, step: Step) -> Option<Death> {
        let mut state = self.state();
        let death = state.death.filter(|death| death.of.is_none_or(|of| of == step))?;
        state.steps += 1;
        (state.steps == death.nth).then_some(death)
    }

    fn end(&self) {
        self.over.cancel();
        self.dead.cancel();
    }

    /// Takes a step, unless the connection dies before. While a step that it dies after takes effect, its user is stopped already:
    /// a slow confirm leaves no time for anything that depends on another. That step needs no user who goes on with it, since it may be at
    /// another, where it is stopped.
    async fn take<T: Send>(&self, step: Step, work: impl Future<Output = T> + Send + 'static) -> T {
        if self.over.is_cancelled() {
            return pending().await;
        }
        match self.reaches(step) {
            Some(death) => {
                self.over.cancel();
                let dead = self.dead.clone().drop_guard();
                if death.takes_effect {
                    tokio::spawn(async move {
                        work.await;
                        drop(dead);
                    });
                }
            }
            None => {
                tokio::select! {
                    biased;
                    () = self.over.cancelled() => {}
                    done = work => return done,
                }
            }
        }
        pending().await
    }
}

#[async_trait]
impl Broker for Mortal {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
        self.life.take(Step::Publish, async move { inner.publish_by(&queue, message, latest).await }).await
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.clone());
        self.life.take(Step::Prepare, async move { inner.declare(&queue).await }).await
    }

    fn is_blocked(&self) -> bool {
        self.inner.is_blocked()
    }

    async fn exists(&self, queue: &str) -> Result<bool, BrokerError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
        self.life.take(Step::Prepare, async move { inner.exists(&queue).await }).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
        self.life.take(Step::Prepare, async move { inner.inspect(&queue).await }).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
        self.life.take(Step::Delete, async move { inner.delete(&queue).await }).await
    }

    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError> {
        let (inner, exchange) = (Arc::clone(&self.inner), exchange.to_owned());
        let routing_key = routing_key.to_owned();
        let publish = async move { inner.publish_through(&exchange, &routing_key, message).await };
        self.life.take(Step::Announce, publish).await
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        let (inner, exchange) = (Arc::clone(&self.inner), exchange.clone());
        self.life.take(Step::Prepare, async move { inner.declare_exchange(&exchange).await }).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        let (inner, queue, exchange) = (Arc::clone(&self.inner), queue.to_owned(), exchange.to_owned());
        self.life.take(Step::Prepare, async move { inner.bind(&queue, &exchange).await }).await
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let (inner, exchange) = (Arc::clone(&self.inner), exchange.to_owned());
        self.life.take(Step::Delete, async move { inner.delete_exchange(&exchange).await }).await
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        let inner = Arc::clone(&self.inner);
        let inner = self.life.take(Step::Prepare, async move { inner.open().await }).await?;
        let held = Arc::new(Held { life: Arc::clone(&self.life), deliveries: Mutex::default() });
        self.life.state().channels.push(Arc::downgrade(&held));
        Ok(Arc::new(MortalChannel { inner, held }))
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        let inner = Arc::clone(&self.inner);
        self.life.take(Step::Prepare, async move { inner.server().await }).await
    }

    /// Closes the connection, of a dead one too.
    async fn close(&self) {
        self.inner.close().await;
    }
}

impl fmt::Debug for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mortal").field("inner", &self.inner).finish_non_exhaustive()
    }
}

struct MortalChannel {
    inner: Arc<dyn ConsumerChannel>,
    held: Arc<Held>,
}

#[async_trait]
impl ConsumerChannel for MortalChannel {
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        let life = &self.held.life;
        let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
        let consumer = life.take(Step::Prepare, async move { inner.consume(&queue, prefetch).await }).await?;
        let tag = consumer.tag().to_owned();
        let deliveries = stream::unfold((consumer, Arc::clone(&self.held)), |(mut consumer, held)| async {
            let next = tokio::select! {
                biased;
                () = held.life.over.cancelled() => pending().await,
                next = consumer.next() => next,
            };
            let next = next?.map(|delivery| held.hand_out(delivery));
            Some((next, (consumer, held)))
        });
        Ok(Consumer::new(tag, deliveries.boxed()))
    }

    async fn get(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
        let got = self.held.life.take(Step::Prepare, async move { inner.get(&queue).await }).await?;
        Ok(got.map(|delivery| self.held.hand_out(delivery)))
    }

    async fn declare_exclusive(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let (inner, queue) = (Arc::clone(&self.inner), queue.clone());
        self.held.life.take(Step::Prepare, async move { inner.declare_exclusive(&queue).await }).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        let (inner, queue, exchange) = (Arc::clone(&self.inner), queue.to_owned(), exchange.to_owned());
        self.held.life.take(Step::Prepare, async move { inner.bind(&queue, &exchange).await }).await
    }

    async fn cancel(&self, consumer: &str) -> Result<(), BrokerError> {
        let (inner, consumer) = (Arc::clone(&self.inner), consumer.to_owned());
        self.held.life.take(Step::Settle, async move { inner.cancel(&consumer).await }).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let half_deletes =
            self.held.life.state().half_deletes.take_if(|(half_deleted, _)| half_deleted == queue);
        let Some((_, instead)) = half_deletes else {
            let (inner, queue) = (Arc::clone(&self.inner), queue.to_owned());
            return self.held.life.take(Step::Delete, async move { inner.delete(&queue).await }).await;
        };
        self.held.life.take(Step::Delete, instead).await;
        self.inner.close().await;
        Err(BrokerError::Unreachable("the broker was killed".to_owned()))
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        let inner = Arc::clone(&self.inner);
        self.held.life.take(Step::Prepare, async move { inner.ping().await }).await
    }

    async fn close(&self) {
        let inner = Arc::clone(&self.inner);
        self.held.life.take(Step::Settle, async move { inner.close().await }).await;
        self.held.deliveries().open.clear();
    }

    async fn ended(&self) {
        tokio::select! {
            biased;
            () = self.held.life.over.cancelled() => pending().await,
            () = self.inner.ended() => {}
        }
    }
}

impl fmt::Debug for MortalChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Held {
    fn deliveries(&self) -> MutexGuard<'_, Deliveries> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(self: &Arc<Self>, delivery: Delivery) -> Delivery {
        let mut deliveries = self.deliveries();
        deliveries.last_tag += 1;
        let tag = deliveries.last_tag;
        let message_id = delivery.message.properties.message_id.as_ref().map(ToString::to_string);
        deliveries.open.insert(tag, Open { receipt: delivery.receipt, message_id });
        Delivery { receipt: Receipt::new(Arc::clone(self) as Arc<dyn Acknowledge>, tag), ..delivery }
    }

    async fn settle<A: Future<Output = ()> + Send + 'static>(
        &self,
        tag: u64,
        answer: impl FnOnce(Receipt) -> A,
    ) -> Option<Open> {
        let receipt = self.deliveries().open.get(&tag)?.receipt.clone();
        self.life.take(Step::Settle, answer(receipt)).await;
        self.deliveries().open.remove(&tag)
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(&self, tag: u64) {
        let at_an_ack = self.life.state().at_an_ack.take();
        let forgotten = at_an_ack.as_ref().is_some_and(|&(forgotten, _)| forgotten);
        let answer = |receipt: Receipt| async move {
            if !forgotten {
                receipt.ack().await;
            }
        };
        let acked = self.settle(tag, answer).await;
        if let Some((_, also)) = at_an_ack {
            also.await;
        }
        if let Some(id) = acked.and_then(|acked| acked.message_id) {
            self.life.state().looks_for.remove(&id);
        }
    }

    async fn requeue(&self, tag: u64) {
        self.settle(tag, |receipt| async move { receipt.requeue().await }).await;
    }

    fn is_live(&self, tag: u64) -> bool {
        self.deliveries().open.get(&tag).is_some_and(|open| open.receipt.is_live())
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("open", &self.deliveries().open.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::future::join;

    use super::*;

    #[tokio::test]
    async fn while_its_last_step_takes_effect_no_other_does() {
        let life = Life::default();
        life.state().death = Some(Death { nth: 1, of: Some(Step::Publish), takes_effect: true });
        let (published, deleted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (publishes, deletes) = (Arc::clone(&published), Arc::clone(&deleted));
        let publish = life.take(Step::Publish, async move {
            tokio::task::yield_now().await;
            publishes.store(true, Ordering::Relaxed);
        });
        let delete = life.take(Step::Delete, async move { deletes.store(true, Ordering::Relaxed) });
        tokio::select! {
            _ = join(publish, delete) => panic!("its user is told of a step"),
            () = life.dead.cancelled() => {}
        }
        assert!(published.load(Ordering::Relaxed) && !deleted.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn its_last_step_takes_effect_though_nobody_goes_on_with_it() {
        let life = Life::default();
        life.state().death = Some(Death { nth: 1, of: Some(Step::Publish), takes_effect: true });
        let mut publish = Box::pin(life.take(Step::Publish, tokio::task::yield_now()));
        assert!((&mut publish).now_or_never().is_none());
        life.dead.cancelled().await;
    }
}
