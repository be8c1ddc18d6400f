//! What a seed leads to: who runs, what is invoked, and what goes wrong how often.

use std::fmt;
use std::time::Duration;

use fanfare_coordinator::ShardSettings;
use fanfare_protocol::{CompletionPolicy, limits};
use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::oracle::{Plan, PlannedTarget};

/// Services that are targets.
pub(super) const TARGETS: [&str; 4] = ["sim.one", "sim.other", BRIEF, AGAIN];
/// A target service that fails whatever takes longer than its time limit.
pub(super) const BRIEF: &str = "sim.brief";
/// A target service that is run again where it fails.
pub(super) const AGAIN: &str = "sim.again";
/// How often at most.
pub(super) const ATTEMPTS: u32 = 3;
/// Services that are callbacks, each of either kind.
pub(super) const CALLBACKS: [&str; 3] = ["sim.done", "sim.each", STREAMING];
/// The one that reads the results of a final payload one after the other.
pub(super) const STREAMING: &str = "sim.audit";

/// How long a coordinator may be deaf.
pub(super) const DEAF_MS: u64 = 10_000;

/// All that is decided before anything runs.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) coordinators: u64,
    pub(super) workers: u64,
    /// What each publisher invokes, one after the other.
    pub(super) scripts: Vec<Vec<Step>>,
    pub(super) limits: fanfare_coordinator::Limits,
    pub(super) manifest_prefetch: u16,
    pub(super) manifest_channels: usize,
    pub(super) concurrency: usize,
    pub(super) worker_stop_within: Duration,
    pub(super) coordinator_stop_within: Duration,
    /// Shards that all fan-outs share; 0 where each has a queue of its own.
    pub(super) shards: u32,
    pub(super) shard_limits: ShardSettings,
    pub(super) faults: Faults,
}

/// One invocation of a publisher.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) cid: String,
    /// Before it.
    pub(super) pause: Duration,
    pub(super) draft: Draft,
    /// How long the caller waits for the outcome; it doesn't where there is none.
    pub(super) wait: Option<Duration>,
    /// When the caller cancels it, after it was accepted, if at all.
    pub(super) cancel: Option<Duration>,
}

/// A fan-out to be invoked. It is data, so that a target can be told to invoke one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Draft {
    pub(super) parallel: bool,
    pub(super) targets: Vec<(String, Behaviour)>,
    pub(super) on_target: Vec<String>,
    pub(super) on_final: Vec<String>,
    pub(super) deadline_ms: Option<u64>,
    pub(super) completion: Option<CompletionPolicy>,
    /// Whether its caller may cancel it.
    pub(super) is_cancelled: bool,
}

/// What a target does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Behaviour {
    /// It answers after so many milliseconds.
    Answers(u64),
    /// It answers when others do that run at the same time, so that their results are ready together.
    AnswersWithOthers,
    /// It fails after so many milliseconds.
    Fails(u64),
    /// It fails up to this attempt, and answers then.
    AnswersAt(u32),
    /// It panics.
    Panics,
    /// It invokes a fan-out, and waits so many milliseconds for it, if at all.
    Invokes(Box<Draft>, Option<u64>),
}

/// What goes wrong while there is trouble, each with its probability at one step or its mean pause in between.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// How long there is trouble.
    pub(super) lasts: Duration,
    /// A process dies at a step that it takes on the broker.
    pub(super) crash: f64,
    /// A process's connection is cut at a step.
    pub(super) cut: f64,
    /// The connection that a coordinator consumes on dies at a delivery, without a word.
    pub(super) deafen: f64,
    /// The broker closes a channel at a step on it, as after a consumer time-out.
    pub(super) close_channel: f64,
    /// A message is taken, and who published it is not told.
    pub(super) lose_confirm: f64,
    /// A message does not arrive, and who published it cannot tell.
    pub(super) lose_message: f64,
    /// A message is refused, or not sent.
    pub(super) refuse: f64,
    /// A step takes long.
    pub(super) stall: f64,
    /// How long at most.
    pub(super) stall_ms: u64,
    /// A callback fails.
    pub(super) failing_callback: f64,
    /// Pause between restarts of the broker.
    pub(super) broker_restart: Option<Duration>,
    /// The broker is killed over the deletion of an aggregation queue, which is back after that, and empty.
    pub(super) half_delete: f64,
    /// The broker is killed before it has written a message to its disk that has come into a classic queue.
    pub(super) half_write: f64,
    /// The store of large messages takes longer over them than a queue over its small ones.
    pub(super) slow_store: bool,
    /// Pause between kills, whatever the process is doing.
    pub(super) kill: Option<Duration>,
    /// Pause between rolling restarts.
    pub(super) stop: Option<Duration>,
    /// Pause between deletions of an aggregation queue by an operator.
    pub(super) delete_queue: Option<Duration>,
    /// Pause between outages of one queue.
    pub(super) queue_outage: Option<Duration>,
    /// How far a process's clock may be wrong. Two clocks differ by twice that.
    pub(super) skew_ms: u64,
}

