//! What is read in a shard, and to which fan-out it belongs.

use std::sync::Arc;

use fanfare_protocol::{Ended, Fence, Malformed, Manifest, RunId, header};

use super::unclaimed::Held;
use super::words::Of;
use super::{Open, Shard, ShardEffect, ShardPublication, publish};
use crate::read::why_no_results;
use crate::{Deadline, Event, FanIn, Hold, Item, Time};

impl<T: Clone> Shard<T> {
    /// Parks messages of unknown types that were held as long as anything may be: a newer version had its time to read them.
    pub(super) fn park_unknown(&mut self, now: Time, out: &mut Vec<ShardEffect<T>>) {
        let held_for = self.limits.fan_out.renewal;
        while let Some((_, held)) = self.unknown.pop_front_if(|(since, _)| *since + held_for <= now) {
            let reason = format!(
                "unknown type {:?}: it was held for {held_for:?}, and no coordinator that knows it has taken the shard over; \
                 upgrade the coordinators, or find out who sends it",
                held.message.kind()
            );
            self.park(held, Malformed(reason), out);
        }
    }

    pub(super) fn take_manifest(
        &mut self,
        tag: T,
        manifest: Manifest,
        take_over: bool,
        deadline: Option<Deadline>,
        now: Time,
        out: &mut Vec<ShardEffect<T>>,
    ) {
        let run = manifest.run;
        if self.memory.ended.contains(&run) {
            if !take_over {
                return self.ack(tag, out);
            }
            // Whoever held this may not know of the end, and renew it before he hears that it was taken from him. That copy may come to
            // one who knows nothing of it either.
            return self.records.want_for(run, tag);
        }
        if self.open.contains_key(&run) {
            return self.step(run, out, |fan_in| fan_in.handle(Event::ManifestArrived { tag }, now));
        }
        let fenced = take_over && !self.fences.is_passed();
        if fenced && let Some(fence) = self.fences.take_over(now) {
            publish(Of::Fence, ShardPublication::Fence(fence), out);
        }
        let hold = Hold { token: self.token, take_over };
        let fan_in = FanIn::new(manifest, tag, hold, self.limits.fan_out, now);
        let fan_in = fan_in.with_deadline(deadline, now).in_shard(fenced);
        self.open.insert(run, Open { fan_in, number: self.opened, timeout: None, recording: false });
        self.opened += 1;
        self.step(run, out, |fan_in| fan_in.handle(Event::Opened, now));
        for held in self.unclaimed.claim(&run) {
            self.deliver(run, held, now, out);
        }
    }

    /// Finds out what a message is, and to whom.
    pub(super) fn take(&mut self, held: Held<T>, now: Time, out: &mut Vec<ShardEffect<T>>) {
        match (held.message.kind(), held.message.run()) {
            (header::TYPE_FENCE, _) => match Fence::decode(&held.message) {
                Ok(fence) => self.read_fence(held.tag, fence, now, out),
                Err(reason) => self.park(held, reason, out),
            },
            (header::TYPE_ENDED, _) => match Ended::decode(&held.message) {
                Ok(record) => self.read_record(held.tag, &record, now, out),
                Err(reason) => self.park(held, reason, out),
            },
            (header::TYPE_RESULT | header::TYPE_CHECKPOINT | header::TYPE_SENTINEL, run) => match run {
                Ok(run) => self.deliver(run, held, now, out),
                Err(reason) => self.park(held, reason, out),
            },
            (header::TYPE_RESULTS, _) => {
                let reason = why_no_results(&held.message);
                self.park(held, reason, out);
            }
            // They are held for a newer version to read, but must not fill the window.
            (kind, _) if kind.starts_with("fanfare.") && self.unknown.len() < self.part(4) => {
                self.unknown.push_back((now, held));
            }
            _ => {
                let reason = held.message.mistyped("does not belong into a shard");
                self.park(held, Malformed(reason), out);
            }
        }
    }

    /// Hands a message to its fan-out, or keeps it until that is there.
    fn deliver(&mut self, run: RunId, held: Held<T>, now: Time, out: &mut Vec<ShardEffect<T>>) {
        if let Some(open) = self.open.get_mut(&run) {
            let Held { tag, redelivered, message } = held;
            let item = open.fan_in.read(&message);
            let failed = open.fan_in.failed();
            let failure = match &item {
                Item::Result { place, answer } if !answer.ok => Some((*place, answer.clone())),
                _ => None,
            };
            let effects = open.fan_in.handle(Event::Delivered { tag, redelivered, item }, now);
            if let Some((place, answer)) = failure.filter(|_| open.fan_in.failed() > failed) {
                let manifest = Arc::clone(open.fan_in.manifest());
                out.push(ShardEffect::Failed { manifest, place, answer });
            }
            self.carry_out(run, effects, Some(&message), out);
        } else if self.memory.ended.contains(&run) || self.memory.unclaimed.contains(&run) {
            self.ack(held.tag, out);
            out.push(ShardEffect::Dropped { run, messages: 1 });
        } else if !self.stopping {
            self.unclaimed.push(run, held, now);
        }
    }

    fn read_fence(&mut self, tag: T, fence: Fence, now: Time, out: &mut Vec<ShardEffect<T>>) {
        self.ack(tag, out);
        let proof = self.fences.read(fence);
        if proof.take_over {
            self.step_all(out, |fan_in| fan_in.fence_passed(now));
        }
        // One that stops takes no manifests any more.
        let Some(since) = proof.unclaimed_since.filter(|_| !self.stopping) else { return };
        for (run, messages) in self.unclaimed.take_until(since) {
            self.memory.unclaimed.insert(run);
            let dropped = messages.len();
            messages.into_iter().for_each(|held| self.ack(held.tag, out));
            if dropped > 0 {
                out.push(ShardEffect::Dropped { run, messages: dropped });
            }
        }
    }

    fn read_record(&mut self, tag: T, record: &Ended, now: Time, out: &mut Vec<ShardEffect<T>>) {
        self.records.read(tag, record, now);
        if self.records.is_own(record) {
            return;
        }
        for ended in &record.ended {
            let run = ended.run;
            self.memory.ended.insert(run);
            self.step(run, out, |fan_in| fan_in.ended_before(now));
            self.drop_unclaimed(run, out);
        }
    }

    fn drop_unclaimed(&mut self, run: RunId, out: &mut Vec<ShardEffect<T>>) {
        self.unclaimed.claim(&run).into_iter().for_each(|held| self.ack(held.tag, out));
    }
}
