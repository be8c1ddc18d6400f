use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fanfare_protocol::RunId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The runs of fan-outs that were cancelled lately, as far as this worker was told: their targets are not begun with, and those
/// that run are told to end.
///
/// It is a help and no promise: a worker that was not connected when it was told, or that is started later, runs such a
/// target, whose result is late then and dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelledRuns {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order in which they were told of.
    order: VecDeque<(RunId, Instant)>,
    cancelled: BTreeMap<RunId, CancellationToken>,
    /// Targets that run, by their run: how many, and what tells them to end.
    running: BTreeMap<RunId, (usize, CancellationToken)>,
}

/// A target that runs, until this is dropped.
#[derive(Debug)]
pub(crate) struct RunningTarget {
    run: RunId,
    runs: CancelledRuns,
    cancelled: CancellationToken,
}

impl CancelledRuns {
    /// Runs that are remembered.
    const MOST: usize = 10_000;
    /// For how long: as long as a fan-out takes unless its deadline is another.
    const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

    pub(crate) fn cancel(&self, run: RunId) {
        let mut known = self.known();
        known.forget_old();
        if known.cancelled.contains_key(&run) {
            return;
        }
        let token = known.running.get(&run).map(|(_, token)| token.clone()).unwrap_or_default();
        known.order.push_back((run, Instant::now()));
        known.cancelled.insert(run, token.clone());
        drop(known);
        token.cancel();
    }

    /// A target begins to run. None where its fan-out was cancelled: nobody waits for it any more.
    pub(crate) fn begin(&self, run: RunId) -> Option<RunningTarget> {
        let mut known = self.known();
        known.forget_old();
        if known.cancelled.contains_key(&run) {
            return None;
        }
        let (count, token) = known.running.entry(run).or_default();
        *count += 1;
        let cancelled = token.clone();
        Some(RunningTarget { run, runs: self.clone(), cancelled })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget_old(&mut self) {
        while let Some((run, since)) = self.order.front()
            && (self.order.len() > CancelledRuns::MOST || since.elapsed() >= CancelledRuns::REMEMBERED_FOR)
        {
            self.cancelled.remove(run);
            self.order.pop_front();
        }
    }
}

impl RunningTarget {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Returns when its fan-out is cancelled.
    pub(crate) async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }
}

impl Drop for RunningTarget {
    fn drop(&mut self) {
        let mut known = self.runs.known();
        if let Some((count, _)) = known.running.get_mut(&self.run) {
            *count -= 1;
            if *count == 0 {
                known.running.remove(&self.run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn run(n: usize) -> RunId {
        RunId::from(Uuid::from_u128(n as u128))
    }

    #[tokio::test(start_paused = true)]
    async fn targets_that_run_are_told_and_others_of_the_run_are_not_begun_with() {
        let runs = CancelledRuns::default();
        let [one, two, other] =
            [run(1), run(1), run(2)].map(|run| runs.begin(run).expect("it is not cancelled"));
        drop(two);
        runs.cancel(run(1));
        runs.cancel(run(1));
        assert!(one.is_cancelled() && !other.is_cancelled());
        assert!(runs.begin(run(1)).is_none() && runs.begin(run(2)).is_some());
        drop((one, other));
        assert!(runs.known().running.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_fixed_number_of_runs_is_remembered_and_for_a_day() {
        let runs = CancelledRuns::default();
        (0..=CancelledRuns::MOST + 1).for_each(|n| runs.cancel(run(n)));
        assert!(runs.begin(run(0)).is_some() && runs.begin(run(CancelledRuns::MOST + 1)).is_none());
        assert!(runs.known().cancelled.len() <= CancelledRuns::MOST);
        tokio::time::advance(CancelledRuns::REMEMBERED_FOR).await;
        assert!(runs.begin(run(CancelledRuns::MOST)).is_some());
        assert!(runs.known().cancelled.is_empty() && runs.known().order.is_empty());
    }
}
