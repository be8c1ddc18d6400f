//! Channels that consume.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_protocol::QueueSpec;
use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, ChannelFlowOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use tokio_util::sync::CancellationToken;

use super::answers::Answers;
use super::consumed::Reader;
use super::declaring::{OPERATION_TIMEOUT, no_answer};
use super::failure::{self, Right};
use super::trunk::{Connections, Trunk};
use super::wire;
use crate::{BrokerError, Consumer, ConsumerChannel, Delivery, Receipt};

/// Consuming channels on one connection. RabbitMQ allows 2,047, and all share one socket and one thread; a coordinator with all
/// of its places taken needs 10,000 on fewer connections than one process may have.
const CHANNELS_PER_CONNECTION: usize = 1_000;
/// Channels kept for whoever needs one next. A coordinator opens one for each fan-out, and opening and closing it takes the broker
/// about as long as all else that a small fan-out asks of it.
const MOST_IDLE: usize = 64;

/// How long lapin may take to tell an operation that its channel has ended. One that is half answered by then is told nothing.
const LOSS_GRACE: Duration = Duration::from_secs(1);

/// Bytes of a consumer's tag that are its client's name. AMQP has room for 255.
const NAME_BYTES: usize = 200;

/// The channels that consume.
pub(super) struct Consuming {
    connections: Arc<Connections>,
    /// How the tags of its consumers begin, so that operators of the broker see whose they are.
    name: String,
    /// Consumers that were started so far.
    consumers: AtomicU64,
    trunk: Trunk,
    /// Those that nobody uses: nothing is consumed on them, and all that they have handed out is answered.
    idle: Mutex<Vec<Arc<Answers>>>,
}

/// A channel that consumes. lapin's own handle is shared with the consumers and the receipts.
pub(super) struct ConsumingChannel {
    home: Arc<Consuming>,
    answers: Arc<Answers>,
    closed: CancellationToken,
    /// Operations that were begun and have not been seen to end.
    open: AtomicUsize,
}

impl Consuming {
    pub(super) fn new(connections: Arc<Connections>, mut name: String) -> Self {
        while name.len() > NAME_BYTES {
            name.pop();
        }
        let trunk = Trunk::new(connections.clone(), CHANNELS_PER_CONNECTION);
        Self { connections, name, consumers: AtomicU64::new(0), trunk, idle: Mutex::default() }
    }