impl Scenario {
    pub(super) fn draw(random: &Random) -> Self {
        let faults = Faults::draw(random);
        let publishers = random.of(1..=2);
        let scripts = (0..publishers)
            .map(|publisher| (0..random.of(1..=4)).map(|n| Step::draw(random, publisher, n)).collect())
            .collect();
        let callbacks_per_target = CALLBACKS.len();
        let mut scenario = Self {
            coordinators: random.of(1..=3),
            workers: random.of(1..=3),
            scripts,
            limits: fanfare_coordinator::Limits {
                calls_at_risk: callbacks_per_target + usize_of(random, 0..=6),
                results_held: usize_of(random, 2..=4),
                window: u16::try_from(random.of(13..=24)).expect("it is small"),
                renewal: Duration::from_millis(*random.pick(&[700, 2_000, 5_000, 60_000])),
                fence_again: Duration::from_secs(random.of(2..=10)),
                large_payload_bytes: limits::MESSAGE_BYTES,
            },
            manifest_prefetch: u16::try_from(random.of(1..=4)).expect("it is small"),
            manifest_channels: usize_of(random, 1..=4),
            concurrency: usize_of(random, 1..=8),
            worker_stop_within: Duration::from_secs(random.of(1..=20)),
            coordinator_stop_within: Duration::from_secs(random.of(1..=20)),
            shards: if random.chance(0.5) {
                u32::try_from(random.of(1..=3)).expect("it is small")
            } else {
                0
            },
            shard_limits: ShardSettings {
                window: u16::try_from(random.of(40..=120)).expect("it is small"),
                recorded: Duration::from_secs(60),
                ..ShardSettings::default()
            },
            faults,
        };
        if random.chance(0.5) {
            scenario.limits.large_payload_bytes = *random.pick(&[300, 2_000]);
        }
        if random.chance(0.35) {
            scenario.faults.deafen = 0.03 * random.fraction();
        }
        scenario
    }
}

impl Step {
    fn draw(random: &Random, publisher: u64, n: u64) -> Self {
        let name = format!("p{publisher}-{n}");
        let cid = if random.chance(0.2) { "same".to_owned() } else { name.clone() };
        let mut draft = Draft::draw(random, 1);
        let pause = Duration::from_millis(random.of(0..=3_000));
        let may_wait = !draft.parallel;
        let wait = (may_wait && random.chance(0.3)).then(|| Duration::from_millis(random.of(100..=60_000)));
        draft.is_cancelled = wait.is_none() && random.chance(0.3);
        let cancel = draft.is_cancelled.then(|| Duration::from_millis(random.of(0..=3_000)));
        Self { name, cid, pause, draft, wait, cancel }
    }
}

impl Draft {
    /// `depth` bounds how deep fan-outs nest.
    fn draw(random: &Random, depth: u32) -> Self {
        let widest = *random.pick(&[0, 1, 2, 3, 5, 8, 8, 12, 20]);
        let parallel = random.chance(0.15);
        let some = |least: usize| -> Vec<String> {
            let from = usize_of(random, 0..=CALLBACKS.len() as u64 - 1);
            let count = usize_of(random, least as u64..=CALLBACKS.len() as u64);
            (0..count).map(|n| CALLBACKS[(from + n) % CALLBACKS.len()].to_owned()).collect()
        };
        let on_target = if parallel || random.chance(0.6) { some(1) } else { Vec::new() };
        let targets: Vec<_> = (0..widest)
            .map(|_| ((*random.pick(&TARGETS)).to_owned(), Behaviour::draw(random, depth)))
            .collect();
        let completion = random.chance(0.25).then(|| draw_policy(random, targets.len())).flatten();
        Self {
            parallel,
            targets,
            on_target,
            on_final: if parallel { Vec::new() } else { some(1) },
            deadline_ms: random.chance(0.3).then(|| random.of(500..=20_000)),
            completion,
            is_cancelled: false,
        }
    }

    pub(super) fn key(place: usize) -> String {
        format!("k{place}")
    }

