//! One delivery that is answered in parts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::broker::{Acknowledge, Receipt};

/// How many parts of deliveries are open: not acked by who was given them, who still has them.
#[derive(Debug, Clone, Default)]
pub struct OpenParts(Arc<AtomicUsize>);

impl OpenParts {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The answers to the parts of one delivery: it is acked with the last of them.
#[derive(Debug)]
pub(crate) struct Parts {
    whole: Receipt,
    all: OpenParts,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    parts: Vec<bool>,
    count: usize,
}

impl Parts {
    pub(crate) fn new(whole: Receipt, parts: usize, all: &OpenParts) -> Self {
        all.0.fetch_add(parts, Ordering::Relaxed);
        Self { whole, all: all.clone(), open: Mutex::new(Open { parts: vec![true; parts], count: parts }) }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Answers a part. Returns whether it was open.
    fn close(&mut self, part: u64) -> bool {
        let part = usize::try_from(part).ok().and_then(|part| self.parts.get_mut(part));
        let was_open = part.is_some_and(std::mem::take);
        self.count -= usize::from(was_open);
        was_open
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let open = self.open().count;
        self.all.0.fetch_sub(open, Ordering::Relaxed);
    }
}

#[async_trait]
impl Acknowledge for Parts {
    async fn ack(&self, part: u64) {
        let is_last = {
            let mut open = self.open();
            let was_open = open.close(part);
            self.all.0.fetch_sub(usize::from(was_open), Ordering::Relaxed);
            was_open && open.count == 0
        };
        if is_last {
            self.whole.ack().await;
        }
    }

    async fn requeue(&self, _part: u64) {
        self.whole.requeue().await;
    }

    fn is_live(&self, part: u64) -> bool {
        let is_open = usize::try_from(part).is_ok_and(|part| self.open().parts.get(part) == Some(&true));
        is_open && self.whole.is_live()
    }
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Message, QueueNames};

    use super::*;
    use crate::Broker;
    use crate::memory::MemoryBroker;

    #[tokio::test(start_paused = true)]
    async fn delivery_is_acked_with_the_last_of_its_parts_however_often_each_is() {
        let (broker, queue) = (MemoryBroker::new(), QueueNames::default().parked());
        broker.declare(&queue).await.unwrap();
        for acked in [&[0, 1, 1, 0][..], &[2, 0, 1]] {
            broker.publish(&queue.name, Message::default()).await.unwrap();
            let channel = broker.open().await.unwrap();
            let delivery = channel.get(&queue.name).await.unwrap().unwrap();
            let open = OpenParts::default();
            let parts = delivery.receipt.split(3, &open);
            for part in acked {
                assert!(parts.iter().any(Receipt::is_live));
                parts[*part].ack().await;
                assert!(!parts[*part].is_live());
            }
            assert_eq!(open.count(), usize::from(acked.len() == 4));
            drop(parts);
            assert_eq!(open.count(), 0);
            channel.close().await;
            let channel = broker.open().await.unwrap();
            let left = channel.get(&queue.name).await.unwrap();
            assert_eq!(left.is_some(), acked.len() == 4, "{acked:?}");
            if let Some(left) = left {
                left.receipt.ack().await;
            }
        }
    }
}
