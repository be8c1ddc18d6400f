//! How long an invocation may take.

use std::time::Duration;

use tokio::time::Instant;

use crate::Config;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When the steps of one invocation end, whatever has come of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// No queue is looked at or declared any more.
    pub(crate) prepared: Instant,
    /// No request and no manifest is sent any more. What is left is for the manifest's confirm, or for taking away the queue of
    /// what was given up.
    pub(crate) sent: Instant,
    /// The caller is told.
    pub(crate) told: Instant,
}

impl Schedule {
    /// That of an invocation which begins now.
    pub(crate) fn begin(config: &Config) -> Self {
        let now = Instant::now();
        Self {
            prepared: now + config.preparation(),
            sent: now + config.sending(),
            told: now + config.whole(),
        }
    }
}

impl Config {
    /// How long after its start an invocation may send anything.
    fn sending(&self) -> Duration {
        self.whole() - self.whole() / 10
    }

    /// A clock does not reach as far as a [`Duration`] does.
    fn whole(&self) -> Duration {
        self.time_limit.min(YEAR)
    }

    /// How long looking at queues and declaring them may take.
    pub(crate) fn preparation(&self) -> Duration {
        self.preparation_limit.min(self.sending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_time_limit_is_a_year() {
        let now = Instant::now();
        let schedule = Schedule::begin(&Config { time_limit: Duration::MAX, ..Config::default() });
        assert!(schedule.prepared < schedule.sent && schedule.sent < schedule.told);
        assert!(schedule.told >= now + YEAR && schedule.told <= Instant::now() + YEAR);
    }
}
