//! One shard that this coordinator consumes: carries what it reads to the shard's state machine, and what that wants done to
//! the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, Consumer, ConsumerChannel, Delivery, PublishError};
use fanfare_fanin::{
    Memory, Shard, ShardEffect, ShardEvent, ShardLimits, ShardPublication, ShardPublicationId, Summary,
};
use fanfare_protocol::{
    CancelState, Cancellation, Cid, EndedBy, Manifest, Message, Progress, QueueSpec, RunId, header,
};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addressing::{Letter, addressed};
use crate::aggregation_queue::{consume, is_gone_at_once};
use crate::deadline::deadline;
use crate::ended::LatelyEnded;
use crate::fan_out::{MOST_ASKERS, PROGRESS_PAUSE, how_it_ended, sleep_until, tell};
use crate::messenger::Messenger;
use crate::outbox::{Absence, Outbox, Outcome};
use crate::parts;
use crate::shard::acks::{Acks, Tag};
use crate::trust::Trust;

mod acks;

/// What is taken in at one go before what follows from it is done.
const AT_ONE_GO: usize = 256;

/// A channel that lasted this long ends the growth of the waits between one and the next.
const LASTING: Duration = Duration::from_secs(30);

/// Somebody asks for the cancel of what a shard may hold.
#[derive(Debug)]
pub(crate) struct CancelWord {
    pub(crate) cid: Cid,
    pub(crate) run: Option<RunId>,
    pub(crate) reply_to: String,
    /// Whether another part of this coordinator has found something already, and has said so.
    pub(crate) found: bool,
}

/// What is known of a shard's fan-outs that have ended. It is kept when the shard is left to another, and may return.
#[derive(Debug, Default)]
pub(crate) struct Known {
    memory: Memory,
    lately: LatelyEnded,
}

/// The task of one shard, for as long as this coordinator is to consume it.
pub(crate) struct ShardTask {
    pub(crate) queue: QueueSpec,
    pub(crate) limits: ShardLimits,
    pub(crate) messenger: Messenger,
    pub(crate) trust: Trust,
    pub(crate) inbox: mpsc::UnboundedReceiver<CancelWord>,
    pub(crate) started: Instant,
    pub(crate) leave: CancellationToken,
    /// How long it may take to leave, before what is open is let go as it is.
    pub(crate) leave_within: Duration,
    pub(crate) known: Known,
}

/// What is under way on one channel of the shard.
struct Hold<'a> {
    task: &'a mut ShardTask,
    machine: Shard<Tag>,
    acks: Acks,
    publishing: FuturesUnordered<BoxFuture<'static, (ShardPublicationId, Outcome)>>,
    parking: FuturesUnordered<BoxFuture<'static, ()>>,
    effects: Vec<ShardEffect<Tag>>,
    /// Where those wait who asked for a cancel.
    askers: BTreeMap<RunId, BTreeSet<String>>,
    /// The fan-outs whose callers want to know how far they have come, and what they were told last.
    watched: BTreeMap<RunId, Watched>,
    telling: FuturesUnordered<BoxFuture<'static, (RunId, bool)>>,
}

/// Where deliveries come from.
enum Source {
    Consumer(Consumer),
    /// The consumer has ended, which was not told yet; with an error where its channel did.
    Ended(Option<BrokerError>),
    /// There is nothing more.
    Nothing,
}

impl Source {
    async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        match self {
            Self::Consumer(consumer) => consumer.next().await,
            Self::Ended(error) => error.take().map(Err),
            Self::Nothing => pending().await,
        }
    }

    /// One that is there already.
    fn ready(&mut self) -> Option<Delivery> {
        let Self::Consumer(consumer) = self else { return None };
        match consumer.next().now_or_never()? {
            Some(Ok(delivery)) => return Some(delivery),
            Some(Err(error)) => *self = Self::Ended(Some(error)),
            None => *self = Self::Ended(None),
        }
        None
    }
}

struct Watched {
    waiter: String,
    manifest: Arc<Manifest>,
    told: usize,
    busy: bool,
}

impl ShardTask {
    /// Consumes the shard, on one channel after the other, until it is left.
    pub(crate) async fn run(mut self) -> Known {
        let leave = self.leave.clone();
        let outbox = self.messenger.outbox.clone();
        let mut backoff = Backoff::default();
        while !leave.is_cancelled() {
            let opening = consume(outbox.clone(), self.queue.name.clone(), self.limits.window);
            match leave.run_until_cancelled(opening).await {
                Some(Some((channel, consumer))) => {
                    let since = Instant::now();
                    self.hold(channel, consumer).await;
                    if since.elapsed() > LASTING {
                        backoff = Backoff::default();
                    }
                }
                Some(None) => self.declare(&outbox).await,
                None => break,
            }
            leave.run_until_cancelled(backoff.wait(&*outbox.environment)).await;
        }
        self.known
    }

    async fn declare(&self, outbox: &Outbox) {
        let queue = &self.queue.name;
        tracing::error!(queue, "a shard is missing, with all that it held; declaring it again");
        if let Err(error) = outbox.broker.declare(&self.queue).await {
            tracing::warn!(queue, %error, "cannot declare");
        }
    }