    pub(super) fn plan(&self, cid: &str) -> Plan {
        let target = |(place, (service, behaviour)): (usize, &(String, Behaviour))| PlannedTarget {
            key: Self::key(place),
            service: service.clone(),
            attempts: behaviour.attempts(service),
        };
        Plan {
            cid: cid.to_owned(),
            parallel: self.parallel,
            targets: self.targets.iter().enumerate().map(target).collect(),
            on_target: self.on_target.clone(),
            on_final: self.on_final.clone(),
            deadline_ms: self.deadline_ms,
            completion: self.completion,
            excuses: Vec::new(),
            cancelled: self.is_cancelled,
        }
    }
}

impl Behaviour {
    fn draw(random: &Random, depth: u32) -> Self {
        match random.of(0..=19) {
            0..=4 => Self::Answers(random.of(0..=50)),
            5..=9 => Self::AnswersWithOthers,
            10..=11 => Self::AnswersAt(u32::try_from(random.of(1..=ATTEMPTS.into())).expect("it is small")),
            12..=14 => Self::Answers(random.of(0..=8_000)),
            15..=16 => Self::Fails(random.of(0..=500)),
            17 => Self::Panics,
            _ if depth == 0 => Self::Answers(0),
            _ => {
                let mut draft = Draft::draw(random, depth - 1);
                draft.targets.truncate(3);
                draft.completion =
                    draft.completion.filter(|policy| policy.check(draft.targets.len()).is_ok());
                let wait = (!draft.parallel && random.chance(0.7)).then(|| random.of(100..=20_000));
                Self::Invokes(Box::new(draft), wait)
            }
        }
    }
}

impl Behaviour {
    /// The attempt at which it is over, well or not.
    fn attempts(&self, service: &str) -> u32 {
        let most = if service == AGAIN { ATTEMPTS } else { 1 };
        match self {
            Self::Answers(_) | Self::AnswersWithOthers | Self::Invokes(..) => 1,
            Self::AnswersAt(attempt) => most.min(*attempt),
            Self::Fails(_) | Self::Panics => most,
        }
    }
}

/// A rule that so many targets can meet, if there is one.
fn draw_policy(random: &Random, targets: usize) -> Option<CompletionPolicy> {
    let some = |least: u64, most: usize| Some(usize_of(random, least..=most as u64));
    let none = CompletionPolicy::default();
    let most_failures = targets.checked_sub(1)?;
    Some(match random.of(0..=3) {
        0 => CompletionPolicy { succeeded: some(1, targets), ..none },
        1 => CompletionPolicy { responded: some(1, targets), ..none },
        2 => CompletionPolicy { failed_above: Some(0), ..none },
        _ => CompletionPolicy { succeeded: some(1, targets), failed_above: some(0, most_failures), ..none },
    })
}

impl Faults {
    /// How long it may take until whoever is disturbed notices, in milliseconds. A cut shows at the next delivery, which may be stalled.
    pub(super) fn notice_ms(&self) -> u64 {
        let deaf = if self.deafen > 0.0 { DEAF_MS } else { 0 };
        self.stall_ms + deaf + 1_000
    }

    /// Each seed has its own mixture: trouble of few kinds goes further than a little of everything.
    fn draw(random: &Random) -> Self {
        let rate = |most: f64| if random.chance(0.45) { most * random.fraction() } else { 0.0 };
        let pause =
            |from: u64, to: u64| random.chance(0.35).then(|| Duration::from_millis(random.of(from..=to)));
        Self {
            lasts: Duration::from_millis(random.of(2_000..=40_000)),
            crash: rate(0.02),
            cut: rate(0.01),
            deafen: 0.0,
            close_channel: rate(0.01),
            lose_confirm: rate(0.05),
            lose_message: rate(0.05),
            refuse: rate(0.05),
            stall: rate(0.03),
            stall_ms: *random.pick(&[50, 1_000, 10_000, 40_000]),
            failing_callback: rate(0.1),
            broker_restart: pause(3_000, 20_000),
            half_delete: rate(0.3),
            half_write: rate(0.3),
            slow_store: random.chance(0.5),
            kill: pause(500, 10_000),
            stop: pause(500, 10_000),
            delete_queue: random.chance(0.1).then(|| Duration::from_millis(random.of(2_000..=20_000))),
            queue_outage: pause(2_000, 10_000),
            skew_ms: random.of(0..=2_000),
        }
    }
}

fn usize_of(random: &Random, range: std::ops::RangeInclusive<u64>) -> usize {
    usize::try_from(random.of(range)).expect("it is small")
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { coordinators, workers, scripts, .. } = self;
        writeln!(f, "{coordinators} coordinators, {workers} workers, {} publishers", scripts.len())?;
        writeln!(f, "{:?}, {} shards, {:?}", self.limits, self.shards, self.shard_limits)?;
        writeln!(f, "{:?}", self.faults)?;
        for step in scripts.iter().flatten() {
            writeln!(f, "{step:?}")?;
        }
        Ok(())
    }
}
