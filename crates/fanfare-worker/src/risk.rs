use std::hash::{DefaultHasher, Hash, Hasher};

use fanfare_broker::Delivery;
use fanfare_protocol::{Message, header};

/// Redeliveries from which on an invocation runs alone: from its third delivery.
const SUSPECT_FROM: u64 = 2;

/// What the deliveries that a message had before say about it. The broker counts each that ended without an answer: its
/// worker died, lost its connection, or put it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Risk {
    /// Nothing, or no more than an ordinary restart does.
    None,
    /// It may be what its workers died of: it runs alone.
    Suspect {
        /// How often it was delivered before.
        redeliveries: u64,
    },
    /// It is given up.
    Poison {
        /// How often it was delivered before.
        redeliveries: u64,
    },
    /// It was delivered before, and its queue does not count.
    Uncounted,
}

impl Risk {
    /// The count is the broker's only where the message was delivered before: of another it is its publisher's.
    pub(crate) fn of(delivery: &Delivery, limit: u32) -> Self {
        if !delivery.redelivered {
            return Self::None;
        }
        match delivery.message.int(header::DELIVERY_COUNT).map(i64::unsigned_abs) {
            None => Self::Uncounted,
            Some(redeliveries) if redeliveries > u64::from(limit) => Self::Poison { redeliveries },
            Some(redeliveries) if redeliveries >= SUSPECT_FROM => Self::Suspect { redeliveries },
            Some(_) => Self::None,
        }
    }
}

/// Where a suspect comes among those that are held together with it: the least goes first.
///
/// They are shuffled at every other delivery, and turned around in between: of any two that were delivered as often, one comes first
/// now and the other at one of the next two deliveries. So an innocent one that shares the worker of the one that kills it runs to its end
/// before that soon, and where several kill, more likely each time.
pub(crate) fn place(message: &Message, redeliveries: u64) -> i64 {
    let shuffle = redeliveries / 2;
    let mut hasher = DefaultHasher::new();
    (&message.properties.message_id, shuffle).hash(&mut hasher);
    let place = (hasher.finish() >> 1).cast_signed();
    if redeliveries.is_multiple_of(2) { place } else { -place }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use fanfare_broker::{Acknowledge, Receipt};

    use super::*;

    #[derive(Debug)]
    struct Nobody;

    #[async_trait]
    impl Acknowledge for Nobody {
        async fn ack(&self, _: u64) {}
        async fn requeue(&self, _: u64) {}
        fn is_live(&self, _: u64) -> bool {
            true
        }
    }

    fn risk(redelivered: bool, count: Option<i64>) -> Risk {
        let mut message = Message::default();
        if let Some(count) = count {
            message = message.with_header(header::DELIVERY_COUNT, count);
        }
        Risk::of(&Delivery { message, redelivered, receipt: Receipt::new(Arc::new(Nobody), 1) }, 20)
    }

    #[test]
    fn the_third_delivery_is_suspect_and_the_twenty_second_is_poison() {
        assert_eq!(risk(false, None), Risk::None);
        assert_eq!(risk(true, Some(1)), Risk::None);
        assert_eq!(risk(true, Some(2)), Risk::Suspect { redeliveries: 2 });
        assert_eq!(risk(true, Some(20)), Risk::Suspect { redeliveries: 20 });
        assert_eq!(risk(true, Some(21)), Risk::Poison { redeliveries: 21 });
    }

    #[test]
    fn a_count_that_its_publisher_made_up_counts_for_nothing() {
        assert_eq!(risk(false, Some(1_000)), Risk::None);
    }

    #[test]
    fn a_queue_that_does_not_count_makes_nothing_poison() {
        assert_eq!(risk(true, None), Risk::Uncounted);
    }

    #[test]
    fn whoever_comes_last_comes_first_the_next_time() {
        let message = |id: &str| {
            let mut message = Message::default();
            message.properties.message_id = Some(id.into());
            message
        };
        let is_first =
            |redeliveries| place(&message("run/1"), redeliveries) < place(&message("run/2"), redeliveries);
        for redeliveries in [2, 4, 18] {
            assert_ne!(is_first(redeliveries), is_first(redeliveries + 1));
        }
        let shuffled = (2..100).step_by(2).filter(|redeliveries| is_first(*redeliveries)).count();
        assert!((10..40).contains(&shuffled), "{shuffled} of 49");
    }
}
