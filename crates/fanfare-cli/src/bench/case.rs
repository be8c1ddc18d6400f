//! What is measured: one shape of fan-outs, and the messages that it cannot do without.

use std::iter;

use bytes::Bytes;
use fanfare::{Channel, Cid, Metadata, QueueNames, RunId, ServiceName, TargetKey, TargetResult, WireTime};
use fanfare_protocol::{
    Callback, CallbackKind, Ending, Manifest, ManifestTarget, Message, QueueSpec, ReplyAddress, Request,
    Source, TargetOf, limits,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::raw::Limits;
use crate::configuration::Aggregation;

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

/// One shape of fan-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Case {
    /// Where results are gathered.
    pub(super) aggregation: Aggregation,
    /// Targets of each.
    pub(super) width: usize,
    /// Bytes of a request, and of its answer where a final payload has room for as much.
    pub(super) payload: usize,
    /// On-target callbacks.
    pub(super) on_target: usize,
    /// Processes that run workers.
    pub(super) workers: usize,
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

    /// The queue that results go to in one of several places: the first is a fan-out's own, or a shard.
    pub(super) fn results(&self, names: &QueueNames, place: usize) -> QueueSpec {
        match self.aggregation {
            Aggregation::PerCid => names.aggregation(&cid(place), run()),
            Aggregation::Shared => names.shard(u32::try_from(place).unwrap_or(u32::MAX)),
        }
    }

    /// Fan-outs per second that no Fanfare could exceed, where the broker does so many messages a second, and so many queues
    /// where each fan-out has one.
    pub(super) fn limit(&self, limits: &Limits) -> f64 {
        let queue = limits.queues.map_or(0.0, |queues| 1.0 / queues.empty_per_s);
        1.0 / (queue + self.messages().count() as f64 / limits.bare.messages_per_s)
    }

    /// The same where each queue has held a message, as it has in every fan-out. That one is measured with the queue.
    pub(super) fn limit_of_used_queues(&self, limits: &Limits) -> f64 {
        let Some(queues) = limits.queues else { return self.limit(limits) };
        1.0 / (1.0 / queues.used_per_s + (self.messages().count() - 1) as f64 / limits.bare.messages_per_s)
    }

    /// Fan-outs per second where its messages have the properties and headers that the protocol gives them.
    pub(super) fn limit_of_labelled(&self, limits: &Limits) -> f64 {
        self.limit(&Limits { bare: limits.labelled, ..*limits })
    }

    /// Bytes of a message's body.
    pub(super) fn bytes(&self, kind: Kind) -> usize {
        match kind {
            Kind::Request => self.payload,
            Kind::Result | Kind::OnTarget => self.result_bytes(),
            // An entry is a result, its key in quotes, a colon and a comma.
            Kind::OnFinal => self.width * (self.result_bytes() + key(0).as_str().len() + 4),
            Kind::Manifest => self.sample(Kind::Manifest).body.len(),
        }
    }

    fn result_bytes(&self) -> usize {
        self.sample(Kind::Result).body.len() - RawValue::NULL.get().len() + self.answer()
    }

    /// A message of a kind as the protocol has it, but for what the case puts into its body.
    pub(super) fn sample(&self, kind: Kind) -> Message {
        let reply_to = self.results(&QueueNames::default(), 0).name;
        match kind {
            Kind::Request => {
                let target = TargetOf { parallel: false, key: key(0), place: 0, reply_to };
                let (cid, run, source, service) = (cid(0), run(), source(), name(TARGET));
                let (requested_at, metadata, body) = (epoch(), Metadata::default(), Bytes::new());
                let target = Some(target);
                Request { cid, run, source, service, requested_at, metadata, body, traceparent: None, target }
                    .encode()
            }
            Kind::Result => {
                let result = TargetResult {
                    source: TARGET.to_owned(),
                    target: TARGET.to_owned(),
                    response: RawValue::NULL.to_owned(),
                    req_ts_utc: epoch(),
                    resp_ts_utc: epoch(),
                    ok: true,
                    exception: None,
                    cid: cid(0),
                    ended_by: None,
                };
                let message_id = format!("{}/0", cid(0)).into();
                let to = ReplyAddress {
                    queue: reply_to.into(),
                    cid: cid(0),
                    run: run(),
                    key: Some(key(0)),
                    message_id,
                };
                TargetResult::message(result.to_body(), &to, epoch())
            }
            Kind::Manifest => self.manifest().encode(),
            Kind::OnTarget => {
                let kind = CallbackKind::OnTarget { callback: &name(&on_target_name(1)), place: 0 };
                Callback { manifest: &self.manifest(), kind, body: Bytes::new() }.encode()
            }
            Kind::OnFinal => {
                let kind =
                    CallbackKind::OnFinal { callback: Some(&name(ON_FINAL)), ending: Ending::default() };
                Callback { manifest: &self.manifest(), kind, body: Bytes::new() }.encode()
            }
        }
    }

    fn manifest(&self) -> Manifest {
        Manifest {
            cid: cid(0),
            run: run(),
            source: source(),
            req_ts_utc: epoch(),
            channel: Channel::FanoutCall,
            targets: (0..self.width)
                .map(|place| ManifestTarget { key: key(place), service: name(TARGET) })
                .collect(),
            on_target: self.on_target().map(|callback| name(&callback)).collect(),
            on_final: vec![name(ON_FINAL)],
            reply_to: self.results(&QueueNames::default(), 0).name,
            deadline_ms: Some(24 * 60 * 60 * 1000),
            deadline_utc: None,
            waiter: None,
            progress: false,
            sentinel: false,
            replicated: false,
            completion: None,
            metadata: Metadata::default(),
            traceparent: None,
        }
    }
}

