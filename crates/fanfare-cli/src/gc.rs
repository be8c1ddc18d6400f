//! `fanfare gc`: removes aggregation queues that no fan-out owns.

mod payloads;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use fanfare::{Cid, Explanation, FanOutState, Fanfare, PublisherConfig, RunId};
use fanfare_protocol::{counted, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::durations;
use crate::exit::{self, Exit, Failure, print, print_json, say};
use crate::management::{Management, ManagementUrl, WITHOUT_TLS};
use crate::settings::Settings;
use crate::silent;

#[derive(Debug, Args)]
#[command(after_help = "\
A publisher that dies before its manifest is published leaves its aggregation queue behind, and one
that dies at all leaves those that it kept ready for its next fan-outs; both go by themselves after
seven days. This lists such queues, and with --yes removes them. It never touches one whose fan-out
is open at a coordinator, whose manifest is parked, or which somebody consumes; and nothing at all while a coordinator does not answer, which it names, or manifests wait
for one. With --yes it looks twice, --min-age apart, and removes what was nobody's both times.

It needs RabbitMQ's management API, which alone lists queues, and a user with the tag management.

Examples:
  fanfare gc
  fanfare gc --payloads 7days --json
  fanfare gc --yes --management http://broker.internal:15672

Exit codes: 0 done; 1 it cannot be told whose queues they are, or some were not removed; 2 bad input;
3 no broker; 5 with --payloads, this user may not look at what is parked")]
pub(crate) struct GcArguments {
    /// Removes them. Without it, they are listed and nothing is changed
    #[arg(long)]
    yes: bool,

    /// How old a queue has to be: seen at the beginning and at the end of that time [default: 3m and twice publisher.time_limit, 5m]
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    min_age: Option<Duration>,

    /// Lists the queues of large payloads in place of these that nobody has touched for so long. None is removed: whether a
    /// callback that waits refers to one cannot be known
    #[arg(long, value_name = "DURATION", value_parser = durations::parse, conflicts_with_all = ["yes", "min_age"])]
    payloads: Option<Duration>,

    /// Prints one line of JSON in place of the text
    #[arg(long)]
    json: bool,

    /// RabbitMQ's management API [default: port 15672 of the broker, unless that is reached through TLS]
    #[arg(long, env = "FANFARE_MANAGEMENT", value_name = "URL")]
    management: Option<ManagementUrl>,
}

/// For how long a publisher that lives may have a queue that it does not use yet: it keeps one ready for less than two minutes, and may
/// take it for a fan-out at the end of them, which it prepares within ten seconds.
const READY_FOR: Duration = Duration::from_secs(180);

/// What is said where there is nothing to do.
const NONE: &str = "no aggregation queue is without a fan-out";

/// A queue as the management API tells of it.
#[derive(Debug, Clone, Deserialize)]
struct Queue {
    name: String,
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    consumers: u64,
    /// Where it is asked for; replicated queues do not have it.
    idle_since: Option<String>,
}

/// A queue that belongs to no fan-out.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Leftover {
    name: String,
    messages: u64,
    removed: bool,
    /// Why it was not removed, where it was to be.
    error: Option<String>,
}

pub(crate) async fn run(arguments: GcArguments, settings: &Settings) -> Result<Exit, Failure> {
    let time_limit =
        settings.file.publisher.time_limit.map_or(PublisherConfig::default().time_limit, |it| it.0);
    let min_age = arguments.min_age.unwrap_or(READY_FOR.saturating_add(time_limit.saturating_mul(2)));
    let fanfare = settings.fanfare("gc")?;
    let management = settings
        .management(arguments.management.as_ref())?
        .ok_or_else(|| Failure::new(Exit::Failed, anyhow!(WITHOUT_TLS)))?;
    let outcome = match (arguments.payloads, arguments.yes) {
        (Some(idle_for), _) => payloads::list(&fanfare, &management, idle_for, arguments.json).await,
        (None, false) => {
            list(&fanfare, &management).await.and_then(|leftovers| told(&leftovers, arguments.json))
        }
        (None, true) => {
            let removed = remove(&fanfare, &management, min_age).await;
            removed.and_then(|leftovers| told(&leftovers, arguments.json))
        }
    };
    fanfare.close().await;
    outcome
}

