//! One fan-out: carries events to its state machine, and effects to the broker.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::PublishError;
use fanfare_fanin::{Effect, Event, FanIn, Item, Publication, PublicationId, Summary};
use fanfare_protocol::{CancelState, Cancellation, Manifest, Message, Progress, RunId, TargetResult};
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addressing::addressed;
use crate::aggregation_queue::{AggregationQueue, Heard};
use crate::delivery::Tag;
use crate::inquiry::Question;
use crate::messenger::Messenger;
use crate::outbox::{Outbox, Outcome};
use crate::parts;
use crate::proof::ToProve;
use crate::telemetry;
use crate::trust::Trust;
use crate::view::{FailedResult, Watched};

/// From one word about progress to the next.
pub(crate) const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// Events that are handled before anything else is looked at.
const MOST_AT_ONCE: usize = 256;

/// Those who asked for a cancel and are told once it has come about. Others, of whom there are none unless somebody floods
/// coordinators with requests, ask again.
pub(crate) const MOST_ASKERS: usize = 1_000;

/// What a fan-out's task is told.
#[derive(Debug)]
pub(crate) enum Word {
    /// A further copy of the manifest has arrived.
    Manifest(Tag),
    /// Somebody asks for a cancel.
    Cancel {
        /// Where the answer goes.
        reply_to: String,
    },
    /// Somebody wants to know how the fan-out is.
    Question(Question<FanIn<Tag>>),
}

impl From<Question<FanIn<Tag>>> for Word {
    fn from(question: Question<FanIn<Tag>>) -> Self {
        Self::Question(question)
    }
}

/// What ties the task of a fan-out to its coordinator.
pub(crate) struct Ties {
    pub(crate) inbox: mpsc::UnboundedReceiver<Word>,
    pub(crate) stop: CancellationToken,
    /// Where it is seen.
    pub(crate) watched: Watched,
}

/// The task of one fan-out, from the manifest's arrival to its last ack.
pub(crate) struct FanOut {
    machine: FanIn<Tag>,
    outbox: Outbox,
    messenger: Messenger,
    trust: Trust,
    inbox: mpsc::UnboundedReceiver<Word>,
    /// Where those wait who asked for a cancel.
    askers: BTreeSet<String>,
    started: Instant,
    stop: CancellationToken,
    queue: AggregationQueue,
    publishing: FuturesUnordered<BoxFuture<'static, (PublicationId, Outcome)>>,
    parking: FuturesUnordered<BoxFuture<'static, ()>>,
    /// The word about progress that is under way, one at the most; whether it found anybody.
    telling: FuturesUnordered<BoxFuture<'static, bool>>,
    /// The progress that the waiting caller was told of last; none where nobody wants to know.
    told: Option<usize>,
    /// How the fan-out has ended, where this hold knows.
    how: Option<Cancellation>,
    /// What others see of it.
    watched: Watched,
}

/// How a task ended.
pub(crate) struct Conclusion {
    pub(crate) run: RunId,
    /// Whether the fan-out has ended, and not only this hold on it.
    pub(crate) ended: bool,
    /// How, where this hold knows.
    pub(crate) how: Option<Cancellation>,
    /// What was left in it.
    pub(crate) inbox: mpsc::UnboundedReceiver<Word>,
}

impl FanOut {
    pub(crate) fn new(
        machine: FanIn<Tag>,
        messenger: Messenger,
        trust: Trust,
        started: Instant,
        ties: Ties,
    ) -> Self {
        let Ties { inbox, stop, watched } = ties;
        let manifest = machine.manifest();
        let told = (manifest.progress && manifest.waiter.is_some()).then_some(0);
        let outbox = messenger.outbox.clone();
        let queue = AggregationQueue::open(outbox.clone(), manifest.reply_to.clone(), machine.prefetch());
        Self {
            machine,
            outbox,
            messenger,
            trust,
            inbox,
            askers: BTreeSet::new(),
            started,
            stop,
            queue,
            publishing: FuturesUnordered::new(),
            parking: FuturesUnordered::new(),
            telling: FuturesUnordered::new(),
            told,
            how: None,
            watched,
        }
    }

