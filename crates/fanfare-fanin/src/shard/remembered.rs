use std::collections::{BTreeSet, VecDeque};

use fanfare_protocol::RunId;

/// Runs of which nothing more is to come: what of them still arrives is late. It outlives a hold on the shard.
#[derive(Debug, Default)]
pub struct Memory {
    /// Their callbacks are confirmed.
    pub(super) ended: Runs,
    /// They have no manifest, though they had long enough for one.
    pub(super) unclaimed: Runs,
}

/// A fixed number of runs, the latest.
#[derive(Debug, Default)]
pub(super) struct Runs {
    order: VecDeque<RunId>,
    runs: BTreeSet<RunId>,
}

impl Runs {
    const MOST: usize = 100_000;

    pub(super) fn insert(&mut self, run: RunId) {
        if !self.runs.insert(run) {
            return;
        }
        self.order.push_back(run);
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.runs.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, run: &RunId) -> bool {
        self.runs.contains(run)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_a_fixed_number_of_runs_is_remembered() {
        let first = RunId::from(Uuid::nil());
        let mut runs = Runs::default();
        for n in 0..=Runs::MOST as u64 {
            runs.insert(first.after(n));
            runs.insert(first.after(n));
        }
        assert!(!runs.contains(&first) && runs.contains(&first.after(1)));
        assert_eq!((runs.order.len(), runs.runs.len()), (Runs::MOST, Runs::MOST));
    }
}
