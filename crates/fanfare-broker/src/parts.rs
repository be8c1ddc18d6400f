//! One delivery that is answered in parts.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::broker::{Acknowledge, Receipt};

/// The answers to the parts of one delivery: it is acked with the last of them.
#[derive(Debug)]
pub(crate) struct Parts {
    whole: Receipt,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    parts: Vec<bool>,
    count: usize,
}

impl Parts {
    pub(crate) fn new(whole: Receipt, parts: usize) -> Self {
        Self { whole, open: Mutex::new(Open { parts: vec![true; parts], count: parts }) }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Answers a part. Whether that was the last.
    fn close(&mut self, part: u64) -> bool {
        let part = usize::try_from(part).ok().and_then(|part| self.parts.get_mut(part));
        let was_open = part.is_some_and(std::mem::take);
        self.count -= usize::from(was_open);
        was_open && self.count == 0
    }
}

#[async_trait]
impl Acknowledge for Parts {
    async fn ack(&self, part: u64) {
        let is_last = self.open().close(part);
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
            let parts = delivery.receipt.split(3);
            for part in acked {
                assert!(parts.iter().any(super::Receipt::is_live));
                parts[*part].ack().await;
                assert!(!parts[*part].is_live());
            }
            channel.close().await;
            let channel = broker.open().await.unwrap();
            let left = channel.get(&queue.name).await.unwrap();
            assert_eq!(left.is_some(), acked.len() == 4, "{acked:?}");
            if let Some(left) = left {
                left.receipt.split(1)[0].ack().await;
            }
        }
    }
}
