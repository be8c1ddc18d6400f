mod closing;
mod incoming;
mod outgoing;
mod sentinel;
mod sharing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fanfare_protocol::{Ending, FanOutState, Manifest, Mark, Message, RunId, TraceParent, WireTime, limits};

use crate::checkpoints::Checkpoints;
use crate::copies::Copies;
use crate::gathered::Gathered;
use crate::kept::Kept;
use crate::machine::closing::Closing;
use crate::places::Places;
use crate::read::read;
use crate::{Answer, Effect, Event, Item, Publication, PublicationId, Summary};

/// The time, as the span since an origin that the caller chooses and keeps.
pub type Time = Duration;

/// What one coordinator brings to a fan-out that it takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Drawn afresh each time that a coordinator takes a fan-out on: its fence's token, and the mark of its checkpoints.
    pub token: RunId,
    /// Whether another may have been here before: the manifest was redelivered, or is a renewed copy.
    pub take_over: bool,
}

/// When what is missing is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The time.
    pub at: Time,
    /// When the manifest is to be renewed, where it does not tell that time yet: so that whoever takes the fan-out over after that knows it.
    pub written_at: Option<Time>,
}

/// Numbers that bound what a fan-in holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// On-target callbacks published without a [confirmed](crate::Event::Confirmed) checkpoint: what a crash can repeat. 100 is promised.
    pub calls_at_risk: usize,
    /// Results held unacked before they are written into a checkpoint, in a fan-out without on-target callbacks.
    pub results_held: usize,
    /// Unacked deliveries that the aggregation queue's consumer may have; its prefetch.
    pub window: u16,
    /// How long anything may be held unacked. It must stay below half of the broker's consumer time-out, which is
    /// 30 minutes by default.
    pub renewal: Duration,
    /// After which a fence that has not been read back is published again.
    pub fence_again: Duration,
    /// Bytes of a final payload above which it travels in parts. [`limits::MESSAGE_BYTES`] at most, which is the default: readers
    /// that know of no parts then meet them only where one message is impossible.
    pub large_payload_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_at_risk: 100,
            results_held: 1_000,
            window: 4_000,
            renewal: Duration::from_secs(10 * 60),
            fence_again: Duration::from_secs(30),
            large_payload_bytes: limits::MESSAGE_BYTES,
        }
    }
}

/// The fan-in of one fan-out, as one coordinator sees it from the manifest's arrival to its last ack.
#[derive(Debug)]
pub struct FanIn<T> {
    manifest: Arc<Manifest>,
    places: Places,
    hold: Hold,
    limits: Limits,
    queue: Queue,
    phase: Phase,
    manifests: Copies<T>,
    sentinel: Copies<T>,
    sentinel_seen: bool,
    fence: FenceState,
    /// When the queue began to be consumed.
    opened_at: Option<Time>,
    /// Whether it was asked who consumes the queue.
    probed: bool,
    read_anything: bool,
    queue_gone: bool,
    stopping: bool,
    /// Bytes that a message's body may have.
    most_bytes: usize,
    /// None where there is no deadline, or something has ended the fan-out early.
    deadline: Option<Deadline>,
    /// How long the manifest may be held.
    renewal: Duration,
    /// When a cancel was asked for that nobody was told of yet.
    cancel: Option<WireTime>,
    /// The change by which its completion policy was met.
    met_at: Option<u64>,
    /// There once the fan-out is being ended before all targets have responded.
    closing: Option<Closing>,
    gathered: Gathered<T>,
    kept: Kept<T>,
    checkpoints: Checkpoints<T>,
    /// On-target callbacks published and in no confirmed checkpoint.
    at_risk: usize,
    /// Deliveries of types that this version does not know, and since when each is held.
    unknown: VecDeque<(Time, T)>,
    /// Deliveries past anything that could count. They are held to the end.
    leftover: Vec<T>,
    pending: BTreeMap<PublicationId, Pending>,
    next_publication: u64,
    summary: Summary,
}

/// Where the results are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// In a queue that this fan-out has for itself, and that is deleted at its end.
    Own,
    /// In one that it shares with others. A fan-out of whose manifest another copy may exist is recorded before it ends.
    Shard { record: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The aggregation queue is not consumed yet.
    Opening,
    /// Results are read and on-target callbacks published.
    Gathering,
    /// All targets have completed; so many final callbacks are not confirmed.
    Finalizing(usize),
    /// The queue is being deleted, by who has completed the fan-out or has found it emptied.
    Deleting { completed: bool },
    /// In a shard: that the fan-out has ended is being recorded.
    Recording,
    /// A copy of the manifest is being parked: the fan-out cannot go on.
    GivingUp,
    /// Nothing is left to do.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FenceState {
    NotNeeded,
    /// Published at the first delivery, which proves that no other consumer is active.
    Wanted,
    Sent(Time),
    /// In a shard, whose fence counts for all that were there before.
    Shards,
    Passed,
}

