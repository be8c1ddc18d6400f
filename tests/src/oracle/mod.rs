//! Tells what a fan-out owes from a log of what happened.
//!
//! Whoever runs fan-outs under faults writes down [`Record`]s: what is about to be invoked and what `invoke` returned, what
//! targets and callbacks saw, what was killed and when, and what is left in queues at the end. [`judge`] reads them and
//! finds what the guarantees forbid. It knows nothing of how the log came about: a simulation keeps it in memory, processes
//! on a real broker write it as lines of JSON, each its own file, and the files together are the log.
//!
//! How to write a log that can be judged:
//!
//! - Each invocation has a name that no other has, known before it is invoked. It travels as metadata, which every target
//!   and callback is given, and stands in every record.
//! - [`Event::Invoking`] is written before `invoke` is called, and what a target or callback saw before it answers: whoever
//!   is killed then has told of it.
//! - A target draws an execution's name, writes [`Event::Started`], and puts [`mark`] of that name into its response or its
//!   error. By that a result is known to be one of its target's own.
//! - [`Event::Disturbed`] is written before the disturbance takes effect.

mod checks;
mod history;
mod payloads;
mod record;
#[cfg(test)]
mod tests;
mod verdict;

pub use record::{Disturbance, Event, Invocation, Outcome, Plan, PlannedTarget, Record, Role, mark};
pub use verdict::{Counts, Kind, Verdict, Violation};

use self::checks::check;
use self::history::History;

/// Numbers that the guarantees name, and that a run may have configured.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// On-target callback messages that one crash of a coordinator may repeat.
    pub calls_at_risk: usize,
    /// How long it may take until whoever is disturbed notices, in milliseconds. What it publishes until then can be
    /// repeated because of a disturbance that came before.
    pub notice_ms: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { calls_at_risk: 100, notice_ms: 0 }
    }
}

/// Finds every violation in a log. Records of one millisecond are taken in the order in which they are given.
#[must_use]
pub fn judge(mut records: Vec<Record>, rules: Rules) -> Verdict {
    records.sort_by_key(|record| record.at_ms);
    let history = History::of(&records);
    let mut verdict = Verdict::default();
    check(&history, rules, &mut verdict);
    verdict
}
