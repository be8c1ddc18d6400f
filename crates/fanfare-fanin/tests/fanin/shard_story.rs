//! Tells stories of a shard: an event goes in, and all that comes out must be what the story says.

use std::collections::VecDeque;
use std::time::Duration;

use fanfare_fanin::{
    Limits, Memory, Publication, Shard, ShardEffect, ShardEvent, ShardLimits, ShardPublication,
    ShardPublicationId,
};
use fanfare_protocol::{Checkpoint, Ended, Fence, FinalPayload, Manifest, Message, QueueNames, RunId};

use crate::samples::{answer, body, checkpoint, id, manifest, result_of, time};

/// The token of the hold that every story is about.
pub(crate) const OWN: u128 = 4_200;

/// A hold on a shard. Fan-outs are known by the numbers of their runs, and deliveries by the names that the story gives them.
pub(crate) struct Story {
    machine: Shard<&'static str>,
    now: Duration,
    open: VecDeque<(String, ShardPublicationId)>,
    pub(crate) checkpoints: Vec<(u128, Checkpoint)>,
    pub(crate) fences: Vec<Fence>,
    pub(crate) records: Vec<Ended>,
    effects: Vec<ShardEffect<&'static str>>,
}

/// What an event has led to: look at it.
#[must_use]
pub(crate) struct Outcome<'a>(&'a mut Story);

pub(crate) fn limits() -> ShardLimits {
    ShardLimits {
        window: 1_000,
        patience: Duration::from_secs(120),
        recorded: Duration::from_secs(3_600),
        fan_out: Limits::default(),
    }
}

/// The manifest of a run, over these keys.
pub(crate) fn of_run(run: u128, keys: &[&str], on_target: usize) -> Manifest {
    let reply_to = QueueNames::default().shard(0).name;
    Manifest { run: id(run), reply_to, ..manifest(keys.iter().copied(), on_target, 1) }
}