/// The queues of the virtual host, with these columns.
async fn listed<T: DeserializeOwned>(
    fanfare: &Fanfare,
    management: &Management,
    columns: &str,
) -> Result<Vec<T>, Failure> {
    match management.queues(columns).await {
        Ok(queues) => Ok(queues),
        Err(reason) => {
            let without_broker = exit::without_broker(fanfare).await;
            let untold = anyhow!("which queues there are is not known: {reason}");
            Err(without_broker.unwrap_or_else(|| Failure::new(Exit::Failed, untold)))
        }
    }
}

fn told(leftovers: &[Leftover], json: bool) -> Result<Exit, Failure> {
    if json {
        print_json(&BTreeMap::from([("queues", leftovers)]))?;
    }
    for Leftover { name, messages, removed, error } in leftovers {
        match error {
            Some(reason) => say(format_args!("{name} is not removed: {reason}")),
            None if json => {}
            None if *removed => {
                print(format_args!("{name} removed ({})", counted(*messages, "message", "messages")))?
            }
            None => print(format_args!("{name} ({})", counted(*messages, "message", "messages")))?,
        }
    }
    let all_well = leftovers.iter().all(|leftover| leftover.error.is_none());
    Ok(if all_well { Exit::Done } else { Exit::Failed })
}

async fn list(fanfare: &Fanfare, management: &Management) -> Result<Vec<Leftover>, Failure> {
    let leftovers = look(fanfare, management).await?;
    match leftovers.len() {
        0 => say(NONE),
        count => say(format_args!(
            "{} would be removed, where that is so still after --min-age: give --yes",
            counted(count, "queue", "queues")
        )),
    }
    Ok(leftovers)
}

async fn remove(
    fanfare: &Fanfare,
    management: &Management,
    min_age: Duration,
) -> Result<Vec<Leftover>, Failure> {
    let first = look(fanfare, management).await?;
    if first.is_empty() {
        say(NONE);
        return Ok(first);
    }
    let (count, shown) = (first.len(), humantime::format_duration(min_age));
    say(format_args!(
        "{} without a fan-out; looking again in {shown}, in case one is just being invoked",
        counted(count, "queue is", "queues are")
    ));
    tokio::time::sleep(min_age).await;
    let before: BTreeSet<String> = first.into_iter().map(|leftover| leftover.name).collect();
    let mut leftovers = look(fanfare, management).await?;
    leftovers.retain(|leftover| before.contains(&leftover.name));
    for leftover in &mut leftovers {
        leftover.error = management.delete_unused(&leftover.name).await.err();
        leftover.removed = leftover.error.is_none();
    }
    Ok(leftovers)
}

/// The aggregation queues that nobody owns now.
async fn look(fanfare: &Fanfare, management: &Management) -> Result<Vec<Leftover>, Failure> {
    let fanin = fanfare.names().fanin_queue();
    let queues: Vec<Queue> = listed(fanfare, management, "name,messages,consumers").await?;
    let unused = queues.into_iter().filter(|queue| queue.consumers == 0);
    let candidates: Vec<(Queue, Cid, RunId)> = unused
        .filter_map(|queue| {
            let (cid, run) = fanfare.names().aggregation_of(&queue.name)?;
            Some((queue, cid, run))
        })
        .collect();
    let mut leftovers = Vec::new();
    for (Queue { name, messages, .. }, cid, run) in candidates {
        // Before coordinators are asked and, in what is explained, after: in between a manifest may go from one to another.
        let waiting = fanfare.broker().inspect(&fanin).await.ok().flatten().map(|fanin| fanin.messages);
        let explanation = match fanfare.operator().explain(&cid, Some(run), 0).await {
            Ok(explanation) => explanation,
            Err(error) => return Err(silent::not_told(fanfare, Some(management), error).await),
        };
        if let Some(reason) = undecidable(&explanation, waiting, &fanin) {
            silent::missing(fanfare, Some(management), &explanation.coordinators).await.say();
            return Err(Failure::new(
                Exit::Failed,
                anyhow!("whose queues these are cannot be told: {reason}"),
            ));
        }
        if !is_owned(&explanation) {
            leftovers.push(Leftover { name, messages, removed: false, error: None });
        }
    }
    Ok(leftovers)
}