/// A service of the benchmark.
pub(super) fn name(service: &str) -> ServiceName {
    ServiceName::new(service).expect("the names of the benchmark keep the rules")
}

fn source() -> Source {
    Source::new(TARGET).expect("a service's name is a source")
}

/// The name of the nth on-target callback.
pub(super) fn on_target_name(nth: usize) -> String {
    format!("{ON_TARGET}-{nth}")
}

/// The key of the target at a place.
pub(super) fn key(place: usize) -> TargetKey {
    TargetKey::new(format!("{place:05}")).expect("digits are a key")
}

/// A CID of the length that is drawn.
fn cid(number: usize) -> Cid {
    Cid::new(format!("{number:032}")).expect("digits are a CID")
}

fn run() -> RunId {
    format!("{:032}", 0).parse().expect("32 hexadecimal digits are a run")
}

fn epoch() -> WireTime {
    WireTime::from_timestamp(0).expect("the epoch is a time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::raw::{Flow, Queues};

    fn case(width: usize, payload: usize, on_target: usize) -> Case {
        Case { aggregation: Aggregation::PerCid, width, payload, on_target, workers: 1 }
    }

    #[test]
    fn limit_counts_the_queue_and_every_message_that_has_to_flow() {
        assert_eq!(case(1, 100, 0).messages().count(), 4);
        assert_eq!(case(10, 100, 1).messages().count(), 32);
        let queues = Some(Queues { empty_per_s: 1.0, used_per_s: 0.5 });
        let bare = Flow { messages_per_s: 1.0, ..Flow::default() };
        let labelled = Flow { messages_per_s: 0.5, ..bare };
        let limits = Limits { bare, labelled, queues };
        // One second for the queue and four for the messages.
        assert!((case(1, 100, 0).limit(&limits) - 0.2).abs() < 1e-9);
        // Eight where they are labelled.
        assert!((case(1, 100, 0).limit_of_labelled(&limits) - 1.0 / 9.0).abs() < 1e-9);
        // Two for the queue with its message and three for the others.
        assert!((case(1, 100, 0).limit_of_used_queues(&limits) - 0.2).abs() < 1e-9);
        // In a shard, four for the messages.
        let limits = Limits { queues: None, ..limits };
        for limit in [case(1, 100, 0).limit(&limits), case(1, 100, 0).limit_of_used_queues(&limits)] {
            assert!((limit - 0.25).abs() < 1e-9);
        }
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