fn number(run: RunId) -> u128 {
    u128::from_str_radix(&run.to_string(), 16).unwrap()
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::with(limits(), Memory::default())
    }

    pub(crate) fn with(limits: ShardLimits, memory: Memory) -> Self {
        Self {
            machine: Shard::new(id(OWN), limits, memory),
            now: Duration::ZERO,
            open: VecDeque::new(),
            checkpoints: Vec::new(),
            fences: Vec::new(),
            records: Vec::new(),
            effects: Vec::new(),
        }
    }

    pub(crate) fn event(&mut self, event: ShardEvent<&'static str>) -> Outcome<'_> {
        self.effects.clear();
        self.machine.handle(event, self.now, &mut self.effects);
        Outcome(self)
    }

    /// A manifest that nobody was handed before.
    pub(crate) fn manifest(&mut self, tag: &'static str, manifest: Manifest) -> Outcome<'_> {
        self.event(ShardEvent::Manifest {
            tag,
            manifest: Box::new(manifest),
            take_over: false,
            deadline: None,
        })
    }

    /// One that was redelivered, or is a renewed copy.
    pub(crate) fn manifest_again(&mut self, tag: &'static str, manifest: Manifest) -> Outcome<'_> {
        self.event(ShardEvent::Manifest {
            tag,
            manifest: Box::new(manifest),
            take_over: true,
            deadline: None,
        })
    }

    pub(crate) fn message(&mut self, tag: &'static str, message: Message) -> Outcome<'_> {
        self.event(ShardEvent::Delivered { tag, redelivered: false, message })
    }

    pub(crate) fn result(&mut self, tag: &'static str, run: u128, key: &str, answer: &str) -> Outcome<'_> {
        self.message(tag, result_of(id(run), key, body(answer)))
    }

    pub(crate) fn checkpoint(
        &mut self,
        tag: &'static str,
        of: &Manifest,
        entries: &[(&str, &str)],
    ) -> Outcome<'_> {
        self.message(tag, checkpoint(7, 0, true, entries).encode(of))
    }

    /// The n-th fence that this hold sent comes back.
    pub(crate) fn fence(&mut self, tag: &'static str, number: usize) -> Outcome<'_> {
        let fence = self.fences[number].encode_in_shard("fanfare.shard.0");
        self.message(tag, fence)
    }

    pub(crate) fn record(&mut self, tag: &'static str, record: &Ended) -> Outcome<'_> {
        self.message(tag, record.encode("fanfare.shard.0"))
    }

    /// The oldest open publication whose line starts so is safe.
    pub(crate) fn confirm(&mut self, line: &str) -> Outcome<'_> {
        let at = self.open.iter().position(|(open, _)| open.starts_with(line));
        let at = at.unwrap_or_else(|| panic!("{line:?} is not among {:?}", self.open));
        let (_, id) = self.open.remove(at).expect("it was found there");
        self.event(ShardEvent::Confirmed(id))
    }

    pub(crate) fn cancel(&mut self, run: u128) -> Outcome<'_> {
        self.event(ShardEvent::Cancel { run: id(run), at: time() })
    }

    pub(crate) fn wait(&mut self, span: Duration) -> Outcome<'_> {
        self.now += span;
        self.event(ShardEvent::TimePassed)
    }

    /// How long nothing happens if nothing is heard.
    pub(crate) fn quiet_for(&mut self) -> Option<Duration> {
        let now = self.now;
        self.machine.next_timeout().map(|at| at.saturating_sub(now))
    }

    pub(crate) fn held(&self) -> usize {
        self.machine.held()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.machine.is_done()
    }

    pub(crate) fn into_memory(self) -> Memory {
        self.machine.into_memory()
    }

    fn tell(&mut self, effect: ShardEffect<&'static str>) -> String {
        match effect {
            ShardEffect::Publish(id, publication) => {
                let line = self.tell_publication(publication);
                self.open.push_back((line.clone(), id));
                line
            }
            ShardEffect::Ack(tag) => format!("ack {tag}"),
            ShardEffect::Park { tag, .. } => format!("park {tag}"),
            ShardEffect::Cancelled { manifest, .. } => format!("{} cancelled", number(manifest.run)),
            ShardEffect::Over { fan_in, summary } => {
                let how = match summary {
                    Some(summary) if summary.completed => "completed",
                    Some(_) => "let go",
                    None => "left",
                };
                format!("{} {how}", number(fan_in.manifest().run))
            }
            ShardEffect::Failed { manifest, place, .. } => {
                format!("{} failed {}", number(manifest.run), manifest.targets[place].key)
            }
            ShardEffect::Dropped { run, messages } => format!("{messages} of {} dropped", number(run)),
        }
    }

    fn tell_publication(&mut self, publication: ShardPublication) -> String {
        match publication {
            ShardPublication::Fence(fence) => {
                self.fences.push(fence);
                "fence".to_owned()
            }
            ShardPublication::Ended(ended) => {
                let runs: Vec<String> =
                    ended.ended.iter().map(|ended| number(ended.run).to_string()).collect();
                self.records.push(ended);
                format!("record [{}]", runs.join(" "))
            }
            ShardPublication::Again(message) => format!("again {}", message.kind()),
            ShardPublication::Of(manifest, publication) => {
                let run = number(manifest.run);
                match publication {
                    Publication::OnTarget { body, .. } => format!("{run} call with {}", answer(&body)),
                    Publication::OnFinal { body, .. } => {
                        let payload: FinalPayload = serde_json::from_slice(&body.joined()).unwrap();
                        let data: Vec<String> = manifest
                            .targets
                            .iter()
                            .map(|target| {
                                let key = target.key.as_str();
                                let said = payload.get::<String>(key);
                                format!("{key}={}", said.unwrap_or_else(|error| format!("!{error}")))
                            })
                            .collect();
                        format!("{run} final with [{}]", data.join(" "))
                    }
                    Publication::Checkpoint(checkpoint) => {
                        let line = format!("{run} checkpoint of {}", checkpoint.entries.len());
                        self.checkpoints.push((run, checkpoint));
                        line
                    }
                    Publication::Missing { .. } => format!("{run} missing"),
                    Publication::Renewal => format!("{run} renewed"),
                    other => panic!("{other:?} does not belong into these stories"),
                }
            }
        }
    }
}

impl Outcome<'_> {
    #[track_caller]
    pub(crate) fn check(self, expected: &[&str]) {
        assert_eq!(self.lines(), expected);
    }

    pub(crate) fn lines(self) -> Vec<String> {
        let effects = std::mem::take(&mut self.0.effects);
        effects.into_iter().map(|effect| self.0.tell(effect)).collect()
    }
}
