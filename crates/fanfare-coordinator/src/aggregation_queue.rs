//! A coordinator's side of one aggregation queue: consumes it on a channel of its own, and deletes it.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Aftercare, Backoff, Broker, BrokerError, ConsumerChannel, Delivery};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::outbox::Outbox;
use crate::proof::Proof;
use crate::unbundled::Unbundled;

/// How long the broker may take from the end of a queue's members to that of its name.
const DELETION_LIMIT: Duration = Duration::from_secs(5);

/// One aggregation queue, from before it is consumed to after it is deleted.
pub(crate) struct AggregationQueue {
    name: String,
    outbox: Outbox,
    /// Kept until the end: what it handed out goes back to the queue when it is dropped.
    channel: Option<Arc<dyn ConsumerChannel>>,
    proof: Option<Arc<Proof>>,
    state: State,
}

enum State {
    /// About to be consumed.
    Opening(BoxFuture<'static, Option<(Arc<dyn ConsumerChannel>, Unbundled)>>),
    Consuming(Unbundled),
    /// Being deleted, on the channel that consumes it and without a cancel, so that no other consumer is handed anything.
    Deleting {
        deletion: Option<BoxFuture<'static, Result<(), BrokerError>>>,
        consumer: Option<Unbundled>,
        began: Instant,
    },
    /// Being deleted by itself, after the channel that consumed it was lost over that.
    DeletingAgain(BoxFuture<'static, ()>),
    /// The broker has ended the consumer. Whether because the queue is gone, is being found out.
    Cancelled(BoxFuture<'static, bool>),
    /// There is nothing more to hear.
    Closed,
}

/// What is heard from an aggregation queue.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It is being consumed.
    Opened,
    /// It is proven not to exist.
    NeverOpened,
    /// A message.
    Delivery(Box<Delivery>),
    /// It is proven to be gone.
    Gone,
    /// It was deleted as asked, and the consumer has ended by that.
    Deleted,
    /// The channel has ended, or the broker has taken the queue away for now.
    Lost,
}

impl AggregationQueue {
    /// Begins to consume a queue, however long that takes in an outage.
    pub(crate) fn open(outbox: Outbox, name: String, window: u16) -> Self {
        let opening = Box::pin(consume(outbox.clone(), name.clone(), window));
        Self { name, outbox, channel: None, proof: None, state: State::Opening(opening) }
    }

    /// The next thing heard. Cancel safe: nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            match &mut self.state {
                State::Opening(opening) => match opening.await {
                    Some((channel, consumer)) => {
                        self.proof = Some(Arc::new(Proof::by(Arc::clone(&channel))));
                        self.channel = Some(channel);
                        self.state = State::Consuming(consumer);
                        return Heard::Opened;
                    }
                    None => return self.closed(Heard::NeverOpened),
                },
                State::Consuming(consumer) => match consumer.next().await {
                    Some(Ok(delivery)) => return Heard::Delivery(Box::new(delivery)),
                    Some(Err(_)) => return self.closed(Heard::Lost),
                    None => {
                        let (outbox, name, channel) =
                            (self.outbox.clone(), self.name.clone(), self.channel.clone());
                        self.state = State::Cancelled(Box::pin(async move {
                            let Some(channel) = channel else { return false };
                            is_gone_at_once(&outbox, &name, &*channel).await
                        }));
                    }
                },
                State::Deleting { deletion, consumer, began } => {
                    match next_of_deletion(deletion, consumer).await {
                        Some(heard @ Heard::Delivery(_)) => return heard,
                        Some(heard) => {
                            if matches!(heard, Heard::Deleted) && began.elapsed() >= Aftercare::SLOW {
                                self.outbox.aftercare.watch(self.name.clone());
                            }
                            return self.closed(heard);
                        }
                        None => {}
                    }
                }
                State::DeletingAgain(deletion) => {
                    deletion.await;
                    self.outbox.aftercare.watch(self.name.clone());
                    return self.closed(Heard::Deleted);
                }
                State::Cancelled(gone) => {
                    let heard = if gone.await { Heard::Gone } else { Heard::Lost };
                    return self.closed(heard);
                }
                State::Closed => pending().await,
            }
        }
    }

    fn closed(&mut self, heard: Heard) -> Heard {
        self.state = State::Closed;
        heard
    }

    /// Whether it may be gone, which is being found out: another coordinator may have ended its fan-out.
    pub(crate) const fn may_be_gone(&self) -> bool {
        matches!(self.state, State::Cancelled(_))
    }

    /// Proof by the channel that consumes it, once there is one.
    pub(crate) fn proof(&self) -> Option<Arc<Proof>> {
        self.proof.clone()
    }

    /// Begins to delete the queue. [`Heard::Deleted`] or [`Heard::Lost`] follows; after that, the former.
    pub(crate) fn delete(&mut self) {
        let (Some(channel), name) = (self.channel.clone(), self.name.clone()) else { return };
        let deletion: BoxFuture<'static, _> = Box::pin(async move { channel.delete(&name).await });
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Consuming(mut consumer) => {
                // Its end comes behind all that is still handed out.
                consumer.lift_limit();
                State::Deleting { deletion: Some(deletion), consumer: Some(consumer), began: Instant::now() }
            }
            State::Closed => State::DeletingAgain(Box::pin(delete(self.outbox.clone(), self.name.clone()))),
            // It has ended already, or is found out to: what is heard then decides.
            other => other,
        };
    }

    /// Closes the channel: what it handed out and was not acked goes back.
    pub(crate) async fn close(&mut self) {
        self.state = State::Closed;
        if let Some(channel) = self.channel.take() {
            channel.close().await;
        }
    }
}

