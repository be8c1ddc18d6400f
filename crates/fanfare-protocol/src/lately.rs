use serde::{Deserialize, Serialize};

use crate::{Cid, FailedTarget, FanOutStatus, RunId, ServiceName, WireTime};

/// What has happened at a coordinator lately, for whoever watches it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lately {
    /// Fan-outs that have ended there, the latest first: [`limits::LATELY`](crate::limits::LATELY) at most.
    pub ended: Vec<FanOutStatus>,
    /// Targets that have failed there, the latest first: [`limits::LATELY`](crate::limits::LATELY) at most.
    pub failures: Vec<RecentFailure>,
    /// Services that its fan-outs have invoked, as targets or callbacks: the latest
    /// [`limits::SERVICES_TOLD`](crate::limits::SERVICES_TOLD).
    pub services: Vec<ServiceName>,
    /// What it has counted since it started.
    #[serde(deserialize_with = "crate::object::one")]
    pub totals: Totals,
}

/// A target that has failed, of some fan-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentFailure {
    /// The correlation ID of its fan-out.
    pub cid: Cid,
    /// The run.
    pub run: RunId,
    /// When it failed, by its worker's clock.
    pub at_utc: WireTime,
    /// The target, and why.
    #[serde(flatten)]
    pub target: FailedTarget,
}

/// What a coordinator has counted since it started. Two looks, some time apart, make a rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Fan-outs that have ended there.
    pub fan_outs: u64,
    /// Milliseconds from taking them to their end, together.
    pub fan_in_ms: u64,
    /// Results of targets that succeeded.
    pub succeeded: u64,
    /// Results of targets that failed.
    pub failed: u64,
}
