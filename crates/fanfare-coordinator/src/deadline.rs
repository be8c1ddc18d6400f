use std::time::Duration;

use chrono::{DateTime, Utc};
use fanfare_broker::Environment;
use fanfare_fanin::Deadline;
use fanfare_protocol::{Manifest, WireTime};
use tokio::time::Instant;

/// How far two clocks may differ: a deadline that another coordinator has written down is given so much more.
const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// After how long, at most, a coordinator that takes a fan-out over writes its deadline down. Most fan-outs have ended by then, and need no copy of
/// their manifest.
const WRITTEN_AFTER: Duration = Duration::from_secs(5);

/// When what is missing is to fail, from when the coordinator started. The first coordinator counts from now, and writes the
/// time of day down for those that the manifest is renewed to, once a tenth of the time has passed. Whoever takes over before that counts anew, and
/// writes it down soon: so it is once, and for no more than that tenth, that a deadline comes later, unless coordinators die one within seconds of the other.
pub(crate) fn deadline(
    manifest: &mut Manifest,
    take_over: bool,
    environment: &dyn Environment,
    started: Instant,
) -> Option<Deadline> {
    let (now, running) = (environment.now(), started.elapsed());
    if let Some(at) = manifest.deadline_utc {
        let left = (at.to_utc() - now).to_std().unwrap_or_default() + CLOCK_SKEW;
        return Some(Deadline { at: running.checked_add(left)?, written_at: None });
    }
    let left = Duration::from_millis(manifest.deadline_ms?);
    // Beyond what can be written, it is the latest that can.
    let at = chrono::Duration::from_std(left).ok().and_then(|left| now.checked_add_signed(left));
    manifest.deadline_utc = Some(WireTime::from(at.unwrap_or(DateTime::<Utc>::MAX_UTC)));
    let unwritten = if take_over { WRITTEN_AFTER.min(left / 10) } else { left / 10 };
    Some(Deadline { at: running.checked_add(left)?, written_at: running.checked_add(unwritten) })
}

#[cfg(test)]
mod tests {
    use fanfare_broker::System;
    use fanfare_protocol::{Message, QueueNames};

    use super::*;

    fn manifest(deadline_ms: u64) -> Manifest {
        let mut message = Message::default();
        message.properties.kind = Some("fanfare.manifest".into());
        message.body = format!(
            r#"{{"cid":"c","run":"{run}","source":"s","req_ts_utc":"2025-01-19 19:55:45","channel":"fanout-call","targets":[],"on_target":[],"on_final":[],"reply_to":"fanfare.agg.c.{run}","deadline_ms":{deadline_ms}}}"#,
            run = "0".repeat(32)
        )
        .into();
        Manifest::decode(&message, &QueueNames::default()).unwrap()
    }

    fn of(deadline_ms: u64) -> (Option<Deadline>, Option<WireTime>) {
        let mut manifest = manifest(deadline_ms);
        let deadline = deadline(&mut manifest, false, &System, Instant::now());
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

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_over_before_it_is_written_writes_it_soon_and_the_next_goes_by_that() {
        let second = Duration::from_secs(1);
        let mut manifest = manifest(100_000);
        let started = Instant::now();
        let first = deadline(&mut manifest.clone(), false, &System, started).unwrap();
        assert_eq!(first, Deadline { at: 100 * second, written_at: Some(10 * second) });
        tokio::time::advance(9 * second).await;
        let second_hold = deadline(&mut manifest, true, &System, started).unwrap();
        assert_eq!(second_hold, Deadline { at: 109 * second, written_at: Some(14 * second) });
        let third = deadline(&mut manifest, true, &System, started).unwrap();
        assert_eq!(third.written_at, None);
        let off = third.at.abs_diff(109 * second + CLOCK_SKEW);
        assert!(off <= 2 * second, "times of day are whole seconds: {third:?}");
    }
}
