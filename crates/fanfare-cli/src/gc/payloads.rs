//! Queues of large payloads that nobody has touched for long.
//!
//! Whether a message refers to one cannot be known: callbacks wait in queues of services and for their next attempt, where only
//! workers may read them. So these queues are listed, and never removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, NaiveDateTime, Utc};
use fanfare::{Environment, Fanfare, ParkedQuery, RunId, System};
use serde::Serialize;

use super::{Queue, listed};
use fanfare_protocol::counted;

use crate::exit::{Exit, Failure, print, print_json, say};
use crate::management::Management;
use crate::parked::reached;

/// Parked messages that are looked at, as many as an operator can.
const MOST_PARKED: usize = 10_000;

/// Why nobody can say which payloads are nobody's.
const UNSEEN: &str = "which payloads parked messages refer to is not known: some parked messages are too many to be looked at, or are held by \
                      another program that consumes them: replay or purge some, or end that program";

/// The parts of a payload that nobody has read for long.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Payload {
    name: String,
    messages: u64,
    idle_since: DateTime<Utc>,
}

/// Lists those that have been idle for so long, and that no parked message refers to.
pub(super) async fn list(
    fanfare: &Fanfare,
    management: &Management,
    idle_for: Duration,
    json: bool,
) -> Result<Exit, Failure> {
    let queues: Vec<Queue> = listed(fanfare, management, "name,messages,consumers,idle_since").await?;
    let parked = fanfare.operator().parked(&ParkedQuery::default(), MOST_PARKED).await;
    let parked = reached(fanfare, parked).await?;
    if parked.unseen > 0 || parked.others > 0 {
        return Err(Failure::new(Exit::Failed, anyhow!(UNSEEN)));
    }
    let parked: BTreeSet<RunId> = parked.messages.into_iter().filter_map(|parked| parked.run).collect();
    let of_payload = |queue: &Queue| fanfare.names().payload_of(&queue.name);
    let unread = queues.into_iter().filter(|queue| {
        queue.consumers == 0 && of_payload(queue).is_some_and(|(_, run, _)| !parked.contains(&run))
    });
    let (payloads, silent) = idle(unread, System.now(), idle_for);
    if json {
        print_json(&BTreeMap::from([("payloads", &payloads)]))?;
    } else {
        for Payload { name, messages, idle_since } in &payloads {
            let since = idle_since.format("%Y-%m-%d %H:%M:%S");
            print(format_args!(
                "{name} ({}, idle since {since} UTC)",
                counted(*messages, "message", "messages")
            ))?;
        }
    }
    let (count, shown) = (payloads.len(), humantime::format_duration(idle_for));
    let queues = counted(count, "queue of a large payload has", "queues of large payloads have");
    say(format_args!("{queues} been idle for {shown}; none is removed"));
    if silent > 0 {
        say(format_args!("{silent} do not tell since when they are idle, as replicated ones never do"));
    }
    Ok(Exit::Done)
}

/// Those that have been idle for so long, and how many do not tell.
fn idle(
    queues: impl Iterator<Item = Queue>,
    now: DateTime<Utc>,
    idle_for: Duration,
) -> (Vec<Payload>, usize) {
    let (mut payloads, mut silent) = (Vec::new(), 0);
    for Queue { name, messages, idle_since, .. } in queues {
        match idle_since.as_deref().and_then(time) {
            None => silent += 1,
            Some(idle_since) if (now - idle_since).to_std().is_ok_and(|idle| idle >= idle_for) => {
                payloads.push(Payload { name, messages, idle_since });
            }
            Some(_) => {}
        }
    }
    (payloads, silent)
}

/// A time as brokers write it: RFC 3339, and before that without a zone, in UTC.
fn time(text: &str) -> Option<DateTime<Utc>> {
    let zoned = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    let plain = || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").map(|time| time.and_utc());
    zoned.or_else(|_| plain()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_old_when_its_queue_was_idle_for_so_long_and_one_that_does_not_tell_is_counted() {
        let queue = |name: &str, idle_since: Option<&str>| Queue {
            name: name.to_owned(),
            messages: 2,
            consumers: 0,
            idle_since: idle_since.map(str::to_owned),
        };
        let queues = [
            queue("old", Some("2026-11-20T12:00:00.034+00:00")),
            queue("old on 3.10", Some("2026-11-20 9:05:00")),
            queue("young", Some("2026-11-26T12:00:01.000+00:00")),
            queue("of the future", Some("2026-11-28 12:00:00")),
            queue("replicated", None),
            queue("garbled", Some("yesterday")),
        ];
        let now = time("2026-11-27T12:00:00Z").unwrap();
        let (payloads, silent) = idle(queues.into_iter(), now, Duration::from_secs(24 * 60 * 60));
        let names: Vec<&str> = payloads.iter().map(|payload| payload.name.as_str()).collect();
        assert_eq!((names, silent), (vec!["old", "old on 3.10"], 2));
        assert_eq!(
            serde_json::to_string(&payloads[1]).unwrap(),
            r#"{"name":"old on 3.10","messages":2,"idle_since":"2026-11-20T09:05:00Z"}"#
        );
    }
}