/// Whether a queue has gone by the cancellation of its consumer that was just heard. Where that can't be seen at once, or the
/// channel ends meanwhile, the queue's node may have been away instead: whoever consumed the queue after its return may have
/// completed what was in it, and its absence then proves nothing to who was cut off before.
pub(crate) async fn is_gone_at_once(outbox: &Outbox, name: &str, channel: &dyn ConsumerChannel) -> bool {
    tokio::select! {
        biased;
        () = channel.ended() => false,
        gone = outbox.is_gone(name) => gone,
    }
}

/// The same for a quorum queue, whose consumers RabbitMQ ends with its members, before it removes its name
/// (`rabbit_quorum_queue:delete/4`): it is looked for until that has had time to happen.
pub(crate) async fn is_gone_soon(outbox: &Outbox, name: &str, channel: &dyn ConsumerChannel) -> bool {
    let until = Instant::now() + DELETION_LIMIT;
    loop {
        if is_gone_at_once(outbox, name, channel).await {
            return true;
        }
        tokio::select! {
            biased;
            () = channel.ended() => return false,
            () = tokio::time::sleep_until(until) => return false,
            () = tokio::time::sleep(outbox.absence_pause) => {}
        }
    }
}

/// The next step of a deletion: `Deleted` once the broker has confirmed it and the consumer's stream has ended by it.
async fn next_of_deletion(
    deletion: &mut Option<BoxFuture<'static, Result<(), BrokerError>>>,
    consumer: &mut Option<Unbundled>,
) -> Option<Heard> {
    match (deletion.as_mut(), consumer.as_mut()) {
        (None, None) => Some(Heard::Deleted),
        (Some(deleting), None) => {
            let done = deleting.await;
            *deletion = None;
            done.is_err().then_some(Heard::Lost)
        }
        (None, Some(consuming)) => heard_while_deleting(consuming.next().await, consumer),
        (Some(deleting), Some(consuming)) => tokio::select! {
            biased;
            done = deleting => {
                *deletion = None;
                done.is_err().then_some(Heard::Lost)
            }
            next = consuming.next() => heard_while_deleting(next, consumer),
        },
    }
}

fn heard_while_deleting(
    next: Option<Result<Delivery, BrokerError>>,
    consumer: &mut Option<Unbundled>,
) -> Option<Heard> {
    match next {
        Some(Ok(delivery)) => Some(Heard::Delivery(Box::new(delivery))),
        Some(Err(_)) => Some(Heard::Lost),
        None => {
            *consumer = None;
            None
        }
    }
}

/// Deletes the queue of a fan-out that has ended, however long that takes. The broker may have brought it back, or have kept its name only.
async fn delete(outbox: Outbox, queue: String) {
    let mut backoff = Backoff::default();
    while let Err(error) = outbox.broker.delete(&queue).await {
        tracing::debug!(queue, %error, "cannot delete; trying again");
        backoff.wait(&*outbox.environment).await;
    }
}

