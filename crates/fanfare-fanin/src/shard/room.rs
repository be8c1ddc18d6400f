//! Keeps what is unacked below the window: a shard whose window is full would read nothing any more.

use std::time::Duration;

use fanfare_protocol::RunId;

use super::words::Of;
use super::{Shard, ShardEffect, ShardPublication, publish};
use crate::Time;

/// From one time that room is made to the next, so that what it writes has become effective.
const PAUSE: Duration = Duration::from_millis(250);

impl<T: Clone> Shard<T> {
    /// Whether so much is unacked that room is to be made.
    pub(super) fn needs_room(&self) -> bool {
        self.held >= 3 * self.part(4)
    }

    /// Makes room, in this order: results go into checkpoints, those first of which there are most; what has waited longest for a
    /// manifest goes to the shard's end, so that one ack will do for all of it; and so do the manifests that were held longest. What is
    /// on its way there is waited for: it takes memory twice until then, and gains nothing by being overtaken.
    pub(super) fn make_room(&mut self, now: Time, out: &mut Vec<ShardEffect<T>>) {
        if !self.needs_room() || now < self.next_room {
            return;
        }
        self.next_room = now + PAUSE;
        let excess = self.part(4);
        let mut freed = self.write_results(excess, now, out) + self.again.len();
        let moving = self.part(8).max(1);
        if freed < moving && self.unclaimed.len() > self.part(4) {
            let messages = (moving - freed).min(self.unclaimed.len() - self.part(4));
            freed += self.move_unclaimed(messages, out);
        }
        if freed == 0 {
            self.renew_oldest(self.part(16).max(1), now, out);
        }
    }

    fn write_results(&mut self, wanted: usize, now: Time, out: &mut Vec<ShardEffect<T>>) -> usize {
        let plain = self.open.iter().map(|(run, open)| (open.fan_in.plain(), *run));
        let mut largest: Vec<(usize, RunId)> = plain.filter(|(plain, _)| *plain >= 2).collect();
        largest.sort_unstable_by(|one, other| other.cmp(one));
        let mut freed = 0;
        for (plain, run) in largest {
            if freed >= wanted {
                break;
            }
            freed += plain - 1;
            self.step(run, out, |fan_in| fan_in.make_room(now));
        }
        freed
    }

    fn move_unclaimed(&mut self, messages: usize, out: &mut Vec<ShardEffect<T>>) -> usize {
        let moved = self.unclaimed.take_oldest(messages);
        let count = moved.len();
        for held in moved {
            let number = self.next_again;
            self.next_again += 1;
            self.again.insert(number, held.tag);
            publish(Of::Again(number), ShardPublication::Again(held.message), out);
        }
        count
    }

    fn renew_oldest(&mut self, count: usize, now: Time, out: &mut Vec<ShardEffect<T>>) {
        let since = self.open.iter().filter_map(|(run, open)| Some((open.fan_in.manifest_since()?, *run)));
        let mut oldest: Vec<(Time, RunId)> = since.collect();
        oldest.sort_unstable();
        for (_, run) in oldest.into_iter().take(count) {
            self.step(run, out, |fan_in| fan_in.renew_now(now));
        }
    }
}
