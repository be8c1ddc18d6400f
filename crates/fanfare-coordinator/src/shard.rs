//! One shard that this coordinator consumes: carries what it reads to the shard's state machine, and what that wants done to
//! the broker.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare_broker::{Backoff, ConsumerChannel, Delivery, Subscription, SubscriptionOptions};
use fanfare_fanin::{
    FanIn, Memory, Shard, ShardEffect, ShardEvent, ShardLimits, ShardPublication, ShardPublicationId, Summary,
};
use fanfare_protocol::{CancelState, Cancellation, Cid, Manifest, Message, QueueSpec, RunId, header};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addressing::{Letter, addressed};
use crate::aggregation_queue::{consume, is_gone_soon};
use crate::deadline::deadline;
use crate::ended::LatelyEnded;
use crate::fan_out::{MOST_ASKERS, how_it_ended, sleep_until, tell};
use crate::inquiry::Question;
use crate::messenger::Messenger;
use crate::outbox::{Absence, Outbox, Outcome, Refusals};
use crate::parts;
use crate::proof::{Proof, ToProve};
use crate::telemetry;
use crate::trust::Trust;
use crate::unbundled::Unbundled;
use crate::view::{View, Watched as Shown};

pub(crate) use self::acks::Tag;
use self::{acks::Acks, progress::Watchers, source::Source};

mod acks;
mod progress;
mod source;

/// What is taken in at one go before what follows from it is done.
const AT_ONE_GO: usize = 256;

/// A channel that lasted this long ends the growth of the waits between one and the next.
const LASTING: Duration = Duration::from_secs(30);

/// What the task of a shard is told.
#[derive(Debug)]
pub(crate) enum Word {
    /// Somebody asks for a cancel of what the shard may hold.
    Cancel {
        cid: Cid,
        run: Option<RunId>,
        /// Where it is answered that something was found, and what has come of it.
        reply_to: String,
        /// Where the coordinator is told what is known.
        known: oneshot::Sender<Vec<CancelState>>,
    },
    /// Somebody wants to know how its fan-outs are.
    Question(Question<Shard<Tag>>),
}

impl From<Question<Shard<Tag>>> for Word {
    fn from(question: Question<Shard<Tag>>) -> Self {
        Self::Question(question)
    }
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
    /// Fan-outs that may be open.
    pub(crate) most_open: usize,
    pub(crate) messenger: Messenger,
    pub(crate) trust: Trust,
    pub(crate) inbox: mpsc::UnboundedReceiver<Word>,
    pub(crate) started: Instant,
    pub(crate) leave: CancellationToken,
    /// The coordinator stops: leaving must come to an end.
    pub(crate) hurry: CancellationToken,
    /// How long that may take, before what is open is let go as it is.
    pub(crate) leave_within: Duration,
    pub(crate) known: Known,
    /// Where its fan-outs are seen.
    pub(crate) view: View,
}

/// How long nothing that was refused is tried again, before a look whether a shard that is to be left waits for nothing else. Longer than
/// a try takes.
const AT_REST: Duration = Duration::from_secs(2);

