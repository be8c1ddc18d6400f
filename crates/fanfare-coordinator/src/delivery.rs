use std::sync::Arc;

use fanfare_broker::{Delivery, Hold, Receipt};
use fanfare_protocol::Message;

/// With which the fan-in acks: a receipt, and what must be kept with it.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    receipt: Receipt,
    /// Of a manifest, which is held for as long as its fan-out is open: the room that it takes in its subscription.
    _hold: Option<Arc<Hold>>,
    /// Of a message that is to be parked: the message.
    message: Option<Arc<Message>>,
}

impl Tag {
    /// Of a result, a checkpoint or a fence.
    pub(crate) fn of_result(receipt: Receipt) -> Self {
        Self { receipt, _hold: None, message: None }
    }

    /// Of a message that nobody can use.
    pub(crate) fn of_garbage(delivery: Delivery) -> Self {
        Self { receipt: delivery.receipt, _hold: None, message: Some(Arc::new(delivery.message)) }
    }

    /// Of a manifest.
    pub(crate) fn of_manifest(receipt: Receipt) -> Self {
        let hold = Arc::new(receipt.hold());
        Self { receipt, _hold: Some(hold), message: None }
    }

    /// The message, where this is to be parked.
    pub(crate) fn message(&self) -> Option<Message> {
        self.message.as_deref().cloned()
    }

    pub(crate) async fn ack(&self) {
        self.receipt.ack().await;
    }

    pub(crate) async fn requeue(&self) {
        self.receipt.requeue().await;
    }
}
