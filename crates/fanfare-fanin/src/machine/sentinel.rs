//! The sentinel of a queue that the fan-out has for itself, without which it has ended.

use fanfare_protocol::Fence;

use super::{FanIn, FenceState, Pending, Phase, Queue, Time};
use crate::{Effect, Publication};

impl<T: Clone> FanIn<T> {
    /// How many unacked deliveries the consumer of the aggregation queue should be given: the sentinel and its renewal take up no
    /// room of the results.
    #[must_use]
    pub fn prefetch(&self) -> u16 {
        self.limits.window.saturating_add(if self.has_sentinel() { 2 } else { 0 })
    }

    pub(super) fn has_sentinel(&self) -> bool {
        self.queue == Queue::Own && self.manifest.sentinel
    }

    pub(super) fn sentinel_arrived(&mut self, tag: T, now: Time, out: &mut Vec<Effect<T>>) {
        self.sentinel_seen = true;
        if let Some(before) = self.sentinel.arrived(tag, now) {
            self.gathered.change();
            self.ack_replaced(before, out);
        }
    }

    /// Whether the queue has lost what was in it: all that was ever there lies before this hold's fence.
    pub(super) fn is_emptied(&self) -> bool {
        self.has_sentinel() && !self.sentinel_seen && self.fence == FenceState::Passed
    }

    /// When to find out whether this hold waits for its turn, or for what the queue will never bring: a sentinel is there before the
    /// manifest, and is handed out at once.
    pub(super) fn probe_due(&self) -> Option<Time> {
        let waits = !self.read_anything && !self.probed;
        self.opened_at
            .filter(|_| waits && self.has_sentinel() && self.phase == Phase::Gathering)
            .map(|at| at + self.limits.fence_again)
    }

    /// Publishes a fence that is nobody's. Who consumes the queue acks it; where that is this hold, it is its first delivery.
    pub(super) fn probe(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.probe_due().is_some_and(|due| due <= now) {
            self.probed = true;
            self.want_fence();
            let nobodys = Fence { token: self.manifest.run };
            self.publish(Pending::Fence, Publication::Fence(nobodys), out);
        }
    }

    /// When the sentinel has been held for too long.
    pub(super) fn sentinel_due(&self) -> Option<Time> {
        let renews = matches!(self.phase, Phase::Gathering | Phase::Finalizing(1..)) && !self.queue_gone;
        self.sentinel.renewal_due(self.limits.renewal).filter(|_| renews)
    }

    pub(super) fn renew_sentinel(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.sentinel_due().is_some_and(|due| due <= now) {
            self.sentinel.begin_renewal();
            self.publish(Pending::Sentinel, Publication::Sentinel, out);
        }
    }
}