    pub(crate) async fn run(mut self) -> Conclusion {
        let mut stopping = false;
        loop {
            self.tell_progress();
            let timeout = self.machine.next_timeout().map(|at| self.started + at);
            let event = tokio::select! {
                // The queue comes last: a flood of results must not keep anything else from happening, and all else comes
                // to an end by itself.
                biased;
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    Event::Stop
                }
                Some(published) = self.publishing.next() => event_of_publication(published),
                Some(()) = self.parking.next() => continue,
                Some(heard) = self.telling.next() => {
                    self.told = self.told.filter(|_| heard);
                    continue;
                }
                () = sleep_until(timeout) => Event::TimePassed,
                Some(word) = self.inbox.recv() => match word {
                    Word::Manifest(tag) => Event::ManifestArrived { tag },
                    Word::Cancel { reply_to } => self.asked(reply_to),
                    Word::Question(question) => {
                        if !(question.is_of_open() && self.queue.may_be_gone()) {
                            question.put(&self.machine);
                        }
                        continue;
                    }
                },
                heard = self.queue.next() => event_of(heard, &self.machine),
            };
            let effects = self.handle(event);
            if let Some(ended) = self.apply(effects).await {
                let run = self.machine.manifest().run;
                let Self { how, inbox, .. } = self;
                return Conclusion { run, ended, how, inbox };
            }
        }
    }

    /// Has the machine handle an event, and with it what else is there already: confirms and deliveries come many at a time.
    fn handle(&mut self, event: Event<Tag>) -> Vec<Effect<Tag>> {
        let mut effects = self.handle_one(event);
        for _ in 1..MOST_AT_ONCE {
            if self.machine.is_done() {
                break;
            }
            let event = if let Some(Some(published)) = self.publishing.next().now_or_never() {
                event_of_publication(published)
            } else if let Some(heard) = self.queue.next().now_or_never() {
                event_of(heard, &self.machine)
            } else {
                break;
            };
            effects.extend(self.handle_one(event));
        }
        effects
    }

    fn handle_one(&mut self, event: Event<Tag>) -> Vec<Effect<Tag>> {
        if let (Event::Delivered { item: Item::Mark(Some(number)), .. }, Some(proof)) =
            (&event, self.queue.proof())
        {
            proof.has_read(*number);
        }
        let failed = FailedResult::brought_by(&event);
        let effects = self.machine.handle(event, self.started.elapsed());
        self.watched.counted(&self.machine, failed);
        effects
    }

    /// Does what the machine wants. Returns whether the fan-out has ended, where the task is at its end.
    ///
    /// Acks are given together, so that the broker is told of them together: they wait for what comes with them, which takes no
    /// time.
    async fn apply(&mut self, effects: Vec<Effect<Tag>>) -> Option<bool> {
        let (mut acks, mut last) = (Vec::new(), None);
        for effect in effects {
            match effect {
                Effect::Publish(id, publication) => self.publish(id, publication),
                Effect::Ack(tag) => acks.push(tag),
                Effect::Park { tag, reason } => self.park(tag, reason),
                Effect::DeleteQueue => self.queue.delete(),
                Effect::Cancelled(cancellation) => self.cancelled(cancellation),
                Effect::Abandon { .. } | Effect::End(_) => last = Some(effect),
            }
        }
        join_all(acks.iter().map(Tag::ack)).await;
        match last? {
            Effect::Abandon { manifests } => {
                let manifest = self.machine.manifest();
                tracing::debug!(cid = %manifest.cid, run = %manifest.run, "fan-out let go");
                self.queue.close().await;
                for manifest in manifests {
                    manifest.requeue().await;
                }
                Some(false)
            }
            Effect::End(summary) => {
                let manifest = self.machine.manifest();
                tell(manifest, &summary);
                self.watched.ended(&self.machine, &summary, self.outbox.environment.now().into());
                self.how = summary.completed.then(|| how_it_ended(manifest, &summary));
                // What is being parked went with the queue: nobody hands it out again.
                while self.parking.next().await.is_some() {}
                self.queue.close().await;
                Some(true)
            }
            _ => None,
        }
    }

    /// Tells a caller who wants to know how many targets have responded. Nothing depends on it, so it is no effect of the machine:
    /// there is one try, and what has changed meanwhile is told by the next.
    fn tell_progress(&mut self) {
        let (manifest, responded) = (self.machine.manifest(), self.machine.responded());
        let (Some(told), Some(waiter)) = (self.told, manifest.waiter.clone()) else { return };
        if told == responded || !self.telling.is_empty() {
            return;
        }
        self.told = Some(responded);
        let message = Progress { responded, targets: manifest.targets.len() }.encode(manifest);
        let broker = Arc::clone(&self.outbox.broker);
        self.telling.push(Box::pin(async move {
            let sent = broker.publish(&waiter, message).await;
            tokio::time::sleep(PROGRESS_PAUSE).await;
            !matches!(sent, Err(PublishError::Unroutable(_)))
        }));
    }

    /// Somebody asks for a cancel, for the first time or again.
    fn asked(&mut self, reply_to: String) -> Event<Tag> {
        let Manifest { cid, run, .. } = &**self.machine.manifest();
        self.messenger.answer(cid, reply_to.clone(), CancelState::Found { run: *run });
        if self.askers.len() < MOST_ASKERS {
            self.askers.insert(reply_to);
        }
        Event::Cancel { at: self.outbox.environment.now().into() }
    }

    /// The cancel cannot be undone any more: those are told who asked for it, and those who would work for nothing.
    fn cancelled(&mut self, cancellation: Cancellation) {
        let Manifest { cid, run, .. } = &**self.machine.manifest();
        for reply_to in std::mem::take(&mut self.askers) {
            self.messenger.answer(cid, reply_to, CancelState::Ended { run: *run, cancellation });
        }
        self.messenger.announce(cid, *run, &cancellation);
    }

    fn publish(&mut self, id: PublicationId, publication: Publication) {
        let (kind, manifest) = (telemetry::kind_of(&publication), self.machine.manifest());
        let to_prove = self.queue.proof().zip(ToProve::by(&publication, manifest));
        let letter = addressed(manifest, publication, &self.outbox, &self.trust);
        let outbox = self.outbox.clone();
        self.publishing.push(Box::pin(async move {
            let outcome = parts::send(&outbox, letter).await;
            if let Outcome::Safe { again } = outcome {
                telemetry::published(kind);
                if let Some((proof, to_prove)) = to_prove {
                    proof.of(to_prove, again).await;
                }
            }
            (id, outcome)
        }));
    }

    fn park(&mut self, tag: Tag, reason: String) {
        let Some(message) = tag.message() else { return };
        let (outbox, queue) = (self.outbox.clone(), self.machine.manifest().reply_to.clone());
        tracing::warn!(
            queue,
            reason,
            message_id = message.properties.message_id.as_deref(),
            "message parked"
        );
        self.parking.push(Box::pin(async move {
            outbox.park(message, &queue, &reason).await;
            tag.ack().await;
        }));
    }
}

