//! Which of the messages under way came back.

use std::collections::{BTreeMap, HashMap};

/// Pairs the broker's answers with the messages under way.
///
/// Before the broker acks a message that no queue took, it returns it. lapin keeps the returned messages in a queue and gives
/// the oldest one to whichever message is answered next, so an answer can carry *another's* return. From that follows:
///
/// - A message whose return was seen, wherever, was not taken.
/// - An answer that carries no return proves that all returns so far had been handed out before: a message that has been
///   answered, and whose return was not seen, was taken.
/// - An answer that carries another's return proves nothing about its own message, whose return may still wait in the
///   queue. It is decided with the message whose return it took: if that one's answer carried none, the queue was empty by
///   then; if it carried a third one's, wait for that.
///
/// This holds if the answers are recorded in batches that leave out none that was given before one of the batch, which
/// the publisher sees to, and if no two messages under way look the same.
#[derive(Debug)]
pub(super) struct Ledger<Look> {
    under_way: BTreeMap<u64, Entry<Look>>,
    looks: HashMap<Look, u64>,
    /// By message: the one whose answer carried its return, and which waits for it.
    waiters: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Entry<Look> {
    look: Look,
    returned: bool,
    answer: Option<Answer>,
    waits_for: Option<u64>,
}

/// What the broker said to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is taken care of.
    Ack,
    /// It is not.
    Nack,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in its queue.
    Taken,
    /// It came back.
    Returned,
    /// The broker could not put it into its queue.
    Refused,
}

/// A message came back that is not under way: the answers can no longer be told apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stranger;

impl<Look: Clone + Eq + std::hash::Hash> Ledger<Look> {
    pub(super) fn new() -> Self {
        Self { under_way: BTreeMap::new(), looks: HashMap::new(), waiters: HashMap::new() }
    }

    /// How many messages are under way.
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether a message that looks like this one is under way.
    pub(super) fn holds(&self, look: &Look) -> bool {
        self.looks.contains_key(look)
    }

    /// A message is about to be sent.
    pub(super) fn send(&mut self, message: u64, look: Look) {
        self.looks.insert(look.clone(), message);
        let entry = Entry { look, returned: false, answer: None, waits_for: None };
        self.under_way.insert(message, entry);
    }

    /// Records a batch of answers, with the returns that they carried, and tells what is decided by now.
    pub(super) fn record(
        &mut self,
        batch: impl IntoIterator<Item = (u64, Answer, Option<Look>)>,
    ) -> Result<Vec<(u64, Outcome)>, Stranger> {
        let mut changed = Vec::new();
        for (message, answer, carried) in batch {
            let owner = match &carried {
                Some(look) => Some(*self.looks.get(look).ok_or(Stranger)?),
                None => None,
            };
            if let Some(owner) = owner {
                self.under_way.get_mut(&owner).ok_or(Stranger)?.returned = true;
                changed.push(owner);
            }
            let entry = self.under_way.get_mut(&message).ok_or(Stranger)?;
            entry.answer = Some(answer);
            entry.waits_for = owner.filter(|owner| *owner != message);
            if let Some(other) = entry.waits_for {
                self.waiters.insert(other, message);
            }
            changed.push(message);
        }
        Ok(self.decide(changed))
    }

