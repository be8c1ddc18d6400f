//! What is measured of invocations, through the `metrics` facade: where no recorder is installed, nothing is kept.
//! docs/telemetry.md tabulates the series.

use metrics::{counter, describe_counter};

use crate::{Accepted, InvokeError};

const INVOCATIONS: &str = "fanfare_publisher_invocations_total";

const OUTCOMES: [&str; 4] = ["accepted", "invalid", "not_accepted", "unknown"];

/// Tells the recorder what the series of this crate mean, and begins them at zero.
pub fn describe_metrics() {
    describe_counter!(INVOCATIONS, "Invocations by this process, by what became of them");
    for outcome in OUTCOMES {
        counter!(INVOCATIONS, "outcome" => outcome).increment(0);
    }
}

pub(crate) fn invoked(outcome: &Result<Accepted, InvokeError>) {
    let name = match outcome {
        Ok(_) => "accepted",
        Err(InvokeError::Invalid(_)) => "invalid",
        Err(InvokeError::NotAccepted { .. }) => "not_accepted",
        Err(InvokeError::Unknown { .. }) => "unknown",
    };
    counter!(INVOCATIONS, "outcome" => name).increment(1);
}
