use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use fanfare_protocol::{Message, RunId};

use crate::Time;

/// What arrived for runs without a manifest: it is early, and its manifest follows, or late, and its fan-out has ended.
#[derive(Debug)]
pub(super) struct Unclaimed<T> {
    runs: BTreeMap<RunId, Claim<T>>,
    /// The runs by the time at which the first message of each arrived. May name runs that were claimed since.
    by_age: VecDeque<(Time, RunId)>,
    messages: usize,
    /// How many there ever were.
    arrived: u64,
}

#[derive(Debug)]
struct Claim<T> {
    since: Time,
    /// By their numbers, which tell their order among those of all runs. In boxes, since the list grows by doubling.
    messages: VecDeque<(u64, Box<Held<T>>)>,
}

/// A message as it was delivered.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) tag: T,
    pub(super) redelivered: bool,
    pub(super) message: Message,
}

impl<T> Unclaimed<T> {
    pub(super) const fn new() -> Self {
        Self { runs: BTreeMap::new(), by_age: VecDeque::new(), messages: 0, arrived: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.messages
    }

    pub(super) fn push(&mut self, run: RunId, held: Held<T>, now: Time) {
        let by_age = &mut self.by_age;
        let claim = self.runs.entry(run).or_insert_with(|| {
            by_age.push_back((now, run));
            Claim { since: now, messages: VecDeque::new() }
        });
        claim.messages.push_back((self.arrived, Box::new(held)));
        self.arrived += 1;
        self.messages += 1;
    }

    /// The manifest of a run is there: what has waited for it, in the order in which it arrived.
    pub(super) fn claim(&mut self, run: &RunId) -> VecDeque<Held<T>> {
        let messages = self.runs.remove(run).map(|claim| claim.messages).unwrap_or_default();
        self.messages -= messages.len();
        messages.into_iter().map(|(_, held)| *held).collect()
    }

    /// When the oldest run will have waited so long.
    pub(super) fn due(&mut self, patience: Duration) -> Option<Time> {
        while let Some((since, run)) = self.by_age.front() {
            if self.runs.get(run).is_some_and(|claim| claim.since == *since) {
                return Some(*since + patience);
            }
            self.by_age.pop_front();
        }
        None
    }

    /// Takes out the runs that have waited since then or longer, which nobody will claim.
    pub(super) fn take_until(&mut self, latest: Time) -> Vec<(RunId, VecDeque<Held<T>>)> {
        let mut taken = Vec::new();
        while self.due(Duration::ZERO).is_some_and(|since| since <= latest)
            && let Some((_, run)) = self.by_age.pop_front()
        {
            let messages = self.claim(&run);
            taken.push((run, messages));
        }
        taken
    }

    /// Takes out the oldest messages. Their runs are known on, with their age.
    pub(super) fn take_oldest(&mut self, messages: usize) -> Vec<Held<T>> {
        let front = |claim: &Claim<T>| claim.messages.front().map(|(number, _)| *number);
        let fronts = self.runs.iter().filter_map(|(run, claim)| Some(Reverse((front(claim)?, *run))));
        let mut fronts: BinaryHeap<_> = fronts.collect();
        let mut taken = Vec::new();
        while taken.len() < messages
            && let Some(Reverse((_, run))) = fronts.pop()
            && let Some(claim) = self.runs.get_mut(&run)
        {
            taken.extend(claim.messages.pop_front().map(|(_, held)| *held));
            fronts.extend(front(claim).map(|number| Reverse((number, run))));
        }
        self.messages -= taken.len();
        taken
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}
