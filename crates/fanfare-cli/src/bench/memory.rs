//! How much memory a worker and a coordinator take: at rest, with many results held, and after many fan-outs.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fanfare::{Context, Fanfare, Registration, Target, service};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::case::{Case, TARGET, key};
use super::process::Process;
use super::publisher::Measured;
use super::role::{Load, Order, Part, Role};
use crate::configuration::Aggregation;
use crate::exit::say;
use crate::memory::EVERY;

/// Fan-outs that a coordinator holds at the same time, and the results of each that it has by then.
const HELD_FAN_OUTS: usize = 10;
const HELD_RESULTS: usize = 10_000;
/// Fan-outs after which it is looked whether anything of them is left.
const ENDED_FAN_OUTS: usize = 50_000;
const ROUND: Duration = Duration::from_secs(10);
/// How long results may be on their way to the coordinator, and fan-outs to their end.
const PATIENCE: Duration = Duration::from_secs(300);
/// The service of the target that keeps a fan-out from its end.
pub(super) const HELD: &str = "bench.held";

/// Resident memory, in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    aggregation: Aggregation,
    /// After one fan-out.
    worker_at_rest: u64,
    coordinator_at_rest: u64,
    /// With 100,000 results of 100 bytes in open fan-outs.
    coordinator_holding: u64,
    /// When these have ended.
    coordinator_released: u64,
    /// After 50,000 fan-outs.
    worker_after: u64,
    coordinator_after: u64,
}

/// Measures one worker and one coordinator, each a process.
pub(super) async fn measure(fanfare: &Fanfare, aggregation: Aggregation) -> Result<Memory> {
    let prefix = fanfare.names().prefix().to_string();
    let case = Case { aggregation, width: 1, payload: 100, on_target: 0, workers: 1 };
    let start = |part| Process::start(&Role { part, prefix: prefix.clone(), case, broker: None });
    let (mut publisher, worker, coordinator) =
        (start(Part::Publisher)?, start(Part::Worker)?, start(Part::Coordinator)?);
    let rss = |of: &Process| of.usage().rss_bytes;
    // By then every process has given back what it has no use for.
    let settle = || sleep(EVERY * 2);
    let order = |load, length| Order { load, length };

    let _: Measured = publisher.round(order(Load::One, Duration::ZERO)).await?;
    settle().await;
    let (worker_at_rest, coordinator_at_rest) = (rss(&worker), rss(&coordinator));
    say(format_args!("holding {} results", HELD_FAN_OUTS * HELD_RESULTS));
    let () = publisher.round(order(Load::Held, Duration::ZERO)).await?;
    settle().await;
    let coordinator_holding = rss(&coordinator);
    let () = publisher.round(order(Load::Released, Duration::ZERO)).await?;
    settle().await;
    let coordinator_released = rss(&coordinator);
    let mut ended = 0;
    while ended < ENDED_FAN_OUTS {
        say(format_args!("{ended} of {ENDED_FAN_OUTS} fan-outs"));
        let round: Measured = publisher.round(order(Load::Full, ROUND)).await?;
        ended += round.fan_outs;
    }
    settle().await;
    let (worker_after, coordinator_after) = (rss(&worker), rss(&coordinator));
    for process in [publisher, worker, coordinator] {
        process.stop().await;
    }
    Ok(Memory {
        aggregation,
        worker_at_rest,
        coordinator_at_rest,
        coordinator_holding,
        coordinator_released,
        worker_after,
        coordinator_after,
    })
}

/// Fan-outs of the publisher that have all of their results but one.
#[derive(Default)]
pub(super) struct Held {
    release: CancellationToken,
    waiting: JoinSet<Result<()>>,
}

impl Held {
    /// What the last target of each waits in.
    pub(super) fn service(&self) -> Registration {
        let release = self.release.clone();
        let held = service(HELD, move |_: Context, (): ()| {
            let release = release.clone();
            async move {
                release.cancelled().await;
                Ok(())
            }
        });
        held.timeout(PATIENCE)
    }

    /// Returns when the coordinator holds all results.
    pub(super) async fn begin(&mut self, fanfare: &Fanfare, case: &Case) -> Result<()> {
        let payload = "x".repeat(case.payload - 2);
        let mut responded = Vec::new();
        for _ in 0..HELD_FAN_OUTS {
            let (told, progress) = watch::channel(0);
            let mut fan_out = fanfare.fanout("bench").declare_missing().add(Target::new(HELD, ()));
            for place in 0..HELD_RESULTS {
                fan_out = fan_out.add(Target::new(TARGET, &payload).key(key(place)));
            }
            let fan_out = fan_out.on_progress(move |targets| _ = told.send(targets));
            self.waiting.spawn(async move {
                let gathered = fan_out.invoke_and_wait(PATIENCE * 2).await?;
                ensure!(gathered.data.len() == HELD_RESULTS + 1, "a final payload lacks results");
                Ok(())
            });
            responded.push(progress);
        }
        for progress in &mut responded {
            let all = progress.wait_for(|responded| *responded == HELD_RESULTS);
            timeout(PATIENCE, all).await.context("results are missing")?.context("a fan-out has ended")?;
        }
        Ok(())
    }

    /// Returns when all have ended.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.release.cancel();
        while let Some(ended) = self.waiting.join_next().await {
            ended??;
        }
        Ok(())
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| format!("{:.1}", *bytes as f64 / f64::from(1 << 20));
        let Self { aggregation, .. } = self;
        writeln!(f, "| resident memory, MiB ({aggregation}) | worker | coordinator |\n|---|--:|--:|")?;
        let [worker, coordinator] = [&self.worker_at_rest, &self.coordinator_at_rest].map(mib);
        writeln!(f, "| at rest, after one fan-out | {worker} | {coordinator} |")?;
        writeln!(f, "| with 100,000 results of 100 bytes held | | {} |", mib(&self.coordinator_holding))?;
        writeln!(f, "| when these fan-outs have ended | | {} |", mib(&self.coordinator_released))?;
        let [worker, coordinator] = [&self.worker_after, &self.coordinator_after].map(mib);
        writeln!(f, "| after {ENDED_FAN_OUTS} fan-outs of one target | {worker} | {coordinator} |")
    }
}
