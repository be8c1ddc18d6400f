use std::time::Duration;

use fanfare_publisher::{Fanout, Publisher, Target};
use serde::{Deserialize, Serialize};

use super::Dice;
use crate::oracle::{Plan, PlannedTarget};

/// The service that is every target.
pub(crate) const TARGET: &str = "chaos.target";
/// The services that are callbacks, on each target and at the end.
pub(crate) const ON_TARGET: [&str; 2] = ["chaos.progress", "chaos.audit"];
pub(crate) const ON_FINAL: [&str; 2] = ["chaos.done", "chaos.report"];

/// Who invokes.
const SOURCE: &str = "chaos";

/// The metadata that tells targets and callbacks which invocation they belong to.
pub(crate) const INVOCATION: &str = "invocation";

/// The widest fan-out.
const WIDEST: u64 = 500;
/// The widest fan-out whose targets invoke others.
const WIDEST_OUTER: u64 = 20;
/// The widest fan-out with targets that take long. Where their workers were killed twice, they run one after the other.
const WIDEST_LATE: u64 = 40;
/// The widest fan-out of a target.
const WIDEST_INNER: u64 = 8;
/// The bytes that some answers are padded with, so that there are checkpoints that are full by bytes.
const BULK: usize = 20_000;
/// How long a slow target takes at most.
const SLOW: Duration = Duration::from_millis(1_500);
/// What a target takes that is to miss its deadline.
const LATE: Duration = Duration::from_secs(5);
/// The deadline that it misses.
const DEADLINE: Duration = Duration::from_secs(3);

/// What a target is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Does {
    /// It answers.
    Answer,
    /// It answers at length.
    AnswerInBulk,
    /// It fails.
    Fail,
    /// It takes so many milliseconds, and answers.
    Sleep(u64),
    /// It invokes a fan-out of so many targets and waits for it.
    FanOutAndWait(u64),
    /// It invokes a fan-out of so many targets and leaves it to its callbacks.
    FanOut(u64),
}

/// A fan-out, or parallel execution, that is to be invoked.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    /// The targets, whose keys are their places.
    targets: Vec<Does>,
    on_target: Vec<&'static str>,
    /// None where it is a parallel execution.
    on_final: Vec<&'static str>,
    deadline: Option<Duration>,
}

/// The kinds of fan-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With some targets that fail, are slow or answer at length.
    Plain,
    /// With on-target callbacks too.
    OnTarget,
    /// On-target callbacks only.
    Parallel,
    /// Some targets invoke fan-outs themselves.
    Nested,
    /// No targets.
    Empty,
    /// Two at once with the same CID.
    Twins,
    /// With a deadline, and targets that miss it.
    Deadline,
    /// Cancelled by its caller, some time after it was accepted.
    Cancelled,
    /// Invoked by a target.
    Inner,
}

impl Draft {
    /// Draws one.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let kind = dice.weighted(&[
            (24, Kind::Plain),
            (25, Kind::OnTarget),
            (10, Kind::Parallel),
            (12, Kind::Nested),
            (5, Kind::Empty),
            (10, Kind::Twins),
            (8, Kind::Deadline),
            (6, Kind::Cancelled),
        ]);
        let width = match kind {
            Kind::Empty => 0,
            Kind::Nested => dice.magnitude(WIDEST_OUTER),
            Kind::Deadline => dice.magnitude(WIDEST_LATE),
            _ => dice.magnitude(WIDEST),
        };
        let targets = (0..width).map(|_| draw_target(dice, kind)).collect();
        let on_target = match kind {
            Kind::OnTarget | Kind::Parallel => draw_names(dice, &ON_TARGET, 1),
            Kind::Twins | Kind::Deadline | Kind::Cancelled => draw_names(dice, &ON_TARGET, 0),
            _ => Vec::new(),
        };
        let on_final = if kind == Kind::Parallel { Vec::new() } else { draw_names(dice, &ON_FINAL, 1) };
        let deadline = (kind == Kind::Deadline).then_some(DEADLINE);
        Self { kind, targets, on_target, on_final, deadline }
    }

    /// What a target invokes.
    pub(crate) fn inner(width: u64) -> Self {
        let targets = (0..width).map(|n| if n % 5 == 4 { Does::Fail } else { Does::Answer }).collect();
        let on_final = vec![ON_FINAL[0]];
        Self { kind: Kind::Inner, targets, on_target: Vec::new(), on_final, deadline: None }
    }

    /// What the oracle is told of it.
    pub(crate) fn plan(&self, cid: &str) -> Plan {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let key =
            |place: usize| PlannedTarget { key: place.to_string(), service: TARGET.to_owned(), attempts: 1 };
        Plan {
            cid: cid.to_owned(),
            parallel: self.kind == Kind::Parallel,
            targets: (0..self.targets.len()).map(key).collect(),
            on_target: owned(&self.on_target),
            on_final: owned(&self.on_final),
            deadline_ms: self.deadline.map(milliseconds),
            completion: None,
            excuses: Vec::new(),
            cancelled: self.kind == Kind::Cancelled,
        }
    }

    /// Starts it on a publisher.
    pub(crate) fn begin(&self, publisher: &Publisher) -> Fanout {
        match self.kind {
            Kind::Parallel => publisher.parallel(SOURCE),
            _ => publisher.fanout(SOURCE),
        }
    }

    /// Puts it together. `invocation` is what the oracle knows it by.
    pub(crate) fn complete(&self, fanout: Fanout, invocation: &str, cid: &str) -> Fanout {
        let mut fanout = fanout.cid(cid).metadata(INVOCATION, invocation);
        fanout = fanout.on_target(&self.on_target[..]).on_final(&self.on_final[..]);
        if let Some(deadline) = self.deadline {
            fanout = fanout.deadline(deadline);
        }
        let targets = self.targets.iter().enumerate();
        targets.map(|(n, does)| Target::new(TARGET, does).key(n.to_string())).fold(fanout, Fanout::add)
    }
}

fn draw_names(dice: &mut Dice, names: &[&'static str; 2], least: u64) -> Vec<&'static str> {
    let count = dice.between(least, 2);
    names.iter().copied().take(usize::try_from(count).unwrap_or_default()).collect()
}

fn draw_target(dice: &mut Dice, kind: Kind) -> Does {
    match kind {
        Kind::Nested if dice.percent(40) => {
            let width = dice.between(0, WIDEST_INNER);
            if dice.percent(50) { Does::FanOutAndWait(width) } else { Does::FanOut(width) }
        }
        Kind::Deadline if dice.percent(10) => Does::Sleep(milliseconds(LATE)),
        _ => match dice.below(100) {
            0..90 => Does::Answer,
            90..94 => Does::Fail,
            94..98 => Does::Sleep(dice.magnitude(milliseconds(SLOW))),
            _ => Does::AnswerInBulk,
        },
    }
}

/// What a target that answers at length adds.
pub(crate) fn bulk() -> String {
    "x".repeat(BULK)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