#[derive(Debug, Clone, Copy)]
enum Pending {
    OnTarget {
        callback: usize,
        place: usize,
    },
    /// To a final callback, by its place in the manifest, or to the caller who waits.
    OnFinal(Option<usize>),
    Checkpoint,
    Fence,
    Mark(Mark),
    Sentinel,
    Renewal,
    Missing,
    ParkedManifest(Leaving),
}

/// What a hold that gives its fan-out up does last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// The results stay in the queue, for the manifest to be replayed.
    LeavesResults,
    /// The queue is deleted.
    DeletesQueue,
    /// There is no queue, or it is that of others too.
    Acks,
}

/// Why a fan-out is given up whose queue has lost what was in it.
const EMPTIED: &str = "the fan-out's aggregation queue has lost what was in it: the fan-out had ended, and the broker was killed \
                       over the queue's deletion, or somebody has purged it, or its publisher says in the manifest that it has \
                       put a sentinel there, and has not; no callback was published for this copy of the manifest";

impl<T: Clone> FanIn<T> {
    /// Takes a fan-out on. `tag` is that of the manifest's delivery.
    #[must_use]
    pub fn new(manifest: Manifest, tag: T, hold: Hold, limits: Limits, now: Time) -> Self {
        let manifest = Arc::new(manifest);
        Self {
            hold,
            limits,
            queue: Queue::Own,
            phase: Phase::Opening,
            manifests: Copies::one(tag, now),
            sentinel: Copies::none(),
            sentinel_seen: false,
            fence: if hold.take_over { FenceState::Wanted } else { FenceState::NotNeeded },
            opened_at: None,
            probed: false,
            read_anything: false,
            queue_gone: false,
            stopping: false,
            most_bytes: limits::MESSAGE_BYTES,
            deadline: None,
            renewal: limits.renewal,
            cancel: None,
            met_at: None,
            closing: None,
            gathered: Gathered::new(&manifest),
            kept: if manifest.replicated { Kept::all() } else { Kept::nothing() },
            checkpoints: Checkpoints::new(hold.token, limits, now),
            at_risk: 0,
            unknown: VecDeque::new(),
            leftover: Vec::new(),
            pending: BTreeMap::new(),
            next_publication: 0,
            summary: Summary::default(),
            places: Places::of(&manifest),
            manifest,
        }
    }

