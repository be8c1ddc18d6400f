use std::collections::{BTreeSet, VecDeque};

use fanfare_protocol::RunId;

/// Runs that ended here lately, so that a stray copy of a manifest is known for one. A fixed number of them.
#[derive(Debug, Default)]
pub(crate) struct LatelyEnded {
    order: VecDeque<RunId>,
    runs: BTreeSet<RunId>,
}

impl LatelyEnded {
    const MOST: usize = 10_000;

    pub(crate) fn insert(&mut self, run: RunId) {
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

    pub(crate) fn contains(&self, run: &RunId) -> bool {
        self.runs.contains(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn only_a_fixed_number_of_runs_is_remembered() {
        let mut ended = LatelyEnded::default();
        let run = |n: usize| RunId::from(Uuid::from_u128(n as u128));
        for n in 0..=LatelyEnded::MOST {
            ended.insert(run(n));
            ended.insert(run(n));
        }
        assert!(!ended.contains(&run(0)));
        assert!(ended.contains(&run(1)) && ended.contains(&run(LatelyEnded::MOST)));
        assert_eq!(ended.runs.len(), LatelyEnded::MOST);
    }
}
