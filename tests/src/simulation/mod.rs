//! The real publisher, worker and coordinator on the broker in memory, in one thread, in virtual time and under a seed.
//!
//! A seed decides everything: how many processes there are, what they invoke, and what goes wrong when. Processes die
//! between any two steps, connections are cut or die unnoticed, channels closed, confirms lost, messages lost or refused, the broker is
//! restarted, single queues are out, steps stall, services fail, panic, run out of time and nest. Then calm comes, every
//! fan-out has time to end, and the [oracle](crate::oracle) judges what was seen.
//!
//! The same seed gives the same trace, so that whatever is found can be looked at again:
//! `cargo xtask simulate --seed S --trace`.
//!
//! That it finds mistakes is seen by putting some in, the [`Defect`]s: `cargo xtask simulate --defect no-fence`.
//!
//! Where to add what: `scenario` draws, `services` and `processes` run, `link` and `channel` are where things go wrong,
//! `mischief` decides when.

mod channel;
mod defects;
mod environment;
mod handed_out;
mod journal;
mod link;
mod mischief;
mod panics;
mod processes;
mod random;
mod scenario;
mod services;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

pub use self::defects::Defect;
use self::journal::{Journal, Trace};
use self::mischief::Mischief;
use self::random::Random;
use self::scenario::Scenario;
use self::world::Shared;
use crate::oracle::{Kind, Rules, Verdict, Violation, judge};

/// What became of one seed.
#[derive(Debug)]
pub struct Outcome {
    /// What the oracle says.
    pub verdict: Verdict,
    /// Steps that processes took on the broker.
    pub steps: u64,
    /// How long it took, in virtual time.
    pub took: Duration,
    /// What happened, line by line; empty where that was not wanted.
    pub trace: Vec<String>,
}

/// Runs the simulation of one seed, of processes without a defect or with one.
///
/// # Panics
/// Where the simulation itself has a defect.
#[must_use]
pub fn simulate(seed: u64, defect: Option<Defect>, traced: bool) -> Outcome {
    let trace = traced.then(Arc::<Trace>::default);
    let panics = panics::count();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    let mut outcome = runtime.block_on(async {
        let _logging = trace.as_ref().map(journal::log_into);
        run(seed, defect, trace.clone()).await
    });
    drop(runtime);
    if panics::count() > panics {
        let (invocation, what) = ("of any".to_owned(), "a task panicked".to_owned());
        outcome.verdict.violations.push(Violation { kind: Kind::Unexpected, invocation, what });
    }
    outcome
}

async fn run(seed: u64, defect: Option<Defect>, trace: Option<Arc<Trace>>) -> Outcome {
    let random = Random::new(seed);
    let scenario = Arc::new(Scenario::draw(&random.fork()));
    let journal = Journal::new(trace.clone());
    journal.trace(|| format!("seed {seed}, defect {defect:?}: {scenario}"));
    let (deaths, died) = mpsc::unbounded_channel();
    let faults = scenario.faults.clone();
    let shared = Arc::new(Shared::new(random.fork(), faults, defect, journal, deaths));
    let notice_ms = scenario.faults.notice_ms();
    let rules = Rules { calls_at_risk: scenario.limits.calls_at_risk, notice_ms };
    let all_returned = Mischief::new(Arc::clone(&shared), scenario, &random, died).run().await;
    let mut verdict = judge(shared.journal.records(), rules);
    if !all_returned {
        let (invocation, what) = ("of a publisher".to_owned(), "it never returned".to_owned());
        verdict.violations.push(Violation { kind: Kind::NeverEnded, invocation, what });
    }
    Outcome {
        verdict,
        steps: shared.steps(),
        took: shared.started.elapsed(),
        trace: trace.map(|trace| trace.lines()).unwrap_or_default(),
    }
}
