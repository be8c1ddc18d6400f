use chrono::{DateTime, Utc};
use fanfare_broker::Environment;
use tokio::time::Instant;
use uuid::Uuid;

use super::random::Random;

/// The clock, the ids and the jitter of one simulated process: all of them follow from the seed. Its clock may be wrong.
#[derive(Debug)]
pub(super) struct Simulated {
    random: Random,
    started: Instant,
    epoch: DateTime<Utc>,
}

impl Simulated {
    /// `started` is the moment that was `epoch` by this process's clock.
    pub(super) const fn new(random: Random, started: Instant, epoch: DateTime<Utc>) -> Self {
        Self { random, started, epoch }
    }
}

impl Environment for Simulated {
    fn now(&self) -> DateTime<Utc> {
        self.epoch + self.started.elapsed()
    }

    fn unique(&self) -> Uuid {
        Uuid::from_u64_pair(self.random.next(), self.random.next())
    }

    fn sequential(&self) -> Uuid {
        self.unique()
    }

    fn jitter(&self) -> f64 {
        self.random.fraction()
    }
}