    async fn hold(&mut self, channel: Arc<dyn ConsumerChannel>, consumer: Consumer) {
        let token = RunId::from(self.messenger.outbox.environment.unique());
        let machine = Shard::new(token, self.limits, std::mem::take(&mut self.known.memory));
        tracing::debug!(queue = self.queue.name, "shard consumed");
        let mut hold = Hold {
            machine,
            acks: Acks::default(),
            publishing: FuturesUnordered::new(),
            parking: FuturesUnordered::new(),
            effects: Vec::new(),
            askers: BTreeMap::new(),
            watched: BTreeMap::new(),
            telling: FuturesUnordered::new(),
            task: self,
        };
        hold.serve(&*channel, consumer).await;
        let machine = hold.machine;
        tracing::debug!(queue = self.queue.name, open = machine.open(), "shard let go");
        self.known.memory = machine.into_memory();
        channel.close().await;
    }
}

impl Hold<'_> {
    /// Serves the shard until its channel is lost, or it is left. Where it was deleted, what is open is brought to its end.
    async fn serve(&mut self, channel: &dyn ConsumerChannel, consumer: Consumer) {
        let mut stopping = None;
        let mut source = Source::Consumer(consumer);
        let (outbox, queue) = (self.task.messenger.outbox.clone(), self.task.queue.name.clone());
        while !self.machine.is_done() {
            let timeout = self.machine.next_timeout().map(|at| self.task.started + at);
            tokio::select! {
                // The queue comes last: a flood of results must not keep anything else from happening.
                biased;
                () = self.task.leave.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now() + self.task.leave_within);
                    self.handle(ShardEvent::Stop);
                }
                () = sleep_until(stopping), if stopping.is_some() => {
                    let open = self.machine.open();
                    tracing::warn!(queue, open, "a shard is left as it is: what is open could not be brought to rest in time");
                    return;
                }
                Some((id, outcome)) = self.publishing.next() => self.published(id, outcome),
                Some(()) = self.parking.next() => {}
                Some((run, heard)) = self.telling.next() => self.told(run, heard),
                Some(word) = self.task.inbox.recv() => self.cancel(&word),
                () = sleep_until(timeout) => self.handle(ShardEvent::TimePassed),
                next = source.next() => match next {
                    Some(Ok(delivery)) => self.read(delivery),
                    Some(Err(_)) => return,
                    None if is_gone_at_once(&outbox, &queue, channel).await => {
                        let open = self.machine.open();
                        tracing::error!(queue, open, "a shard was deleted; its fan-outs end without what is missing");
                        source = Source::Nothing;
                        self.handle(ShardEvent::Gone);
                    }
                    None => return,
                },
            }
            for _ in 0..AT_ONE_GO {
                if let Some(Some((id, outcome))) = self.publishing.next().now_or_never() {
                    self.published(id, outcome);
                } else if let Some(delivery) = source.ready() {
                    self.read(delivery);
                } else {
                    break;
                }
            }
            self.carry_out().await;
        }
    }

    fn handle(&mut self, event: ShardEvent<Tag>) {
        self.machine.handle(event, self.task.started.elapsed(), &mut self.effects);
    }

    fn published(&mut self, id: ShardPublicationId, outcome: Outcome) {
        self.handle(match outcome {
            Outcome::Safe | Outcome::Gone => ShardEvent::Confirmed(id),
            Outcome::TooLarge(most) => ShardEvent::TooLarge { id, most },
        });
    }

    fn read(&mut self, delivery: Delivery) {
        let Delivery { message, redelivered, receipt } = delivery;
        if message.kind() != header::TYPE_MANIFEST {
            let tag = self.acks.tag(receipt, false);
            return self.handle(ShardEvent::Delivered { tag, redelivered, message });
        }
        let tag = self.acks.tag(receipt, true);
        let outbox = &self.task.messenger.outbox;
        let manifest = self.task.trust.check(&message).and_then(|()| {
            let manifest = Manifest::decode(&message, &outbox.names).map_err(|reason| reason.to_string())?;
            if manifest.reply_to == self.task.queue.name {
                return Ok(manifest);
            }
            Err(format!("reply_to {:?} is not the shard that it was read from", manifest.reply_to))
        });
        match manifest {
            Ok(mut manifest) => {
                let take_over = redelivered || Manifest::is_renewed(&message);
                let deadline = deadline(&mut manifest, &*outbox.environment, self.task.started);
                let manifest = Box::new(manifest);
                if manifest.progress && manifest.waiter.is_some() {
                    self.watch(&manifest);
                }
                self.handle(ShardEvent::Manifest { tag, manifest, take_over, deadline });
            }
            Err(reason) => self.effects.push(ShardEffect::Park { tag, message, reason }),
        }
    }

    /// Does what the machine wants.
    async fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                ShardEffect::Publish(id, publication) => self.publish(id, publication),
                ShardEffect::Ack(tag) => self.acks.push(tag),
                ShardEffect::Park { tag, message, reason } => self.park(tag, message, reason),
                ShardEffect::Cancelled { manifest, cancellation } => self.cancelled(&manifest, cancellation),
                ShardEffect::Ended { manifest, summary } => self.ended(&manifest, &summary),
                ShardEffect::Dropped { run, messages } => {
                    let queue = &self.task.queue.name;
                    tracing::debug!(queue, %run, messages, "dropped: its fan-out has ended, or never began");
                }
            }
        }
        self.acks.flush().await;
        self.tell_progress();
    }

    fn publish(&mut self, id: ShardPublicationId, publication: ShardPublication) {
        let outbox = self.task.messenger.outbox.clone();
        let shard = &self.task.queue.name;
        let to_shard = |message| Letter::new(shard.clone(), message, Absence::Waits);
        let letter = match publication {
            ShardPublication::Of(manifest, publication) => {
                addressed(&manifest, publication, &outbox, &self.task.trust)
            }
            ShardPublication::Fence(fence) => to_shard(fence.encode_in_shard(shard)),
            ShardPublication::Ended(ended) => to_shard(ended.encode(shard)),
            ShardPublication::Again(message) => to_shard(message.anew()),
        };
        self.publishing.push(Box::pin(async move { (id, parts::send(&outbox, letter).await) }));
    }

    fn park(&mut self, tag: Tag, message: Message, reason: String) {
        let (outbox, queue) = (self.task.messenger.outbox.clone(), self.task.queue.name.clone());
        tracing::warn!(queue, reason, message_id = message.properties.message_id, "message parked");
        self.parking.push(Box::pin(async move {
            outbox.park(message, &queue, &reason).await;
            tag.ack().await;
        }));
    }

    fn ended(&mut self, manifest: &Manifest, summary: &Summary) {
        tell(manifest, summary);
        let how = summary.completed.then(|| how_it_ended(manifest, summary));
        self.task.known.lately.insert(manifest.run, manifest.cid.clone(), how);
        self.askers.remove(&manifest.run);
        self.watched.remove(&manifest.run);
    }

    /// Somebody asks for a cancel, for the first time or again.
    fn cancel(&mut self, word: &CancelWord) {
        let CancelWord { cid, run, reply_to, found } = word;
        let open = self.machine.find(cid, *run);
        let messenger = self.task.messenger.clone();
        for run in &open {
            messenger.answer(cid, reply_to.clone(), CancelState::Found { run: *run });
            let askers = self.askers.entry(*run).or_default();
            if askers.len() < MOST_ASKERS {
                askers.insert(reply_to.clone());
            }
            let at = messenger.outbox.environment.now().into();
            self.handle(ShardEvent::Cancel { run: *run, at });
        }
        if open.is_empty() && !found {
            let state = match self.task.known.lately.find(cid, *run) {
                Some((run, cancellation)) => CancelState::Ended { run, cancellation },
                None => CancelState::Unknown,
            };
            messenger.answer(cid, reply_to.clone(), state);
        }
    }

    /// A cancel cannot be undone any more: those are told who asked for it, and those who would work for nothing.
    fn cancelled(&mut self, manifest: &Manifest, cancellation: Cancellation) {
        let Manifest { cid, run, .. } = manifest;
        let messenger = &self.task.messenger;
        for reply_to in self.askers.remove(run).unwrap_or_default() {
            messenger.answer(cid, reply_to, CancelState::Ended { run: *run, cancellation });
        }
        if cancellation.ended_by == Some(EndedBy::Cancel) {
            messenger.announce(cid, *run);
        }
    }

    fn watch(&mut self, manifest: &Manifest) {
        let Some(waiter) = manifest.waiter.clone() else { return };
        let manifest = Arc::new(manifest.clone());
        self.watched.insert(manifest.run, Watched { waiter, manifest, told: 0, busy: false });
    }

    /// Tells the callers who want to know how many targets have responded. Nothing depends on it: there is one try, and what has
    /// changed meanwhile is told by the next.
    fn tell_progress(&mut self) {
        let machine = &self.machine;
        self.watched.retain(|run, _| machine.responded(run).is_some());
        for (run, watched) in &mut self.watched {
            let responded = machine.responded(run).unwrap_or(watched.told);
            if watched.busy || watched.told == responded {
                continue;
            }
            (watched.told, watched.busy) = (responded, true);
            let targets = watched.manifest.targets.len();
            let message = Progress { responded, targets }.encode(&watched.manifest);
            let (broker, waiter, run) =
                (Arc::clone(&self.task.messenger.outbox.broker), watched.waiter.clone(), *run);
            self.telling.push(Box::pin(async move {
                let sent = broker.publish(&waiter, message).await;
                tokio::time::sleep(PROGRESS_PAUSE).await;
                (run, !matches!(sent, Err(PublishError::Unroutable(_))))
            }));
        }
    }

    fn told(&mut self, run: RunId, heard: bool) {
        if !heard {
            self.watched.remove(&run);
        } else if let Some(watched) = self.watched.get_mut(&run) {
            watched.busy = false;
        }
    }
}
