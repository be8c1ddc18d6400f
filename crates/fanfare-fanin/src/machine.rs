use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fanfare_protocol::{Checkpoint, Fence, FinalPayloadBuilder, Manifest, Message, RunId};

use crate::checkpoints::Checkpoints;
use crate::gathered::{Calls, CheckpointId, Gathered, HeldCheckpoint, Home};
use crate::read::{failure, read};
use crate::{Effect, Event, Item, Publication, PublicationId, Summary};

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

/// Numbers that bound what a fan-in holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// On-target callbacks published without a confirmed checkpoint: what a crash can repeat. 100 is promised.
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
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_at_risk: 100,
            results_held: 1_000,
            window: 4_000,
            renewal: Duration::from_secs(10 * 60),
            fence_again: Duration::from_secs(30),
        }
    }
}

/// The fan-in of one fan-out, as one coordinator sees it from the manifest's arrival to its last ack.
#[derive(Debug)]
pub struct FanIn<T> {
    manifest: Manifest,
    /// The place of each key.
    places: BTreeMap<String, usize>,
    hold: Hold,
    limits: Limits,
    phase: Phase,
    held: Option<HeldManifest<T>>,
    manifests_seen: u64,
    fence: FenceState,
    read_anything: bool,
    queue_gone: bool,
    stopping: bool,
    gathered: Gathered<T>,
    checkpoints: Checkpoints<T>,
    /// On-target callbacks published and in no confirmed checkpoint.
    at_risk: usize,
    /// Deliveries of types that this version does not know.
    unknown: Vec<T>,
    pending: BTreeMap<PublicationId, Pending<T>>,
    next_publication: u64,
    summary: Summary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The aggregation queue is not consumed yet.
    Opening,
    /// Results are read and on-target callbacks published.
    Gathering,
    /// All targets have completed; so many final callbacks are not confirmed.
    Finalizing(usize),
    /// The queue is being deleted.
    Deleting,
    /// A copy of the manifest is being parked: the fan-out cannot go on.
    GivingUp,
    /// Nothing is left to do.
    Done,
}

#[derive(Debug)]
struct HeldManifest<T> {
    tag: T,
    number: u64,
    since: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FenceState {
    NotNeeded,
    /// Published at the first delivery, which proves that no other consumer is active.
    Wanted,
    Sent(Time),
    Passed,
}

#[derive(Debug)]
enum Pending<T> {
    OnTarget { place: usize },
    OnFinal,
    Checkpoint,
    Fence,
    Renewal { tag: T, number: u64 },
    ParkedManifest,
}

impl<T: Clone> FanIn<T> {
    /// Takes a fan-out on. `tag` is that of the manifest's delivery.
    #[must_use]
    pub fn new(manifest: Manifest, tag: T, hold: Hold, limits: Limits, now: Time) -> Self {
        let targets = manifest.targets.iter().enumerate();
        let places = targets.map(|(place, target)| (target.key.to_string(), place)).collect();
        Self {
            hold,
            limits,
            phase: Phase::Opening,
            held: Some(HeldManifest { tag, number: 0, since: now }),
            manifests_seen: 1,
            fence: if hold.take_over { FenceState::Wanted } else { FenceState::NotNeeded },
            read_anything: false,
            queue_gone: false,
            stopping: false,
            gathered: Gathered::new(&manifest),
            checkpoints: Checkpoints::new(hold.token, limits, now),
            at_risk: 0,
            unknown: Vec::new(),
            pending: BTreeMap::new(),
            next_publication: 0,
            summary: Summary::default(),
            places,
            manifest,
        }
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Tells what a message of the aggregation queue is to this fan-out.
    #[must_use]
    pub fn read(&self, message: &Message) -> Item {
        read(message, &self.manifest, &self.places)
    }

    /// Whether the machine has given [`Effect::End`] or [`Effect::Abandon`].
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// When to report [`Event::TimePassed`] if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        if matches!(self.phase, Phase::Done | Phase::Deleting | Phase::GivingUp) {
            return None;
        }
        let renewal = self.renewal_due();
        let fence = match self.fence {
            FenceState::Sent(at) => Some(at + self.limits.fence_again),
            _ => None,
        };
        let sweep = self.may_sweep().then(|| self.checkpoints.next_timeout()).flatten();
        [renewal, fence, sweep].into_iter().flatten().min()
    }

