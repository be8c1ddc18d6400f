//! Which results are written back to the aggregation queue, and when.
//!
//! A checkpoint lets go of deliveries: once it is confirmed, what it repeats is acked. One is written at a time, and for
//! one of five reasons, in this order: a shard needs room; a hold that has not passed its fence is about to fill its window; enough on-target
//! callbacks are confirmed that a crash would repeat (or, where there are none, enough results are held); ten checkpoints
//! of one level can be folded into one of the next; something has been held for long.

use std::time::Duration;

use bytes::Bytes;
use fanfare_protocol::{Checkpoint, CheckpointEntry, Manifest, RunId, limits};

use crate::gathered::{Calls, Entry, Gathered};
use crate::home::{CheckpointId, HeldCheckpoint, Home};
use crate::kept::Kept;
use crate::{Answer, Limits, Time};

/// Checkpoints of one level that are folded into one of the next: each result is then written again at most once for
/// every power of ten. Fewer where the window is small, of which checkpoints may take a part only.
const FOLD: usize = 10;

/// Bytes that an entry of a checkpoint takes beside its key and its result, at most, its span included.
const ENTRY_OVERHEAD_BYTES: usize = 96;

#[derive(Debug)]
pub(crate) struct Checkpoints<T> {
    hold: RunId,
    limits: Limits,
    next_number: u64,
    writing: Option<Writing<T>>,
    /// Bytes of results that one checkpoint gathers.
    most_bytes: usize,
    /// Set where folding may have become possible since it was last looked at.
    fold: bool,
    /// Set where a shard needs room: whatever is held is written, however little.
    urgent: bool,
    next_sweep: Time,
}

/// A checkpoint that is not confirmed yet.
#[derive(Debug)]
struct Writing<T> {
    id: CheckpointId,
    entries: Vec<(usize, Bytes)>,
    called: bool,
    level: u32,
    bytes: usize,
    /// Its deliveries: more than one where it had to be published again.
    arrived: Vec<T>,
}

/// What a confirmed checkpoint sets free.
#[derive(Debug)]
pub(crate) struct Freed<T> {
    /// Deliveries in which nothing lives any more.
    pub(crate) tags: Vec<T>,
    /// Entries whose on-target callbacks a crash will not repeat any more.
    pub(crate) settled: usize,
}

impl<T: Clone> Checkpoints<T> {
    pub(crate) fn new(hold: RunId, limits: Limits, now: Time) -> Self {
        Self {
            hold,
            limits,
            next_number: 0,
            writing: None,
            most_bytes: limits::CHECKPOINT_BYTES,
            fold: false,
            urgent: false,
            next_sweep: now + sweep_every(limits.renewal),
        }
    }

    /// How many were written.
    pub(crate) fn written(&self) -> u64 {
        self.next_number
    }

