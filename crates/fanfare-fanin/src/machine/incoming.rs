//! What comes in: each event's effect on what the machine knows.

use fanfare_protocol::{Checkpoint, EndedBy, Mark, WireTime};

use super::closing::Closing;
use super::{FanIn, FenceState, Leaving, Pending, Phase, Queue, Time};
use crate::home::{CheckpointId, HeldCheckpoint};
use crate::kept::Kept;
use crate::read::failure;
use crate::{Effect, Item, Publication, PublicationId};

/// Why a fan-out is given up whose queue is gone.
const NO_QUEUE: &str = "the fan-out's aggregation queue does not exist: it has completed, or its results are lost; no callback \
                        was published for this copy of the manifest";

impl<T: Clone> FanIn<T> {
    pub(super) fn delivered(
        &mut self,
        tag: T,
        redelivered: bool,
        item: Item,
        now: Time,
        out: &mut Vec<Effect<T>>,
    ) {
        self.read_anything = true;
        if matches!(self.phase, Phase::Deleting { .. }) || self.queue_gone {
            // Handed out before the queue went; acked with the rest.
            if let Item::Result { place, .. } = item
                && self.gathered.is_missing(place)
            {
                self.summary.late += 1;
            }
            self.leftover.push(tag);
            return;
        }
        if redelivered || self.is_of_another(&item) {
            self.want_fence();
        }
        match item {
            Item::Result { place, answer } => {
                let delivery = Some((tag.clone(), now));
                let own = answer.ended_by.is_none();
                if !self.gathered.count(place, answer, delivery) {
                    if own && self.gathered.is_missing(place) {
                        self.summary.late += 1;
                    } else {
                        self.summary.duplicates += 1;
                    }
                    self.ack_replaced(tag, out);
                }
            }
            Item::Checkpoint(checkpoint) => self.read_checkpoint(tag, checkpoint, now, out),
            Item::OwnCheckpoint(number) => {
                let id = CheckpointId::own(number);
                out.extend(self.checkpoints.arrived(&mut self.gathered, id, tag).map(Effect::Ack));
            }
            Item::Fence(fence) => {
                if fence.token == self.hold.token {
                    self.fence = FenceState::Passed;
                }
                out.push(Effect::Ack(tag));
            }
            Item::Mark(_) => out.extend(self.kept.read_mark(tag).map(Effect::Ack)),
            Item::Sentinel => self.sentinel_arrived(tag, now, out),
            Item::Stranger => {
                self.summary.strangers += 1;
                out.push(Effect::Ack(tag));
            }
            // They are held for a newer version to read, but must not fill the window: nothing else would be read any more.
            Item::Unknown if self.unknown.len() >= usize::from(self.limits.window) / 4 => {
                let reason = "more messages of unknown types than can be held back".to_owned();
                out.push(Effect::Park { tag, reason });
            }
            Item::Unknown => self.unknown.push_back((now, tag)),
            Item::Garbage(reason) => out.push(Effect::Park { tag, reason }),
        }
    }

    fn is_of_another(&self, item: &Item) -> bool {
        match item {
            Item::Checkpoint(_) => true,
            Item::Fence(fence) => fence.token != self.hold.token,
            _ => false,
        }
    }

    pub(super) fn want_fence(&mut self) {
        // What a shard hands out has a predecessor only if the manifest had.
        if self.queue == Queue::Own
            && self.fence == FenceState::NotNeeded
            && matches!(self.phase, Phase::Opening | Phase::Gathering)
        {
            self.fence = FenceState::Wanted;
        }
    }

    /// The manifest was redelivered, or a renewed copy goes out: unless this hold is known to consume the queue by what it
    /// has read, another may do so before it.
    pub(super) fn expect_others(&mut self) {
        if let Queue::Shard { record } = &mut self.queue {
            *record = true;
        }
        if !self.read_anything {
            self.hold.take_over = true;
            self.want_fence();
        }
    }

