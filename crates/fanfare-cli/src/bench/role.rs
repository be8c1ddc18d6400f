//! The processes that are measured. Each is this program again, with the same flags and a role.
//!
//! A role reads its rounds from its standard input, a line of JSON each, answers each with another, and ends with its input: none
//! outlives the process that started it.

use std::io::{self, BufRead, Write};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use fanfare::{Context, Fanfare, TargetResult, WorkerConfig, service};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::case::{ANSWER_BYTES, Case, TARGET};
use super::{publisher, raw};
use crate::exit::{Exit, Failure, print};
use crate::settings::Settings;

/// What a process is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Role {
    pub(super) part: Part,
    /// How the names of its queues begin.
    pub(super) prefix: String,
    pub(super) case: Case,
    /// The broker's process on this machine.
    pub(super) broker: Option<u32>,
}

/// The part that it plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    /// Invokes, and is called back.
    Publisher,
    /// Serves the targets and the on-target callbacks.
    Worker,
    Coordinator,
    /// What the broker does without Fanfare.
    Raw,
}

impl FromStr for Role {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// A round that a role is told to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) load: Load,
    pub(super) length: Duration,
}

/// How much is to be under way in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Load {
    /// As much as the broker bears.
    Full,
    /// One fan-out, or message, at a time.
    One,
    /// Many results, of fan-outs that do not end.
    Held,
    /// The end of these.
    Released,
}

/// What a target answers with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// When the service returned it, in microseconds of the machine's clock: its result is published at once.
    pub(super) at: u64,
    /// Makes up the size.
    #[serde(skip_deserializing)]
    rest: String,
}

impl Answer {
    fn new(bytes: usize) -> Self {
        Self { at: now(), rest: "x".repeat(bytes - ANSWER_BYTES) }
    }
}

/// The rounds that this process is told to run.
pub(super) struct Rounds(mpsc::UnboundedReceiver<Order>);

impl Rounds {
    fn listen() -> Self {
        let (told, rounds) = mpsc::unbounded_channel();
        // A thread of its own: the runtime would wait at its end for a read that it has begun.
        std::thread::spawn(move || {
            let lines = io::stdin().lock().lines().map_while(Result::ok);
            for order in lines.map_while(|line| serde_json::from_str(&line).ok()) {
                if told.send(order).is_err() {
                    return;
                }
            }
        });
        Self(rounds)
    }

    /// The next round. None where there are no more.
    pub(super) async fn next(&mut self) -> Option<Order> {
        self.0.recv().await
    }

    /// Tells what came of a round.
    pub(super) fn report(&self, outcome: &impl Serialize) -> Result<()> {
        print(serde_json::to_string(outcome)?)?;
        Ok(io::stdout().flush()?)
    }
}

/// How workers serve the targets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Serving {
    /// Invocations of a service that run at a time in a worker.
    pub(super) concurrency: usize,
    /// How long a target takes.
    pub(super) service_time: Duration,
}

/// Plays a role to its end.
pub(super) async fn play(role: Role, serving: Serving, settings: &Settings) -> Result<Exit, Failure> {
    let Role { part, prefix, case, broker } = role;
    let rounds = Rounds::listen();
    let connected = |role| settings.connected_apart(role, &prefix, case.aggregation);
    let played = match part {
        Part::Raw => raw::run(rounds, case, &raw::uri(settings)?, &prefix, settings.shards, broker).await,
        Part::Publisher => {
            publisher::run(rounds, case, connected("bench publisher").await?, settings.shards).await
        }
        Part::Worker => work(rounds, case, serving, connected("bench worker").await?).await,
        Part::Coordinator => coordinate(rounds, connected("bench coordinator").await?).await,
    };
    played.map(|()| Exit::Done).map_err(|error| Failure::new(Exit::Failed, error))
}

async fn work(mut rounds: Rounds, case: Case, serving: Serving, fanfare: Fanfare) -> Result<()> {
    let Serving { concurrency, service_time } = serving;
    let bytes = case.answer();
    let target = service(TARGET, move |_: Context, _: Box<RawValue>| async move {
        if !service_time.is_zero() {
            tokio::time::sleep(service_time).await;
        }
        Ok(Answer::new(bytes))
    });
    let on_target =
        case.on_target().map(|name| service(name, |_: Context, _: TargetResult| async { Ok(()) }));
    let services = [target].into_iter().chain(on_target);
    let services = services.map(|service| limited(service).concurrency(concurrency));
    let all = concurrency.saturating_mul(1 + case.on_target().count());
    let worker = fanfare.worker_with(WorkerConfig { concurrency: all, ..WorkerConfig::default() });
    let worker = worker.services(services);
    let stopping = async { while rounds.next().await.is_some() {} };
    worker.run_until(stopping).await.context("the worker ended")?;
    fanfare.close().await;
    Ok(())
}

async fn coordinate(mut rounds: Rounds, fanfare: Fanfare) -> Result<()> {
    let stopping = async { while rounds.next().await.is_some() {} };
    fanfare.coordinator().run_until(stopping).await.context("the coordinator ended")?;
    fanfare.close().await;
    Ok(())
}

/// A service with a time-out, so that nobody is warned of it.
pub(super) fn limited(service: fanfare::Registration) -> fanfare::Registration {
    service.timeout(Duration::from_secs(60))
}

/// The machine's clock in microseconds, which is the same in all processes.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