    /// Whether one is on its way.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// When time alone can make another one necessary.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.writing.is_none().then_some(self.next_sweep)
    }

    /// The next checkpoint to write, if one is due. `fenced` says whether this hold may still read what a predecessor has
    /// decided: its checkpoints then rank below those. `stopping` says that whatever is not settled
    /// now would be repeated.
    pub(crate) fn propose(
        &mut self,
        gathered: &mut Gathered<T>,
        kept: &Kept<T>,
        manifest: &Manifest,
        fenced: bool,
        stopping: bool,
        now: Time,
    ) -> Option<Checkpoint> {
        if self.writing.is_some() {
            return None;
        }
        let (places, called, level) = if let Some(plain) = self.make_room(gathered, fenced) {
            plain
        } else if fenced {
            self.window_is_filling(gathered)?
        } else if let Some(places) = self.enough_to_settle(gathered, kept, manifest, stopping) {
            (places, true, 0)
        } else if let Some((places, level)) = self.enough_to_fold(gathered) {
            (places, true, level)
        } else {
            self.held_for_long(gathered, kept, now)?
        };
        self.write(gathered, manifest, &places, called, level)
    }

    /// Writes all that is held, as soon as that is possible.
    pub(crate) const fn hurry(&mut self) {
        self.urgent = true;
    }

    fn make_room(&mut self, gathered: &Gathered<T>, fenced: bool) -> Option<(Vec<usize>, bool, u32)> {
        /// Fewer are not worth a message of their own.
        const FEWEST: usize = 2;
        if !self.urgent {
            return None;
        }
        for called in [true, false] {
            let places = gathered.places(|_, entry| {
                let is_called = !fenced && entry.calls == Calls::Confirmed;
                entry.home == Home::Result && !entry.pinned && is_called == called
            });
            if places.len() >= FEWEST {
                return Some((places, called, 0));
            }
        }
        self.urgent = false;
        None
    }

    /// What makes room in the window before a fence is read. What a predecessor's called checkpoints have decided stays
    /// that; its other checkpoints are left as they are, since their order counts until then.
    fn window_is_filling(&self, gathered: &Gathered<T>) -> Option<(Vec<usize>, bool, u32)> {
        let window = usize::from(self.limits.window);
        if gathered.plain() >= window / 2 {
            let places = gathered.places(|_, entry| entry.home == Home::Result && !entry.pinned);
            if !places.is_empty() {
                return Some((places, false, 0));
            }
        }
        let small = gathered.checkpoints.iter().filter(|(_, held)| self.is_small(held));
        let ids: Vec<CheckpointId> = small.map(|(id, _)| *id).collect();
        (ids.len() >= (window / 4).max(2)).then(|| (gathered.living_in(&ids), true, 1))
    }

    fn enough_to_settle(
        &self,
        gathered: &mut Gathered<T>,
        kept: &Kept<T>,
        manifest: &Manifest,
        stopping: bool,
    ) -> Option<Vec<usize>> {
        let enough = self.enough(manifest, stopping);
        if gathered.to_settle.len() < enough || gathered.unsettled() < enough {
            return None;
        }
        let is_kept = |(change, _): &&(u64, usize)| kept.covers(gathered.since_replaced(*change));
        let places: Vec<usize> =
            gathered.to_settle.iter().take_while(is_kept).map(|(_, place)| *place).collect();
        (places.len() >= enough).then_some(places)
    }

    /// How many confirmed entries are worth a checkpoint.
    fn enough(&self, manifest: &Manifest, stopping: bool) -> usize {
        match manifest.on_target.len() {
            // Without on-target callbacks, another reads again what is held here, and repeats nothing by that.
            1.. if stopping => 1,
            0 => self.limits.results_held,
            // A window that is full before would be handed nothing that could lead on.
            callbacks => {
                let at_risk = (self.limits.calls_at_risk / 2).div_ceil(callbacks);
                at_risk.min(usize::from(self.limits.window) / 2).max(1)
            }
        }
    }

    /// Whether one is due as soon as what is held is known to be kept.
    pub(crate) fn waits_for_kept(&self, gathered: &mut Gathered<T>, manifest: &Manifest) -> bool {
        let enough = self.enough(manifest, false);
        manifest.on_target.is_empty()
            && self.writing.is_none()
            && gathered.to_settle.len() >= enough
            && gathered.unsettled() >= enough
    }

    fn enough_to_fold(&mut self, gathered: &Gathered<T>) -> Option<(Vec<usize>, u32)> {
        if !std::mem::take(&mut self.fold) {
            return None;
        }
        let fold = FOLD.min(usize::from(self.limits.window) / 4).max(2);
        let of_level = |level| {
            let at =
                |(_, held): &(&CheckpointId, &HeldCheckpoint<T>)| self.is_small(held) && held.level == level;
            gathered.checkpoints.iter().filter(at).map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let levels = gathered.checkpoints.values().map(|held| held.level).max()?;
        let (level, ids) =
            (0..=levels).map(|level| (level, of_level(level))).find(|(_, ids)| ids.len() >= fold)?;
        Some((gathered.living_in(&ids), level + 1))
    }

    /// Whether a checkpoint can be folded with others.
    fn is_small(&self, held: &HeldCheckpoint<T>) -> bool {
        held.called && held.tag.is_some() && held.bytes < self.most_bytes / 2
    }

    /// Looks, every so often, for what will have been held too long by the next time but one.
    fn held_for_long(
        &mut self,
        gathered: &Gathered<T>,
        kept: &Kept<T>,
        now: Time,
    ) -> Option<(Vec<usize>, bool, u32)> {
        if now < self.next_sweep {
            return None;
        }
        let old = |since: Time| now.saturating_sub(since) >= self.limits.renewal / 2;
        let aged: Vec<CheckpointId> =
            gathered.checkpoints.iter().filter(|(_, held)| old(held.since)).map(|(id, _)| *id).collect();
        let is_old = |place: usize, entry: &Entry| match &entry.home {
            Home::Result => gathered.plain_since(place).is_some_and(old) && !entry.pinned,
            Home::Checkpoint(id) => aged.binary_search(id).is_ok(),
            Home::Nowhere => false,
        };
        let all_is_kept = kept.covers(gathered.changes());
        let is_confirmed = |entry: &Entry| entry.calls == Calls::Confirmed && (entry.settled || all_is_kept);
        let confirmed = gathered.places(|place, entry| is_confirmed(entry) && is_old(place, entry));
        if !confirmed.is_empty() {
            return Some((confirmed, true, 0));
        }
        let waiting = gathered.places(|place, entry| !is_confirmed(entry) && is_old(place, entry));
        if !waiting.is_empty() {
            return Some((waiting, false, 0));
        }
        self.next_sweep = now + sweep_every(self.limits.renewal);
        None
    }

    /// Takes as many of the places as fit into one message. The rest is proposed again when that is confirmed.
    fn write(
        &mut self,
        gathered: &mut Gathered<T>,
        manifest: &Manifest,
        places: &[usize],
        called: bool,
        level: u32,
    ) -> Option<Checkpoint> {
        let (mut bytes, mut taken) = (0, 0);
        for &place in places {
            let body = &gathered.entry(place)?.answer.body;
            // A key's control characters are excluded, so escaping at most doubles it.
            let size = body.len() + 2 * manifest.targets[place].key.as_str().len() + ENTRY_OVERHEAD_BYTES;
            if bytes + size > self.most_bytes && taken > 0 {
                break;
            }
            bytes += size;
            taken += 1;
        }
        if taken == 0 {
            return None;
        }
        let places = &places[..taken];
        gathered.join(places);
        let number = self.next_number;
        self.next_number += 1;
        let answers = || places.iter().filter_map(|place| Some((*place, &gathered.entry(*place)?.answer)));
        let written = |(place, answer): (usize, &Answer)| CheckpointEntry {
            key: manifest.targets[place].key.clone(),
            body: answer.body.clone(),
            traceparent: answer.traceparent.as_deref().copied(),
        };
        let checkpoint =
            Checkpoint { coordinator: self.hold, number, called, entries: answers().map(written).collect() };
        let entries = answers().map(|(place, answer)| (place, answer.body.clone())).collect();
        let id = CheckpointId::own(number);
        self.writing = Some(Writing { id, entries, called, level, bytes, arrived: Vec::new() });
        Some(checkpoint)
    }

    /// The checkpoint being written is safe in the queue: what it repeats has a new home.
    pub(crate) fn confirmed(&mut self, gathered: &mut Gathered<T>, now: Time) -> Freed<T> {
        let Some(written) = self.writing.take() else { return Freed { tags: Vec::new(), settled: 0 } };
        let Writing { id, entries, called, level, bytes, arrived } = written;
        let mut arrived = arrived.into_iter();
        let held = HeldCheckpoint { tag: arrived.next(), live: 0, called, level, bytes, since: now };
        gathered.checkpoints.insert(id, held);
        let mut freed = Freed { tags: arrived.collect(), settled: 0 };
        for (place, body) in entries {
            let Some(entry) = gathered.entry(place) else { continue };
            // A predecessor's checkpoint, read meanwhile, overrides what was written here.
            if entry.answer.body != body || (entry.settled && !called) {
                continue;
            }
            let was_settled = entry.settled;
            gathered.checkpoints.get_mut(&id).expect("it was inserted above").live += 1;
            freed.tags.extend(gathered.move_home(place, Home::Checkpoint(id)));
            if called {
                gathered.settle(place);
                freed.settled += usize::from(!was_settled);
            }
        }
        freed.tags.extend(release_if_empty(gathered, id));
        self.fold = true;
        freed
    }

    /// The broker takes messages of `most` bytes, and the checkpoint being written has more: the next ones hold less. What does
    /// not fit alone stays in its own delivery, and counts as settled where it was to be: a crash repeats its on-target
    /// callbacks, which nothing can prevent then. Returns how many were settled by that.
    pub(crate) fn too_large(&mut self, gathered: &mut Gathered<T>, most: usize) -> usize {
        self.most_bytes = self.most_bytes.min(most / 2);
        self.fold = true;
        let Some(Writing { entries, called, .. }) = self.writing.take() else { return 0 };
        let [(place, _)] = entries[..] else { return 0 };
        gathered.pin(place);
        let settles = called && gathered.entry(place).is_some_and(|entry| !entry.settled);
        if settles {
            gathered.settle(place);
        }
        usize::from(settles)
    }

    /// A checkpoint of this hold came back to it. Returns its delivery where that is not needed.
    pub(crate) fn arrived(&mut self, gathered: &mut Gathered<T>, id: CheckpointId, tag: T) -> Option<T> {
        self.fold = true;
        if let Some(writing) = self.writing.as_mut().filter(|writing| writing.id == id) {
            // The broker could confirm it by the ack of a copy, without writing it.
            writing.arrived.push(tag);
            return None;
        }
        match gathered.checkpoints.get_mut(&id) {
            Some(held) if held.tag.is_none() => {
                held.tag = Some(tag);
                release_if_empty(gathered, id)
            }
            _ => Some(tag),
        }
    }

    /// The queue is gone, and with it whatever was being written. Returns the deliveries that came of it.
    pub(crate) fn give_up(&mut self) -> Vec<T> {
        self.writing.take().map(|writing| writing.arrived).unwrap_or_default()
    }
}

fn release_if_empty<T: Clone>(gathered: &mut Gathered<T>, id: CheckpointId) -> Option<T> {
    let held = gathered.checkpoints.get(&id)?;
    if held.live > 0 || held.tag.is_none() {
        return None;
    }
    gathered.checkpoints.remove(&id).and_then(|held| held.tag)
}

/// With looks this far apart, what is found to be older than half of the renewal time is renewed well within all of it.
fn sweep_every(renewal: Duration) -> Duration {
    renewal / 8
}
