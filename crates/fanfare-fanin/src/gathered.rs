//! The results gathered so far: one entry per target, where each lives, and which deliveries still hold something.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fanfare_protocol::{
    CheckpointEntry, EndedBy, Ending, Manifest, RunId, TargetResultRef, TraceParent, WireTime, limits,
};

use crate::home::{CheckpointId, HeldCheckpoint, Home, Writer};
use crate::{Answer, Time};

/// How far an entry's on-target callbacks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Not published in this hold.
    Waiting,
    /// Published, and so many are not confirmed.
    Open(u16),
    /// All confirmed, or there are none.
    Confirmed,
}

/// The result of one target.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) answer: Answer,
    pub(crate) home: Home,
    pub(crate) calls: Calls,
    /// Whether a confirmed checkpoint says that the on-target callbacks are confirmed.
    pub(crate) settled: bool,
    /// Whether the broker takes no checkpoint that holds it.
    pub(crate) pinned: bool,
}

/// All results of a fan-out, and what of the queue they live in.
#[derive(Debug)]
pub(crate) struct Gathered<T> {
    entries: Vec<Option<Entry>>,
    missing: usize,
    /// Entries whose calls are not confirmed.
    uncalled: usize,
    has_calls: bool,
    /// Places whose on-target callbacks wait to be published, in the order in which they counted. May hold places that
    /// no longer wait. Each with the change by which its result came to count.
    pub(crate) to_call: VecDeque<(u64, usize)>,
    /// Places whose calls are confirmed and not settled, in that order. May hold places that were settled since. Each with the change up to
    /// which all has to be kept before a checkpoint may say so.
    pub(crate) to_settle: VecDeque<(u64, usize)>,
    pub(crate) checkpoints: BTreeMap<CheckpointId, HeldCheckpoint<T>>,
    /// The deliveries of those that live in them, and since when each is held, by place.
    plain: BTreeMap<usize, (T, Time)>,
    /// The earlier holds of which checkpoints were read.
    earlier: Vec<RunId>,
    /// How often something was read that stands for what others hold: a result that counts, in an empty place or in that of another, or
    /// a further sentinel.
    changes: u64,
    /// The last of those that put one in the place of another.
    replaced: u64,
    tally: Tally,
}

/// What the targets themselves have answered, without what a coordinator wrote in their places.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
    /// When the last of them completed.
    pub(crate) latest: Option<WireTime>,
    /// Why others were not awaited, as results that a coordinator wrote say.
    pub(crate) ended_by: Option<EndedBy>,
}

impl Tally {
    fn add(&mut self, answer: &Answer) {
        if let Some(count) = self.counts(answer) {
            *count += 1;
            self.latest = self.latest.max(Some(answer.at));
        }
        self.ended_by = self.ended_by.max(answer.ended_by);
    }

    fn remove(&mut self, answer: &Answer) {
        if let Some(count) = self.counts(answer) {
            *count -= 1;
        }
    }

    const fn counts(&mut self, answer: &Answer) -> Option<&mut usize> {
        match (answer.ended_by, answer.ok) {
            (Some(_), _) => None,
            (None, true) => Some(&mut self.succeeded),
            (None, false) => Some(&mut self.failed),
        }
    }
}

/// Ranks the sources of one key's result where a predecessor left several: a checkpoint is what it had decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Result,
    Uncalled,
    Called,
}

impl<T: Clone> Gathered<T> {
    pub(crate) fn new(manifest: &Manifest) -> Self {
        let targets = manifest.targets.len();
        Self {
            entries: std::iter::repeat_with(|| None).take(targets).collect(),
            missing: targets,
            uncalled: 0,
            has_calls: !manifest.on_target.is_empty(),
            to_call: VecDeque::new(),
            to_settle: VecDeque::new(),
            checkpoints: BTreeMap::new(),
            plain: BTreeMap::new(),
            earlier: Vec::new(),
            changes: 0,
            replaced: 0,
            tally: Tally::default(),
        }
    }

