//! What ends a fan-out before all targets have responded: a deadline, a completion policy, a cancel.
//!
//! None of them decides anything by itself. Failed results for the missing targets are appended to the queue, and count
//! when they are read, unless the targets' own come first. A hold appends each of them once; whoever takes the fan-out
//! over goes on with what it does not find in the queue, so a repetition is a duplicate like any other.

use std::time::Duration;

use fanfare_protocol::{Cancellation, EndedBy, WireTime};

use super::{FanIn, Pending, Phase, Time};
use crate::read::failure;
use crate::{Answer, Effect, Publication};

/// Failed results of one fan-out that are on their way to the queue at once, so that a wide one does not take the
/// connection for itself.
const AT_ONCE: usize = 256;

/// The fan-out is not awaited any longer.
#[derive(Debug)]
pub(super) struct Closing {
    by: EndedBy,
    /// The exception of those that are missing.
    exception: String,
    at: Option<WireTime>,
    /// The first place that was not looked at: a place is appended once.
    next: usize,
    /// Failed results that are not confirmed.
    open: usize,
}

impl Closing {
    fn new(by: EndedBy, exception: impl Into<String>, at: Option<WireTime>) -> Self {
        Self { by, exception: exception.into(), at, next: 0, open: 0 }
    }

    pub(super) const fn confirmed(&mut self) {
        self.open -= 1;
    }
}

impl<T: Clone> FanIn<T> {
    /// Whether the fan-out can be ended early. What lies before a fence may well be all that seems to be missing; but where
    /// nothing was read, there may be nothing that would ever bring the fence on.
    pub(super) fn may_close(&self) -> bool {
        let reads_backlog = self.is_fenced() && self.read_anything;
        self.phase == Phase::Gathering && !self.queue_gone && !self.stopping && !reads_backlog
    }

    /// Ends the fan-out early where something wants it to, and appends as many failed results as may be on their way.
    pub(super) fn close(&mut self, now: Time, out: &mut Vec<Effect<T>>) {
        // What has met it may be overridden by another hold's checkpoint.
        let is_met = self.completion_is_met().is_some();
        self.met_at = is_met.then(|| self.met_at.unwrap_or_else(|| self.gathered.changes()));
        if !self.may_close() {
            return;
        }
        if self.closing.is_none() && !self.gathered.has_all() {
            self.closing = self.reason_to_close(now);
        }
        if self.closing.is_some() {
            self.deadline = None;
            self.append_missing(out);
        }
    }

    fn reason_to_close(&self, now: Time) -> Option<Closing> {
        let tally = self.gathered.tally();
        if let Some(at) = self.cancel {
            return Some(Closing::new(EndedBy::Cancel, CANCELLED, Some(at)));
        }
        let met = self.completion_is_met();
        let is_kept =
            self.met_at.is_some_and(|change| self.kept.covers(self.gathered.since_replaced(change)));
        if let Some(met) = met.as_ref().filter(|_| is_kept) {
            let exception = format!("not awaited: the fan-out was complete when {met}");
            return Some(Closing::new(EndedBy::Completion, exception, tally.latest));
        }
        if self.deadline.is_some_and(|deadline| now >= deadline.at) {
            let at = self.manifest.deadline_utc;
            return Some(Closing::new(EndedBy::Deadline, self.deadline_exceeded(), at));
        }
        // A predecessor has begun to end it, for a reason that may have gone with it.
        let exception = match tally.ended_by? {
            EndedBy::Deadline => self.deadline_exceeded(),
            EndedBy::Cancel => CANCELLED.to_owned(),
            // It is known as soon as a mark is confirmed.
            EndedBy::Completion if met.is_some() => return None,
            _ => "not awaited: the fan-out was complete without it".to_owned(),
        };
        Some(Closing::new(tally.ended_by?, exception, tally.latest))
    }

    /// What completes the fan-out before all targets have responded, as far as this hold has read.
    fn completion_is_met(&self) -> Option<String> {
        let tally = self.gathered.tally();
        let policy = self.manifest.completion.as_ref()?;
        policy.met(tally.succeeded, tally.failed)
    }

    fn deadline_exceeded(&self) -> String {
        match (self.manifest.deadline_ms, self.manifest.deadline_utc) {
            // Which would read `0ns`.
            (Some(0), _) => "deadline exceeded after 0ms".to_owned(),
            (Some(milliseconds), _) => {
                format!("deadline exceeded after {:?}", Duration::from_millis(milliseconds))
            }
            (None, Some(at)) => format!("deadline exceeded at {at} UTC"),
            (None, None) => "deadline exceeded".to_owned(),
        }
    }

    fn append_missing(&mut self, out: &mut Vec<Effect<T>>) {
        let Some(mut closing) = self.closing.take() else { return };
        while closing.open < AT_ONCE && closing.next < self.manifest.targets.len() {
            let place = closing.next;
            closing.next += 1;
            if self.gathered.entry(place).is_some() {
                continue;
            }
            let by = closing.by;
            let Answer { body, .. } =
                failure(&self.manifest, place, closing.exception.clone(), closing.at, Some(by));
            closing.open += 1;
            self.publish(Pending::Missing, Publication::Missing { place, body, by }, out);
        }
        self.closing = Some(closing);
    }

    /// Tells those who asked for a cancel what has come of it, once all that it needs is in the queue.
    pub(super) fn tell_of_cancel(&mut self, out: &mut Vec<Effect<T>>) {
        let appended = |closing: &Closing| closing.open == 0 && closing.next == self.manifest.targets.len();
        let over = match self.phase {
            Phase::Gathering if self.queue_gone => true,
            Phase::Gathering => {
                self.closing.as_ref().is_some_and(appended)
                    || (self.gathered.has_all() && !self.is_fenced() && self.all_is_kept())
            }
            Phase::Finalizing(_) | Phase::Deleting { completed: true } | Phase::Recording => true,
            Phase::Opening | Phase::Deleting { completed: false } | Phase::GivingUp | Phase::Done => false,
        };
        if !over || self.cancel.take().is_none() {
            return;
        }
        let tally = self.gathered.tally();
        let responded = tally.succeeded + tally.failed;
        let missing = self.manifest.targets.len() - responded;
        let closed_by = self.closing.as_ref().map(|closing| closing.by);
        let ended_by = tally.ended_by.max(closed_by).filter(|_| missing > 0);
        out.push(Effect::Cancelled(Cancellation { responded, missing, ended_by }));
    }
}

/// The exception of a target that was not awaited because its fan-out was cancelled.
const CANCELLED: &str = "cancelled";