    /// Sets when what is missing is to fail. Like anything that decides, it decides by messages: failed results are
    /// appended to the aggregation queue, and count when they are read, unless the targets' own come first.
    #[must_use]
    pub fn with_deadline(self, deadline: Option<Deadline>, now: Time) -> Self {
        let early = deadline.and_then(|deadline| deadline.written_at).map(|at| at.saturating_sub(now));
        let renewal = early.map_or(self.renewal, |early| early.min(self.renewal));
        Self { deadline, renewal, ..self }
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// How many targets have a result, as far as this hold has read.
    #[must_use]
    pub const fn responded(&self) -> usize {
        self.gathered.responded()
    }

    /// How many targets have succeeded, as far as this hold has read.
    #[must_use]
    pub const fn succeeded(&self) -> usize {
        self.gathered.tally().succeeded
    }

    /// How many targets have failed by themselves, as far as this hold has read.
    #[must_use]
    pub const fn failed(&self) -> usize {
        self.gathered.tally().failed
    }

    /// The spans of targets that a final callback links to: of the first [`limits::LINKS`] of the manifest, in its order.
    #[must_use]
    pub fn links(&self) -> Vec<TraceParent> {
        self.gathered.links()
    }

    /// How it ends if no other result counts.
    #[must_use]
    pub fn ending(&self) -> Ending {
        self.gathered.ending()
    }

    /// What the fan-out waits for.
    #[must_use]
    pub const fn state(&self) -> FanOutState {
        match self.phase {
            Phase::Opening => FanOutState::Opening,
            Phase::Gathering if !self.gathered.has_all() => FanOutState::Gathering,
            Phase::Gathering | Phase::Finalizing(_) => FanOutState::Calling,
            Phase::Deleting { .. } | Phase::Recording | Phase::GivingUp | Phase::Done => FanOutState::Ending,
        }
    }

    /// The places of the targets that have no result.
    pub fn missing(&self) -> impl Iterator<Item = usize> {
        self.gathered.missing()
    }

    /// The places of the targets that have a result, with that.
    pub fn answers(&self) -> impl Iterator<Item = (usize, &Answer)> {
        self.gathered.answers()
    }

    /// The places of the targets that have failed, with what says why.
    pub fn failures(&self) -> impl Iterator<Item = (usize, &Answer)> {
        self.answers().filter(|(_, answer)| !answer.ok)
    }

    /// Tells what a message of the aggregation queue is to this fan-out.
    #[must_use]
    pub fn read(&self, message: &Message) -> Item {
        read(message, &self.manifest, &self.places, self.hold.token)
    }

    /// Whether the machine has given [`Effect::End`] or [`Effect::Abandon`].
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// When to report [`Event::TimePassed`] if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        if matches!(self.phase, Phase::Done | Phase::Deleting { .. } | Phase::Recording | Phase::GivingUp) {
            return None;
        }
        let renewal = self.manifests.renewal_due(self.renewal);
        let fence = match self.fence {
            FenceState::Sent(at) => Some(at + self.limits.fence_again),
            _ => None,
        };
        let sweep = self.may_sweep().then(|| self.checkpoints.next_timeout()).flatten();
        let deadline = self.deadline.filter(|_| self.may_close() && !self.gathered.has_all());
        let deadline = deadline.map(|deadline| deadline.at);
        let (probe, sentinel) = (self.probe_due(), self.sentinel_due());
        [renewal, fence, sweep, deadline, probe, sentinel, self.unknown_due()].into_iter().flatten().min()
    }

    /// Takes an event in, and tells what to do, in order.
    #[must_use]
    pub fn handle(&mut self, event: Event<T>, now: Time) -> Vec<Effect<T>> {
        self.step(now, |machine, out| match event {
            Event::Opened => machine.opened(now),
            Event::NeverOpened => machine.never_opened(out),
            Event::Delivered { tag, redelivered, item } => {
                machine.delivered(tag, redelivered, item, now, out);
            }
            Event::ManifestArrived { tag } => machine.manifest_arrived(tag, now, out),
            Event::Confirmed(id) => machine.confirmed(id, now, out),
            Event::TooLarge { id, most } => machine.too_large(id, most, now, out),
            Event::QueueGone => machine.lose_queue(out),
            Event::Deleted => machine.deleted(out),
            Event::ChannelLost => machine.abandon(out),
            Event::Cancel { at } => machine.cancel(at),
            Event::Stop => machine.stopping = true,
            Event::TimePassed => {}
        })
    }

    /// Takes something in, and does what has become due by it.
    fn step(&mut self, now: Time, take_in: impl FnOnce(&mut Self, &mut Vec<Effect<T>>)) -> Vec<Effect<T>> {
        let mut out = Vec::new();
        if self.phase != Phase::Done {
            take_in(self, &mut out);
            self.advance(now, &mut out);
        }
        out
    }

    /// Does what has become due, whatever the event was.
    fn advance(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        // Without a queue there is nobody who could go on: this hold does, to its end.
        let stopping = self.stopping && !self.queue_gone;
        if stopping {
            self.stop(out);
        }
        if self.phase == Phase::Gathering {
            self.send_fence(now, out);
            if self.is_emptied() {
                self.give_up(EMPTIED, Leaving::DeletesQueue, out);
            } else if !stopping {
                self.close(now, out);
                self.publish_calls(out);
                self.finalize(out);
            }
        }
        if matches!(self.phase, Phase::Gathering | Phase::Finalizing(1..)) {
            self.write_checkpoint(now, out);
            self.mark(out);
            self.renew_sentinel(now, out);
            self.park_unknown(now, out);
        }
        if matches!(self.phase, Phase::Opening | Phase::Gathering | Phase::Finalizing(_)) {
            self.renew(now, out);
            self.probe(now, out);
        }
        if self.phase == Phase::Finalizing(0) {
            self.finish(out);
        }
        self.tell_of_cancel(out);
    }

    fn publish(&mut self, pending: Pending, publication: Publication, out: &mut Vec<Effect<T>>) {
        let id = PublicationId(self.next_publication);
        self.next_publication += 1;
        self.pending.insert(id, pending);
        out.push(Effect::Publish(id, publication));
    }
}
