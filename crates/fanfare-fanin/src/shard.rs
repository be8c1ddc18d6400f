//! The fan-outs that share one queue, from when a coordinator begins to consume it to when its channel ends.

mod fences;
mod reading;
mod records;
mod remembered;
mod room;
mod unclaimed;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fanfare_protocol::{Cid, Malformed, Message, RunId};

pub use self::remembered::Memory;
use self::unclaimed::{Held, Unclaimed};
use self::words::Of;
pub use self::words::{ShardEffect, ShardEvent, ShardPublication, ShardPublicationId};
use self::{fences::Fences, records::Records};
use crate::{Effect, Event, FanIn, Limits, Time};

/// Numbers that bound what a shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardLimits {
    /// Unacked deliveries that the shard's consumer may have; its prefetch.
    pub window: u16,
    /// How long a result waits for its manifest before one is looked for at the shard's end. It must be at least twice the
    /// time limit of the publishers, from a fan-out's first request to its manifest.
    pub patience: Duration,
    /// How long it is recorded that a fan-out has ended of whose manifest another copy may exist.
    pub recorded: Duration,
    /// Of each fan-out. Its window is what it may hold before the shard's fence is read.
    pub fan_out: Limits,
}

/// One hold on a shard: what was read from it on one channel. Where the channel is lost, nothing is done for what was held by
/// it; the broker hands the same messages out again, and another hold begins.
///
/// Each fan-out is a [`FanIn`] of its own. What is added here is what they share: the queue's window, its fence, the records of
/// those that have ended, and what has arrived for fan-outs whose manifest has not.
#[derive(Debug)]
pub struct Shard<T> {
    token: RunId,
    limits: ShardLimits,
    open: BTreeMap<RunId, Open<T>>,
    /// How many were ever opened.
    opened: u64,
    /// When time matters to which of them.
    timeouts: BTreeSet<(Time, RunId)>,
    fences: Fences,
    unclaimed: Unclaimed<T>,
    records: Records<T>,
    memory: Memory,
    /// Messages of types that this version does not know, and when each arrived.
    unknown: VecDeque<(Time, Held<T>)>,
    /// Messages that are published again, each with the delivery that it replaces.
    again: BTreeMap<u64, T>,
    next_again: u64,
    /// Unacked deliveries.
    held: usize,
    /// When room may be made again.
    next_room: Time,
    stopping: bool,
    gone: bool,
}

#[derive(Debug)]
struct Open<T> {
    fan_in: FanIn<T>,
    number: u64,
    timeout: Option<Time>,
    /// Whether its end is to be recorded, or is.
    recording: bool,
}

impl<T: Clone> Shard<T> {
    /// Begins a hold. `token` is drawn for it, and `memory` is what an earlier one has left.
    #[must_use]
    pub fn new(token: RunId, limits: ShardLimits, memory: Memory) -> Self {
        Self {
            token,
            limits,
            open: BTreeMap::new(),
            opened: 0,
            timeouts: BTreeSet::new(),
            fences: Fences::new(token),
            unclaimed: Unclaimed::new(),
            records: Records::new(token, limits.recorded),
            memory,
            unknown: VecDeque::new(),
            again: BTreeMap::new(),
            next_again: 0,
            held: 0,
            next_room: Time::ZERO,
            stopping: false,
            gone: false,
        }
    }

    /// Ends the hold, and keeps what the next one should know.
    #[must_use]
    pub fn into_memory(self) -> Memory {
        self.memory
    }

    /// Fan-outs that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Deliveries that are not acked.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// The open fan-outs with this CID, or the one of this run.
    #[must_use]
    pub fn find(&self, cid: &Cid, run: Option<RunId>) -> Vec<RunId> {
        let with_cid =
            |run: &RunId| self.open.get(run).is_some_and(|open| open.fan_in.manifest().cid == *cid);
        match run {
            Some(run) => Some(run).filter(with_cid).into_iter().collect(),
            None => self.open.keys().copied().filter(with_cid).collect(),
        }
    }

    /// An open fan-out.
    #[must_use]
    pub fn fan_in(&self, run: &RunId) -> Option<&FanIn<T>> {
        self.open.get(run).map(|open| &open.fan_in)
    }

    /// The open fan-outs.
    pub fn fan_ins(&self) -> impl Iterator<Item = &FanIn<T>> {
        self.open.values().map(|open| &open.fan_in)
    }

