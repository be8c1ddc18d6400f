//! What goes out: whatever has become due.

use fanfare_protocol::{Fence, FinalBody, FinalPayloadBuilder, Mark};

use super::{FanIn, FenceState, Pending, Phase, Queue, Time};
use crate::gathered::Calls;
use crate::{Effect, Publication, Summary};

impl<T: Clone> FanIn<T> {
    pub(super) fn send_fence(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        // Where there are no targets and no sentinel, there may never be a delivery to wait for.
        let due = match self.fence {
            FenceState::Wanted => {
                self.read_anything || (self.manifest.targets.is_empty() && !self.has_sentinel())
            }
            FenceState::Sent(at) => now >= at + self.limits.fence_again,
            FenceState::NotNeeded | FenceState::Shards | FenceState::Passed => false,
        };
        if due {
            self.fence = FenceState::Sent(now);
            self.publish(Pending::Fence, Publication::Fence(Fence { token: self.hold.token }), out);
        }
    }

    pub(super) fn may_sweep(&self) -> bool {
        matches!(self.phase, Phase::Gathering | Phase::Finalizing(_)) && !self.is_fenced() && !self.queue_gone
    }

    pub(super) fn is_fenced(&self) -> bool {
        matches!(self.fence, FenceState::Wanted | FenceState::Sent(_) | FenceState::Shards)
    }

    /// Lets go once no on-target callback is at risk of being repeated. What is past that, goes to its end.
    pub(super) fn stop(&mut self, out: &mut Vec<Effect<T>>) {
        let idle = match self.phase {
            Phase::Opening => true,
            Phase::Gathering => self.at_risk == 0 && !self.checkpoints.is_writing(),
            Phase::Finalizing(_)
            | Phase::Deleting { .. }
            | Phase::Recording
            | Phase::GivingUp
            | Phase::Done => false,
        };
        if idle {
            self.abandon(out);
        }
    }

    /// Appends a mark where something waits for what was read to be kept.
    pub(super) fn mark(&mut self, out: &mut Vec<Effect<T>>) {
        let change = self.gathered.changes();
        let wants = match self.phase {
            // Where it stops, it is for what is called to be settled.
            Phase::Gathering => !self.stopping || self.at_risk > 0,
            Phase::Finalizing(1..) => self.kept.holds_any(),
            _ => false,
        };
        if wants && self.kept.can_mark(change) && self.waits_for_kept() {
            let mark = Mark { coordinator: self.hold.token, number: self.kept.mark(change), is_padded: true };
            self.publish(Pending::Mark(mark), Publication::Mark(mark), out);
        }
    }

    fn waits_for_kept(&mut self) -> bool {
        let is_past_fence = !self.is_fenced();
        self.kept.holds_any()
            || self.gathered.has_all()
            || (is_past_fence && !self.manifest.on_target.is_empty())
            || (is_past_fence && self.checkpoints.waits_for_kept(&mut self.gathered, &self.manifest))
            || self.met_at.is_some_and(|change| !self.kept.covers(self.gathered.since_replaced(change)))
    }

    /// Whether all that counts would survive the broker's death.
    pub(super) const fn all_is_kept(&self) -> bool {
        self.kept.covers(self.gathered.changes())
    }

    /// Acks a delivery in whose place another counts, once that is kept.
    pub(super) fn ack_replaced(&mut self, tag: T, out: &mut Vec<Effect<T>>) {
        out.extend(self.kept.replaced(tag, self.gathered.changes()).map(Effect::Ack));
    }

    pub(super) fn publish_calls(&mut self, out: &mut Vec<Effect<T>>) {
        let callbacks = self.manifest.on_target.len();
        if self.is_fenced() || callbacks == 0 {
            return;
        }
        while let Some((place, change)) = self.gathered.next_to_call() {
            let entry = self.gathered.entry(place).expect("what is to be called has a result");
            if entry.calls != Calls::Waiting {
                self.gathered.to_call.pop_front();
                continue;
            }
            let fits = self.at_risk == 0 || self.at_risk + callbacks <= self.limits.calls_at_risk;
            if !fits || !self.kept.covers(change) {
                break;
            }
            let body = entry.answer.body.clone();
            self.gathered.to_call.pop_front();
            self.gathered.begin_calls(place, callbacks);
            self.at_risk += callbacks;
            for callback in 0..callbacks {
                let publication = Publication::OnTarget { callback, place, body: body.clone() };
                self.publish(Pending::OnTarget { callback, place }, publication, out);
            }
        }
    }

