use std::sync::Arc;

use fanfare_broker::{Delivery, Subscription, SubscriptionOptions};
use fanfare_protocol::QueueSpec;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pipeline::Pipeline;
use crate::slot::{Slot, Slots};

/// Channels that one service's deliveries may take up. More than one are used only while invocations wait for fan-outs
/// of their own; with the prefetch, this bounds how many can wait at the same time.
const MOST_CHANNELS: usize = 100;

/// The consumer of one service's queue: hands each delivery to the pipeline as soon as there is a slot for it.
pub(crate) struct Lane {
    pub(crate) queue: QueueSpec,
    pub(crate) slots: Slots,
    pub(crate) stopping: CancellationToken,
    pub(crate) invocations: TaskTracker,
    pub(crate) pipeline: Arc<Pipeline>,
}

impl Lane {
    /// Runs until the worker stops.
    pub(crate) async fn run(self) {
        let answers = &self.pipeline.answers;
        let options =
            SubscriptionOptions { prefetch: self.pipeline.registered.prefetch, most_channels: MOST_CHANNELS };
        let (broker, environment) = (Arc::clone(&answers.broker), Arc::clone(&answers.environment));
        let mut subscription = Subscription::new(broker, environment, self.queue.clone(), options);
        while let Some(delivery) = self.next(&mut subscription).await {
            if !self.start(delivery).await {
                break;
            }
        }
        subscription.stop().await;
    }

    async fn next(&self, subscription: &mut Subscription) -> Option<Delivery> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            delivery = subscription.next() => delivery,
        }
    }

    /// Starts to process a delivery in a task of its own. False where the worker stops first, and the delivery goes back.
    async fn start(&self, delivery: Delivery) -> bool {
        let permits = tokio::select! {
            biased;
            () = self.stopping.cancelled() => {
                delivery.receipt.requeue().await;
                return false;
            }
            permits = self.slots.take() => permits,
        };
        let slot = Slot::new(self.slots.clone(), permits, delivery.receipt.clone());
        let pipeline = Arc::clone(&self.pipeline);
        self.invocations.spawn(async move { pipeline.process(delivery, slot).await });
        true
    }
}
