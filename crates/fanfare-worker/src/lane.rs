use std::sync::Arc;

use fanfare_broker::{BrokerError, Delivery, Readiness, Subscription, SubscriptionOptions};
use fanfare_protocol::QueueSpec;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pipeline::Pipeline;
use crate::risk::{self, Risk};
use crate::slot::{Slot, Slots};
use crate::turn::Place;

/// Channels that one service's deliveries may take up. More than one are used only while invocations wait for fan-outs
/// of their own, or their results for a queue that takes none; with the prefetch, this bounds how many can wait at the same time.
const MOST_CHANNELS: usize = 100;

/// Deliveries to hold at the start, until one comes that is no suspect: nobody knows yet what the last worker died of, and what
/// is held when this one dies, too, counts as delivered once more, guilty or not.
const CAUTIOUS: u16 = 1;

/// The consumer of one service's queue: hands each delivery to the pipeline as soon as there is a slot for it.
pub(crate) struct Lane {
    pub(crate) queue: QueueSpec,
    pub(crate) readiness: Readiness,
    pub(crate) slots: Slots,
    /// How often a message may be delivered again before it is given up.
    pub(crate) redelivery_limit: u32,
    pub(crate) stopping: CancellationToken,
    pub(crate) invocations: TaskTracker,
    pub(crate) pipeline: Arc<Pipeline>,
}

impl Lane {
    /// Runs until the worker stops. An error where the broker denies the queue at the start.
    pub(crate) async fn run(self) -> Result<(), BrokerError> {
        let answers = &self.pipeline.answers;
        let options = SubscriptionOptions { prefetch: CAUTIOUS, most_channels: MOST_CHANNELS };
        let (broker, environment) = (Arc::clone(&answers.broker), Arc::clone(&answers.environment));
        let mut subscription = Subscription::new(broker, environment, self.queue.clone(), options)
            .unless_denied()
            .reporting_to(self.readiness.clone());
        let (mut is_cautious, mut told) = (true, false);
        while let Some(delivery) = self.next(&mut subscription).await {
            let risk = Risk::of(&delivery, self.redelivery_limit);
            let has_company = !is_cautious || !self.invocations.is_empty();
            if matches!(risk, Risk::None | Risk::Uncounted) && !self.slots.holds_suspects() {
                is_cautious = false;
                subscription.set_prefetch(self.pipeline.registered.prefetch);
            }
            let goes_on = match risk {
                Risk::Poison { redeliveries } => self.give_up(delivery, redeliveries),
                Risk::Suspect { redeliveries } => self.start_alone(delivery, redeliveries, has_company),
                risk @ (Risk::None | Risk::Uncounted) => {
                    if risk == Risk::Uncounted && !std::mem::replace(&mut told, true) {
                        let queue = &self.queue.name;
                        tracing::warn!(
                            queue,
                            "this queue does not count deliveries: what kills its worker each time comes back for ever"
                        );
                    }
                    self.start(delivery, &mut subscription).await
                }
            };
            if !goes_on {
                break;
            }
        }
        subscription.stop().await;
        subscription.denial().cloned().map_or(Ok(()), Err)
    }

    fn give_up(&self, delivery: Delivery, redeliveries: u64) -> bool {
        let pipeline = Arc::clone(&self.pipeline);
        self.invocations.spawn(async move { pipeline.give_up(delivery, redeliveries).await });
        true
    }

    /// Processes a delivery in a task of its own once nothing else runs in this worker. Meanwhile it takes up its place among
    /// those that the broker hands out, and no slot.
    fn start_alone(&self, delivery: Delivery, redeliveries: u64, has_company: bool) -> bool {
        tracing::warn!(
            queue = self.queue.name,
            message_id = delivery.message.properties.message_id.as_deref(),
            redeliveries,
            "its workers may have died of this message: it runs alone"
        );
        let (pipeline, stopping) = (Arc::clone(&self.pipeline), self.stopping.clone());
        let order = risk::place(&delivery.message, redeliveries);
        let place = if has_company { Place::among_others(order) } else { Place::alone(order) };
        let arrived = self.slots.alone(place);
        self.invocations.spawn(async move {
            let permits = tokio::select! {
                biased;
                () = stopping.cancelled() => return delivery.receipt.requeue().await,
                permits = arrived.take() => permits,
            };
            // What the broker has taken back comes again, in better company.
            if delivery.receipt.is_live() {
                let slot = Slot::new(arrived.alone(Place::BEGUN), permits, delivery.receipt.clone());
                pipeline.process(delivery, slot).await;
            }
        });
        true
    }

    async fn next(&self, subscription: &mut Subscription) -> Option<Delivery> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            delivery = subscription.next() => delivery,
        }
    }

    /// Starts to process a delivery in a task of its own. False where the worker stops first, and the delivery goes back. While it waits
    /// for a slot, the queue is consumed again where the connection was lost: else it would seem that no worker serves it.
    async fn start(&self, delivery: Delivery, subscription: &mut Subscription) -> bool {
        let permits = tokio::select! {
            biased;
            () = self.stopping.cancelled() => {
                delivery.receipt.requeue().await;
                return false;
            }
            permits = self.slots.take() => permits,
            never = subscription.tend() => match never {},
        };
        let slot = Slot::new(self.slots.clone(), permits, delivery.receipt.clone());
        let pipeline = Arc::clone(&self.pipeline);
        self.invocations.spawn(async move { pipeline.process(delivery, slot).await });
        true
    }
}
