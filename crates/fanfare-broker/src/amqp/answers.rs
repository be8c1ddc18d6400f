//! Answers to the deliveries of one channel.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::Semaphore;

use super::acks::{Ack, Acks};
use super::trunk::Line;
use crate::Acknowledge;

/// A channel that consumes, as the receipts of its deliveries see it.
pub(super) struct Answers {
    pub(super) line: Line,
    me: Weak<Self>,
    state: Mutex<State>,
    /// Taken by the one who tells the broker of acks, until these are written. What is asked for meanwhile is told together.
    telling: Semaphore,
}

#[derive(Default)]
struct State {
    acks: Acks,
    /// Consumers that may be handed something.
    consumers: usize,
}

/// Tells the broker of what is asked for when it is dropped: who waits for its turn to do so may go away.
struct Asking<'a>(&'a Answers);

impl Answers {
    pub(super) fn to(line: Line) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            line,
            me: me.clone(),
            state: Mutex::default(),
            telling: Semaphore::new(1),
        })
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

    /// Tells the broker of all acks that are asked for. They are on their way when this returns, and what it returns waits until
    /// they are written.
    pub(super) fn tell(&self) -> Option<BoxFuture<'static, lapin::Result<()>>> {
        let me = self.me.upgrade()?;
        // Locked until lapin has them, so that who closes the channel comes after whoever else tells of them.
        let mut state = self.state();
        let mut last = None;
        for Ack { tag, multiple } in state.acks.take() {
            let me = Arc::clone(&me);
            let mut written =
                async move { me.line.channel.basic_ack(tag, BasicAckOptions { multiple }).await }.boxed();
            // The first poll queues the frame, and lapin writes frames in their order. An error means that the channel has
            // ended, and lapin sends nothing on a later channel of the same number.
            last = (&mut written).now_or_never().is_none().then_some(written);
        }
        last
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        drop(self.0.tell());
    }
}

#[async_trait]
impl Acknowledge for Answers {
    async fn ack(&self, tag: u64) {
        self.state().acks.ask(tag);
        let asking = Asking(self);
        let _turn = self.telling.acquire().await;
        std::mem::forget(asking);
        if let Some(written) = self.tell() {
            let _ = written.await;
        }
    }

    async fn requeue(&self, tag: u64) {
        drop(self.tell());
        self.state().acks.forget(tag);
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
