use std::time::Duration;

use fanfare_broker::Environment;
use fanfare_fanin::Deadline;
use fanfare_protocol::{Manifest, WireTime};
use tokio::time::Instant;

/// How far the clocks of two coordinators may differ: a deadline that another has written down is given so much more.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// When what is missing is to fail, from when the coordinator started. The first coordinator counts from now, and writes the
/// time of day down for those that the manifest is renewed to.
pub(crate) fn deadline(
    manifest: &mut Manifest,
    environment: &dyn Environment,
    started: Instant,
) -> Option<Deadline> {
    let is_written = manifest.deadline_utc.is_some();
    let now = environment.now();
    let left = match (manifest.deadline_utc, manifest.deadline_ms) {
        (Some(at), _) => (at.to_utc() - now).to_std().unwrap_or_default() + CLOCK_SKEW,
        (None, Some(milliseconds)) => {
            let left = Duration::from_millis(milliseconds);
            let at = chrono::Duration::from_std(left).ok().and_then(|left| now.checked_add_signed(left));
            manifest.deadline_utc = at.map(WireTime::from);
            left
        }
        (None, None) => return None,
    };
    let at = started.elapsed().checked_add(left)?;
    Some(Deadline { at, is_written })
}
