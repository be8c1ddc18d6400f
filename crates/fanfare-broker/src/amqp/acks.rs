//! Which acks of a channel can be told to the broker as one.

use std::collections::BTreeSet;

/// The deliveries of one channel that the broker waits to hear of, by their tags, and the acks that it was not told yet.
///
/// One ack can stand for its delivery and all before it on the same channel. It may, where all of those are to be acked too: a
/// delivery that somebody still works on, or that a consumer has not read yet, is never among them. So what ends out of order
/// is acked by itself. Acks that are told one after the other keep the order in which they were asked for.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// Deliveries that nobody has answered.
    open: BTreeSet<u64>,
    /// The highest tag so far. A channel counts its deliveries from 1, without a gap, whichever consumer they go to.
    last: u64,
    /// In the order in which they were asked for.
    asked: Vec<u64>,
}

/// One ack as the broker is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    /// Whether it stands for all deliveries before it, too.
    pub(super) multiple: bool,
}

impl Acks {
    /// A consumer has read a delivery. Those before it that were not read yet are on their way to other consumers.
    pub(super) fn delivered(&mut self, tag: u64) {
        self.open.extend(self.last + 1..=tag);
        self.last = self.last.max(tag);
    }

    /// A delivery is to be acked.
    pub(super) fn ask(&mut self, tag: u64) {
        if self.open.remove(&tag) {
            self.asked.push(tag);
        }
    }

    /// A delivery is answered in another way. False where it was answered before.
    pub(super) fn forget(&mut self, tag: u64) -> bool {
        self.open.remove(&tag)
    }

    /// Whether nobody has answered a delivery.
    pub(super) fn is_open(&self, tag: u64) -> bool {
        self.open.contains(&tag)
    }

    /// Whether every delivery is answered, and the broker told.
    pub(super) fn is_clear(&self) -> bool {
        self.open.is_empty() && self.asked.is_empty()
    }

    /// What the broker is to be told now.
    pub(super) fn take(&mut self) -> Vec<Ack> {
        let asked = std::mem::take(&mut self.asked);
        let first_open = self.open.first().copied().unwrap_or(u64::MAX);
        // By place: the lowest tag from there on.
        let mut lowest = asked.clone();
        for place in (1..lowest.len()).rev() {
            lowest[place - 1] = lowest[place - 1].min(lowest[place]);
        }
        let mut acks = Vec::new();
        let mut from = 0;
        while let Some(&first) = asked.get(from) {
            let (mut highest, mut together) = (0, None);
            for (place, &tag) in asked.iter().enumerate().skip(from).take_while(|(_, tag)| **tag < first_open)
            {
                highest = highest.max(tag);
                if lowest.get(place + 1).is_none_or(|lowest| *lowest > highest) {
                    together = Some((place, highest));
                }
            }
            let (to, tag) = together.unwrap_or((from, first));
            acks.push(Ack { tag, multiple: to > from });
            from = to + 1;
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Acks of a channel with so many deliveries.
    fn asked(deliveries: u64, tags: &[u64]) -> Acks {
        let mut acks = Acks::default();
        (1..=deliveries).for_each(|tag| acks.delivered(tag));
        tags.iter().for_each(|tag| acks.ask(*tag));
        acks
    }

    fn told(acks: &mut Acks) -> Vec<(u64, bool)> {
        acks.take().into_iter().map(|ack| (ack.tag, ack.multiple)).collect()
    }

    #[test]
    fn a_contiguous_run_is_one_ack_in_whatever_order_it_ended() {
        assert_eq!(told(&mut asked(5, &[1, 2, 3, 4, 5])), [(5, true)]);
        assert_eq!(told(&mut asked(5, &[4, 2, 1, 3])), [(4, true)]);
        assert_eq!(told(&mut asked(5, &[1])), [(1, false)]);
    }

    #[test]
    fn what_ends_behind_an_open_delivery_is_acked_by_itself() {
        let mut acks = asked(5, &[2, 4]);
        assert_eq!(told(&mut acks), [(2, false), (4, false)]);
        [1, 3, 5].into_iter().for_each(|tag| acks.ask(tag));
        assert_eq!(told(&mut acks), [(5, true)]);
        assert_eq!(told(&mut acks), []);
    }

    #[test]
    fn an_ack_stands_for_no_delivery_that_another_consumer_has_not_read() {
        let mut acks = Acks::default();
        acks.delivered(1);
        acks.delivered(3);
        [1, 3].into_iter().for_each(|tag| acks.ask(tag));
        assert_eq!(told(&mut acks), [(1, false), (3, false)]);
        acks.delivered(2);
        acks.ask(2);
        assert_eq!(told(&mut acks), [(2, false)]);
    }

    #[test]
    fn acks_keep_the_order_in_which_they_were_asked_for() {
        // 4 is open. 5 was asked for before 2 and 3, and is not told after them.
        assert_eq!(told(&mut asked(5, &[1, 5, 3, 2])), [(1, false), (5, false), (3, true)]);
        // 1 comes after 5, which no ack of 3 may overtake.
        assert_eq!(told(&mut asked(5, &[3, 5, 2, 1])), [(3, false), (5, false), (2, true)]);
    }

    #[test]
    fn a_delivery_is_acked_once_and_not_after_another_answer() {
        let mut acks = asked(3, &[1, 1]);
        acks.forget(2);
        acks.ask(2);
        assert_eq!(told(&mut acks), [(1, false)]);
        acks.ask(3);
        assert_eq!(told(&mut acks), [(3, false)]);
    }

    proptest! {
        /// However deliveries come and end, the broker is told of exactly those that are to be acked, and in their order.
        #[test]
        fn the_broker_is_told_of_every_ack_and_of_nothing_else(
            steps in proptest::collection::vec((0..4u8, 0..40usize), 1..200)
        ) {
            let mut acks = Acks::default();
            // As the broker sees it: what it has handed out and was not told of.
            let mut unacked = BTreeSet::new();
            let mut unread = Vec::new();
            let mut held = Vec::new();
            let mut asked: Vec<u64> = Vec::new();
            let mut last = 0;
            for (step, which) in steps {
                match step {
                    0 => {
                        last += 1;
                        unacked.insert(last);
                        unread.push(last);
                    }
                    1 if !unread.is_empty() => {
                        let tag = unread.remove(which % unread.len().min(2));
                        acks.delivered(tag);
                        held.push(tag);
                    }
                    2 if !held.is_empty() => {
                        let tag = held.swap_remove(which % held.len());
                        acks.ask(tag);
                        asked.push(tag);
                    }
                    3 => for ack in acks.take() {
                        let covered: BTreeSet<u64> = if ack.multiple {
                            unacked.range(..=ack.tag).copied().collect()
                        } else {
                            BTreeSet::from([ack.tag])
                        };
                        prop_assert!(covered.contains(&ack.tag) && covered.is_subset(&unacked));
                        let first: BTreeSet<u64> = asked.drain(..covered.len()).collect();
                        prop_assert_eq!(&first, &covered);
                        unacked.retain(|tag| !covered.contains(tag));
                    },
                    _ => {}
                }
            }
            acks.take();
            prop_assert!(acks.take().is_empty());
        }
    }
}
