/// Tells the recorder of the `metrics` crate what Fanfare's series mean, and begins those with a fixed set of labels at zero.
///
/// Fanfare records what docs/telemetry.md tabulates through the facade of that crate. A program that installs a recorder, for
/// Prometheus for instance, calls this once after it; in one that does not, nothing is kept.
pub fn describe_metrics() {
    fanfare_broker::describe_metrics();
    fanfare_publisher::describe_metrics();
    fanfare_worker::describe_metrics();
    fanfare_coordinator::describe_metrics();
}