/// What is under way on one channel of the shard.
struct Hold<'a> {
    task: &'a mut ShardTask,
    machine: Shard<Tag>,
    acks: Acks,
    proof: Arc<Proof>,
    publishing: FuturesUnordered<BoxFuture<'static, (ShardPublicationId, Outcome)>>,
    /// Of those that are being published.
    refusals: Arc<Refusals>,
    parking: FuturesUnordered<BoxFuture<'static, Tag>>,
    effects: Vec<ShardEffect<Tag>>,
    /// Where those wait who asked for a cancel.
    askers: BTreeMap<RunId, BTreeSet<String>>,
    /// The open fan-outs, as others see them.
    shown: BTreeMap<RunId, Shown>,
    watchers: Watchers,
    /// What publishers see while as many fan-outs are open as may be: that this is consumed.
    full: Option<Subscription>,
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

    async fn hold(&mut self, channel: Arc<dyn ConsumerChannel>, consumer: Unbundled) {
        let token = RunId::from(self.messenger.outbox.environment.unique());
        let machine = Shard::new(token, self.limits, std::mem::take(&mut self.known.memory));
        tracing::debug!(queue = self.queue.name, "shard consumed");
        let mut hold = Hold {
            machine,
            acks: Acks::new(self.limits.window),
            proof: Arc::new(Proof::by(Arc::clone(&channel))),
            publishing: FuturesUnordered::new(),
            refusals: Arc::default(),
            parking: FuturesUnordered::new(),
            effects: Vec::new(),
            askers: BTreeMap::new(),
            shown: BTreeMap::new(),
            watchers: Watchers::default(),
            full: None,
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
    async fn serve(&mut self, channel: &dyn ConsumerChannel, consumer: Unbundled) {
        let (mut leaving, mut deadline, mut next_look) = (false, None, None);
        let mut source = Source::Consumer(consumer);
        let (outbox, queue) = (self.task.messenger.outbox.clone(), self.task.queue.name.clone());
        while !self.machine.is_done() {
            let timeout = self.machine.next_timeout().map(|at| self.task.started + at);
            tokio::select! {
                // The queue comes last: a flood of results must not keep anything else from happening.
                biased;
                () = self.task.leave.cancelled(), if !leaving => {
                    leaving = true;
                    next_look = Some(Instant::now() + self.task.leave_within);
                    self.handle(ShardEvent::Stop);
                }
                () = sleep_until(next_look), if next_look.is_some() => {
                    let is_at_rest = self.refusals.rest.load(Ordering::Relaxed);
                    if is_at_rest && self.waits_for_refusals() {
                        self.acks.flush_all().await;
                        let open = self.machine.open();
                        tracing::warn!(queue, open, "a shard is left with fan-outs open whose callbacks are refused: another coordinator tries on");
                        return;
                    }
                    // What is refused is tried again now and then, should something else take its time.
                    self.refusals.rest.store(!is_at_rest, Ordering::Relaxed);
                    next_look = Some(Instant::now() + if is_at_rest { self.task.leave_within } else { AT_REST });
                }
                () = self.task.hurry.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + self.task.leave_within);
                }
                () = sleep_until(deadline), if deadline.is_some() => {
                    let open = self.machine.open();
                    tracing::warn!(queue, open, "a shard is left as it is: what is open could not be brought to rest in time");
                    return;
                }
                Some((id, outcome)) = self.publishing.next() => self.published(id, outcome),
                Some(tag) = self.parking.next() => self.acks.push(tag),
                Some(()) = self.watchers.told() => {}
                Some(word) = self.task.inbox.recv() => match word {
                    Word::Cancel { cid, run, reply_to, known } => {
                        // The coordinator may not wait any longer.
                        let _ = known.send(self.cancel(&cid, run, &reply_to));
                    }
                    Word::Question(question) => question.put(&self.machine),
                },
                () = sleep_until(timeout) => self.handle(ShardEvent::TimePassed),
                () = sleep_until(self.acks.due()) => {}
                Some(stranger) = next_of(&mut self.full) => stranger.receipt.ack().await,
                next = source.next() => match next {
                    Some(Ok(delivery)) => self.read(delivery),
                    Some(Err(_)) => return,
                    None if is_gone_soon(&outbox, &queue, channel).await => {
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
        self.acks.flush_all().await;
    }

    fn handle(&mut self, event: ShardEvent<Tag>) {
        self.machine.handle(event, self.task.started.elapsed(), &mut self.effects);
    }

    /// Whether all that is still to be published was refused each time, so that none of it is in a queue.
    fn waits_for_refusals(&self) -> bool {
        !self.publishing.is_empty() && self.refusals.refused() == self.publishing.len()
    }

    fn published(&mut self, id: ShardPublicationId, outcome: Outcome) {
        self.handle(match outcome {
            Outcome::Safe { .. } | Outcome::Gone => ShardEvent::Confirmed(id),
            Outcome::TooLarge(most) => ShardEvent::TooLarge { id, most },
        });
    }

    fn read(&mut self, delivery: Delivery) {
        let Delivery { message, redelivered, receipt } = delivery;
        if message.kind() != header::TYPE_MANIFEST {
            let (tag, run) = (self.acks.tag(receipt, false), message.run());
            telemetry::read(redelivered);
            self.handle(ShardEvent::Delivered { tag, redelivered, message });
            return run.into_iter().for_each(|run| self.show(run));
        }
        let tag = self.acks.tag(receipt, true);
        let take_over = redelivered || Manifest::is_renewed(&message);
        let outbox = &self.task.messenger.outbox;
        let manifest = self.task.trust.check(&message).and_then(|()| {
            let manifest = Manifest::decode(&message, &outbox.names).map_err(|reason| reason.to_string())?;
            if manifest.reply_to != self.task.queue.name {
                return Err(format!(
                    "reply_to {:?} is not the shard that it was read from",
                    manifest.reply_to
                ));
            }
            let first = self.machine.fan_in(&manifest.run).map(FanIn::manifest);
            let repeats = first.map_or(Ok(()), |first| first.check_repeated(&message, &manifest));
            repeats.map_err(|reason| reason.to_string())?;
            self.task.trust.check_size(&manifest, take_over).map(|()| manifest)
        });
        match manifest {
            Ok(mut manifest) => {
                let deadline = deadline(&mut manifest, take_over, &*outbox.environment, self.task.started);
                let (run, manifest) = (manifest.run, Box::new(manifest));
                self.handle(ShardEvent::Manifest { tag, manifest, take_over, deadline });
                self.begin(run, take_over);
            }
            Err(reason) => self.effects.push(ShardEffect::Park { tag, message, reason }),
        }
    }

    /// Shows a fan-out from now on, if it is open and was not shown before.
    fn begin(&mut self, run: RunId, take_over: bool) {
        let (Entry::Vacant(entry), Some(machine)) = (self.shown.entry(run), self.machine.fan_in(&run)) else {
            return;
        };
        let manifest = machine.manifest();
        entry.insert(self.task.view.hold(manifest, take_over));
        self.watchers.begin(manifest);
        self.show(run);
    }

    /// Shows how far a fan-out has come, if it is open.
    fn show(&mut self, run: RunId) {
        if let (Some(shown), Some(machine)) = (self.shown.get_mut(&run), self.machine.fan_in(&run)) {
            shown.counted(machine, None);
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
                ShardEffect::Over { fan_in, summary } => self.over(&fan_in, summary.as_ref()),
                ShardEffect::Failed { manifest, place, answer } => {
                    self.task.view.failed(&manifest, place, &answer);
                }
                ShardEffect::Dropped { run, messages } => {
                    let queue = &self.task.queue.name;
                    telemetry::late(messages);
                    tracing::debug!(queue, %run, messages, "dropped: its fan-out has ended, or never began");
                }
            }
        }
        self.acks.flush().await;
        self.watchers.tell(&self.machine, &self.task.messenger.outbox.broker);
        self.tell_whether_full();
    }

    /// Shows publishers, for as long as it is so, that as many fan-outs are open as may be. That ends when a tenth of them has ended.
    fn tell_whether_full(&mut self) {
        let (open, most) = (self.machine.open(), self.task.most_open);
        if open < most && (self.full.is_none() || open < most - most / 10) {
            self.full = None;
        } else if self.full.is_none() {
            let queue = &self.task.queue.name;
            tracing::warn!(
                queue,
                open,
                "as many fan-outs are open in a shard as may be, and publishers are refused: see what they wait for \
                 (`fanfare status`), or use more shards"
            );
            let Outbox { broker, environment, names, .. } = &self.task.messenger.outbox;
            let (broker, environment) = (Arc::clone(broker), Arc::clone(environment));
            let full = Subscription::new(broker, environment, names.full(), SubscriptionOptions::default());
            self.full = Some(full);
        }
    }

    fn publish(&mut self, id: ShardPublicationId, publication: ShardPublication) {
        let mut outbox = self.task.messenger.outbox.clone();
        outbox.refusals = Arc::clone(&self.refusals);
        let shard = &self.task.queue.name;
        let to_shard = |message| Letter::new(shard.clone(), message, Absence::Waits);
        let (proof, mut kind, mut to_prove) = (Arc::clone(&self.proof), None, None);
        let letter = match publication {
            ShardPublication::Of(manifest, publication) => {
                kind = telemetry::kind_of(&publication);
                to_prove = ToProve::by(&publication, &manifest);
                addressed(&manifest, publication, &outbox, &self.task.trust)
            }
            ShardPublication::Fence(fence) => to_shard(fence.encode_in_shard(shard)),
            ShardPublication::Ended(ended) => to_shard(ended.encode(shard)),
            ShardPublication::Again(message) => to_shard(message.anew()),
        };
        self.publishing.push(Box::pin(async move {
            let outcome = parts::send(&outbox, letter).await;
            if let Outcome::Safe { again } = outcome {
                telemetry::published(kind);
                if let Some(to_prove) = to_prove {
                    proof.of(to_prove, again).await;
                }
            }
            (id, outcome)
        }));
    }

    fn park(&mut self, tag: Tag, message: Message, reason: String) {
        let (outbox, queue) = (self.task.messenger.outbox.clone(), self.task.queue.name.clone());
        tracing::warn!(
            queue,
            reason,
            message_id = message.properties.message_id.as_deref(),
            "message parked"
        );
        self.parking.push(Box::pin(async move {
            outbox.park(message, &queue, &reason).await;
            tag
        }));
    }

    /// A fan-out has ended, or is let go.
    fn over(&mut self, fan_in: &FanIn<Tag>, summary: Option<&Summary>) {
        let manifest = fan_in.manifest();
        let shown = self.shown.remove(&manifest.run);
        self.askers.remove(&manifest.run);
        self.watchers.end(&manifest.run);
        let Some(summary) = summary else { return };
        tell(manifest, summary);
        let how = summary.completed.then(|| how_it_ended(manifest, summary));
        self.task.known.lately.insert(manifest.run, manifest.cid.clone(), how);
        let at = self.task.messenger.outbox.environment.now().into();
        if let Some(mut shown) = shown {
            shown.counted(fan_in, None);
            shown.ended(fan_in, summary, at);
        }
    }

    /// Somebody asks for a cancel, for the first time or again. Returns what is known; what was found is answered already.
    fn cancel(&mut self, cid: &Cid, run: Option<RunId>, reply_to: &str) -> Vec<CancelState> {
        let open = self.machine.find(cid, run);
        let messenger = self.task.messenger.clone();
        for run in &open {
            messenger.answer(cid, reply_to.to_owned(), CancelState::Found { run: *run });
            let askers = self.askers.entry(*run).or_default();
            if askers.len() < MOST_ASKERS {
                askers.insert(reply_to.to_owned());
            }
            let at = messenger.outbox.environment.now().into();
            self.handle(ShardEvent::Cancel { run: *run, at });
        }
        if open.is_empty() {
            let ended = self.task.known.lately.find(cid, run);
            messenger.announce_ended(cid, &ended);
            return ended;
        }
        open.into_iter().map(|run| CancelState::Found { run }).collect()
    }

    /// A cancel cannot be undone any more: those are told who asked for it, and those who would work for nothing.
    fn cancelled(&mut self, manifest: &Manifest, cancellation: Cancellation) {
        let Manifest { cid, run, .. } = manifest;
        let messenger = &self.task.messenger;
        for reply_to in self.askers.remove(run).unwrap_or_default() {
            messenger.answer(cid, reply_to, CancelState::Ended { run: *run, cancellation });
        }
        messenger.announce(cid, *run, &cancellation);
    }
}

/// What somebody has put where nothing belongs, which is dropped.
async fn next_of(full: &mut Option<Subscription>) -> Option<Delivery> {
    full.as_mut()?.next().await
}
