//! A fan-out whose results are gathered in a shard, among those of others.

use super::{FanIn, FenceState, Phase, Queue, Time};
use crate::Effect;
use crate::kept::Kept;

impl<T: Clone> FanIn<T> {
    /// Puts the fan-out into a shard. `fenced` says whether the shard's fence, which counts for it too, is still to be read.
    pub(crate) fn in_shard(self, fenced: bool) -> Self {
        Self {
            queue: Queue::Shard { record: self.hold.take_over },
            kept: Kept::all(),
            fence: if fenced { FenceState::Shards } else { FenceState::NotNeeded },
            // Its manifest came from the same queue, so this hold is the one that reads it.
            read_anything: true,
            ..self
        }
    }

    /// The shard's fence was read.
    pub(crate) fn fence_passed(&mut self, now: Time) -> Vec<Effect<T>> {
        self.step(now, |machine, _| {
            if machine.fence == FenceState::Shards {
                machine.fence = FenceState::Passed;
            }
        })
    }

    /// Whether the fan-out ends as soon as that is recorded.
    pub(crate) fn wants_record(&self) -> bool {
        self.phase == Phase::Recording
    }

    /// The end is recorded.
    pub(crate) fn recorded(&mut self, now: Time) -> Vec<Effect<T>> {
        self.step(now, |machine, out| {
            if machine.phase == Phase::Recording {
                machine.end(true, out);
            }
        })
    }

    /// Another has recorded that the fan-out has ended: this was a stray copy of its manifest.
    pub(crate) fn ended_before(&mut self, now: Time) -> Vec<Effect<T>> {
        self.step(now, |machine, out| machine.end(false, out))
    }

    /// Results that are unacked, each in its own delivery.
    pub(crate) fn plain(&self) -> usize {
        self.gathered.plain()
    }

    /// Writes what is held into checkpoints, since the shard needs room.
    pub(crate) fn make_room(&mut self, now: Time) -> Vec<Effect<T>> {
        self.step(now, |machine, _| machine.checkpoints.hurry())
    }

    /// Since when the manifest is held, where it could be renewed.
    pub(crate) fn manifest_since(&self) -> Option<Time> {
        matches!(self.phase, Phase::Gathering).then(|| self.manifests.since()).flatten()
    }

    /// Renews the manifest before its time, which moves it to the shard's end.
    pub(crate) fn renew_now(&mut self, now: Time) -> Vec<Effect<T>> {
        self.step(now, |machine, out| {
            if machine.manifest_since().is_some() {
                machine.begin_renewal(out);
            }
        })
    }
}
