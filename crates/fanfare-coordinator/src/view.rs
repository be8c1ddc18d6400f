//! What others may see of a coordinator at work: nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fanfare_fanin::{Answer, Event, FanIn, Item, Summary};
use fanfare_protocol::{Explained, Lately, Manifest, RecentFailure, ServiceName, Totals, WireTime, limits};

use crate::delivery::Tag;
use crate::inquiry;
use crate::records::{Record, Records};
use crate::telemetry::{self, Held};

/// What the fan-outs of one coordinator have lately come to.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The latest last.
    failures: VecDeque<RecentFailure>,
    /// Each with the number of the fan-out that invoked it last.
    services: BTreeMap<ServiceName, u64>,
    taken: u64,
    totals: Totals,
    records: Records,
}

impl Seen {
    /// A fan-out that invokes these was taken.
    fn took(&mut self, services: BTreeSet<&ServiceName>) {
        self.taken += 1;
        for service in services.into_iter().take(limits::SERVICES_TOLD) {
            match self.services.get_mut(service) {
                Some(last) => *last = self.taken,
                None => _ = self.services.insert(service.clone(), self.taken),
            }
        }
        while self.services.len() > limits::SERVICES_TOLD {
            let oldest =
                self.services.iter().min_by_key(|(_, last)| **last).map(|(service, _)| service.clone());
            oldest.map(|service| self.services.remove(&service));
        }
    }

    fn failed(&mut self, failure: RecentFailure) {
        self.failures.push_back(failure);
        if self.failures.len() > limits::LATELY {
            self.failures.pop_front();
        }
    }
}

impl View {
    /// Watches a fan-out for as long as what this returns lives.
    pub(crate) fn hold(&self, manifest: &Manifest, take_over: bool) -> Watched {
        let targets = manifest.targets.iter().map(|target| &target.service);
        self.seen().took(targets.chain(&manifest.on_target).chain(&manifest.on_final).collect());
        Watched { view: self.clone(), held: Held::begin(take_over), succeeded: 0, failed: 0, missing: 0 }
    }

    /// Shows a target that has failed, of a fan-out in a shard.
    pub(crate) fn failed(&self, manifest: &Manifest, place: usize, answer: &Answer) {
        self.seen().failed(FailedResult::new(place, answer).of(manifest));
    }

    /// Those of the fan-outs that have ended lately which are wanted, the latest first. One that its task does not tell of any more
    /// is among them.
    pub(crate) fn ended(&self, wanted: impl Fn(&Record) -> bool) -> Vec<Explained> {
        let seen = self.seen();
        let ended = seen.records.iter().filter(|record| wanted(record));
        ended.map(|record| record.explained.clone()).collect()
    }

    /// What it has come to, with how fan-outs have ended.
    pub(crate) fn lately(&self) -> Lately {
        let seen = self.seen();
        let ended = seen.records.iter().take(limits::LATELY).map(|record| record.explained.status.clone());
        Lately {
            ended: ended.collect(),
            failures: seen.failures.iter().rev().cloned().collect(),
            services: seen.services.keys().cloned().collect(),
            totals: seen.totals,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fan-out that is held, and what of it was counted.
#[derive(Debug)]
pub(crate) struct Watched {
    view: View,
    held: Held,
    succeeded: usize,
    failed: usize,
    missing: usize,
}

impl Watched {
    /// Tells what a fan-in has counted up to now; `failed` is what it may have read last.
    pub(crate) fn counted<T: Clone>(&mut self, machine: &FanIn<T>, failed: Option<FailedResult>) {
        let missing = machine.responded() - machine.succeeded() - machine.failed();
        more(&mut self.missing, "missing", missing);
        let succeeded = more(&mut self.succeeded, "ok", machine.succeeded());
        let more_failed = more(&mut self.failed, "failed", machine.failed());
        if succeeded + more_failed == 0 {
            return;
        }
        let failure = failed.filter(|_| more_failed > 0).map(|failed| failed.of(machine.manifest()));
        let mut seen = self.view.seen();
        seen.totals.succeeded += succeeded as u64;
        seen.totals.failed += more_failed as u64;
        failure.into_iter().for_each(|failure| seen.failed(failure));
    }

    /// Its fan-out has ended, or was let go. Whoever has it in hand calls this before it ceases to answer for it.
    pub(crate) fn ended<T: Clone>(&mut self, machine: &FanIn<T>, summary: &Summary, at: WireTime) {
        self.held.ended(summary);
        if summary.completed {
            let record = Record::new(machine, summary.ending, at);
            let mut seen = self.view.seen();
            seen.records.push(record);
            seen.totals.fan_outs += 1;
            seen.totals.fan_in_ms +=
                u64::try_from(self.held.since().elapsed().as_millis()).unwrap_or(u64::MAX);
        }
    }
}

/// How many there are more of them than before. A checkpoint can take the place of a result that had counted.
fn more(known: &mut usize, outcome: &'static str, now: usize) -> usize {
    let more = now.saturating_sub(*known);
    *known = now;
    if more > 0 {
        telemetry::results(outcome, more);
    }
    more
}

/// A failed result that is about to be read.
#[derive(Debug)]
pub(crate) struct FailedResult {
    place: usize,
    at: WireTime,
    body: bytes::Bytes,
}

impl FailedResult {
    /// The one that an event brings, if it brings one.
    pub(crate) fn brought_by(event: &Event<Tag>) -> Option<Self> {
        match event {
            Event::Delivered { item: Item::Result { place, answer }, .. } if !answer.ok => {
                Some(Self::new(*place, answer))
            }
            _ => None,
        }
    }

    fn new(place: usize, answer: &Answer) -> Self {
        Self { place, at: answer.at, body: answer.body.clone() }
    }

    fn of(&self, manifest: &Manifest) -> RecentFailure {
        RecentFailure {
            cid: manifest.cid.clone(),
            run: manifest.run,
            at_utc: self.at,
            target: inquiry::failed_target(manifest, self.place, &self.body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_services_are_told_of_and_those_that_were_invoked_last() {
        let view = View::default();
        let first: Vec<_> =
            (0..limits::SERVICES_TOLD).map(|n| ServiceName::new(format!("first.{n}")).unwrap()).collect();
        let second = ServiceName::new("second").unwrap();
        view.seen().took(first.iter().collect());
        view.seen().took([&first[7], &second].into());
        let told = view.lately().services;
        assert_eq!(told.len(), limits::SERVICES_TOLD);
        assert!(told.contains(&first[7]) && told.contains(&second), "{told:?}");
    }
}