    /// Whether nothing is left to do after [`ShardEvent::Stop`] or [`ShardEvent::Gone`].
    #[must_use]
    pub fn is_done(&self) -> bool {
        (self.stopping || self.gone) && self.open.is_empty()
    }

    /// When to report [`ShardEvent::TimePassed`] if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&mut self) -> Option<Time> {
        let of_fan_outs = self.timeouts.first().map(|(at, _)| *at);
        if self.gone || self.stopping {
            return of_fan_outs;
        }
        let fence = self.fences.due(self.limits.fan_out.fence_again);
        let looking = self.fences.looks_for_manifests();
        let unclaimed = if looking { None } else { self.unclaimed.due(self.limits.patience) };
        let record = self.records.due(self.limits.fan_out.renewal);
        let unknown = self.unknown.front().map(|(since, _)| *since + self.limits.fan_out.renewal);
        let room = self.needs_room().then_some(self.next_room);
        [of_fan_outs, fence, unclaimed, record, unknown, room].into_iter().flatten().min()
    }

    /// Takes an event in, and adds what to do, in order.
    pub fn handle(&mut self, event: ShardEvent<T>, now: Time, out: &mut Vec<ShardEffect<T>>) {
        match event {
            ShardEvent::Manifest { tag, manifest, take_over, deadline } => {
                self.held += 1;
                if !self.stopping {
                    self.take_manifest(tag, *manifest, take_over, deadline, now, out);
                }
            }
            ShardEvent::Delivered { tag, redelivered, message } => {
                self.held += 1;
                self.take(Held { tag, redelivered, message }, now, out);
            }
            ShardEvent::Confirmed(id) => self.confirmed(id.0, now, out),
            ShardEvent::TooLarge { id, most } => self.too_large(id.0, most, now, out),
            ShardEvent::Cancel { run, at } => {
                self.step(run, out, |fan_in| fan_in.handle(Event::Cancel { at }, now));
            }
            ShardEvent::Gone => self.lose(now, out),
            ShardEvent::Stop => {
                self.stopping = true;
                self.step_all(out, |fan_in| fan_in.handle(Event::Stop, now));
            }
            ShardEvent::TimePassed => {
                let due: Vec<RunId> =
                    self.timeouts.iter().take_while(|(at, _)| *at <= now).map(|(_, run)| *run).collect();
                for run in due {
                    self.step(run, out, |fan_in| fan_in.handle(Event::TimePassed, now));
                }
            }
        }
        self.advance(now, out);
    }

    /// Does what has become due, whatever the event was.
    fn advance(&mut self, now: Time, out: &mut Vec<ShardEffect<T>>) {
        if self.gone {
            return;
        }
        let (record, needless) = self.records.propose(self.limits.fan_out.renewal, now);
        needless.into_iter().for_each(|tag| self.ack(tag, out));
        if let Some((number, ended)) = record {
            publish(Of::Record(number), ShardPublication::Ended(ended), out);
        }
        if self.stopping {
            return;
        }
        if !self.fences.looks_for_manifests()
            && self.unclaimed.due(self.limits.patience).is_some_and(|due| due <= now)
        {
            let fence = self.fences.unclaimed(now.saturating_sub(self.limits.patience), now);
            publish(Of::Fence, ShardPublication::Fence(fence), out);
        }
        if let Some(fence) = self.fences.again(self.limits.fan_out.fence_again, now) {
            publish(Of::Fence, ShardPublication::Fence(fence), out);
        }
        self.park_unknown(now, out);
        self.make_room(now, out);
    }

    fn confirmed(&mut self, of: Of, now: Time, out: &mut Vec<ShardEffect<T>>) {
        match of {
            Of::FanOut { run, opened, id } if self.is_open(run, opened) => {
                self.step(run, out, |fan_in| fan_in.handle(Event::Confirmed(id), now));
            }
            Of::Record(number) => {
                let (ended, replaced) = self.records.confirmed(number);
                replaced.into_iter().for_each(|tag| self.ack(tag, out));
                for run in ended {
                    self.step(run, out, |fan_in| fan_in.recorded(now));
                }
            }
            Of::Again(number) => {
                if let Some(tag) = self.again.remove(&number) {
                    self.ack(tag, out);
                }
            }
            Of::FanOut { .. } | Of::Fence => {}
        }
    }

    fn too_large(&mut self, of: Of, most: usize, now: Time, out: &mut Vec<ShardEffect<T>>) {
        match of {
            Of::FanOut { run, opened, id } if self.is_open(run, opened) => {
                self.step(run, out, |fan_in| fan_in.handle(Event::TooLarge { id, most }, now));
            }
            // It came from this broker. It stays where it is.
            Of::Again(number) => drop(self.again.remove(&number)),
            // A broker that takes not even these messages takes no manifest either: what they protect against cannot happen.
            Of::Record(_) => self.confirmed(of, now, out),
            Of::FanOut { .. } | Of::Fence => {}
        }
    }

    fn is_open(&self, run: RunId, opened: u64) -> bool {
        self.open.get(&run).is_some_and(|open| open.number == opened)
    }

    /// The queue is gone, and with it all that is not in this hold's hands.
    fn lose(&mut self, now: Time, out: &mut Vec<ShardEffect<T>>) {
        self.gone = true;
        self.unclaimed.clear();
        self.again.clear();
        self.step_all(out, |fan_in| fan_in.handle(Event::QueueGone, now));
    }

    fn step_all(
        &mut self,
        out: &mut Vec<ShardEffect<T>>,
        mut take: impl FnMut(&mut FanIn<T>) -> Vec<Effect<T>>,
    ) {
        let runs: Vec<RunId> = self.open.keys().copied().collect();
        for run in runs {
            self.step(run, out, &mut take);
        }
    }

    /// Lets a fan-out take something in, if it is open.
    fn step(
        &mut self,
        run: RunId,
        out: &mut Vec<ShardEffect<T>>,
        take: impl FnOnce(&mut FanIn<T>) -> Vec<Effect<T>>,
    ) {
        if let Some(open) = self.open.get_mut(&run) {
            let effects = take(&mut open.fan_in);
            self.carry_out(run, effects, None, out);
        }
    }

    /// Passes on what a fan-out wants done. `message` is the one that it was handed, if it was.
    fn carry_out(
        &mut self,
        run: RunId,
        effects: Vec<Effect<T>>,
        message: Option<&Message>,
        out: &mut Vec<ShardEffect<T>>,
    ) {
        let Some(open) = self.open.get_mut(&run) else { return };
        let (manifest, opened) = (open.fan_in.manifest(), open.number);
        let mut over = None;
        for effect in effects {
            match effect {
                Effect::Publish(id, publication) => {
                    let of = Of::FanOut { run, opened, id };
                    publish(of, ShardPublication::Of(Arc::clone(manifest), publication), out);
                }
                Effect::Ack(tag) => {
                    self.held -= 1;
                    out.push(ShardEffect::Ack(tag));
                }
                Effect::Park { tag, reason } => {
                    self.held -= 1;
                    let message = message.cloned().unwrap_or_default();
                    out.push(ShardEffect::Park { tag, message, reason });
                }
                Effect::Cancelled(cancellation) => {
                    out.push(ShardEffect::Cancelled { manifest: Arc::clone(manifest), cancellation });
                }
                Effect::End(summary) => {
                    over = Some(Some(summary));
                    self.memory.ended.insert(run);
                }
                Effect::Abandon { .. } => over = Some(None),
                Effect::DeleteQueue => unreachable!("a fan-out in a shard has no queue of its own"),
            }
        }
        if over.is_none() && open.fan_in.wants_record() && !std::mem::replace(&mut open.recording, true) {
            self.records.want(run);
        }
        let timeout = open.fan_in.next_timeout().filter(|_| over.is_none());
        if timeout != open.timeout {
            if let Some(before) = std::mem::replace(&mut open.timeout, timeout) {
                self.timeouts.remove(&(before, run));
            }
            self.timeouts.extend(timeout.map(|at| (at, run)));
        }
        if let Some(summary) = over
            && let Some(Open { fan_in, .. }) = self.open.remove(&run)
        {
            out.push(ShardEffect::Over { fan_in: Box::new(fan_in), summary });
        }
    }

    fn ack(&mut self, tag: T, out: &mut Vec<ShardEffect<T>>) {
        self.held -= 1;
        out.push(ShardEffect::Ack(tag));
    }

    fn park(&mut self, held: Held<T>, reason: Malformed, out: &mut Vec<ShardEffect<T>>) {
        self.held -= 1;
        let Held { tag, message, .. } = held;
        out.push(ShardEffect::Park { tag, message, reason: reason.0 });
    }

    /// So much of the window.
    fn part(&self, of: usize) -> usize {
        usize::from(self.limits.window) / of
    }
}

fn publish<T>(of: Of, publication: ShardPublication, out: &mut Vec<ShardEffect<T>>) {
    out.push(ShardEffect::Publish(ShardPublicationId(of), publication));
}
