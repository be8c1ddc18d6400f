use std::collections::BTreeMap;
use std::fmt;

/// What [`judge`](super::judge) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How much there was.
    pub counts: Counts,
    /// What is forbidden and happened all the same.
    pub violations: Vec<Violation>,
}

/// How much there was of everything. Numbers of the same name from several logs may be added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Invocations.
    pub invoked: usize,
    /// Of these, accepted.
    pub accepted: usize,
    /// Of these, not accepted.
    pub not_accepted: usize,
    /// Of these, unknown, or their caller did not live to see.
    pub unknown: usize,
    /// Fan-outs that exist and came to their end.
    pub ended: usize,
    /// Times that targets ran.
    pub executions: usize,
    /// Times that targets ran beyond the first.
    pub repeated_executions: usize,
    /// Times that callbacks were invoked.
    pub calls: usize,
    /// On-target callback messages beyond the first, which a crash explains.
    pub repeated_on_target: usize,
    /// Final callback messages beyond the first, which a crash explains.
    pub repeated_on_final: usize,
    /// Manifests that were parked.
    pub parked: usize,
    /// Queues of ended fan-outs that a killed broker brought back.
    pub queues_brought_back: usize,
    /// Disturbances, by what and how.
    pub disturbances: BTreeMap<String, usize>,
}

/// Something that the guarantees forbid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Of what kind.
    pub kind: Kind,
    /// Of which invocation.
    pub invocation: String,
    /// What exactly.
    pub what: String,
}

/// The kinds of violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A fan-out that exists has ended, or is nowhere any more, and a callback of it was never invoked.
    Lost,
    /// A callback was invoked before its time.
    Early,
    /// Two callbacks of one run saw different results.
    Contradicted,
    /// A message was repeated where nothing explains it, or more often than is promised.
    Duplicated,
    /// A callback came that was not to come, or with what nobody answered.
    Unexpected,
    /// A fan-out that exists has not come to its end.
    NeverEnded,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Lost, Self::Early, Self::Contradicted, Self::Duplicated, Self::Unexpected, Self::NeverEnded];
}

impl Verdict {
    pub(super) fn violated(&mut self, kind: Kind, invocation: &str, what: impl Into<String>) {
        self.violations.push(Violation { kind, invocation: invocation.to_owned(), what: what.into() });
    }

    /// How many violations of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.violations.iter().filter(|violation| violation.kind == kind).count()
    }

    /// Adds what another log holds.
    pub fn add(&mut self, other: Self) {
        let Counts { disturbances, .. } = &other.counts;
        for (what, count) in disturbances {
            *self.counts.disturbances.entry(what.clone()).or_default() += count;
        }
        for (own, others) in self.counts.numbers_mut().into_iter().zip(other.counts.numbers()) {
            *own += others.1;
        }
        self.violations.extend(other.violations);
    }
}

impl Counts {
    fn numbers(&self) -> [(&'static str, usize); 12] {
        [
            ("fan-outs invoked", self.invoked),
            ("accepted", self.accepted),
            ("not accepted", self.not_accepted),
            ("unknown", self.unknown),
            ("ended", self.ended),
            ("targets run", self.executions),
            ("targets run again", self.repeated_executions),
            ("callbacks invoked", self.calls),
            ("on-target messages repeated", self.repeated_on_target),
            ("final messages repeated", self.repeated_on_final),
            ("manifests parked", self.parked),
            ("queues brought back", self.queues_brought_back),
        ]
    }

    fn numbers_mut(&mut self) -> [&mut usize; 12] {
        [
            &mut self.invoked,
            &mut self.accepted,
            &mut self.not_accepted,
            &mut self.unknown,
            &mut self.ended,
            &mut self.executions,
            &mut self.repeated_executions,
            &mut self.calls,
            &mut self.repeated_on_target,
            &mut self.repeated_on_final,
            &mut self.parked,
            &mut self.queues_brought_back,
        ]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Early => "early",
            Self::Contradicted => "contradicted",
            Self::Duplicated => "duplicated",
            Self::Unexpected => "unexpected",
            Self::NeverEnded => "never ended",
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind, self.invocation, self.what)
    }
}

/// A table, and the violations below it.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in self.counts.numbers() {
            writeln!(f, "{what:<28} {count:>9}")?;
        }
        for (what, count) in &self.counts.disturbances {
            writeln!(f, "{what:<28} {count:>9}")?;
        }
        for kind in Kind::ALL {
            writeln!(f, "{kind:<28} {:>9}", self.count(kind))?;
        }
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        Ok(())
    }
}
