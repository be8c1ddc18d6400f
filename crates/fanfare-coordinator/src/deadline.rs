use std::time::Duration;

use chrono::{DateTime, Utc};
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
            // Beyond what can be written, it is the latest that can.
            let at = chrono::Duration::from_std(left).ok().and_then(|left| now.checked_add_signed(left));
            manifest.deadline_utc = Some(WireTime::from(at.unwrap_or(DateTime::<Utc>::MAX_UTC)));
            left
        }
        (None, None) => return None,
    };
    let at = started.elapsed().checked_add(left)?;
    Some(Deadline { at, is_written })
}

#[cfg(test)]
mod tests {
    use fanfare_broker::System;
    use fanfare_protocol::{Message, QueueNames};

    use super::*;

    fn of(deadline_ms: u64) -> (Option<Deadline>, Option<WireTime>) {
        let mut message = Message::default();
        message.properties.kind = Some("fanfare.manifest".into());
        message.body = format!(
            r#"{{"cid":"c","run":"{run}","source":"s","req_ts_utc":"2025-01-19 19:55:45","channel":"fanout-call","targets":[],"on_target":[],"on_final":[],"reply_to":"fanfare.agg.c.{run}","deadline_ms":{deadline_ms}}}"#,
            run = "0".repeat(32)
        )
        .into();
        let mut manifest = Manifest::decode(&message, &QueueNames::default()).unwrap();
        let deadline = deadline(&mut manifest, &System, Instant::now());
        // As it is renewed, whoever takes it over can read it.
        let renewed = manifest.encode_renewed(manifest.deadline_utc);
        assert_eq!(Manifest::decode(&renewed, &QueueNames::default()).unwrap(), manifest);
        (deadline, manifest.deadline_utc)
    }

    #[tokio::test]
    async fn one_that_nobody_will_see_is_none_the_less_told() {
        for milliseconds in [u64::MAX, 1 << 60, 1 << 50] {
            let (deadline, at) = of(milliseconds);
            assert!(deadline.unwrap().at >= Duration::from_millis(milliseconds));
            assert_eq!(at.unwrap().to_string(), "9999-12-31 23:59:59", "{milliseconds}");
        }
    }
}
