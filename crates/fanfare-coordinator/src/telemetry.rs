//! What is measured of a coordinator, through the `metrics` facade: where no recorder is installed, nothing is kept.
//! docs/telemetry.md tabulates the series.

use fanfare_fanin::{Publication, Summary};
use fanfare_protocol::header;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

const OPEN: &str = "fanfare_coordinator_fan_outs_open";
const TAKEN: &str = "fanfare_coordinator_fan_outs_taken_total";
const ENDED: &str = "fanfare_coordinator_fan_outs_ended_total";
const FAN_IN_SECONDS: &str = "fanfare_coordinator_fan_in_seconds";
const RESULTS: &str = "fanfare_coordinator_results_total";
const IGNORED: &str = "fanfare_coordinator_results_ignored_total";
const REDELIVERED: &str = "fanfare_coordinator_redelivered_total";
const CALLBACKS: &str = "fanfare_coordinator_callbacks_total";
const CHECKPOINTS: &str = "fanfare_coordinator_checkpoints_total";
const DEAD_LETTERS: &str = "fanfare_coordinator_dead_letters_total";
const PARKED: &str = "fanfare_coordinator_parked_total";

/// All series that count by one label, with the label's values.
const BY_LABEL: [(&str, &str, &[&str]); 7] = [
    (TAKEN, "hold", &["first", "again"]),
    (ENDED, "by", &["responses", "deletion", "deadline", "completion", "cancel", "another", "nothing"]),
    (RESULTS, "outcome", &["ok", "failed", "missing"]),
    (IGNORED, "reason", &["late", "duplicate", "stranger"]),
    (REDELIVERED, "kind", &["manifest", "result"]),
    (CALLBACKS, "kind", &["on_target", "on_final", "waiter"]),
    (DEAD_LETTERS, "kind", &["request", "manifest", "callback", "other"]),
];

/// Tells the recorder what the series of this crate mean, and begins them at zero.
pub fn describe_metrics() {
    describe_gauge!(OPEN, "Fan-outs that this coordinator holds");
    describe_counter!(TAKEN, "Fan-outs that this coordinator was handed, for the first time or again");
    describe_counter!(ENDED, "Holds on fan-outs that ended, by what ended them");
    describe_histogram!(
        FAN_IN_SECONDS,
        Unit::Seconds,
        "From taking a fan-out's manifest to its end, of those that ended here"
    );
    describe_counter!(RESULTS, "Results that counted");
    describe_counter!(IGNORED, "Results that did not count");
    describe_counter!(REDELIVERED, "Deliveries that the broker may have made before");
    describe_counter!(CALLBACKS, "Callback messages that are safe in a queue, or parked");
    describe_counter!(CHECKPOINTS, "Checkpoints that are safe in an aggregation queue");
    describe_counter!(DEAD_LETTERS, "Messages that the broker has given up");
    describe_counter!(PARKED, "Messages that were kept for a person to look at");
    for (name, label, values) in BY_LABEL {
        values.iter().for_each(|value| counter!(name, label => *value).increment(0));
    }
    counter!(CHECKPOINTS).increment(0);
    counter!(PARKED).increment(0);
    gauge!(OPEN).increment(0.0);
    // Registers it, so that it is there before the first fan-out ends.
    let _ = histogram!(FAN_IN_SECONDS);
}

/// A fan-out that is held, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    since: Instant,
    ended: bool,
}

impl Held {
    pub(crate) fn begin(take_over: bool) -> Self {
        gauge!(OPEN).increment(1.0);
        counter!(TAKEN, "hold" => if take_over { "again" } else { "first" }).increment(1);
        if take_over {
            counter!(REDELIVERED, "kind" => "manifest").increment(1);
        }
        Self { since: Instant::now(), ended: false }
    }

    pub(crate) const fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn ended(&mut self, summary: &Summary) {
        self.ended = true;
        let by = match (summary.completed, summary.ending.by) {
            (false, _) => "another",
            (true, None) => "responses",
            (true, Some(by)) => by.as_str(),
        };
        counter!(ENDED, "by" => by).increment(1);
        if summary.completed {
            histogram!(FAN_IN_SECONDS).record(self.since.elapsed());
        }
        let ignored =
            [("late", summary.late), ("duplicate", summary.duplicates), ("stranger", summary.strangers)];
        for (reason, results) in ignored {
            counter!(IGNORED, "reason" => reason).increment(results as u64);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        gauge!(OPEN).decrement(1.0);
        if !self.ended {
            counter!(ENDED, "by" => "nothing").increment(1);
        }
    }
}

pub(crate) fn results(outcome: &'static str, more: usize) {
    counter!(RESULTS, "outcome" => outcome).increment(more as u64);
}

/// A delivery of an aggregation queue was read.
pub(crate) fn read(redelivered: bool) {
    if redelivered {
        counter!(REDELIVERED, "kind" => "result").increment(1);
    }
}

/// Results have come for a fan-out that has ended, or never began.
pub(crate) fn late(results: usize) {
    counter!(IGNORED, "reason" => "late").increment(results as u64);
}

/// What a publication is counted as once it is safe.
pub(crate) const fn kind_of(publication: &Publication) -> Option<&'static str> {
    match publication {
        Publication::OnTarget { .. } => Some("on_target"),
        Publication::OnFinal { .. } => Some("on_final"),
        Publication::Waiter { .. } => Some("waiter"),
        Publication::Checkpoint(_) => Some("checkpoint"),
        _ => None,
    }
}

pub(crate) fn published(kind: Option<&'static str>) {
    match kind {
        Some("checkpoint") => counter!(CHECKPOINTS).increment(1),
        Some(kind) => counter!(CALLBACKS, "kind" => kind).increment(1),
        None => {}
    }
}

pub(crate) fn dead_letter(kind: &str) {
    let kind = match kind {
        header::TYPE_REQUEST => "request",
        header::TYPE_MANIFEST => "manifest",
        header::TYPE_CALLBACK => "callback",
        _ => "other",
    };
    counter!(DEAD_LETTERS, "kind" => kind).increment(1);
}

pub(crate) fn parked() {
    counter!(PARKED).increment(1);
}
