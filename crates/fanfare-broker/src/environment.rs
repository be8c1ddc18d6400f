use chrono::{DateTime, Utc};
use uuid::Uuid;

/// The time and the randomness that Fanfare uses, handed in so that a run can be repeated exactly.
///
/// Waiting goes through `tokio::time`, which tests pause.
pub trait Environment: Send + Sync + std::fmt::Debug + 'static {
    /// The time of day.
    fn now(&self) -> DateTime<Utc>;
    /// A UUID that no other has: runs, tokens.
    fn unique(&self) -> Uuid;
    /// A UUID whose order is that of time: CIDs that the caller does not choose.
    fn sequential(&self) -> Uuid;
    /// A number from 0 up to 1, to spread retries.
    fn jitter(&self) -> f64;
}

/// The system's clock and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Environment for System {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn unique(&self) -> Uuid {
        Uuid::new_v4()
    }

    fn sequential(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn jitter(&self) -> f64 {
        let (_, random) = Uuid::new_v4().as_u64_pair();
        // 53 bits are what a double holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "both numbers fit into 53 bits")]
        let fraction = (random & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64;
        fraction
    }
}
