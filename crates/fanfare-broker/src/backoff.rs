use std::time::Duration;

use crate::Environment;

/// How long to wait before each next try: 50 ms, then twice as long each time up to 5 s, each spread by up to a half so
/// that many who fail together do not come back together.
///
/// It has no end of its own: whoever uses it has a time limit, or a reason to have none.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The next wait.
    pub fn next(&mut self, environment: &dyn Environment) -> Duration {
        let doubled = Self::FIRST.saturating_mul(1 << self.tries.min(16));
        self.tries = self.tries.saturating_add(1);
        doubled.min(Self::LONGEST).mul_f64(0.5 + environment.jitter() / 2.0)
    }

    /// Waits for the next try.
    pub async fn wait(&mut self, environment: &dyn Environment) {
        tokio::time::sleep(self.next(environment)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::System;

    #[test]
    fn waits_grow_and_stay_between_half_and_the_whole_of_the_longest() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..100).map(|_| backoff.next(&System)).collect();
        assert!(waits[0] <= Backoff::FIRST && waits[0] >= Backoff::FIRST / 2);
        assert!(waits[1] <= Backoff::FIRST * 2 && waits[1] >= Backoff::FIRST);
        assert!(waits[50..].iter().all(|wait| (Backoff::LONGEST / 2..=Backoff::LONGEST).contains(wait)));
    }
}
