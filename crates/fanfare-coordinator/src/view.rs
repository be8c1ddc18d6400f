//! What others may see of a coordinator at work: nothing here decides anything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fanfare_fanin::{Answer, Event, FanIn, Item, Summary};
use fanfare_protocol::{
    Cid, EndedBy, Manifest, RunId, ServiceName, Source, TargetKey, TargetResult, WireTime,
};

use crate::delivery::Tag;
use crate::telemetry::{self, Held};

/// Fan-outs that ended lately, and failures of targets, that are kept to be looked at.
const KEPT: usize = 100;
/// Characters of an exception that are kept.
const EXCEPTION_CHARS: usize = 500;

/// What a coordinator holds and has lately seen, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Fan-outs that it holds, the oldest invocation first.
    pub open: Vec<Progress>,
    /// Fan-outs that ended here, the latest first: 100 at most.
    pub ended: Vec<Ended>,
    /// Targets that failed, the latest first: 100 at most.
    pub failures: Vec<Failed>,
}

/// How far one fan-out has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The correlation ID.
    pub cid: Cid,
    /// The run.
    pub run: RunId,
    /// Who invoked it.
    pub source: Source,
    /// When it was invoked.
    pub invoked_at: WireTime,
    /// How many targets it has.
    pub targets: usize,
    /// How many of them have succeeded.
    pub succeeded: usize,
    /// How many have failed.
    pub failed: usize,
    /// How many are not awaited any longer.
    pub missing: usize,
}

/// One fan-out that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How far it had come.
    pub progress: Progress,
    /// When this coordinator was done with it.
    pub at: WireTime,
    /// What ended it before all targets had responded; none where they had.
    pub by: Option<EndedBy>,
}

/// One target that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The correlation ID of its fan-out.
    pub cid: Cid,
    /// Its key there.
    pub key: TargetKey,
    /// The service.
    pub service: ServiceName,
    /// When it failed, by its worker's clock.
    pub at: WireTime,
    /// Why: the first 500 characters.
    pub exception: String,
}

/// Where the fan-outs of one coordinator are seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    open: BTreeMap<RunId, Arc<Counts>>,
    ended: VecDeque<Ended>,
    failures: VecDeque<Failed>,
}

/// What is known of one fan-out, and what of it changes.
#[derive(Debug)]
struct Counts {
    /// As it was when it was taken.
    begun: Progress,
    succeeded: AtomicUsize,
    failed: AtomicUsize,
    missing: AtomicUsize,
}

impl Counts {
    fn progress(&self) -> Progress {
        Progress {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            missing: self.missing.load(Ordering::Relaxed),
            ..self.begun.clone()
        }
    }
}

impl View {
    /// Shows a fan-out for as long as what this returns lives.
    pub(crate) fn hold(&self, manifest: &Manifest, take_over: bool) -> Watched {
        let begun = Progress {
            cid: manifest.cid.clone(),
            run: manifest.run,
            source: manifest.source.clone(),
            invoked_at: manifest.req_ts_utc,
            targets: manifest.targets.len(),
            succeeded: 0,
            failed: 0,
            missing: 0,
        };
        let counts = Arc::new(Counts {
            begun,
            succeeded: AtomicUsize::default(),
            failed: AtomicUsize::default(),
            missing: AtomicUsize::default(),
        });
        self.seen().open.insert(manifest.run, Arc::clone(&counts));
        Watched { view: self.clone(), counts, held: Held::begin(take_over) }
    }

    /// Shows a target that has failed, of a fan-out in a shard.
    pub(crate) fn failed(&self, manifest: &Manifest, place: usize, answer: &Answer) {
        keep(&mut self.seen().failures, Failure::new(place, answer).seen(manifest));
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let seen = self.seen();
        let mut open: Vec<Progress> = seen.open.values().map(|counts| counts.progress()).collect();
        open.sort_by(|a, b| (a.invoked_at, &a.cid).cmp(&(b.invoked_at, &b.cid)));
        Snapshot {
            open,
            ended: seen.ended.iter().rev().cloned().collect(),
            failures: seen.failures.iter().rev().cloned().collect(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fan-out that others see, until this is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    view: View,
    counts: Arc<Counts>,
    held: Held,
}

impl Watched {
    /// Tells what a fan-in has counted up to now; `failure` is what it may have read last.
    pub(crate) fn counted<T: Clone>(&self, machine: &FanIn<T>, failure: Option<Failure>) {
        let missing = machine.responded() - machine.succeeded() - machine.failed();
        let failed = count(&self.counts.failed, "failed", machine.failed());
        count(&self.counts.succeeded, "ok", machine.succeeded());
        count(&self.counts.missing, "missing", missing);
        if let (true, Some(failure)) = (failed, failure) {
            keep(&mut self.view.seen().failures, failure.seen(machine.manifest()));
        }
    }

    pub(crate) fn ended(&mut self, summary: &Summary, at: WireTime) {
        self.held.ended(summary);
        if summary.completed {
            let ended = Ended { progress: self.counts.progress(), at, by: summary.ending.by };
            keep(&mut self.view.seen().ended, ended);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut seen = self.view.seen();
        let run = self.counts.begun.run;
        // A second hold on the same run may have begun before this one's end.
        if seen.open.get(&run).is_some_and(|counts| Arc::ptr_eq(counts, &self.counts)) {
            seen.open.remove(&run);
        }
    }
}

/// Whether there are more of them than before. A checkpoint can take the place of a result that had counted.
fn count(known: &AtomicUsize, outcome: &'static str, now: usize) -> bool {
    let before = known.swap(now, Ordering::Relaxed);
    if now > before {
        telemetry::results(outcome, now - before);
    }
    now > before
}

fn keep<T>(kept: &mut VecDeque<T>, item: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(item);
}

/// A failed result that is about to be read.
#[derive(Debug)]
pub(crate) struct Failure {
    place: usize,
    at: WireTime,
    body: bytes::Bytes,
}

impl Failure {
    /// The failure that an event brings, if it brings one.
    pub(crate) fn of(event: &Event<Tag>) -> Option<Self> {
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

    fn seen(self, manifest: &Manifest) -> Failed {
        let target = &manifest.targets[self.place];
        let exception = TargetResult::from_body(&self.body).ok().and_then(|result| result.exception);
        let exception = exception.unwrap_or_default().chars().take(EXCEPTION_CHARS).collect();
        Failed {
            cid: manifest.cid.clone(),
            key: target.key.clone(),
            service: target.service.clone(),
            at: self.at,
            exception,
        }
    }
}