    /// Takes an event in, and tells what to do, in order.
    #[must_use]
    pub fn handle(&mut self, event: Event<T>, now: Time) -> Vec<Effect<T>> {
        let mut out = Vec::new();
        if self.phase == Phase::Done {
            return out;
        }
        match event {
            Event::Opened => self.phase = Phase::Gathering,
            Event::NeverOpened => self.give_up(&mut out),
            Event::Delivered { tag, redelivered, item } => {
                self.delivered(tag, redelivered, item, now, &mut out)
            }
            Event::ManifestArrived { tag } => self.manifest_arrived(tag, now, &mut out),
            Event::Confirmed(id) => self.confirmed(id, now, &mut out),
            Event::QueueGone => self.lose_queue(&mut out),
            Event::Deleted => self.end(true, &mut out),
            Event::ChannelLost => self.abandon(&mut out),
            Event::Stop => self.stopping = true,
            Event::TimePassed => {}
        }
        self.advance(now, &mut out);
        out
    }

    /// Does what has become due, whatever the event was.
    fn advance(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.stopping {
            self.stop(out);
        } else if self.phase == Phase::Gathering {
            self.send_fence(now, out);
            self.publish_calls(out);
            self.finalize(out);
        }
        if matches!(self.phase, Phase::Gathering | Phase::Finalizing(_)) {
            self.write_checkpoint(now, out);
        }
        if matches!(self.phase, Phase::Opening | Phase::Gathering | Phase::Finalizing(_)) {
            self.renew(now, out);
        }
        if self.phase == Phase::Finalizing(0) {
            self.finish(out);
        }
    }

    fn publish(&mut self, pending: Pending<T>, publication: Publication, out: &mut Vec<Effect<T>>) {
        let id = PublicationId(self.next_publication);
        self.next_publication += 1;
        self.pending.insert(id, pending);
        out.push(Effect::Publish(id, publication));
    }
}

/// What comes in.
impl<T: Clone> FanIn<T> {
    fn delivered(&mut self, tag: T, redelivered: bool, item: Item, now: Time, out: &mut Vec<Effect<T>>) {
        self.read_anything = true;
        if self.phase == Phase::Deleting {
            // Handed out before the queue went; acked with the rest.
            self.unknown.push(tag);
            return;
        }
        if redelivered || self.is_of_another(&item) {
            self.want_fence();
        }
        match item {
            Item::Result { place, body, ok } => {
                let home = Home::Result { tag: tag.clone(), since: now };
                if !self.gathered.count(place, body, ok, home) {
                    self.summary.duplicates += 1;
                    out.push(Effect::Ack(tag));
                }
            }
            Item::Checkpoint(checkpoint) => self.read_checkpoint(tag, checkpoint, now, out),
            Item::Fence(fence) => {
                if fence.token == self.hold.token {
                    self.fence = FenceState::Passed;
                }
                out.push(Effect::Ack(tag));
            }
            Item::Stranger => {
                self.summary.strangers += 1;
                out.push(Effect::Ack(tag));
            }
            Item::Unknown => self.unknown.push(tag),
            Item::Garbage(reason) => out.push(Effect::Park { tag, reason }),
        }
    }

    fn is_of_another(&self, item: &Item) -> bool {
        match item {
            Item::Checkpoint(checkpoint) => checkpoint.coordinator != self.hold.token,
            Item::Fence(fence) => fence.token != self.hold.token,
            _ => false,
        }
    }

    fn want_fence(&mut self) {
        if self.fence == FenceState::NotNeeded && self.phase == Phase::Gathering {
            self.fence = FenceState::Wanted;
        }
    }

    fn read_checkpoint(&mut self, tag: T, checkpoint: Checkpoint, now: Time, out: &mut Vec<Effect<T>>) {
        let id: CheckpointId = (checkpoint.coordinator, checkpoint.number);
        if id.0 == self.hold.token {
            out.extend(self.checkpoints.arrived(&mut self.gathered, id, tag).map(Effect::Ack));
            return;
        }
        if self.gathered.checkpoints.contains_key(&id) {
            out.push(Effect::Ack(tag));
            return;
        }
        let bytes = checkpoint.entries.iter().map(|entry| entry.body.len()).sum();
        let (called, level) = (checkpoint.called, 0);
        let held = HeldCheckpoint { tag: Some(tag.clone()), live: 0, called, level, bytes, since: now };
        self.gathered.checkpoints.insert(id, held);
        for entry in checkpoint.entries {
            let Some(&place) = self.places.get(entry.key.as_str()) else { continue };
            let released = self.gathered.count_checkpointed(place, entry.body, id, called);
            out.extend(released.map(Effect::Ack));
        }
        if self.gathered.checkpoints.get(&id).is_some_and(|held| held.live == 0) {
            self.gathered.checkpoints.remove(&id);
            out.push(Effect::Ack(tag));
        }
    }

