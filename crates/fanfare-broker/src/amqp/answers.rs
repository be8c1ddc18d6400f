//! Answers to the deliveries of one channel.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lapin::options::{BasicAckOptions, BasicNackOptions};

use super::acks::{Ack, Acks};
use super::trunk::Line;
use crate::Acknowledge;

/// A channel that consumes, as the receipts of its deliveries see it.
pub(super) struct Answers {
    pub(super) line: Line,
    /// The prefetch of the consumer that is started next; 0 where that is not known. It belongs to the channel, so one is started at
    /// a time.
    pub(super) prefetch: tokio::sync::Mutex<u16>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    acks: Acks,
    /// Consumers that may be handed something.
    consumers: usize,
    /// Ends when the acks are written that the broker was told of last. What is asked for before that is told together. Whoever waits
    /// drives it: an ack that nobody goes on with holds up no other.
    writing: Option<Shared<BoxFuture<'static, ()>>>,
}

/// Tells the broker of what is asked for when it is dropped: who waits for its turn to do so may go away.
struct Asking<'a>(&'a Answers);

impl Answers {
    pub(super) fn to(line: Line) -> Arc<Self> {
        Arc::new(Self { line, prefetch: tokio::sync::Mutex::default(), state: Mutex::default() })
    }

    /// A consumer is about to start.
    pub(super) fn consumer_starts(&self) {
        self.state().consumers += 1;
    }

    /// A consumer has ended, and all that it was handed has been read.
    pub(super) fn consumer_ended(&self) {
        self.state().consumers -= 1;
    }

    /// A consumer has read a delivery.
    pub(super) fn delivered(&self, tag: u64) {
        self.state().acks.delivered(tag);
    }

    /// Whether no consumer is left, and no delivery without its answer: whatever comes on this channel is new.
    pub(super) fn is_clear(&self) -> bool {
        let state = self.state();
        state.consumers == 0 && state.acks.is_clear()
    }

    /// Tells the broker of all acks that are asked for. They are on their way when this returns.
    pub(super) fn tell(&self) {
        // Locked until lapin has them, so that who closes the channel comes after whoever else tells of them.
        let mut state = self.state();
        for Ack { tag, multiple } in state.acks.take() {
            let channel = self.line.channel.clone();
            let mut written = async move {
                // An error means that the channel has ended, and lapin sends nothing on a later channel of the same number.
                let _ = channel.basic_ack(tag, BasicAckOptions { multiple }).await;
            }
            .boxed();
            // The first poll queues the frame, and lapin writes frames in their order.
            state.writing = (&mut written).now_or_never().is_none().then(|| written.shared());
        }
    }

    /// Waits until the acks are written that the broker was told of.
    async fn written(&self) {
        let writing = self.state().writing.clone();
        if let Some(writing) = writing {
            writing.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.tell();
    }
}

#[async_trait]
impl Acknowledge for Answers {
    async fn ack(&self, tag: u64) {
        self.state().acks.ask(tag);
        let asking = Asking(self);
        self.written().await;
        drop(asking);
        self.written().await;
    }

    async fn requeue(&self, tag: u64) {
        self.tell();
        // To answer twice ends the channel.
        if !self.state().acks.forget(tag) {
            return;
        }
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let _ = self.line.channel.basic_nack(tag, options).await;
    }

    fn is_live(&self, tag: u64) -> bool {
        self.line.is_open() && self.state().acks.is_open(tag)
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("id", &self.line.channel.id())
            .field("connection", self.line.link())
            .finish()
    }
}
