//! What is measured: one shape of fan-outs, and the messages that it cannot do without.

use std::{fmt, iter};

use clap::ValueEnum;
use fanfare::{Channel, Cid, Metadata, QueueNames, RunId, ServiceName, TargetKey, TargetResult, WireTime};
use fanfare_protocol::{Manifest, ManifestTarget, Source, limits};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::raw::Limits;

/// The service of every target.
pub(super) const TARGET: &str = "bench.target";
/// Final callbacks go to it.
pub(super) const ON_FINAL: &str = "bench.on-final";
/// How the names of the on-target callbacks begin.
const ON_TARGET: &str = "bench.on-target";
/// Bytes that an answer needs for its time, and an entry of a final payload for all but its answer, with room to spare.
pub(super) const ANSWER_BYTES: usize = 50;
const ENTRY_BYTES: usize = 400;
/// The widest fan-out whose final payload holds an answer of each target.
pub(super) const MOST_TARGETS: usize = limits::MESSAGE_BYTES / (ENTRY_BYTES + ANSWER_BYTES);
/// Targets that are under way at a time, and the bounds of the fan-outs that these make up.
const TARGETS_OPEN: usize = 2_000;
const LEAST_OPEN: usize = 2;
const MOST_OPEN: usize = 64;
/// A run, and a CID of the length that is drawn.
const ZEROS: &str = "00000000000000000000000000000000";

/// One shape of fan-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Case {
    /// Targets of each.
    pub(super) width: usize,
    /// Bytes of a request, and of its answer where a final payload has room for as much.
    pub(super) payload: usize,
    /// On-target callbacks.
    pub(super) on_target: usize,
    pub(super) aggregation: Aggregation,
    /// Processes that run workers.
    pub(super) workers: usize,
}

/// Where results are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Aggregation {
    /// In a queue of each fan-out's own, which is declared, consumed and deleted for it.
    PerCid,
}

impl fmt::Display for Aggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerCid => "per-cid",
        })
    }
}

/// A kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Result,
    OnTarget,
    Manifest,
    OnFinal,
}

impl Case {
    /// Fan-outs that are under way at a time.
    pub(super) fn open(&self) -> usize {
        (TARGETS_OPEN / self.width).clamp(LEAST_OPEN, MOST_OPEN)
    }

    /// Bytes of an answer.
    pub(super) fn answer(&self) -> usize {
        self.payload.min(limits::MESSAGE_BYTES / self.width - ENTRY_BYTES)
    }

    /// The names of the on-target callbacks.
    pub(super) fn on_target(&self) -> impl Iterator<Item = String> {
        (1..=self.on_target).map(on_target_name)
    }

    /// The messages of one fan-out that have to flow: manifest, final callback, and of each target its request, its result and
    /// its on-target callbacks.
    pub(super) fn messages(&self) -> impl Iterator<Item = Kind> {
        let on_target = self.on_target;
        let target = move || {
            [Kind::Request, Kind::Result].into_iter().chain(iter::repeat_n(Kind::OnTarget, on_target))
        };
        let targets = (0..self.width).flat_map(move |_| target());
        [Kind::Manifest, Kind::OnFinal].into_iter().chain(targets)
    }

    /// Aggregation queues that come and go with one fan-out.
    pub(super) const fn queues(&self) -> usize {
        match self.aggregation {
            Aggregation::PerCid => 1,
        }
    }

    /// Fan-outs per second that no Fanfare could exceed, where the broker does so many queues or so many messages a second.
    pub(super) fn limit(&self, limits: &Limits) -> f64 {
        let (queues, messages) = (self.queues() as f64, self.messages().count() as f64);
        1.0 / (queues / limits.empty_queues_per_s + messages / limits.messages_per_s)
    }