    fn manifest_arrived(&mut self, tag: T, now: Time, out: &mut Vec<Effect<T>>) {
        let number = self.manifests_seen;
        self.manifests_seen += 1;
        let before = self.held.replace(HeldManifest { tag, number, since: now });
        // The one that a renewal under way will ack is left to it, so that each delivery is acked once.
        out.extend(before.filter(|held| !self.is_renewing(held.number)).map(|held| Effect::Ack(held.tag)));
    }

    fn confirmed(&mut self, id: PublicationId, now: Time, out: &mut Vec<Effect<T>>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        match pending {
            Pending::OnTarget { place } => {
                self.gathered.confirm_call(place);
            }
            Pending::OnFinal => {
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
            Pending::Fence => {}
            Pending::Renewal { tag, number } => {
                self.held = self.held.take().filter(|held| held.number != number);
                out.push(Effect::Ack(tag));
            }
            Pending::ParkedManifest => self.end(false, out),
        }
    }

    /// The queue was deleted under this hold. One that has read of it goes on without what is missing; one that has only
    /// waited for its turn knows by that that the fan-out has completed.
    fn lose_queue(&mut self, out: &mut Vec<Effect<T>>) {
        if self.phase == Phase::Deleting {
            return self.end(true, out);
        }
        if self.hold.take_over && !self.read_anything {
            return self.end(false, out);
        }
        self.queue_gone = true;
        self.fence = FenceState::Passed;
        // Their acks free the channel; there is no queue that they could go back to.
        out.extend(self.checkpoints.give_up().map(Effect::Ack));
        out.extend(self.gathered.lose_homes().into_iter().map(Effect::Ack));
        let missing: Vec<usize> = self.gathered.missing().collect();
        for place in missing {
            let reason =
                "the aggregation queue was deleted before this target's result had arrived".to_owned();
            self.gathered.count(place, failure(&self.manifest, place, reason, None), false, Home::Nowhere);
        }
    }

    fn give_up(&mut self, out: &mut Vec<Effect<T>>) {
        self.phase = Phase::GivingUp;
        let reason = "the fan-out's aggregation queue does not exist: it has completed, or its results are lost; no callback \
                      was published for this copy of the manifest";
        self.publish(Pending::ParkedManifest, Publication::ParkedManifest { reason: reason.to_owned() }, out);
    }

    fn abandon(&mut self, out: &mut Vec<Effect<T>>) {
        if self.queue_gone {
            // Nothing can be handed to anyone: the results are here only.
            return;
        }
        self.phase = Phase::Done;
        out.push(Effect::Abandon { manifests: self.take_manifests() });
    }
}

/// What goes out.
impl<T: Clone> FanIn<T> {
    fn send_fence(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        // Where there are no targets, there may never be a delivery to wait for.
        let due = match self.fence {
            FenceState::Wanted => self.read_anything || self.manifest.targets.is_empty(),
            FenceState::Sent(at) => now >= at + self.limits.fence_again,
            FenceState::NotNeeded | FenceState::Passed => false,
        };
        if due {
            self.fence = FenceState::Sent(now);
            self.publish(Pending::Fence, Publication::Fence(Fence { token: self.hold.token }), out);
        }
    }

    fn may_sweep(&self) -> bool {
        matches!(self.phase, Phase::Gathering | Phase::Finalizing(_)) && !self.is_fenced() && !self.queue_gone
    }

    fn is_fenced(&self) -> bool {
        matches!(self.fence, FenceState::Wanted | FenceState::Sent(_))
    }

    /// Lets go once no on-target callback is at risk of being repeated. What is past that, goes to its end.
    fn stop(&mut self, out: &mut Vec<Effect<T>>) {
        let idle = match self.phase {
            Phase::Opening => true,
            Phase::Gathering => self.at_risk == 0 && !self.checkpoints.is_writing(),
            Phase::Finalizing(_) | Phase::Deleting | Phase::GivingUp | Phase::Done => false,
        };
        if idle {
            self.abandon(out);
        }
    }