    fn read_checkpoint(&mut self, tag: T, checkpoint: Checkpoint, now: Time, out: &mut Vec<Effect<T>>) {
        let id = self.gathered.checkpoint_of(checkpoint.coordinator, checkpoint.number);
        // What a final payload was made of is not overridden any more, and lives in messages that were read before.
        if matches!(self.phase, Phase::Finalizing(_)) || self.gathered.checkpoints.contains_key(&id) {
            self.gathered.forget_earlier();
            self.ack_replaced(tag, out);
            return;
        }
        let bytes = checkpoint.entries.iter().map(|entry| entry.body.len()).sum();
        let (called, level) = (checkpoint.called, 0);
        let held = HeldCheckpoint { tag: Some(tag.clone()), live: 0, called, level, bytes, since: now };
        self.gathered.checkpoints.insert(id, held);
        let mut released = Vec::new();
        for entry in checkpoint.entries {
            let Some(place) = self.places.find(&self.manifest, entry.key.as_str()) else { continue };
            released.extend(self.gathered.count_checkpointed(place, entry, id, called));
        }
        if self.gathered.checkpoints.get(&id).is_some_and(|held| held.live == 0) {
            self.gathered.checkpoints.remove(&id);
            self.gathered.forget_earlier();
            released.push(tag);
        }
        for tag in released {
            self.ack_replaced(tag, out);
        }
    }

    pub(super) fn manifest_arrived(&mut self, tag: T, now: Time, out: &mut Vec<Effect<T>>) {
        self.expect_others();
        out.extend(self.manifests.arrived(tag, now).map(Effect::Ack));
    }

    pub(super) fn confirmed(&mut self, id: PublicationId, now: Time, out: &mut Vec<Effect<T>>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        match pending {
            Pending::OnTarget { place, .. } => {
                if self.gathered.confirm_call(place) && self.queue_gone {
                    self.at_risk -= self.manifest.on_target.len();
                }
            }
            Pending::OnFinal(_) => {
                if let Phase::Finalizing(open) = &mut self.phase {
                    *open -= 1;
                }
            }
            Pending::Checkpoint if self.queue_gone => {}
            Pending::Checkpoint => {
                let freed = self.checkpoints.confirmed(&mut self.gathered, now);
                self.at_risk -= freed.settled * self.manifest.on_target.len();
                out.extend(freed.tags.into_iter().map(Effect::Ack));
            }
            Pending::Missing => self.closing.iter_mut().for_each(Closing::confirmed),
            Pending::Fence => {}
            Pending::Mark(_) => out.extend(self.kept.confirmed().into_iter().map(Effect::Ack)),
            Pending::Sentinel => out.extend(self.sentinel.renewed().map(Effect::Ack)),
            Pending::Renewal => out.extend(self.manifests.renewed().map(Effect::Ack)),
            Pending::ParkedManifest(leaving) => self.given_up(leaving, out),
        }
    }

    /// The broker takes less than the protocol allows. Something smaller goes in the publication's place, and what has none
    /// stays in the messages that it was to replace.
    pub(super) fn too_large(&mut self, id: PublicationId, most: usize, now: Time, out: &mut Vec<Effect<T>>) {
        self.most_bytes = self.most_bytes.min(most);
        let Some(pending) = self.pending.remove(&id) else { return };
        match pending {
            Pending::OnTarget { callback, place } => {
                let body = self.gathered.entry(place).map_or(0, |entry| entry.answer.body.len());
                let reason =
                    format!("the result has {body} bytes, and {most} is the most that this broker takes");
                let body = failure(&self.manifest, place, reason, None, None).body;
                if body.len() <= most {
                    self.publish(pending, Publication::OnTarget { callback, place, body }, out);
                } else {
                    // Nothing that says anything would be taken.
                    self.pending.insert(id, pending);
                    self.confirmed(id, now, out);
                }
            }
            Pending::OnFinal(callback) if matches!(self.phase, Phase::Finalizing(_)) => {
                let body = self.final_payload();
                let bytes = body.largest();
                if bytes <= self.most_bytes {
                    self.publish_final(callback, body, out);
                } else {
                    let reason = format!(
                        "a message of the final payload has {bytes} bytes at least, and {most} is the most that this broker \
                         takes; raise its max_message_size and replay this manifest"
                    );
                    // In a shard they would wait in everybody's way.
                    let leaving =
                        if self.queue == Queue::Own { Leaving::LeavesResults } else { Leaving::Acks };
                    self.give_up(&reason, leaving, out);
                }
            }
            Pending::Checkpoint => {
                let settled = self.checkpoints.too_large(&mut self.gathered, most);
                self.at_risk -= settled * self.manifest.on_target.len();
            }
            // What it takes needs no padding either.
            Pending::Mark(mark) => {
                let mark = Mark { is_padded: false, ..mark };
                self.publish(Pending::Mark(mark), Publication::Mark(mark), out);
            }
            Pending::Sentinel => {
                if let Some(before) = self.sentinel.not_renewed(now) {
                    self.gathered.change();
                    self.ack_replaced(before, out);
                }
            }
            Pending::Renewal => out.extend(self.manifests.not_renewed(now).map(Effect::Ack)),
            Pending::Missing => self.closing.iter_mut().for_each(Closing::confirmed),
            Pending::OnFinal(_) | Pending::Fence => {}
            Pending::ParkedManifest(leaving) => self.given_up(leaving, out),
        }
    }