    pub(crate) fn entry(&self, place: usize) -> Option<&Entry> {
        self.entries.get(place).and_then(Option::as_ref)
    }

    fn known(&mut self, place: usize) -> &mut Entry {
        self.entries[place].as_mut().expect("only places with a result are called, settled and folded")
    }

    /// Whether every target has completed and every on-target callback is confirmed.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing == 0 && self.uncalled == 0
    }

    pub(crate) fn missing(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().enumerate().filter(|(_, entry)| entry.is_none()).map(|(place, _)| place)
    }

    pub(crate) fn answers(&self) -> impl Iterator<Item = (usize, &Answer)> {
        let answers = self.entries.iter().enumerate();
        answers.filter_map(|(place, entry)| Some((place, &entry.as_ref()?.answer)))
    }

    /// Whether a target has failed because it was not awaited any longer.
    pub(crate) fn is_missing(&self, place: usize) -> bool {
        self.entry(place).is_some_and(|entry| entry.answer.ended_by.is_some())
    }

    /// Whether every target has a result, be it one that a coordinator wrote in its place.
    pub(crate) const fn has_all(&self) -> bool {
        self.missing == 0
    }

    /// How many targets have a result.
    pub(crate) const fn responded(&self) -> usize {
        self.entries.len() - self.missing
    }

    /// All results, in the manifest's order.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        self.entries.iter().flatten().map(|entry| &entry.answer.body)
    }

    /// The spans of targets that a final callback links to, in the manifest's order.
    pub(crate) fn links(&self) -> Vec<TraceParent> {
        let first = self.entries.iter().take(limits::LINKS).flatten();
        first.filter_map(|entry| entry.answer.traceparent.as_deref().copied()).collect()
    }

    /// How it ends if no other result counts. It depends on nothing but the results.
    pub(crate) fn ending(&self) -> Ending {
        let answers = || self.entries.iter().flatten().map(|entry| &entry.answer);
        Ending {
            failed: answers().filter(|answer| !answer.ok).count(),
            missing: answers().filter(|answer| answer.ended_by.is_some()).count(),
            by: answers().filter_map(|answer| answer.ended_by).max(),
        }
    }

    /// Something was read that stands for what others hold.
    pub(crate) const fn change(&mut self) {
        self.changes += 1;
    }

    /// How often that was so.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// The place whose on-target callbacks are next, and the change up to which all has to be kept before they are published.
    pub(crate) fn next_to_call(&self) -> Option<(usize, u64)> {
        self.to_call.front().map(|(change, place)| (*place, self.since_replaced(*change)))
    }

    /// The change up to which all has to be kept where something rests on a change, and on what has been put in the place of another.
    pub(crate) fn since_replaced(&self, change: u64) -> u64 {
        self.replaced.max(change)
    }

    /// How many are to be settled, and were not yet.
    pub(crate) fn unsettled(&mut self) -> usize {
        let entries = &self.entries;
        self.to_settle.retain(|(_, place)| entries[*place].as_ref().is_some_and(|entry| !entry.settled));
        self.to_settle.len()
    }

    /// What the targets themselves have answered.
    pub(crate) const fn tally(&self) -> Tally {
        self.tally
    }

    /// Results of this run that are unacked.
    pub(crate) fn plain(&self) -> usize {
        self.plain.len()
    }

    /// Since when the result of a place is held unacked, if it is.
    pub(crate) fn plain_since(&self, place: usize) -> Option<Time> {
        self.plain.get(&place).map(|(_, since)| *since)
    }

    /// Names a checkpoint of an earlier hold.
    pub(crate) fn checkpoint_of(&mut self, hold: RunId, number: u64) -> CheckpointId {
        let known = self.earlier.iter().position(|earlier| *earlier == hold);
        let place = known.unwrap_or_else(|| {
            self.earlier.push(hold);
            self.earlier.len() - 1
        });
        let place = u32::try_from(place).expect("each of them has left a message that is held");
        CheckpointId { writer: Writer::Earlier(place), number }
    }

    /// Forgets earlier holds of which nothing is held, where they were met last.
    pub(crate) fn forget_earlier(&mut self) {
        let is_held = |place: usize| {
            let is_of = |id: &CheckpointId| matches!(id.writer, Writer::Earlier(it) if it as usize == place);
            self.checkpoints.keys().any(is_of)
        };
        let held = (0..self.earlier.len()).rev().find(|place| is_held(*place)).map_or(0, |place| place + 1);
        self.earlier.truncate(held);
    }

    /// Counts a result, unless one of its key has counted before: with the delivery that it lives in and the time since which that is
    /// held, if it lives anywhere. Returns whether it counted; if not, its delivery is not needed.
    pub(crate) fn count(&mut self, place: usize, answer: Answer, delivery: Option<(T, Time)>) -> bool {
        if self.entries[place].is_some() {
            return false;
        }
        let home = if delivery.is_some() { Home::Result } else { Home::Nowhere };
        self.plain.extend(delivery.map(|delivery| (place, delivery)));
        self.insert(place, Entry { answer, home, calls: Calls::Waiting, settled: false, pinned: false });
        true
    }

    fn insert(&mut self, place: usize, mut entry: Entry) {
        self.missing -= 1;
        self.change();
        self.tally.add(&entry.answer);
        if self.has_calls {
            self.uncalled += 1;
            self.to_call.push_back((self.changes, place));
        } else {
            entry.calls = Calls::Confirmed;
            self.to_settle.push_back((self.changes, place));
        }
        self.entries[place] = Some(entry);
    }

    /// Counts a result out of a checkpoint that another hold wrote. It overrides a result of lower rank that this hold has
    /// not acted upon. Returns the delivery that is no longer needed by that.
    pub(crate) fn count_checkpointed(
        &mut self,
        place: usize,
        written: CheckpointEntry,
        id: CheckpointId,
        called: bool,
    ) -> Option<T> {
        let rank = if called { Rank::Called } else { Rank::Uncalled };
        let CheckpointEntry { body, traceparent, .. } = written;
        let Ok(result) = TargetResultRef::from_body(&body) else { return None };
        let traceparent = traceparent.filter(|_| place < limits::LINKS);
        let answer = Answer { traceparent: traceparent.map(Box::new), ..Answer::new(body.clone(), &result) };
        let mut released = None;
        match &self.entries[place] {
            None => {
                let home = Home::Checkpoint(id);
                self.insert(
                    place,
                    Entry { answer, home, calls: Calls::Waiting, settled: false, pinned: false },
                );
            }
            Some(entry) if self.rank(entry) < rank && self.is_untouched(entry) => {
                released = self.move_home(place, Home::Checkpoint(id));
                self.tally.add(&answer);
                let before = std::mem::replace(&mut self.known(place).answer, answer);
                self.tally.remove(&before);
                self.change();
                self.replaced = self.changes;
            }
            Some(_) => return None,
        }
        self.checkpoints.get_mut(&id).expect("the checkpoint is held while its entries are counted").live +=
            1;
        if called {
            self.settle(place);
        }
        released
    }

    fn rank(&self, entry: &Entry) -> Rank {
        match &entry.home {
            Home::Checkpoint(id) => match self.checkpoints.get(id) {
                Some(held) if held.called => Rank::Called,
                // What this hold wrote and has not read back lies behind all that it reads before that.
                Some(HeldCheckpoint { tag: None, .. }) | None => Rank::Result,
                Some(_) => Rank::Uncalled,
            },
            Home::Result | Home::Nowhere => Rank::Result,
        }
    }

    fn is_untouched(&self, entry: &Entry) -> bool {
        entry.calls == Calls::Waiting || !self.has_calls
    }

    /// Gives an entry another home, and returns the delivery that nothing lives in any more.
    pub(crate) fn move_home(&mut self, place: usize, home: Home) -> Option<T> {
        match std::mem::replace(&mut self.known(place).home, home) {
            Home::Nowhere => None,
            Home::Result => self.plain.remove(&place).map(|(tag, _)| tag),
            Home::Checkpoint(id) => self.leave(id),
        }
    }

    fn leave(&mut self, id: CheckpointId) -> Option<T> {
        let held = self.checkpoints.get_mut(&id).expect("an entry's home is held");
        held.live -= 1;
        if held.live > 0 {
            return None;
        }
        // One that has not arrived yet stays listed, so that it is known when it does.
        held.tag.is_some().then(|| self.checkpoints.remove(&id)).flatten().and_then(|held| held.tag)
    }

    /// Puts results into one piece of memory, which takes less than each by itself does, and leaves no small gaps when it goes.
    pub(crate) fn join(&mut self, places: &[usize]) {
        let bodies = places.iter().filter_map(|place| self.entry(*place)).map(|entry| &entry.answer.body[..]);
        let mut joined = Bytes::from(bodies.collect::<Vec<_>>().concat());
        for place in places {
            let body = &mut self.known(*place).answer.body;
            *body = joined.split_to(body.len());
        }
    }

    /// The on-target callbacks of an entry have been published.
    pub(crate) fn begin_calls(&mut self, place: usize, calls: usize) {
        let calls = u16::try_from(calls).expect("a manifest lists fewer callbacks");
        self.known(place).calls = Calls::Open(calls);
    }

    /// One on-target callback of an entry is confirmed. Returns whether that was the last.
    pub(crate) fn confirm_call(&mut self, place: usize) -> bool {
        let entry = self.known(place);
        let Calls::Open(open) = entry.calls else { return false };
        if open > 1 {
            entry.calls = Calls::Open(open - 1);
            return false;
        }
        entry.calls = Calls::Confirmed;
        self.uncalled -= 1;
        // It was kept before it was called.
        self.to_settle.push_back((0, place));
        true
    }

    /// A checkpoint says that an entry's on-target callbacks are confirmed.
    pub(crate) fn settle(&mut self, place: usize) {
        let has_calls = self.has_calls;
        let entry = self.known(place);
        if has_calls && entry.calls != Calls::Confirmed {
            entry.calls = Calls::Confirmed;
            self.uncalled -= 1;
        }
        self.known(place).settled = true;
    }

    /// The broker takes no checkpoint that holds an entry, not even alone: it stays where it is for good.
    pub(crate) fn pin(&mut self, place: usize) {
        self.known(place).pinned = true;
    }

    /// Places whose result lives in one of these checkpoints, given in their order, in the manifest's order.
    pub(crate) fn living_in(&self, ids: &[CheckpointId]) -> Vec<usize> {
        self.places(|_, entry| matches!(&entry.home, Home::Checkpoint(id) if ids.binary_search(id).is_ok()))
    }

    /// Places whose entry answers a question with yes, in the manifest's order.
    pub(crate) fn places(&self, question: impl Fn(usize, &Entry) -> bool) -> Vec<usize> {
        let yes = |(place, entry): (usize, &Option<Entry>)| {
            entry.as_ref().is_some_and(|entry| question(place, entry)).then_some(place)
        };
        self.entries.iter().enumerate().filter_map(yes).collect()
    }

    /// Entries whose on-target callbacks are published and not all confirmed.
    pub(crate) fn open_calls(&self) -> usize {
        self.entries.iter().flatten().filter(|entry| matches!(entry.calls, Calls::Open(_))).count()
    }

    /// Takes every delivery that is still unacked, where the queue is gone: nothing lives anywhere any more.
    pub(crate) fn take_tags(&mut self) -> Vec<T> {
        self.entries.iter_mut().flatten().for_each(|entry| entry.home = Home::Nowhere);
        let plain = std::mem::take(&mut self.plain).into_values().map(|(tag, _)| tag);
        let checkpoints = std::mem::take(&mut self.checkpoints).into_values().filter_map(|held| held.tag);
        plain.chain(checkpoints).collect()
    }
}
