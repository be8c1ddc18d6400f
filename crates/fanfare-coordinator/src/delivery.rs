use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Delivery, Hold, Receipt};
use fanfare_protocol::Message;

/// How long a manifest whose task panicked is kept before it goes back: whatever made it panic may do so again.
const PANIC_PAUSE: Duration = Duration::from_secs(10);

/// With which the fan-in acks: a receipt, and what must be kept with it. There is one for each result that is held, so it is small.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    receipt: Receipt,
    kept: Option<Arc<Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// Of a manifest, which is held for as long as its fan-out is open.
    _manifest: Option<HeldManifest>,
    /// Of a message that is to be parked, or may be: the message.
    message: Option<Message>,
}

impl Tag {
    /// Of a result, a checkpoint or a fence.
    pub(crate) fn of_result(receipt: Receipt) -> Self {
        Self { receipt, kept: None }
    }

    /// Of a message that nobody can use, or nobody here.
    pub(crate) fn of_garbage(delivery: Delivery) -> Self {
        Self {
            receipt: delivery.receipt,
            kept: Some(Arc::new(Kept { _manifest: None, message: Some(delivery.message) })),
        }
    }

    /// Of a manifest.
    pub(crate) fn of_manifest(receipt: Receipt) -> Self {
        let held = HeldManifest { _room: receipt.hold(), receipt: receipt.clone() };
        Self { receipt, kept: Some(Arc::new(Kept { _manifest: Some(held), message: None })) }
    }

    /// The message, where this is to be parked.
    pub(crate) fn message(&self) -> Option<Message> {
        self.kept.as_ref()?.message.clone()
    }

    pub(crate) async fn ack(&self) {
        self.receipt.ack().await;
    }

    pub(crate) async fn requeue(&self) {
        self.receipt.requeue().await;
    }
}

/// A manifest in the hands of its fan-out's task. Its channel is shared with others and outlives the task, so nothing else
/// would bring it back when that panics.
#[derive(Debug)]
struct HeldManifest {
    receipt: Receipt,
    /// The room that it takes in its subscription.
    _room: Hold,
}

impl Drop for HeldManifest {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let receipt = self.receipt.clone();
            runtime.spawn(async move {
                tokio::time::sleep(PANIC_PAUSE).await;
                // Does nothing where it was acked before.
                receipt.requeue().await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_broker::{Broker, Subscription, SubscriptionOptions, System};
    use fanfare_protocol::QueueNames;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn manifest_of_a_task_that_panics_comes_again_unless_it_was_acked() {
        let broker = Arc::new(MemoryBroker::new());
        let queue = QueueNames::default().fanin();
        broker.declare(&queue).await.unwrap();
        for body in ["acked", "open"] {
            broker.publish(&queue.name, Message { body: body.into(), ..Message::default() }).await.unwrap();
        }
        let options = SubscriptionOptions { prefetch: 10, most_channels: 1 };
        let mut manifests = Subscription::new(broker, Arc::new(System), queue, options);
        for _ in 0..2 {
            let delivery = manifests.next().await.unwrap();
            let acked = delivery.message.body == "acked";
            let tag = Tag::of_manifest(delivery.receipt);
            let task = tokio::spawn(async move {
                if acked {
                    tag.ack().await;
                }
                panic!("a defect");
            });
            assert!(task.await.unwrap_err().is_panic());
        }
        let again = tokio::time::timeout(PANIC_PAUSE * 2, manifests.next()).await.unwrap().unwrap();
        assert_eq!((&again.message.body[..], again.redelivered), (&b"open"[..], true));
        let more = tokio::time::timeout(PANIC_PAUSE * 2, manifests.next()).await;
        assert!(more.is_err(), "{more:?}");
    }
}