    /// The same where each queue has held a message, as it has in every fan-out. That one is measured with the queue.
    pub(super) fn limit_of_used_queues(&self, limits: &Limits) -> f64 {
        let (queues, messages) = (self.queues() as f64, self.messages().count() as f64);
        1.0 / (queues / limits.used_queues_per_s + (messages - queues) / limits.messages_per_s)
    }

    /// Bytes of a message's body.
    pub(super) fn bytes(&self, kind: Kind) -> usize {
        match kind {
            Kind::Request => self.payload,
            Kind::Result | Kind::OnTarget => self.result_bytes(),
            // An entry is a result, its key in quotes, a colon and a comma.
            Kind::OnFinal => self.width * (self.result_bytes() + key(0).as_str().len() + 4),
            Kind::Manifest => self.manifest_bytes(),
        }
    }

    fn result_bytes(&self) -> usize {
        let result = TargetResult {
            source: TARGET.to_owned(),
            target: TARGET.to_owned(),
            response: RawValue::NULL.to_owned(),
            req_ts_utc: epoch(),
            resp_ts_utc: epoch(),
            ok: true,
            exception: None,
            cid: cid(),
            ended_by: None,
        };
        result.to_body().len() - RawValue::NULL.get().len() + self.answer()
    }

    fn manifest_bytes(&self) -> usize {
        let name = |name: &str| ServiceName::new(name).expect("the names of the benchmark keep the rules");
        let run: RunId = ZEROS.parse().expect("32 hexadecimal digits are a run");
        let manifest = Manifest {
            cid: cid(),
            run,
            source: Source::new(TARGET).expect("a service's name is a source"),
            req_ts_utc: epoch(),
            channel: Channel::FanoutCall,
            targets: (0..self.width)
                .map(|place| ManifestTarget { key: key(place), service: name(TARGET) })
                .collect(),
            on_target: self.on_target().map(|callback| name(&callback)).collect(),
            on_final: vec![name(ON_FINAL)],
            reply_to: QueueNames::default().aggregation(&cid(), run).name,
            deadline_ms: Some(24 * 60 * 60 * 1000),
            deadline_utc: None,
            waiter: None,
            progress: false,
            sentinel: false,
            completion: None,
            metadata: Metadata::default(),
            traceparent: None,
        };
        manifest.encode().body.len()
    }
}

/// The name of the nth on-target callback.
pub(super) fn on_target_name(nth: usize) -> String {
    format!("{ON_TARGET}-{nth}")
}

/// The key of the target at a place.
pub(super) fn key(place: usize) -> TargetKey {
    TargetKey::new(format!("{place:05}")).expect("digits are a key")
}

fn cid() -> Cid {
    Cid::new(ZEROS).expect("digits are a CID")
}

fn epoch() -> WireTime {
    WireTime::from_timestamp(0).expect("the epoch is a time")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(width: usize, payload: usize, on_target: usize) -> Case {
        Case { width, payload, on_target, aggregation: Aggregation::PerCid, workers: 1 }
    }

    #[test]
    fn limit_counts_the_queue_and_every_message_that_has_to_flow() {
        assert_eq!(case(1, 100, 0).messages().count(), 4);
        assert_eq!(case(10, 100, 1).messages().count(), 32);
        let limits = Limits { messages_per_s: 1.0, empty_queues_per_s: 1.0, used_queues_per_s: 0.5 };
        // One second for the queue and four for the messages.
        assert!((case(1, 100, 0).limit(&limits) - 0.2).abs() < 1e-9);
        // Two for the queue with its message and three for the others.
        assert!((case(1, 100, 0).limit_of_used_queues(&limits) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn final_payload_fits_into_a_message_however_wide() {
        for width in [1, 1_000, 10_000, MOST_TARGETS] {
            let case = case(width, 1_000_000.min(limits::MESSAGE_BYTES / width), 0);
            assert!(case.bytes(Kind::OnFinal) <= limits::MESSAGE_BYTES, "{width}");
            assert!(case.answer() >= ANSWER_BYTES, "{width}");
        }
    }
}
