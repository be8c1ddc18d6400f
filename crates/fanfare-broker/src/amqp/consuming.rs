//! Channels that consume.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use async_trait::async_trait;
use fanfare_protocol::QueueSpec;
use futures_util::future::{BoxFuture, WeakShared};
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::acks::{Ack, Acks};
use super::declaring::{OPERATION_TIMEOUT, no_answer};
use super::trunk::{Connections, Line};
use super::{failure, wire};
use crate::{Acknowledge, BrokerError, Consumer, ConsumerChannel, Delivery, Receipt};

/// A channel that consumes. lapin's own handle is shared with the consumers and the receipts.
pub(super) struct ConsumingChannel {
    connections: Arc<Connections>,
    answers: Arc<Answers>,
    /// One consume at a time: a prefetch belongs to the consumer that is started next.
    starting: Semaphore,
    closed: CancellationToken,
}

/// What a channel shares with the receipts of its deliveries.
struct Answers {
    me: Weak<Self>,
    line: Line,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    acks: Acks,
    /// There while acks are asked for that the broker was not told yet.
    telling: Option<WeakShared<BoxFuture<'static, ()>>>,
}

/// Tells the broker of what is asked for, at its end at the latest: who waits for that may go away.
struct Telling(Arc<Answers>);

impl ConsumingChannel {
    pub(super) fn new(connections: Arc<Connections>, line: Line) -> Self {
        let answers = Arc::new_cyclic(|me| Answers { me: me.clone(), line, state: Mutex::default() });
        Self { connections, answers, starting: Semaphore::new(1), closed: CancellationToken::new() }
    }

    /// Waits for the answer to an operation. Where none comes, the channel is of no further use: what the broker did is
    /// unknown, and a consumer may be running that nobody reads.
    async fn answer<T>(
        &self,
        queue: &str,
        operation: impl Future<Output = lapin::Result<T>> + Send,
    ) -> Result<T, BrokerError> {
        self.answer_or(queue, |error| failure::on_queue(error, queue), operation).await
    }

    async fn answer_or<T>(
        &self,
        queue: &str,
        failure: impl FnOnce(&lapin::Error) -> BrokerError + Send,
        operation: impl Future<Output = lapin::Result<T>> + Send,
    ) -> Result<T, BrokerError> {
        match tokio::time::timeout(OPERATION_TIMEOUT, operation).await {
            Ok(result) => result.map_err(|error| self.connections.reason(failure(&error))),
            Err(_) => {
                self.shut();
                Err(no_answer(queue))
            }
        }
    }

    /// Closes the channel without waiting for it.
    fn shut(&self) {
        self.closed.cancel();
        drop(self.answers.tell());
        let channel = self.answers.line.channel.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { close(&channel).await });
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
        let channel = &self.answers.line.channel;
        let started = async {
            let _turn = self.starting.acquire().await;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            channel
                .basic_consume(name, "".into(), BasicConsumeOptions::default(), FieldTable::default())
                .await
        };
        let consumer = self.answer(queue, started).await?;
        let tag = consumer.tag().to_string();
        let deliveries = Deliveries { consumer: Some(consumer), answers: self.answers.clone() };
        Ok(Consumer::new(tag, deliveries.boxed()))
    }

    async fn declare_exclusive(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let name = wire::short("queue", &queue.name)?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = self.answers.line.channel.queue_declare(name, options, wire::arguments(queue));
        self.answer(&queue.name, declared).await.map(drop)
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
        self.answer(consumer, cancelled).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let name = wire::short("queue", queue)?;
        let deleted = self.answers.line.channel.queue_delete(name, QueueDeleteOptions::default());
        self.answer(queue, deleted).await.map(drop)
    }

    async fn close(&self) {
        self.closed.cancel();
        drop(self.answers.tell());
        close(&self.answers.line.channel).await;
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

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("id", &self.line.channel.id())
            .field("connection", self.line.link())
            .finish()
    }
}

impl Answers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the broker of all acks that are asked for. They are on their way when this returns, and what it returns waits until
    /// they are written.
    fn tell(&self) -> Vec<BoxFuture<'static, lapin::Result<()>>> {
        // Locked until lapin has them, so that who closes the channel comes after whoever else tells of them.
        let mut state = self.state();
        state.telling = None;
        let acks = state.acks.take().into_iter();
        acks.filter_map(|Ack { tag, multiple }| {
            let channel = self.line.channel.clone();
            let mut written =
                async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await }.boxed();
            // The first poll queues the frame. An error means that the channel has ended, and lapin sends nothing on a later
            // channel of the same number.
            (&mut written).now_or_never().is_none().then_some(written)
        })
        .collect()
    }

    /// Waits until the broker was told of a delivery's ack. All that are asked for before the runtime has nothing else to do
    /// are told together.
    fn told(&self, tag: u64) -> impl Future<Output = ()> + use<> {
        let mut state = self.state();
        state.acks.ask(tag);
        if let Some(told) = state.telling.as_ref().and_then(WeakShared::upgrade) {
            return told;
        }
        let telling = Telling(self.me.upgrade().expect("who asks holds it"));
        let told = async move {
            tokio::task::yield_now().await;
            for written in telling.0.tell() {
                let _ = written.await;
            }
        };
        let told = told.boxed().shared();
        state.telling = told.downgrade();
        told
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        drop(self.0.tell());
    }
}

#[async_trait]
impl Acknowledge for Answers {
    async fn ack(&self, tag: u64) {
        self.told(tag).await;
    }

    async fn requeue(&self, tag: u64) {
        drop(self.tell());
        self.state().acks.forget(tag);
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let _ = self.line.channel.basic_nack(tag, options).await;
    }
}

/// The deliveries of one consumer, until it ends.
struct Deliveries {
    /// Gone when the consumer has ended.
    consumer: Option<lapin::Consumer>,
    answers: Arc<Answers>,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(consumer) = &mut this.consumer else { return Poll::Ready(None) };
        match std::task::ready!(consumer.poll_next_unpin(context)) {
            Some(Ok(delivery)) => {
                let message = wire::message(&delivery.properties, delivery.data);
                let receipt = Receipt::new(this.answers.clone(), delivery.delivery_tag);
                this.answers.state().acks.delivered(delivery.delivery_tag);
                let redelivered = delivery.redelivered;
                Poll::Ready(Some(Ok(Delivery { message, redelivered, receipt })))
            }
            Some(Err(error)) => {
                this.consumer = None;
                Poll::Ready(Some(Err(lost(&error))))
            }
            None => {
                this.consumer = None;
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
        // connection with it. So it is kept until it ends.
        if let Some(mut consumer) = self.consumer.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { while let Some(Ok(_)) = consumer.next().await {} });
        }
    }
}

/// The channel ended under its consumers.
fn lost(error: &lapin::Error) -> BrokerError {
    let reason = failure::reply(error).map_or_else(|| error.to_string(), |(_, reason)| reason);
    BrokerError::Unreachable(reason)
}

async fn close(channel: &lapin::Channel) {
    // An error means that it is closed already.
    let _ = tokio::time::timeout(OPERATION_TIMEOUT, channel.close(200, "OK".into())).await;
}
