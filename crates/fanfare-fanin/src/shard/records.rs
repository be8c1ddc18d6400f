//! The records, in a shard, of fan-outs that have ended while another copy of their manifest might exist.

use std::collections::VecDeque;
use std::time::Duration;

use fanfare_protocol::{Ended, EndedRun, RunId};

use crate::Time;

/// Fan-outs in one record: some 600 KB.
const MOST_RUNS: usize = 10_000;
/// Records held beyond which they are written anew as fewer.
const MOST_HELD: usize = 100;

/// What is recorded, what is to be, and the deliveries that hold it. One record is written at a time, for all fan-outs that have
/// ended meanwhile.
#[derive(Debug)]
pub(super) struct Records<T> {
    token: RunId,
    /// How long a fan-out is recorded after its end. A stray copy of its manifest is read long before.
    kept_for: Duration,
    next: u64,
    /// Fan-outs that are to be recorded, each with a delivery that is kept until then.
    wanted: VecDeque<(RunId, Option<T>)>,
    writing: Option<Writing<T>>,
    /// Records as they were read, the oldest first.
    held: VecDeque<Held<T>>,
}

#[derive(Debug)]
struct Writing<T> {
    number: u64,
    /// Fan-outs that end by it.
    runs: Vec<RunId>,
    /// Deliveries that it replaces.
    replaces: Vec<T>,
}

#[derive(Debug)]
struct Held<T> {
    tag: T,
    since: Time,
    /// Until when each run is to be known.
    runs: Vec<(RunId, Time)>,
}

impl<T> Records<T> {
    pub(super) const fn new(token: RunId, kept_for: Duration) -> Self {
        Self { token, kept_for, next: 0, wanted: VecDeque::new(), writing: None, held: VecDeque::new() }
    }

    /// A fan-out waits to be recorded.
    pub(super) fn want(&mut self, run: RunId) {
        self.wanted.push_back((run, None));
    }

    /// A copy of the manifest of a fan-out that has ended is kept until that is recorded.
    pub(super) fn want_for(&mut self, run: RunId, copy: T) {
        self.wanted.push_back((run, Some(copy)));
    }

    /// Whether this hold has written it.
    pub(super) fn is_own(&self, record: &Ended) -> bool {
        record.coordinator == self.token
    }

    /// A record is in the queue, unacked.
    pub(super) fn read(&mut self, tag: T, record: &Ended, now: Time) {
        let latest = now + self.kept_for;
        let until = |run: &EndedRun| (run.run, latest.saturating_sub(Duration::from_millis(run.age_ms)));
        self.held.push_back(Held { tag, since: now, runs: record.ended.iter().map(until).collect() });
    }

    /// When time alone makes something due.
    pub(super) fn due(&self, renewal: Duration) -> Option<Time> {
        let oldest = self.held.front().filter(|_| self.writing.is_none())?;
        let forgotten = oldest.runs.iter().map(|(_, until)| *until).max();
        Some(forgotten.unwrap_or_default().min(oldest.since + renewal))
    }

    /// The next record to write, if one is due: of what has ended since the last one, and of what would be held for too long.
    /// Deliveries that name nobody any more are given back to be acked.
    pub(super) fn propose(&mut self, renewal: Duration, now: Time) -> (Option<(u64, Ended)>, Vec<T>) {
        let mut needless = Vec::new();
        if self.writing.is_some() {
            return (None, needless);
        }
        let wanted = self.wanted.drain(..self.wanted.len().min(MOST_RUNS));
        let (newly, copies): (Vec<RunId>, Vec<Option<T>>) = wanted.unzip();
        let mut ended: Vec<EndedRun> = newly.iter().map(|&run| EndedRun { run, age_ms: 0 }).collect();
        let mut replaces: Vec<T> = copies.into_iter().flatten().collect();
        let many = self.held.len() > MOST_HELD;
        while let Some(oldest) = self.held.front_mut() {
            oldest.runs.retain(|(_, until)| *until > now);
            let is_due = many || now >= oldest.since + renewal;
            if !oldest.runs.is_empty() && (!is_due || ended.len() + oldest.runs.len() > MOST_RUNS) {
                break;
            }
            let Some(Held { tag, runs, .. }) = self.held.pop_front() else { break };
            if runs.is_empty() {
                needless.push(tag);
                continue;
            }
            let age_ms = |until: Time| {
                u64::try_from((now + self.kept_for).saturating_sub(until).as_millis()).unwrap_or(u64::MAX)
            };
            ended.extend(runs.into_iter().map(|(run, until)| EndedRun { run, age_ms: age_ms(until) }));
            replaces.push(tag);
        }
        if ended.is_empty() {
            return (None, needless);
        }
        let number = self.next;
        self.next += 1;
        self.writing = Some(Writing { number, runs: newly, replaces });
        (Some((number, Ended { coordinator: self.token, number, ended })), needless)
    }

    /// A record is safe. Returns the fan-outs that end by it, and the deliveries that it replaces.
    pub(super) fn confirmed(&mut self, number: u64) -> (Vec<RunId>, Vec<T>) {
        match self.writing.take_if(|writing| writing.number == number) {
            Some(Writing { runs, replaces, .. }) => (runs, replaces),
            None => (Vec::new(), Vec::new()),
        }
    }
}