/// Why nobody can say which queues are nobody's.
fn undecidable(explanation: &Explanation, waiting: Option<u64>, fanin: &str) -> Option<String> {
    if let Some(shortfall) = explanation.coordinators.shortfall() {
        return Some(format!("{shortfall}; see that they run, and try again"));
    }
    if explanation.coordinators.silent.is_none() {
        return Some("the broker does not tell this user how many coordinators there are".to_owned());
    }
    if let Some(reason) = &explanation.parked_unseen {
        return Some(format!("whether their manifests are parked is not known: {reason}"));
    }
    match waiting.zip(explanation.manifests_waiting) {
        None => Some(format!("whether fan-outs wait in `{fanin}` is not known")),
        Some((0, 0)) => None,
        Some((before, after)) => Some(format!(
            "{} in `{fanin}` for a coordinator, and what is waited for looks like nobody's; try again when that is over",
            counted(before.max(after), "fan-out waits", "fan-outs wait")
        )),
    }
}

/// Whether a queue is that of a fan-out that is open, or may be again.
fn is_owned(explanation: &Explanation) -> bool {
    let is_open = |state: &FanOutState| !matches!(state, FanOutState::Ended { .. });
    explanation.matching > explanation.fan_outs.len()
        || explanation.fan_outs.iter().any(|fan_out| is_open(&fan_out.status.state))
        || explanation.parked.iter().any(|parked| parked.kind == header::TYPE_MANIFEST)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use fanfare::{Accepted, Broker};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A management API that lists the queues that it is given, deletes them in the broker, and tells what it was asked.
    async fn serve(
        listener: TcpListener,
        queues: Vec<String>,
        broker: Arc<dyn Broker>,
        asked: Arc<Mutex<Vec<String>>>,
    ) {
        let listed: Vec<String> =
            queues.iter().map(|name| format!(r#"{{"name":"{name}","messages":1,"consumers":0}}"#)).collect();
        let listed = format!("[{}]", listed.join(","));
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let line = String::from_utf8(request).unwrap().lines().next().unwrap().to_owned();
            let deleted =
                line.strip_prefix("DELETE /api/queues/%2F/").and_then(|rest| rest.split('?').next());
            let body = match deleted {
                Some(queue) => {
                    broker.delete(queue).await.unwrap();
                    ""
                }
                None => &listed,
            };
            asked.lock().unwrap().push(line);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    struct Scene {
        fanfare: Fanfare,
        management: Management,
        asked: Arc<Mutex<Vec<String>>>,
    }

    /// A coordinator with one open fan-out, and queues that nobody owns.
    async fn scene(leftovers: &[&str], with_coordinator: bool) -> (Scene, Accepted) {
        let fanfare = Fanfare::in_memory();
        let names = fanfare.names().clone();
        if with_coordinator {
            tokio::spawn(fanfare.coordinator().run_until(std::future::pending()));
        }
        let fanout = fanfare.fanout("test").target("nobody", 1).on_final("done");
        let accepted = fanout.declare_missing().invoke().await.unwrap();
        let mut queues = vec![names.aggregation(&accepted.cid, accepted.run).name];
        let run: RunId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        for cid in leftovers {
            let queue = names.aggregation(&Cid::new(*cid).unwrap(), run);
            fanfare.broker().declare(&queue).await.unwrap();
            queues.push(queue.name);
        }
        queues.extend([names.fanin_queue(), "other.agg.c.0123456789abcdef0123456789abcdef".to_owned()]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::default();
        tokio::spawn(serve(listener, queues, Arc::clone(fanfare.broker()), Arc::clone(&asked)));
        let management = Management::of(&"amqp://localhost".parse().unwrap(), Some(&url)).unwrap();
        (Scene { fanfare, management, asked }, accepted)
    }

    /// Waits until the fan-out of a scene is open at its coordinator.
    async fn is_open(Scene { fanfare, .. }: &Scene, accepted: &Accepted) {
        let queue = fanfare.names().aggregation(&accepted.cid, accepted.run).name;
        while fanfare.broker().inspect(&queue).await.unwrap().unwrap().consumers == 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn only_queues_that_no_fan_out_owns_are_removed() {
        let (scene, accepted) = scene(&["crashed", "parked"], true).await;
        let Scene { fanfare, management, asked } = &scene;
        is_open(&scene, &accepted).await;
        // A manifest that can be put back needs its queue.
        let (names, broker) = (fanfare.names(), fanfare.broker());
        let mut manifest = fanfare_protocol::Message { body: "{}".into(), ..Default::default() }
            .with_header(header::RUN, "0123456789abcdef0123456789abcdef");
        manifest.properties.kind = Some(header::TYPE_MANIFEST.into());
        manifest.properties.correlation_id = Some("parked".into());
        let at = fanfare::WireTime::from_timestamp(1_000).unwrap();
        let manifest = manifest.parked(&names.fanin_queue(), "why", at, uuid::Uuid::from_u128(1));
        broker.declare(&names.parked()).await.unwrap();
        broker.publish(&names.parked().name, manifest).await.unwrap();

        let crashed = "fanfare.agg.crashed.0123456789abcdef0123456789abcdef";
        let leftovers = look(fanfare, management).await.unwrap();
        let leftover = |removed| Leftover { name: crashed.to_owned(), messages: 1, removed, error: None };
        assert_eq!(leftovers, [leftover(false)]);
        assert!(broker.exists(crashed).await.unwrap(), "to look removes nothing");
        let removed = remove(fanfare, management, Duration::from_millis(1)).await.unwrap();
        assert_eq!(removed, [leftover(true)]);
        assert!(!broker.exists(crashed).await.unwrap());
        for owned in [
            "fanfare.agg.parked.0123456789abcdef0123456789abcdef",
            &names.aggregation(&accepted.cid, accepted.run).name,
        ] {
            assert!(broker.exists(owned).await.unwrap(), "{owned}");
        }
        let deletions: Vec<String> =
            asked.lock().unwrap().iter().filter(|line| line.starts_with("DELETE")).cloned().collect();
        assert_eq!(deletions, [format!("DELETE /api/queues/%2F/{crashed}?if-unused=true HTTP/1.1")]);
    }

    #[tokio::test]
    async fn nothing_is_removed_where_it_cannot_be_told_whose_queues_they_are() {
        let (scene, _) = scene(&["crashed"], false).await;
        let failure = look(&scene.fanfare, &scene.management).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);

        let (scene, accepted) = self::scene(&["crashed"], true).await;
        is_open(&scene, &accepted).await;
        let waiting = scene.fanfare.operator().explain(&accepted.cid, None, 0).await.unwrap();
        assert!(is_owned(&waiting));
        assert_eq!(undecidable(&waiting, Some(0), "q"), None);
        assert!(undecidable(&waiting, Some(2), "q").unwrap().contains("2 fan-outs wait in `q`"));
        assert!(undecidable(&waiting, None, "q").unwrap().contains("is not known"));
        let unseen = Explanation { parked_unseen: Some("denied".to_owned()), ..waiting.clone() };
        assert!(
            undecidable(&unseen, Some(0), "q").unwrap().contains("manifests are parked is not known: denied")
        );
        let mut silent = waiting.clone();
        silent.coordinators.silent = Some(1);
        assert!(undecidable(&silent, Some(0), "q").unwrap().contains("1 of 2 coordinators did not answer"));
        silent.coordinators.silent = None;
        assert!(undecidable(&silent, Some(0), "q").unwrap().contains("does not tell this user"));
    }
}