    /// A tag that no other consumer of this client has.
    fn tag(&self) -> String {
        format!("{} {}", self.name, self.consumers.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens a channel, or takes one that is open and that nobody uses.
    pub(super) async fn open(self: &Arc<Self>) -> Result<ConsumingChannel, BrokerError> {
        let answers = match self.take() {
            Some(answers) => answers,
            None => Answers::to(self.trunk.open().await?),
        };
        let (closed, open) = (CancellationToken::new(), AtomicUsize::new(0));
        Ok(ConsumingChannel { home: Arc::clone(self), answers, closed, open })
    }

    fn take(&self) -> Option<Arc<Answers>> {
        let mut idle = self.idle();
        std::iter::from_fn(|| idle.pop()).find(|answers| answers.line.is_open())
    }

    /// Keeps a channel for the next who needs one, or gives it back where it cannot be used again.
    fn keep(&self, answers: &Arc<Answers>) -> bool {
        let mut idle = self.idle();
        let keeps = answers.is_clear()
            && answers.line.is_open()
            && answers.line.link().is_usable()
            && idle.len() < MOST_IDLE
            && !self.connections.closed().is_cancelled();
        if keeps {
            idle.push(Arc::clone(answers));
        }
        keeps
    }

    /// Drops the channels that nobody uses.
    pub(super) fn close(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Arc<Answers>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsumingChannel {
    /// Waits for the answer to an operation. Where none comes, the channel is of no further use: what the broker did is
    /// unknown, and a consumer may be running that nobody reads.
    async fn answer<T>(
        &self,
        queue: &str,
        right: Right,
        operation: impl Future<Output = lapin::Result<T>> + Send,
    ) -> Result<T, BrokerError> {
        self.answer_or(queue, |error| failure::on_queue(error, queue, right), operation).await
    }

    async fn answer_or<T>(
        &self,
        queue: &str,
        failure: impl FnOnce(&lapin::Error) -> BrokerError + Send,
        operation: impl Future<Output = lapin::Result<T>> + Send,
    ) -> Result<T, BrokerError> {
        if self.closed.is_cancelled() {
            // By now it may be another's.
            return Err(BrokerError::Unreachable("this channel was closed".to_owned()));
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let line = &self.answers.line;
        let lost = async {
            line.ended().await;
            tokio::time::sleep(LOSS_GRACE).await;
        };
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(OPERATION_TIMEOUT, operation) => ended,
            () = lost => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return Err(self.home.connections.reason(has_ended()));
            }
        };
        let Ok(result) = ended else {
            self.shut();
            return Err(no_answer(queue));
        };
        self.open.fetch_sub(1, Ordering::Relaxed);
        result.map_err(|error| self.home.connections.reason(failure(&error)))
    }

    /// Closes the channel without waiting for it.
    fn shut(&self) {
        self.closed.cancel();
        self.answers.tell();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.closing());
        }
    }

    /// Whether whoever began an operation has not waited for its end.
    fn has_abandoned(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Closes the channel. Where the broker does so itself because of an error, and both ask for it at the same time, lapin ends the
    /// connection: so a question that follows an operation whose end is unknown, and is answered after it, comes first.
    fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        let (channel, asks) = (self.answers.line.channel.clone(), self.has_abandoned());
        async move {
            if asks {
                let asked = channel.channel_flow(ChannelFlowOptions { active: true });
                if let Ok(Err(_)) = tokio::time::timeout(OPERATION_TIMEOUT, asked).await {
                    return;
                }
            }
            // An error means that it is closed already.
            let _ = tokio::time::timeout(OPERATION_TIMEOUT, channel.close(200, "OK".into())).await;
        }
    }
}

#[async_trait]
impl ConsumerChannel for ConsumingChannel {
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        let name = wire::short("queue", queue)?;
        if prefetch == 0 {
            return Err(BrokerError::Refused(
                "a prefetch of 0 is no limit; give the number of messages that may be held".to_owned(),
            ));
        }
        let (channel, tag) = (&self.answers.line.channel, wire::short("consumer", &self.home.tag())?);
        let started = async {
            let mut set = self.answers.prefetch.lock().await;
            self.answers.consumer_starts();
            if *set != prefetch {
                // Until the broker answers, either may hold.
                *set = 0;
                channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
                *set = prefetch;
            }
            channel.basic_consume(name, tag, BasicConsumeOptions::default(), FieldTable::default()).await
        };
        let reader = Reader::of(Arc::clone(self.answers.line.link()), queue);
        let consumer = self.answer(queue, Right::Read, started).await?;
        if !self.answers.line.is_open() {
            // lapin may have ended all consumers before it knew of this one, which then never ends.
            return Err(self.home.connections.reason(has_ended()));
        }
        let tag = consumer.tag().to_string();
        let deliveries = Deliveries { consumer: Some((consumer, reader)), answers: self.answers.clone() };
        Ok(Consumer::new(tag, deliveries.boxed()))
    }

    async fn get(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let name = wire::short("queue", queue)?;
        let _reader = Reader::of(Arc::clone(self.answers.line.link()), queue);
        let getting = self.answers.line.channel.basic_get(name, BasicGetOptions::default());
        let got = self.answer(queue, Right::Read, getting).await?;
        Ok(got.map(|got| delivery(got.delivery, &self.answers)))
    }

    async fn declare_exclusive(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let name = wire::short("queue", &queue.name)?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = self.answers.line.channel.queue_declare(name, options, wire::arguments(queue));
        self.answer(&queue.name, Right::Configure, declared).await.map(drop)
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        let (from, to) = (wire::short("exchange", exchange)?, wire::short("queue", queue)?);
        let options = QueueBindOptions::default();
        let bound = self.answers.line.channel.queue_bind(to, from, "".into(), options, FieldTable::default());
        self.answer_or(queue, |error| failure::on_binding(error, queue, exchange), bound).await
    }