    pub(super) fn write_checkpoint(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.queue_gone {
            return;
        }
        let fenced = self.is_fenced();
        let Self { gathered, kept, manifest, stopping, .. } = self;
        if let Some(checkpoint) = self.checkpoints.propose(gathered, kept, manifest, fenced, *stopping, now) {
            self.publish(Pending::Checkpoint, Publication::Checkpoint(checkpoint), out);
        }
    }

    pub(super) fn finalize(&mut self, out: &mut Vec<Effect<T>>) {
        if self.is_fenced() || !self.gathered.is_complete() || !self.all_is_kept() {
            return;
        }
        self.summary.ending = self.gathered.ending();
        let waiter = self.manifest.waiter.as_ref().map(|_| None);
        let receivers: Vec<Option<usize>> =
            (0..self.manifest.on_final.len()).map(Some).chain(waiter).collect();
        self.phase = Phase::Finalizing(receivers.len());
        if receivers.is_empty() {
            return;
        }
        let body = self.final_payload();
        for callback in receivers {
            self.publish_final(callback, body.clone(), out);
        }
    }

    /// Publishes the final payload to a callback, or to the caller who waits.
    pub(super) fn publish_final(
        &mut self,
        callback: Option<usize>,
        body: FinalBody,
        out: &mut Vec<Effect<T>>,
    ) {
        let ending = self.summary.ending;
        let publication = match callback {
            Some(callback) => Publication::OnFinal { callback, body, ending, links: self.links() },
            None => Publication::Waiter { body, ending },
        };
        self.publish(Pending::OnFinal(callback), publication, out);
    }

    pub(super) fn final_payload(&self) -> FinalBody {
        let mut payload = FinalPayloadBuilder::new(&self.manifest);
        for body in self.gathered.bodies() {
            payload.push(body);
        }
        payload.finish(self.limits.large_payload_bytes, self.most_bytes)
    }

    pub(super) fn renew(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.manifests.renewal_due(self.renewal).is_some_and(|due| due <= now) {
            self.begin_renewal(out);
        }
    }

    /// When a message of an unknown type was held as long as anything may be.
    pub(super) fn unknown_due(&self) -> Option<Time> {
        self.unknown.front().map(|(since, _)| *since + self.limits.renewal)
    }

    /// Parks those: a newer version had its time to read them.
    pub(super) fn park_unknown(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        let held_for = self.limits.renewal;
        while let Some((_, tag)) = self.unknown.pop_front_if(|(since, _)| *since + held_for <= now) {
            let reason = format!(
                "unknown type: it was held for {held_for:?}, and no coordinator that knows it has taken the fan-out over; upgrade the \
                 coordinators, or find out who sends it"
            );
            out.push(Effect::Park { tag, reason });
        }
    }

    pub(super) fn begin_renewal(&mut self, out: &mut Vec<Effect<T>>) {
        self.manifests.begin_renewal();
        self.renewal = self.limits.renewal;
        self.expect_others();
        self.publish(Pending::Renewal, Publication::Renewal, out);
    }

    /// All final callbacks are confirmed.
    pub(super) fn finish(&mut self, out: &mut Vec<Effect<T>>) {
        match self.queue {
            _ if self.queue_gone => self.end(true, out),
            Queue::Own => self.delete_queue(true, out),
            Queue::Shard { record: true } => self.phase = Phase::Recording,
            Queue::Shard { record: false } => self.end(true, out),
        }
    }

    pub(super) fn delete_queue(&mut self, completed: bool, out: &mut Vec<Effect<T>>) {
        self.phase = Phase::Deleting { completed };
        out.push(Effect::DeleteQueue);
    }

    /// Acks all that is held: the manifest last where the queue is gone, so that nobody looks for it, and first in a shard,
    /// where what is left of a fan-out without its manifest is late.
    pub(super) fn end(&mut self, completed: bool, out: &mut Vec<Effect<T>>) {
        self.phase = Phase::Done;
        if self.queue != Queue::Own {
            out.extend(self.manifests.take().into_iter().map(Effect::Ack));
        }
        out.extend(self.gathered.take_tags().into_iter().map(Effect::Ack));
        out.extend(self.kept.take().into_iter().map(Effect::Ack));
        out.extend(self.checkpoints.give_up().into_iter().map(Effect::Ack));
        out.extend(self.sentinel.take().into_iter().map(Effect::Ack));
        out.extend(self.unknown.drain(..).map(|(_, tag)| Effect::Ack(tag)));
        out.extend(self.leftover.drain(..).map(Effect::Ack));
        out.extend(self.manifests.take().into_iter().map(Effect::Ack));
        let checkpoints = self.checkpoints.written();
        out.push(Effect::End(Summary { completed, checkpoints, ..self.summary }));
    }
}