    fn publish_calls(&mut self, out: &mut Vec<Effect<T>>) {
        let callbacks = self.manifest.on_target.len();
        if self.is_fenced() || callbacks == 0 {
            return;
        }
        while let Some(&place) = self.gathered.to_call.front() {
            let entry = self.gathered.entry(place).expect("what is to be called has a result");
            if entry.calls != Calls::Waiting {
                self.gathered.to_call.pop_front();
                continue;
            }
            let fits = self.at_risk == 0 || self.at_risk + callbacks <= self.limits.calls_at_risk;
            if !fits && !self.queue_gone {
                break;
            }
            let body = entry.body.clone();
            self.gathered.to_call.pop_front();
            self.gathered.open_calls(place, callbacks);
            self.at_risk += callbacks;
            for callback in 0..callbacks {
                let publication = Publication::OnTarget { callback, place, body: body.clone() };
                self.publish(Pending::OnTarget { place }, publication, out);
            }
        }
    }

    fn write_checkpoint(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.queue_gone {
            return;
        }
        let fenced = self.is_fenced();
        if let Some(checkpoint) =
            self.checkpoints.propose(&mut self.gathered, &self.manifest, fenced, self.stopping, now)
        {
            self.publish(Pending::Checkpoint, Publication::Checkpoint(checkpoint), out);
        }
    }

    fn finalize(&mut self, out: &mut Vec<Effect<T>>) {
        if self.is_fenced() || !self.gathered.is_complete() {
            return;
        }
        let failed = self.gathered.failed();
        self.summary.failed = failed;
        let waits = self.manifest.waiter.is_some();
        let callbacks = self.manifest.on_final.len();
        self.phase = Phase::Finalizing(callbacks + usize::from(waits));
        if callbacks == 0 && !waits {
            return;
        }
        let body = self.final_payload();
        for callback in 0..callbacks {
            self.publish(
                Pending::OnFinal,
                Publication::OnFinal { callback, body: body.clone(), failed },
                out,
            );
        }
        if waits {
            self.publish(Pending::OnFinal, Publication::Waiter { body, failed }, out);
        }
    }

    fn final_payload(&self) -> Bytes {
        let mut payload = FinalPayloadBuilder::new(&self.manifest);
        for body in self.gathered.bodies() {
            payload.push(body).expect("a result that counted is JSON");
        }
        payload.finish()
    }

    fn renewal_due(&self) -> Option<Time> {
        let held = self.held.as_ref().filter(|held| !self.is_renewing(held.number))?;
        Some(held.since + self.limits.renewal)
    }

    fn is_renewing(&self, manifest: u64) -> bool {
        self.pending
            .values()
            .any(|pending| matches!(pending, Pending::Renewal { number, .. } if *number == manifest))
    }

    fn renew(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        if self.renewal_due().is_none_or(|due| now < due) {
            return;
        }
        let held = self.held.as_ref().expect("a renewal is due only for what is held");
        let pending = Pending::Renewal { tag: held.tag.clone(), number: held.number };
        self.publish(pending, Publication::Renewal, out);
    }

    /// All final callbacks are confirmed.
    fn finish(&mut self, out: &mut Vec<Effect<T>>) {
        if self.queue_gone {
            self.end(true, out);
        } else {
            self.phase = Phase::Deleting;
            out.push(Effect::DeleteQueue);
        }
    }

    /// Acks all that is held, the manifest last.
    fn end(&mut self, completed: bool, out: &mut Vec<Effect<T>>) {
        self.phase = Phase::Done;
        out.extend(self.gathered.take_tags().into_iter().map(Effect::Ack));
        out.extend(self.checkpoints.give_up().map(Effect::Ack));
        out.extend(std::mem::take(&mut self.unknown).into_iter().map(Effect::Ack));
        out.extend(self.take_manifests().into_iter().map(Effect::Ack));
        let checkpoints = self.checkpoints.written();
        out.push(Effect::End(Summary { completed, checkpoints, ..self.summary }));
    }

    fn take_manifests(&mut self) -> Vec<T> {
        let held = self.held.take();
        let renewing = std::mem::take(&mut self.pending).into_values().filter_map(|pending| match pending {
            Pending::Renewal { tag, number } if held.as_ref().is_none_or(|held| held.number != number) => {
                Some(tag)
            }
            _ => None,
        });
        let mut manifests: Vec<T> = renewing.collect();
        manifests.extend(held.map(|held| held.tag));
        manifests
    }
}
