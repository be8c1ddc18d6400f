use fanfare_protocol::CompletionPolicy;

use crate::Invalid;

/// A rule by which a fan-out is complete before all of its targets have responded.
///
/// ```
/// use fanfare_publisher::Completion;
///
/// // A majority of five, unless it cannot be had any more.
/// let majority = Completion::succeeded(3).or(Completion::failed_above(2));
/// # let _ = majority;
/// ```
///
/// Only what targets answer counts. A rule that can never be met is refused when the fan-out is invoked.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a rule does nothing before it is given to `Fanout::complete_when`"]
pub struct Completion {
    counts: CompletionPolicy,
    failed_share_above: Option<f64>,
}

impl Completion {
    const NONE: Self = Self {
        counts: CompletionPolicy { succeeded: None, responded: None, failed_above: None },
        failed_share_above: None,
    };

    /// So many targets have succeeded: 1 to the number of targets.
    pub const fn succeeded(targets: usize) -> Self {
        let counts = CompletionPolicy { succeeded: Some(targets), ..Self::NONE.counts };
        Self { counts, ..Self::NONE }
    }

    /// So many targets have responded, whether they succeeded or failed: 1 to the number of targets.
    pub const fn responded(targets: usize) -> Self {
        let counts = CompletionPolicy { responded: Some(targets), ..Self::NONE.counts };
        Self { counts, ..Self::NONE }
    }

    /// More than so many targets have failed: less than the number of targets. With 0, the first failure completes.
    pub const fn failed_above(targets: usize) -> Self {
        let counts = CompletionPolicy { failed_above: Some(targets), ..Self::NONE.counts };
        Self { counts, ..Self::NONE }
    }

    /// More than this share of the targets has failed: from 0, with which the first failure completes, to below 1. The
    /// publisher makes a number of targets of it: with 0.1, more than 4 of 45.
    pub const fn failed_share_above(share: f64) -> Self {
        Self { failed_share_above: Some(share), ..Self::NONE }
    }

    /// Either of two rules, whichever is met first.
    pub fn or(self, other: Self) -> Self {
        let earlier = |a: Option<usize>, b: Option<usize>| a.into_iter().chain(b).min();
        let (a, b) = (self.counts, other.counts);
        let shares = self.failed_share_above.into_iter().chain(other.failed_share_above);
        Self {
            counts: CompletionPolicy {
                succeeded: earlier(a.succeeded, b.succeeded),
                responded: earlier(a.responded, b.responded),
                failed_above: earlier(a.failed_above, b.failed_above),
            },
            failed_share_above: shares.reduce(|a, b| if a.is_nan() || a < b { a } else { b }),
        }
    }

    /// The rule in numbers, for so many targets.
    pub(crate) fn policy(self, targets: usize) -> Result<Option<CompletionPolicy>, Invalid> {
        self.counts.check(targets)?;
        let Some(share) = self.failed_share_above else { return Ok(Some(self.counts)) };
        if !(0.0..1.0).contains(&share) {
            return Err(Invalid::CompletionShare(share));
        }
        let bound = Some(bound_of(share, targets)).filter(|bound| *bound < targets);
        let failed_above = self.counts.failed_above.into_iter().chain(bound).min();
        let policy = CompletionPolicy { failed_above, ..self.counts };
        // A share of no targets is met by nothing, and they complete at once anyway.
        Ok(Some(policy).filter(|policy| *policy != CompletionPolicy::default()))
    }
}

/// The greatest number of targets that is not more than the share.
fn bound_of(share: f64, targets: usize) -> usize {
    // Shares are meant as decimals, which have no exact binary form: 0.29 of 100 is a little less than 29.
    const ROUNDING: f64 = 1e-9;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the protocol's limit of targets is far below 2^52, and the share is not negative"
    )]
    let bound = (share * targets as f64 + ROUNDING).floor() as usize;
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed_above(rule: Completion, targets: usize) -> Option<usize> {
        rule.policy(targets).unwrap().and_then(|policy| policy.failed_above)
    }

    #[test]
    fn a_share_is_a_number_of_targets() {
        for (share, targets, expected) in [
            (0.0, 5, Some(0)),
            (0.1, 45, Some(4)),
            (0.29, 100, Some(29)),
            (0.5, 3, Some(1)),
            (0.999, 3, Some(2)),
            (0.5, 1, Some(0)),
            (0.5, 0, None),
            (1.0 / 3.0, 100_000, Some(33_333)),
        ] {
            assert_eq!(failed_above(Completion::failed_share_above(share), targets), expected, "{share}");
        }
        let both = Completion::failed_share_above(0.5).or(Completion::failed_above(3));
        assert_eq!((failed_above(both, 4), failed_above(both, 40)), (Some(2), Some(3)));
    }

    #[test]
    fn a_share_that_is_none_is_refused_whatever_stands_beside_it() {
        for share in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
            let rule = Completion::failed_share_above(share);
            assert!(matches!(rule.policy(3), Err(Invalid::CompletionShare(_))), "{share}");
        }
        let nan = Completion::failed_share_above(f64::NAN);
        let good = Completion::failed_share_above(0.5);
        assert!(good.or(nan).policy(3).is_err() && nan.or(good).policy(3).is_err());
    }

    #[test]
    fn the_rule_that_completes_earlier_stands() {
        let rules = Completion::succeeded(3).or(Completion::responded(5)).or(Completion::succeeded(2));
        let policy = rules.policy(5).unwrap().unwrap();
        assert_eq!((policy.succeeded, policy.responded, policy.failed_above), (Some(2), Some(5), None));
    }
}
