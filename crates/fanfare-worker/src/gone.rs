use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fanfare_protocol::RunId;

/// The runs whose queue was found to be gone: of what comes back of them later, the same needs no other proof. Proof takes
/// seconds, and whatever is to run alone would wait for that with each of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct GoneRuns(Arc<Mutex<VecDeque<RunId>>>);

impl GoneRuns {
    /// Runs that are remembered, the latest.
    const MOST: usize = 100;

    pub(crate) fn insert(&self, run: RunId) {
        let mut runs = self.runs();
        if runs.contains(&run) {
            return;
        }
        runs.push_back(run);
        if runs.len() > Self::MOST {
            runs.pop_front();
        }
    }

    pub(crate) fn contains(&self, run: RunId) -> bool {
        self.runs().contains(&run)
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<RunId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_fixed_number_of_runs_is_remembered_the_latest() {
        let first = RunId::from(Uuid::nil());
        let gone = GoneRuns::default();
        for n in 0..=GoneRuns::MOST as u64 {
            gone.insert(first.after(n));
            gone.insert(first.after(n));
        }
        assert!(!gone.contains(first) && gone.contains(first.after(1)));
    }
}