    /// The queue was deleted under this hold. Only one that has read all that a predecessor may have left goes on without
    /// what is missing: any other could contradict what that has published.
    pub(super) fn lose_queue(&mut self, out: &mut Vec<Effect<T>>) {
        match self.phase {
            Phase::Deleting { completed } => self.end(completed, out),
            // It has waited for its turn, and knows by that that the fan-out has completed.
            Phase::Gathering if self.hold.take_over && !self.read_anything => self.end(false, out),
            Phase::Gathering if self.is_fenced() || !self.read_anything => {
                self.give_up(NO_QUEUE, Leaving::Acks, out)
            }
            Phase::Gathering | Phase::Finalizing(_) => self.go_on_without_queue(out),
            Phase::Opening => self.give_up(NO_QUEUE, Leaving::Acks, out),
            Phase::Recording => self.end(true, out),
            Phase::GivingUp | Phase::Done => {}
        }
    }

    fn go_on_without_queue(&mut self, out: &mut Vec<Effect<T>>) {
        self.queue_gone = true;
        // Their acks free the channel; there is no queue that they could go back to.
        out.extend(self.sentinel.take().into_iter().map(Effect::Ack));
        out.extend(self.checkpoints.give_up().into_iter().map(Effect::Ack));
        out.extend(self.gathered.take_tags().into_iter().map(Effect::Ack));
        out.extend(self.kept.take().into_iter().map(Effect::Ack));
        self.kept = Kept::all();
        // No crash will repeat anything from now on; what is left to bound is how much is published at once.
        self.at_risk = self.gathered.open_calls() * self.manifest.on_target.len();
        let missing: Vec<usize> = self.gathered.missing().collect();
        let (latest, by) = (self.gathered.tally().latest, Some(EndedBy::Deletion));
        for place in missing {
            let reason =
                "the aggregation queue was deleted before this target's result had arrived".to_owned();
            self.gathered.count(place, failure(&self.manifest, place, reason, latest, by), None);
        }
    }

    pub(super) fn cancel(&mut self, at: WireTime) {
        self.cancel.get_or_insert(at);
    }

    pub(super) fn opened(&mut self, now: Time) {
        if self.phase == Phase::Opening {
            self.opened_at = Some(now);
            self.phase = Phase::Gathering;
        }
    }

    pub(super) fn never_opened(&mut self, out: &mut Vec<Effect<T>>) {
        if self.phase == Phase::Opening {
            self.give_up(NO_QUEUE, Leaving::Acks, out);
        }
    }

    pub(super) fn deleted(&mut self, out: &mut Vec<Effect<T>>) {
        if let Phase::Deleting { completed } = self.phase {
            self.end(completed, out);
        }
    }

    pub(super) fn give_up(&mut self, reason: &str, leaving: Leaving, out: &mut Vec<Effect<T>>) {
        self.phase = Phase::GivingUp;
        let publication = Publication::ParkedManifest { reason: reason.to_owned() };
        self.publish(Pending::ParkedManifest(leaving), publication, out);
    }

    /// The copy of the manifest is parked.
    fn given_up(&mut self, leaving: Leaving, out: &mut Vec<Effect<T>>) {
        match leaving {
            Leaving::LeavesResults => {
                self.phase = Phase::Done;
                out.extend(self.manifests.take().into_iter().map(Effect::Ack));
                out.push(Effect::Abandon { manifests: Vec::new() });
            }
            Leaving::DeletesQueue => self.delete_queue(false, out),
            Leaving::Acks => self.end(false, out),
        }
    }

    pub(super) fn abandon(&mut self, out: &mut Vec<Effect<T>>) {
        if self.queue_gone {
            // Nothing can be handed to anyone: the results are here only.
            return;
        }
        if let Phase::Deleting { .. } = self.phase {
            // The run is over, whoever reads its queue meanwhile.
            return out.push(Effect::DeleteQueue);
        }
        self.phase = Phase::Done;
        out.push(Effect::Abandon { manifests: self.manifests.take() });
    }
}