/// What has become of a publication, as the machine takes it.
fn event_of_publication((id, outcome): (PublicationId, Outcome)) -> Event<Tag> {
    match outcome {
        Outcome::Safe { .. } | Outcome::Gone => Event::Confirmed(id),
        Outcome::TooLarge(most) => Event::TooLarge { id, most },
    }
}

pub(crate) fn how_it_ended(manifest: &Manifest, summary: &Summary) -> Cancellation {
    let missing = summary.ending.missing;
    Cancellation { responded: manifest.targets.len() - missing, missing, ended_by: summary.ending.by }
}

/// Puts into the log how a fan-out has ended.
pub(crate) fn tell(manifest: &Manifest, summary: &Summary) {
    let Manifest { cid, run, .. } = manifest;
    match summary.ending.by {
        Some(by) => tracing::info!(
            %cid,
            %run,
            %by,
            missing = summary.ending.missing,
            late = summary.late,
            strangers = summary.strangers,
            "fan-out ended before all targets had responded"
        ),
        None => tracing::debug!(%cid, %run, ?summary, "fan-out ended"),
    }
}

/// What is heard from the aggregation queue, as the machine takes it.
fn event_of(heard: Heard, machine: &FanIn<Tag>) -> Event<Tag> {
    match heard {
        Heard::Opened => Event::Opened,
        Heard::NeverOpened => Event::NeverOpened,
        Heard::Delivery(delivery) => {
            let (redelivered, item) = (delivery.redelivered, machine.read(&delivery.message));
            telemetry::read(redelivered);
            log_malformed(&delivery.message, &item, machine);
            let tag = match item {
                // The latter is parked where too much of it is held.
                Item::Garbage(_) | Item::Unknown => Tag::of_garbage(*delivery),
                _ => Tag::of_result(delivery.receipt),
            };
            Event::Delivered { tag, redelivered, item }
        }
        Heard::Gone => Event::QueueGone,
        Heard::Deleted => Event::Deleted,
        Heard::Lost => Event::ChannelLost,
    }
}

/// Tells of a result that was replaced by a failed one because it is malformed.
fn log_malformed(message: &Message, item: &Item, machine: &FanIn<Tag>) {
    let Item::Result { place, answer } = item else { return };
    if message.body.trim_ascii() == answer.body {
        return;
    }
    let reason = TargetResult::from_body(&answer.body).ok().and_then(|result| result.exception);
    let key = machine.manifest().key_at(*place).map(|key| key.as_str());
    let queue = &machine.manifest().reply_to;
    tracing::warn!(queue, key, reason, "malformed result: its target counts as failed");
}

pub(crate) async fn sleep_until(timeout: Option<Instant>) {
    match timeout {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}
