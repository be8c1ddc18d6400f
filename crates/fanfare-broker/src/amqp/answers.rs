//! Answers to the deliveries of one channel.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, WeakShared};
use lapin::options::{BasicAckOptions, BasicNackOptions};

use super::acks::{Ack, Acks};
use super::trunk::Line;
use crate::Acknowledge;

/// A channel that consumes, as the receipts of its deliveries see it.
pub(super) struct Answers {
    pub(super) line: Line,
    me: Weak<Self>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    acks: Acks,
    /// There while acks are asked for that the broker was not told yet.
    telling: Option<WeakShared<BoxFuture<'static, ()>>>,
    /// Consumers that may be handed something.
    consumers: usize,
}

/// Tells the broker of what is asked for, at its end at the latest: who waits for that may go away.
struct Telling(Arc<Answers>);

impl Answers {
    pub(super) fn to(line: Line) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { line, me: me.clone(), state: Mutex::default() })
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
    pub(super) fn tell(&self) -> Vec<BoxFuture<'static, lapin::Result<()>>> {
        // Locked until lapin has them, so that who closes the channel comes after whoever else tells of them.
        let mut state = self.state();
        state.telling = None;
        let acks = state.acks.take().into_iter();
        acks.filter_map(|Ack { tag, multiple }| {
            let channel = self.line.channel.clone();
            let mut written =
                async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await }.boxed();
            // The first poll queues the frame. An error means that the channel has ended, and lapin sends nothing on a later
            // channel of the same number.
            (&mut written).now_or_never().is_none().then_some(written)
        })
        .collect()
    }

    /// Waits until the broker was told of a delivery's ack. All that are asked for before the runtime has nothing else to do
    /// are told together.
    fn told(&self, tag: u64) -> impl Future<Output = ()> + use<> {
        let mut state = self.state();
        state.acks.ask(tag);
        if let Some(told) = state.telling.as_ref().and_then(WeakShared::upgrade) {
            return told;
        }
        let telling = Telling(self.me.upgrade().expect("who asks holds it"));
        let told = async move {
            tokio::task::yield_now().await;
            for written in telling.0.tell() {
                let _ = written.await;
            }
        };
        let told = told.boxed().shared();
        state.telling = told.downgrade();
        told
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        drop(self.0.tell());
    }
}

#[async_trait]
impl Acknowledge for Answers {
    async fn ack(&self, tag: u64) {
        self.told(tag).await;
    }

    async fn requeue(&self, tag: u64) {
        drop(self.tell());
        self.state().acks.forget(tag);
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let _ = self.line.channel.basic_nack(tag, options).await;
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