    fn decide(&mut self, mut changed: Vec<u64>) -> Vec<(u64, Outcome)> {
        let mut decided = Vec::new();
        while let Some(message) = changed.pop() {
            let Some(Entry { answer: Some(answer), returned, waits_for, .. }) = self.under_way.get(&message)
            else {
                continue;
            };
            let outcome = match (returned, answer, waits_for) {
                (true, _, _) => Outcome::Returned,
                (false, Answer::Ack, None) => Outcome::Taken,
                (false, Answer::Nack, None) => Outcome::Refused,
                (false, _, Some(_)) => continue,
            };
            let waits_for = *waits_for;
            decided.push((message, outcome));
            if let Some(entry) = self.under_way.remove(&message) {
                self.looks.remove(&entry.look);
            }
            // Whoever waits for this one waits for what this one was waiting for, unless that is itself: it came back then.
            if let Some(other) = waits_for {
                self.waiters.remove(&other);
            }
            if let Some(waiter) = self.waiters.remove(&message)
                && let Some(entry) = self.under_way.get_mut(&waiter)
            {
                entry.waits_for = waits_for.filter(|other| *other != waiter);
                if let Some(other) = entry.waits_for {
                    self.waiters.insert(other, waiter);
                }
                changed.push(waiter);
            }
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn ledger(messages: std::ops::Range<u64>) -> Ledger<u64> {
        let mut ledger = Ledger::new();
        messages.for_each(|message| ledger.send(message, message));
        ledger
    }

    #[test]
    fn answer_tells_what_became_of_its_message() {
        let mut ledger = ledger(0..3);
        assert_eq!(ledger.record([(0, Answer::Ack, None)]), Ok(vec![(0, Outcome::Taken)]));
        assert_eq!(ledger.record([(1, Answer::Ack, Some(1))]), Ok(vec![(1, Outcome::Returned)]));
        assert_eq!(ledger.record([(2, Answer::Nack, None)]), Ok(vec![(2, Outcome::Refused)]));
        assert_eq!(ledger.len(), 0);
    }

    #[test]
    fn message_that_took_anothers_return_waits_for_that_one() {
        let mut ledger = ledger(0..2);
        assert_eq!(ledger.record([(0, Answer::Ack, Some(1))]), Ok(vec![]));
        let mut decided = ledger.record([(1, Answer::Ack, None)]).unwrap();
        decided.sort_by_key(|(message, _)| *message);
        assert_eq!(decided, [(0, Outcome::Taken), (1, Outcome::Returned)]);
    }

    #[test]
    fn swapped_returns_are_both_returns() {
        let mut ledger = ledger(0..2);
        assert_eq!(ledger.record([(0, Answer::Ack, Some(1))]), Ok(vec![]));
        let mut decided = ledger.record([(1, Answer::Ack, Some(0))]).unwrap();
        decided.sort_by_key(|(message, _)| *message);
        assert_eq!(decided, [(0, Outcome::Returned), (1, Outcome::Returned)]);
    }

    #[test]
    fn return_of_a_stranger_is_an_error() {
        assert_eq!(ledger(0..1).record([(0, Answer::Ack, Some(9))]), Err(Stranger));
    }

    /// One step of a broker with lapin in front of it.
    #[derive(Debug, Clone)]
    enum Step {
        /// The broker works on the next message, which its queue takes, or which comes back.
        Handle { returned: bool },
        /// It answers one of those that it has worked on.
        Answer { which: usize, nack: bool },
        /// The publisher reads all answers that lapin has given.
        Read,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(|returned| Step::Handle { returned }),
            (0..16usize, any::<bool>()).prop_map(|(which, nack)| Step::Answer { which, nack }),
            Just(Step::Read),
        ]
    }

    proptest! {
        /// Whatever the order of returns and answers, and however they are batched, each message gets its own outcome, and
        /// none waits for ever.
        #[test]
        fn every_message_gets_its_own_outcome(steps in proptest::collection::vec(step(), 1..200)) {
            let mut ledger = Ledger::new();
            let mut truth = BTreeMap::new();
            let mut unanswered = Vec::new();
            let mut returns = VecDeque::new();
            let mut given = Vec::new();
            let mut outcomes = BTreeMap::new();
            let mut next = 0;
            let answer = |which: usize, unanswered: &mut Vec<u64>, returns: &mut VecDeque<u64>,
                              truth: &mut BTreeMap<u64, Outcome>, nack: bool| {
                let message = unanswered.remove(which % unanswered.len());
                let nack = nack && truth[&message] == Outcome::Taken;
                if nack {
                    truth.insert(message, Outcome::Refused);
                }
                let answer = if nack { Answer::Nack } else { Answer::Ack };
                (message, answer, returns.pop_front())
            };
            for step in steps {
                match step {
                    Step::Handle { returned } => {
                        ledger.send(next, next);
                        truth.insert(next, if returned { Outcome::Returned } else { Outcome::Taken });
                        if returned {
                            returns.push_back(next);
                        }
                        unanswered.push(next);
                        next += 1;
                    }
                    Step::Answer { which, nack } if !unanswered.is_empty() => {
                        given.push(answer(which, &mut unanswered, &mut returns, &mut truth, nack));
                    }
                    Step::Answer { .. } => {}
                    Step::Read => outcomes.extend(ledger.record(given.drain(..)).unwrap()),
                }
            }
            while !unanswered.is_empty() {
                given.push(answer(0, &mut unanswered, &mut returns, &mut truth, false));
            }
            outcomes.extend(ledger.record(given.drain(..)).unwrap());
            prop_assert_eq!(outcomes, truth);
            prop_assert_eq!(ledger.len(), 0);
            prop_assert!(ledger.looks.is_empty() && ledger.waiters.is_empty());
        }
    }
}
