//! What is measured of a worker, through the `metrics` facade: where no recorder is installed, nothing is kept.
//! docs/telemetry.md tabulates the series.

use fanfare_protocol::ServiceName;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use tokio::time::Instant;

const RUNS: &str = "fanfare_worker_runs_total";
const RUN_SECONDS: &str = "fanfare_worker_run_seconds";
const RUNNING: &str = "fanfare_worker_running";
const REDELIVERED: &str = "fanfare_worker_redelivered_total";
const LATE: &str = "fanfare_worker_results_late_total";
const PARKED: &str = "fanfare_worker_parked_total";

/// Tells the recorder what the series of this crate mean.
pub fn describe_metrics() {
    describe_counter!(RUNS, "Messages that a service was to be run for, by what became of them");
    describe_histogram!(RUN_SECONDS, Unit::Seconds, "How long a service ran, each attempt for itself");
    describe_gauge!(RUNNING, "Invocations that run, those included that wait for a fan-out of their own");
    describe_counter!(REDELIVERED, "Deliveries that the broker may have made before");
    describe_counter!(LATE, "Results whose fan-out had ended before they could be published");
    describe_counter!(PARKED, "Messages that were kept for a person to look at");
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// The service succeeded.
    Ok,
    /// It failed for good.
    Failed,
    /// It failed, and is tried again later.
    Retried,
    /// It was cut short because the worker stops, and goes back into its queue.
    Requeued,
    /// Its fan-out was cancelled.
    Cancelled,
    /// It could not be read.
    Malformed,
    /// It was delivered too often.
    GivenUp,
}

impl Run {
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::Failed,
        Self::Retried,
        Self::Requeued,
        Self::Cancelled,
        Self::Malformed,
        Self::GivenUp,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Requeued => "requeued",
            Self::Cancelled => "cancelled",
            Self::Malformed => "malformed",
            Self::GivenUp => "given_up",
        }
    }
}

/// The series of one service. They begin at zero when it is served.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    runs: [Counter; Run::ALL.len()],
    seconds: Histogram,
    running: Gauge,
    redelivered: Counter,
    late: Counter,
    parked: Counter,
}

impl Telemetry {
    pub(crate) fn of(service: &ServiceName) -> Self {
        let service = service.to_string();
        Self {
            runs: Run::ALL.map(|run| counter!(RUNS, "service" => service.clone(), "outcome" => run.name())),
            seconds: histogram!(RUN_SECONDS, "service" => service.clone()),
            running: gauge!(RUNNING, "service" => service.clone()),
            redelivered: counter!(REDELIVERED, "service" => service.clone()),
            late: counter!(LATE, "service" => service.clone()),
            parked: counter!(PARKED, "service" => service),
        }
    }

    pub(crate) fn ended(&self, run: Run) {
        self.runs[run as usize].increment(1);
    }

    pub(crate) fn redelivered(&self) {
        self.redelivered.increment(1);
    }

    pub(crate) fn late(&self) {
        self.late.increment(1);
    }

    pub(crate) fn parked(&self) {
        self.parked.increment(1);
    }

    /// A service begins to run.
    pub(crate) fn run(&self) -> Running<'_> {
        self.running.increment(1.0);
        Running { telemetry: self, since: Instant::now() }
    }
}

/// A service that runs, until this is dropped.
pub(crate) struct Running<'a> {
    telemetry: &'a Telemetry,
    since: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.telemetry.running.decrement(1.0);
        self.telemetry.seconds.record(self.since.elapsed());
    }
}
