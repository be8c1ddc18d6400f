//! Invokes as many fan-outs as may be under way, one when another ends, and times them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fanfare::{Context, Fanfare, Registration, ServiceName, Target, service};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::case::{Case, ON_FINAL, TARGET, key};
use super::memory::Held;
use super::role::{Answer, Load, Order, Rounds, limited, now};
use crate::configuration::Aggregation;

/// How long a fan-out may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether callbacks still wait.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Fan-outs of the shortest round: a rate needs some.
const LEAST: usize = 4;

/// What came of a round.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) fan_outs: usize,
    pub(super) fan_outs_per_s: f64,
    /// How long `invoke` took.
    pub(super) invoke: Quantiles,
    /// From the publication of the last result to the final callback.
    pub(super) fan_in: Quantiles,
}

/// The median and the 99th percentile, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Quantiles {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// What the final callback and who invokes share.
struct Shared {
    case: Case,
    /// One permit for each fan-out that may begin.
    room: Semaphore,
    fan_ins: Mutex<Vec<Result<f64, String>>>,
}

/// What the final callback reads of its payload.
#[derive(Deserialize)]
struct Gathered {
    data: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    response: Option<Answer>,
    exception: Option<String>,
}

pub(super) async fn run(mut rounds: Rounds, case: Case, fanfare: Fanfare, shards: u32) -> Result<()> {
    let room = Semaphore::new(case.open());
    let shared = Arc::new(Shared { case, room, fan_ins: Mutex::default() });
    let mut held = Held::default();
    let worker = fanfare.worker().service(on_final(Arc::clone(&shared))).service(held.service());
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    if case.aggregation == Aggregation::Shared {
        wait_for_shards(&fanfare, shards).await?;
    }
    while let Some(order) = rounds.next().await {
        match order.load {
            Load::Full | Load::One => rounds.report(&round(&fanfare, &shared, order).await?)?,
            Load::Held => rounds.report(&held.begin(&fanfare, &shared.case).await?)?,
            Load::Released => rounds.report(&held.end().await?)?,
        }
    }
    working.abort();
    fanfare.close().await;
    Ok(())
}

/// Waits until coordinators have declared the shards, one after the other.
async fn wait_for_shards(fanfare: &Fanfare, shards: u32) -> Result<()> {
    let started = Instant::now();
    for shard in 0..shards {
        let queue = fanfare.names().shard(shard).name;
        while !fanfare.broker().exists(&queue).await? {
            ensure!(started.elapsed() < PATIENCE, "no coordinator has declared {queue} within {PATIENCE:?}");
            sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

fn on_final(shared: Arc<Shared>) -> Registration {
    limited(service(ON_FINAL, move |_: Context, gathered: Gathered| {
        let fan_in = gathered.fan_in(shared.case.width);
        shared.fan_ins.lock().unwrap_or_else(PoisonError::into_inner).push(fan_in);
        shared.room.add_permits(1);
        async { Ok(()) }
    }))
}

impl Gathered {
    /// Milliseconds since its last result was published.
    fn fan_in(self, width: usize) -> Result<f64, String> {
        let mut last = 0;
        let results = self.data.len();
        for (key, entry) in self.data {
            let failed = || format!("target {key} failed: {}", entry.exception.unwrap_or_default());
            last = last.max(entry.response.ok_or_else(failed)?.at);
        }
        if results != width {
            return Err(format!("a final payload has {results} results of {width}"));
        }
        Ok(now().saturating_sub(last) as f64 / 1_000.0)
    }
}

/// Invokes for so long, and waits until all of it has ended.
async fn round(fanfare: &Fanfare, shared: &Arc<Shared>, order: Order) -> Result<Measured> {
    let Order { load, length } = order;
    let payload = "x".repeat(shared.case.payload - 2);
    let open = if load == Load::Full { shared.case.open() } else { 1 };
    wait_for_room(shared, shared.case.open() - open).await?;
    let started = Instant::now();
    let mut invocations = JoinSet::new();
    while started.elapsed() < length || invocations.len() < LEAST {
        wait_for_room(shared, 1).await?;
        invocations.spawn(invoke(fanfare.clone(), shared.case, payload.clone()));
    }
    // All of them have ended when there is room for as many as may be under way.
    wait_for_room(shared, open).await?;
    wait_for_callbacks(fanfare, shared.case).await?;
    let took = started.elapsed();
    shared.room.add_permits(shared.case.open());
    let invokes = invocations.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    let fan_ins = std::mem::take(&mut *shared.fan_ins.lock().unwrap_or_else(PoisonError::into_inner));
    let fan_ins = fan_ins.into_iter().collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg)?;
    ensure!(fan_ins.len() == invokes.len(), "{} fan-outs ended {} times", invokes.len(), fan_ins.len());
    Ok(Measured {
        fan_outs: fan_ins.len(),
        fan_outs_per_s: fan_ins.len() as f64 / took.as_secs_f64(),
        invoke: Quantiles::of(invokes),
        fan_in: Quantiles::of(fan_ins),
    })
}

async fn wait_for_room(shared: &Shared, fan_outs: usize) -> Result<()> {
    let permits = u32::try_from(fan_outs).context("fewer fan-outs are under way at a time")?;
    match timeout(PATIENCE, shared.room.acquire_many(permits)).await {
        Ok(permits) => permits?.forget(),
        Err(_) => bail!("no fan-out ended for {PATIENCE:?}"),
    }
    Ok(())
}

/// Waits until the on-target callbacks have been handed out, which count as much as the final ones.
async fn wait_for_callbacks(fanfare: &Fanfare, case: Case) -> Result<()> {
    for name in case.on_target() {
        let queue = fanfare.names().service_queue(&ServiceName::new(name)?);
        let started = Instant::now();
        while fanfare.broker().inspect(&queue).await?.is_some_and(|state| state.messages > 0) {
            ensure!(started.elapsed() < PATIENCE, "on-target callbacks wait for {PATIENCE:?}");
            sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

/// Invokes one, and tells how many milliseconds that took.
async fn invoke(fanfare: Fanfare, case: Case, payload: String) -> Result<f64> {
    let mut fan_out = fanfare.fanout("bench").declare_missing().on_final(ON_FINAL);
    fan_out = fan_out.on_target(case.on_target().collect::<Vec<_>>());
    for place in 0..case.width {
        fan_out = fan_out.add(Target::new(TARGET, &payload).key(key(place)));
    }
    let started = Instant::now();
    fan_out.invoke().await?;
    Ok(started.elapsed().as_secs_f64() * 1_000.0)
}

impl Quantiles {
    pub(super) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (samples.len() as f64 * share).ceil() as usize;
            samples.get(index.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50_ms: at(0.5), p99_ms: at(0.99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_that_so_many_do_not_exceed() {
        let Quantiles { p50_ms, p99_ms } = Quantiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((p50_ms, p99_ms), (100.0, 198.0));
        let one = Quantiles::of(vec![7.0]);
        assert_eq!((one.p50_ms, one.p99_ms), (7.0, 7.0));
    }

    #[test]
    fn target_that_failed_or_is_missing_is_no_figure() {
        let gathered = |text: &str| serde_json::from_str::<Gathered>(text).unwrap();
        let one = r#"{"data":{"00000":{"response":{"at":1,"rest":"x"},"exception":null}}}"#;
        assert!(gathered(one).fan_in(1).is_ok());
        assert!(gathered(one).fan_in(2).is_err());
        let failed = r#"{"data":{"00000":{"response":null,"exception":"no"}}}"#;
        assert_eq!(gathered(failed).fan_in(1).unwrap_err(), "target 00000 failed: no");
    }
}
