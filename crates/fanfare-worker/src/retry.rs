use std::time::Duration;

use fanfare_protocol::queue::DELAY_STEPS;

/// How often a failed invocation is run again, and after which waits.
///
/// A retry waits in the broker, in a queue that it shares with all retries that wait as long, and not in a worker: it takes up no
/// slot, and survives every worker. The waits double from the [first](Self::first_delay) to the
/// [longest](Self::longest_delay), each spread between a half of that and the whole, so that many that fail together do
/// not come back together. They are whole seconds.
///
/// Only the last failure is the result of a target. Errors, panics and time-outs are retried; what is malformed, and what the
/// service itself calls [fatal](crate::ServiceError::fatal), is not.
///
/// ```
/// use std::time::Duration;
/// use fanfare_worker::{Context, Retry, ServiceError, service};
///
/// let quote = service("price.quote", |context: Context, item: String| async move {
///     if item.is_empty() {
///         return Err(ServiceError::fatal("there is no item"));
///     }
///     println!("attempt {}", context.attempt());
///     Ok(item.len())
/// })
/// .retry(Retry::exponential(5).first_delay(Duration::from_secs(10)).longest_delay(Duration::from_secs(600)));
/// # drop(quote);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    first: Duration,
    longest: Duration,
}

impl Retry {
    /// The longest that any wait can be: some nine hours.
    pub const LONGEST_DELAY: Duration = Duration::from_secs(DELAY_STEPS[DELAY_STEPS.len() - 1] as u64);

    /// Of targets: one attempt, since the caller is told of the failure, and only the service knows whether it may run twice.
    pub const OF_TARGETS: Self = Self::exponential(1);

    /// Of callbacks and plain invocations, whose failure nobody would be told: five attempts within about a minute.
    pub const OF_CALLBACKS: Self = Self::exponential(5).first_delay(Duration::from_secs(5));

    /// So many attempts, the first one included: 1 or more, where 1 is never to retry. The first wait is 1 s, the longest 5
    /// minutes.
    #[must_use]
    pub const fn exponential(attempts: u32) -> Self {
        Self { attempts, first: Duration::from_secs(1), longest: Duration::from_secs(300) }
    }

    /// Sets the first wait: 1 s or more.
    #[must_use]
    pub const fn first_delay(self, first: Duration) -> Self {
        Self { first, ..self }
    }

    /// Sets the longest wait: at least the first, and at most [`LONGEST_DELAY`](Self::LONGEST_DELAY).
    #[must_use]
    pub const fn longest_delay(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }

    /// The rule that it breaks, where it breaks one: no worker starts with such a policy.
    #[must_use]
    pub fn broken_rule(&self) -> Option<String> {
        let Self { attempts, first, longest } = *self;
        if attempts == 0 {
            Some("0 attempts would never run it: give 1 or more".to_owned())
        } else if first < Duration::from_secs(1) {
            Some(format!("a first wait of {first:?} is too short: give 1s or more"))
        } else if longest < first {
            Some(format!("a longest wait of {longest:?} is below the first of {first:?}"))
        } else if longest > Self::LONGEST_DELAY {
            Some(format!("a longest wait of {longest:?} is above the most, {:?}", Self::LONGEST_DELAY))
        } else {
            None
        }
    }

    /// Whether there is another attempt after this one, which has failed.
    pub(crate) const fn is_last(&self, attempt: u32) -> bool {
        attempt >= self.attempts
    }

    /// The step to wait before the next attempt. Jitter is from 0 up to 1.
    pub(crate) fn delay_seconds(&self, attempt: u32, jitter: f64) -> u32 {
        let doublings = attempt.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        let steps: Vec<u32> = DELAY_STEPS
            .into_iter()
            .filter(|step| (whole / 2..=whole).contains(&Duration::from_secs(u64::from(*step))))
            .collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place among at most three steps"
        )]
        let place = (jitter * steps.len() as f64) as usize;
        // No wait is so short that there is no step between a half of it and the whole.
        steps.get(place).or(steps.last()).copied().unwrap_or(DELAY_STEPS[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(retry: Retry, attempt: u32) -> Vec<u32> {
        let mut delays: Vec<u32> =
            (0..100).map(|hundredth| retry.delay_seconds(attempt, f64::from(hundredth) / 100.0)).collect();
        delays.dedup();
        delays
    }

    #[test]
    fn waits_double_up_to_the_longest_and_are_spread_over_the_steps_below() {
        let retry = Retry::exponential(100).longest_delay(Duration::from_secs(20));
        assert_eq!(delays(retry, 1), [1]);
        assert_eq!(delays(retry, 2), [1, 2]);
        assert_eq!(delays(retry, 3), [2, 3, 4]);
        assert_eq!(delays(retry, 4), [4, 6, 8]);
        assert_eq!(delays(retry, 5), [8, 12, 16]);
        for attempt in [6, 40, u32::MAX] {
            assert_eq!(delays(retry, attempt), [12, 16]);
        }
    }

    #[test]
    fn every_wait_that_is_allowed_has_a_step_between_its_half_and_the_whole() {
        for seconds in 1..=Retry::LONGEST_DELAY.as_secs() {
            let wait = Duration::from_secs(seconds) + Duration::from_millis(seconds % 1000);
            let retry = Retry::exponential(2).first_delay(wait).longest_delay(wait);
            for jitter in [0.0, 0.999] {
                let step = Duration::from_secs(retry.delay_seconds(1, jitter).into());
                assert!(step <= wait && step >= wait / 2, "{step:?} for {wait:?}");
            }
        }
    }

    #[test]
    fn the_last_attempt_is_the_one_that_was_asked_for() {
        let retry = Retry::exponential(3);
        assert_eq!([1, 2, 3, 4].map(|attempt| retry.is_last(attempt)), [false, false, true, true]);
        assert!(Retry::OF_TARGETS.is_last(1));
        assert!(!Retry::OF_CALLBACKS.is_last(4) && Retry::OF_CALLBACKS.is_last(5));
    }

    #[test]
    fn a_policy_that_cannot_be_kept_is_refused_with_the_rule() {
        let second = Duration::from_secs(1);
        for (retry, rule) in [
            (Retry::exponential(0), "0 attempts"),
            (Retry::exponential(2).first_delay(Duration::from_millis(10)), "10ms is too short"),
            (Retry::exponential(2).first_delay(second * 400), "below the first of 400s"),
            (Retry::exponential(2).longest_delay(second * 40_000), "above the most, 32768s"),
        ] {
            assert!(retry.broken_rule().unwrap().contains(rule), "{retry:?}");
        }
        for retry in [Retry::OF_TARGETS, Retry::OF_CALLBACKS, Retry::exponential(u32::MAX)] {
            assert_eq!(retry.broken_rule(), None);
        }
    }
}