/// Opens a channel and consumes the queue on it. `None` where the queue is proven not to exist; an outage is waited for.
pub(crate) async fn consume(
    outbox: Outbox,
    queue: String,
    window: u16,
) -> Option<(Arc<dyn ConsumerChannel>, Unbundled)> {
    let mut backoff = Backoff::default();
    let mut refused = false;
    loop {
        match try_to_consume(&*outbox.broker, &queue, window).await {
            Ok(consuming) => return Some(consuming),
            Err(BrokerError::NoQueue(_)) if outbox.is_gone(&queue).await => return None,
            Err(BrokerError::Closed) => pending().await,
            Err(error) if error.is_outage() || matches!(error, BrokerError::NoQueue(_)) => {
                tracing::debug!(queue, %error, "cannot consume; trying again");
            }
            // Only an operator can heal this, and should hear of it, once.
            Err(error) if !std::mem::replace(&mut refused, true) => {
                tracing::error!(queue, %error, "consuming is refused, and this fan-out waits for it; trying on");
            }
            Err(error) => tracing::debug!(queue, %error, "consuming is still refused"),
        }
        backoff.wait(&*outbox.environment).await;
    }
}

async fn try_to_consume(
    broker: &dyn Broker,
    queue: &str,
    window: u16,
) -> Result<(Arc<dyn ConsumerChannel>, Unbundled), BrokerError> {
    let channel = broker.open().await?;
    let consumer = channel.consume(queue, window).await?;
    Ok((Arc::clone(&channel), Unbundled::new(channel, consumer, window)))
}

#[cfg(test)]
mod tests {
    use fanfare_broker::System;
    use fanfare_broker::absence::PAUSE;
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_protocol::{Cid, Message, QueueNames, QueueSpec, RunId};
    use uuid::Uuid;

    use super::*;

    /// A queue on a broker.
    async fn declared() -> (Arc<MemoryBroker>, QueueSpec) {
        let broker = Arc::new(MemoryBroker::new());
        let queue = QueueNames::default().aggregation(&Cid::new("c").unwrap(), RunId::from(Uuid::nil()));
        broker.declare(&queue).await.unwrap();
        (broker, queue)
    }

    async fn consumed(broker: &Arc<MemoryBroker>, queue: &QueueSpec, window: u16) -> AggregationQueue {
        let outbox = Outbox {
            broker: Arc::clone(broker) as Arc<dyn Broker>,
            aftercare: Aftercare::new(Arc::clone(broker) as Arc<dyn Broker>),
            environment: Arc::new(System),
            names: QueueNames::default(),
            absence_pause: PAUSE,
            replicated_payloads: false,
            refusals: Arc::default(),
        };
        let mut consumed = AggregationQueue::open(outbox, queue.name.clone(), window);
        assert!(matches!(consumed.next().await, Heard::Opened));
        consumed
    }

    /// A queue that was being consumed when somebody deleted it.
    async fn deleted_underneath() -> (Arc<MemoryBroker>, AggregationQueue) {
        let (broker, queue) = declared().await;
        let consumed = consumed(&broker, &queue, 10).await;
        broker.connect().delete(&queue.name).await.unwrap();
        (broker, consumed)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_comes_to_a_standby_before_what_is_newer() {
        let (broker, queue) = declared().await;
        for body in ["held", "newer"] {
            broker.publish(&queue.name, Message { body: body.into(), ..Message::default() }).await.unwrap();
        }
        let mut active = consumed(&broker, &queue, 1).await;
        assert!(matches!(active.next().await, Heard::Delivery(held) if held.message.body == "held"));
        let mut standby = consumed(&broker, &queue, 1).await;
        active.close().await;
        let first = standby.next().await;
        assert!(matches!(&first, Heard::Delivery(held) if held.message.body == "held"), "{first:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_deleted_underneath_its_consumer_is_gone() {
        let (_broker, mut consumed) = deleted_underneath().await;
        assert!(matches!(consumed.next().await, Heard::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_comes_back_after_its_deletion_was_cut_off_is_deleted() {
        let (broker, queue) = declared().await;
        let mut consumed = consumed(&broker, &queue, 1).await;
        broker.cut();
        assert!(matches!(consumed.next().await, Heard::Lost));
        consumed.delete();
        assert!(matches!(consumed.next().await, Heard::Deleted));
        broker.declare(&queue).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!broker.exists(&queue.name).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn absence_proves_nothing_to_who_was_cut_off_before_it_was_proven() {
        let (broker, mut consumed) = deleted_underneath().await;
        let outage = async {
            tokio::time::sleep(PAUSE / 2).await;
            broker.cut();
        };
        let (heard, ()) = tokio::join!(consumed.next(), outage);
        assert!(matches!(heard, Heard::Lost), "{heard:?}");
    }
}
