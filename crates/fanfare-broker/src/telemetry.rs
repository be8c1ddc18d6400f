//! What is measured of a broker, through the `metrics` facade: where no recorder is installed, nothing is kept.
//! docs/telemetry.md tabulates the series.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

use crate::PublishError;

const PUBLISHES: &str = "fanfare_broker_publishes_total";
const PUBLISHES_IN_FLIGHT: &str = "fanfare_broker_publishes_in_flight";
const PUBLISH_SECONDS: &str = "fanfare_broker_publish_seconds";
const CONNECTIONS_OPENED: &str = "fanfare_broker_connections_opened_total";
const CONNECTIONS_LOST: &str = "fanfare_broker_connections_lost_total";
const CONNECTIONS_BLOCKED: &str = "fanfare_broker_connections_blocked";

const OUTCOMES: [&str; 6] = ["confirmed", "returned", "refused", "too_large", "not_sent", "unknown"];

/// Tells the recorder what the series of this crate mean, and begins those with a fixed set of labels at zero.
pub fn describe_metrics() {
    describe_counter!(PUBLISHES, "Messages that were published, by what became of them");
    describe_gauge!(PUBLISHES_IN_FLIGHT, "Messages that wait to be sent or confirmed");
    describe_histogram!(PUBLISH_SECONDS, Unit::Seconds, "From handing a message over to its confirm");
    describe_counter!(CONNECTIONS_OPENED, "Connections that were opened, the first ones included");
    describe_counter!(CONNECTIONS_LOST, "Connections that ended unasked");
    describe_gauge!(CONNECTIONS_BLOCKED, "Connections on which the broker takes no messages for now");
    for outcome in OUTCOMES {
        counter!(PUBLISHES, "outcome" => outcome).increment(0);
    }
    counter!(CONNECTIONS_OPENED).increment(0);
    counter!(CONNECTIONS_LOST).increment(0);
    gauge!(PUBLISHES_IN_FLIGHT).increment(0.0);
    gauge!(CONNECTIONS_BLOCKED).increment(0.0);
}

/// A message that is being published, until this is dropped.
pub(crate) struct Publishing {
    since: Instant,
}

impl Publishing {
    pub(crate) fn begin() -> Self {
        gauge!(PUBLISHES_IN_FLIGHT).increment(1.0);
        Self { since: Instant::now() }
    }

    pub(crate) fn ended(self, outcome: &Result<(), PublishError>) {
        let name = match outcome {
            Ok(()) => "confirmed",
            Err(PublishError::Unroutable(_) | PublishError::NoExchange(_) | PublishError::Unbound(_)) => {
                "returned"
            }
            Err(PublishError::Refused(_)) => "refused",
            Err(PublishError::TooLarge { .. }) => "too_large",
            Err(PublishError::NotSent(_)) => "not_sent",
            Err(PublishError::Unknown(_)) => "unknown",
        };
        counter!(PUBLISHES, "outcome" => name).increment(1);
        if outcome.is_ok() {
            histogram!(PUBLISH_SECONDS).record(self.since.elapsed());
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        gauge!(PUBLISHES_IN_FLIGHT).decrement(1.0);
    }
}

pub(crate) fn connection_opened() {
    counter!(CONNECTIONS_OPENED).increment(1);
}

pub(crate) fn connection_lost() {
    counter!(CONNECTIONS_LOST).increment(1);
}

/// Whether the broker takes no messages on one connection, until this is dropped.
#[derive(Default)]
pub(crate) struct Blocked(bool);

impl Blocked {
    pub(crate) fn set(&mut self, blocked: bool) {
        let change = f64::from(u8::from(blocked)) - f64::from(u8::from(self.0));
        gauge!(CONNECTIONS_BLOCKED).increment(change);
        self.0 = blocked;
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.set(false);
    }
}