    async fn cancel(&self, consumer: &str) -> Result<(), BrokerError> {
        let tag = wire::short("consumer", consumer)?;
        let cancelled = self.answers.line.channel.basic_cancel(tag, BasicCancelOptions::default());
        self.answer(consumer, Right::Read, cancelled).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let name = wire::short("queue", queue)?;
        let deleted = self.answers.line.channel.queue_delete(name, QueueDeleteOptions::default());
        self.answer(queue, Right::Configure, deleted).await.map(drop)
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        // A channel that is told to go on says that it does (`rabbit_channel:handle_method/3`), and nothing comes of it.
        let asked = self.answers.line.channel.channel_flow(ChannelFlowOptions { active: true });
        self.answer_or("any of this channel", lost, asked).await.map(drop)
    }

    async fn close(&self) {
        if self.closed.is_cancelled() {
            return;
        }
        self.closed.cancel();
        self.answers.tell();
        if self.has_abandoned() || !self.home.keep(&self.answers) {
            // It comes to its end also where nobody waits for that.
            let _ = tokio::spawn(self.closing()).await;
        }
    }

    async fn ended(&self) {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => {}
            () = self.answers.line.ended() => {}
        }
    }
}

impl Drop for ConsumingChannel {
    fn drop(&mut self) {
        // Consumers and receipts may outlive this handle; what they hold goes back to its queue all the same.
        if !self.closed.is_cancelled() {
            self.shut();
        }
    }
}

impl fmt::Debug for ConsumingChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.answers.fmt(f)
    }
}

/// The deliveries of one consumer, until it ends.
struct Deliveries {
    /// Gone when the consumer has ended.
    consumer: Option<(lapin::Consumer, Reader)>,
    answers: Arc<Answers>,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some((consumer, _)) = &mut this.consumer else { return Poll::Ready(None) };
        match std::task::ready!(consumer.poll_next_unpin(context)) {
            Some(Ok(handed)) => Poll::Ready(Some(Ok(delivery(handed, &this.answers)))),
            Some(Err(error)) => {
                this.consumer = None;
                Poll::Ready(Some(Err(lost(&error))))
            }
            None => {
                this.consumer = None;
                this.answers.consumer_ended();
                // lapin also ends it in this way where the channel ended without an error of the broker's.
                Poll::Ready((!this.answers.line.is_open()).then(|| {
                    Err(BrokerError::Unreachable("the channel of this consumer was closed".to_owned()))
                }))
            }
        }
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        // lapin cancels a consumer that is dropped, before the channel is closed: messages would pass to the next consumer past
        // those that this one holds. Where its queue was just deleted, the cancel even crashes the broker's channel, and the
        // connection with it. So it is kept until it ends; and nothing beside it, for what holds the connection would keep that open.
        if let Some((mut consumer, _)) = self.consumer.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { while let Some(Ok(_)) = consumer.next().await {} });
        }
    }
}

/// What the broker has handed out on a channel.
fn delivery(handed: lapin::message::Delivery, answers: &Arc<Answers>) -> Delivery {
    let message = wire::message(&handed.properties, handed.data);
    let receipt = Receipt::new(answers.clone(), handed.delivery_tag);
    answers.delivered(handed.delivery_tag);
    Delivery { message, redelivered: handed.redelivered, receipt }
}

/// The channel ended, and lapin has not told why.
fn has_ended() -> BrokerError {
    BrokerError::Unreachable("the channel has ended".to_owned())
}

/// The channel ended under its consumers.
fn lost(error: &lapin::Error) -> BrokerError {
    let reason = failure::reply(error).map_or_else(|| error.to_string(), |(_, reason)| reason);
    BrokerError::Unreachable(reason)
}
