use std::fmt;

use crate::counted;
use serde::{Deserialize, Deserializer, Serialize};

/// When a fan-out is complete before all of its targets have responded. Of the rules that are set, the one that is met
/// first completes it; where none is, it completes when all have responded.
///
/// Only what targets answered counts, never a failure that a coordinator wrote in a target's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionPolicy {
    /// So many targets have succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<usize>,
    /// So many targets have responded, whether they succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responded: Option<usize>,
    /// More than so many targets have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_above: Option<usize>,
}

/// A completion policy that could never be met, or that would be met before anything has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// There is nothing that it could be met by.
    #[error(
        "completion before all targets have responded, and there are no targets: a fan-out without any is complete at once, so leave it out"
    )]
    NoTargets,
    /// It is met before any target has answered.
    #[error("completion when 0 targets have {0}: give 1 or more")]
    None(&'static str),
    /// It can never be met.
    #[error("completion when {wanted} of {targets} targets have {what}: give {targets} at most")]
    TooMany {
        /// "succeeded" or "responded".
        what: &'static str,
        /// As many as were asked for.
        wanted: usize,
        /// As many as there are.
        targets: usize,
    },
    /// It can never be met.
    #[error("completion when more than {bound} of {targets} targets have failed: give fewer than {targets}")]
    TooManyFailures {
        /// The bound that was asked for.
        bound: usize,
        /// As many as there are.
        targets: usize,
    },
}

impl CompletionPolicy {
    /// Whether a fan-out of so many targets can have it.
    ///
    /// # Errors
    /// [`InvalidPolicy`], for the first rule that it breaks.
    pub fn check(&self, targets: usize) -> Result<(), InvalidPolicy> {
        if targets == 0 && *self != Self::default() {
            return Err(InvalidPolicy::NoTargets);
        }
        for (what, wanted) in [("succeeded", self.succeeded), ("responded", self.responded)] {
            match wanted {
                Some(0) => return Err(InvalidPolicy::None(what)),
                Some(wanted) if wanted > targets => {
                    return Err(InvalidPolicy::TooMany { what, wanted, targets });
                }
                _ => {}
            }
        }
        match self.failed_above {
            Some(bound) if bound >= targets => Err(InvalidPolicy::TooManyFailures { bound, targets }),
            _ => Ok(()),
        }
    }

    /// Which rule is met once so many targets have succeeded and failed, in the words of an exception.
    #[must_use]
    pub fn met(&self, succeeded: usize, failed: usize) -> Option<String> {
        let reached = |rule: Option<usize>, count: usize| rule.filter(|wanted| count >= *wanted);
        if let Some(wanted) = reached(self.succeeded, succeeded) {
            return Some(format!("{} had succeeded", of_targets(wanted)));
        }
        if let Some(wanted) = reached(self.responded, succeeded + failed) {
            return Some(format!("{} had responded", of_targets(wanted)));
        }
        let bound = self.failed_above.filter(|bound| failed > *bound)?;
        Some(format!("more than {} had failed", of_targets(bound)))
    }
}

fn of_targets(count: usize) -> String {
    counted(count, "target", "targets")
}

/// Why a coordinator wrote a failed result in a target's place. Of several reasons in one fan-out, the greatest is the one
/// that it is said to have ended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EndedBy {
    /// Somebody deleted the fan-out's aggregation queue, and what it would still have held is lost.
    Deletion,
    /// The fan-out's deadline passed.
    Deadline,
    /// The fan-out's completion policy was met without it.
    Completion,
    /// The fan-out was cancelled.
    Cancel,
}

impl EndedBy {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deletion => "deletion",
            Self::Deadline => "deadline",
            Self::Completion => "completion",
            Self::Cancel => "cancel",
        }
    }

    /// Reads the field of a result leniently: a result of a foreign worker that has a field of this name for something else
    /// is no less a result.
    pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        let text = crate::result::text(deserializer)?;
        let known = [Self::Deletion, Self::Deadline, Self::Completion, Self::Cancel];
        Ok(known.into_iter().find(|by| Some(by.as_str()) == text.as_deref()))
    }
}

impl fmt::Display for EndedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a fan-out came to its end, as the headers of its final callbacks tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// How many targets failed, whatever the reason.
    pub failed: usize,
    /// In the place of how many of them a coordinator wrote that failure.
    pub missing: usize,
    /// What ended the fan-out before all targets had responded; none where they had.
    pub by: Option<EndedBy>,
}

/// What a cancel came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancellation {
    /// Targets whose own results have counted. One that is on its way may still come before the failure in its place.
    pub responded: usize,
    /// The other targets of the fan-out, which fail.
    pub missing: usize,
    /// What ended the fan-out: [`EndedBy::Cancel`], or what had done so before; none where all targets had responded.
    #[serde(default, deserialize_with = "EndedBy::read")]
    pub ended_by: Option<EndedBy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(succeeded: usize, responded: usize, failed_above: usize) -> CompletionPolicy {
        CompletionPolicy {
            succeeded: Some(succeeded),
            responded: Some(responded),
            failed_above: Some(failed_above),
        }
    }

    #[test]
    fn the_rule_that_is_met_first_completes() {
        let policy = policy(2, 4, 1);
        for (succeeded, failed, expected) in [
            (0, 0, None),
            (1, 1, None),
            (2, 0, Some("2 targets had succeeded")),
            (1, 2, Some("more than 1 target had failed")),
            (3, 3, Some("2 targets had succeeded")),
        ] {
            assert_eq!(policy.met(succeeded, failed).as_deref(), expected, "{succeeded} {failed}");
        }
        let responded = CompletionPolicy { responded: Some(4), ..CompletionPolicy::default() };
        assert_eq!(responded.met(1, 3).as_deref(), Some("4 targets had responded"));
        assert_eq!(responded.met(0, 3), None);
        assert_eq!(CompletionPolicy::default().met(9, 9), None);
    }

    #[test]
    fn a_rule_that_can_never_be_met_or_always_is_breaks_the_rules() {
        assert_eq!(policy(3, 3, 2).check(3), Ok(()));
        assert_eq!(policy(1, 1, 0).check(1), Ok(()));
        for (policy, expected) in [
            (policy(0, 1, 0), "completion when 0 targets have succeeded: give 1 or more"),
            (policy(1, 0, 0), "completion when 0 targets have responded: give 1 or more"),
            (policy(4, 1, 0), "completion when 4 of 3 targets have succeeded: give 3 at most"),
            (policy(1, 4, 0), "completion when 4 of 3 targets have responded: give 3 at most"),
            (policy(1, 1, 3), "completion when more than 3 of 3 targets have failed: give fewer than 3"),
        ] {
            assert_eq!(policy.check(3).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_fan_out_without_targets_has_no_rule() {
        assert_eq!(CompletionPolicy::default().check(0), Ok(()));
        let unset = CompletionPolicy::default();
        for policy in [
            CompletionPolicy { succeeded: Some(0), ..unset },
            CompletionPolicy { responded: Some(1), ..unset },
            CompletionPolicy { failed_above: Some(0), ..unset },
        ] {
            assert_eq!(policy.check(0), Err(InvalidPolicy::NoTargets));
        }
    }
}
