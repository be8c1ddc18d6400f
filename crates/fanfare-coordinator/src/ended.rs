use std::collections::{BTreeMap, VecDeque};

use fanfare_protocol::{CancelState, Cancellation, Cid, RunId, limits};

/// Runs that ended here lately: a stray copy of a manifest is known for one, and who asks for a cancel too late is told. A fixed
/// number of them.
#[derive(Debug, Default)]
pub(crate) struct LatelyEnded {
    order: VecDeque<RunId>,
    runs: BTreeMap<RunId, (Cid, Option<Cancellation>)>,
}

impl LatelyEnded {
    const MOST: usize = 10_000;

    /// `how` is left out where another coordinator has completed the fan-out.
    pub(crate) fn insert(&mut self, run: RunId, cid: Cid, how: Option<Cancellation>) {
        if self.runs.insert(run, (cid, how)).is_some() {
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
        self.runs.contains_key(run)
    }

    /// The CID of a run.
    pub(crate) fn cid(&self, run: &RunId) -> Option<&Cid> {
        self.runs.get(run).map(|(cid, _)| cid)
    }

    /// How the latest [`limits::EXPLAINED`] of the fan-outs with this CID ended, or the one of this run, as a cancel is answered.
    pub(crate) fn find(&self, cid: &Cid, run: Option<RunId>) -> Vec<CancelState> {
        let meant = self.order.iter().rev().filter(|ended| run.is_none_or(|run| run == **ended));
        let ended = meant.filter_map(|ended| {
            let (of, how) = self.runs.get(ended)?;
            (of == cid).then_some(CancelState::Ended { run: *ended, cancellation: (*how)? })
        });
        ended.take(limits::EXPLAINED).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn run(n: usize) -> RunId {
        RunId::from(Uuid::from_u128(n as u128))
    }

    fn cid(cid: &str) -> Cid {
        Cid::new(cid).unwrap()
    }

    #[test]
    fn only_a_fixed_number_of_runs_is_remembered() {
        let mut ended = LatelyEnded::default();
        for n in 0..=LatelyEnded::MOST {
            ended.insert(run(n), cid("c"), None);
            ended.insert(run(n), cid("c"), None);
        }
        assert!(!ended.contains(&run(0)));
        assert!(ended.contains(&run(1)) && ended.contains(&run(LatelyEnded::MOST)));
        assert_eq!(ended.runs.len(), LatelyEnded::MOST);
    }

    #[test]
    fn the_latest_of_a_cid_are_told_of_unless_the_run_is_given() {
        let mut ended = LatelyEnded::default();
        let how = |responded| Some(Cancellation { responded, missing: 0, ended_by: None });
        for (n, of) in ["a", "a", "b"].into_iter().enumerate() {
            ended.insert(run(n), cid(of), how(n));
        }
        ended.insert(run(3), cid("a"), None);
        let state = |n| CancelState::Ended { run: run(n), cancellation: how(n).unwrap() };
        assert_eq!(ended.find(&cid("a"), None), [state(1), state(0)]);
        assert_eq!(ended.find(&cid("a"), Some(run(0))), [state(0)]);
        for (of, run) in [("b", Some(run(0))), ("c", None), ("a", Some(run(3)))] {
            assert_eq!(ended.find(&cid(of), run), []);
        }
        (4..100).for_each(|n| ended.insert(run(n), cid("a"), how(n)));
        let latest: Vec<_> = (100 - limits::EXPLAINED..100).rev().map(state).collect();
        assert_eq!(ended.find(&cid("a"), None), latest);
    }
}
