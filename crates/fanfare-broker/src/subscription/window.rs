use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::task::AtomicWaker;

use crate::{Acknowledge, ConsumerChannel, Delivery, Receipt};

/// What one channel of a subscription has handed out, as its subscription sees it. When this is dropped, the channel
/// stays open until all of that is settled or dropped.
pub(super) struct Window(Arc<Shared>);

/// What a window shares with the receipts of its deliveries.
struct Shared {
    changed: Arc<AtomicWaker>,
    state: Mutex<State>,
}

struct State {
    /// Gone once nothing depends on it any more.
    channel: Option<Arc<dyn ConsumerChannel>>,
    prefetch: u16,
    /// What was handed out and not answered.
    open: BTreeMap<u64, Open>,
    /// Answers on their way to the broker.
    answering: usize,
    /// Deliveries of `open` that are held for long and count to the prefetch.
    held: usize,
    last_tag: u64,
    /// Set when the subscription has left the channel.
    left: bool,
}

struct Open {
    receipt: Receipt,
    holds: usize,
    /// Whether it was handed out under an earlier prefetch.
    former: bool,
}

impl Window {
    pub(super) fn new(channel: Arc<dyn ConsumerChannel>, prefetch: u16, changed: Arc<AtomicWaker>) -> Self {
        let state = State {
            channel: Some(channel),
            prefetch,
            open: BTreeMap::new(),
            answering: 0,
            held: 0,
            last_tag: 0,
            left: false,
        };
        Self(Arc::new(Shared { changed, state: Mutex::new(state) }))
    }

    /// Hands out a delivery with a receipt of this window.
    pub(super) fn wrap(&self, delivery: Delivery) -> Delivery {
        let mut state = self.0.state();
        state.last_tag += 1;
        let tag = state.last_tag;
        state.open.insert(tag, Open { receipt: delivery.receipt, holds: 0, former: false });
        let receipt = Receipt::new(Arc::clone(&self.0) as Arc<dyn Acknowledge>, tag);
        Delivery { receipt, ..delivery }
    }

    /// The channel. It is there for as long as the subscription has not left it.
    pub(super) fn channel(&self) -> Option<Arc<dyn ConsumerChannel>> {
        self.0.state().channel.clone()
    }

    /// What it may hand out before it waits for answers.
    pub(super) fn prefetch(&self) -> u16 {
        self.0.state().prefetch
    }

    /// What is handed out from now on counts to another prefetch, and what was handed out before to none.
    pub(super) fn set_prefetch(&self, prefetch: u16) {
        let mut state = self.0.state();
        state.prefetch = prefetch;
        state.held = 0;
        state.open.values_mut().for_each(|open| open.former = true);
    }

    /// Whether three quarters or more of what it may hand out are held for long.
    pub(super) fn is_crowded(&self) -> bool {
        let state = self.0.state();
        state.held * 4 >= usize::from(state.prefetch) * 3
    }

    /// Whether half or less of what it may hand out is held for long.
    pub(super) fn is_roomy(&self) -> bool {
        let state = self.0.state();
        state.held * 2 <= usize::from(state.prefetch)
    }

    /// Whether all that it handed out is settled.
    pub(super) fn is_idle(&self) -> bool {
        self.0.state().is_idle()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.left = true;
        let channel = state.unneeded();
        drop(state);
        drop(channel);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a delivery out to answer it; nothing where it was answered before.
    fn take(&self, tag: u64) -> Option<Receipt> {
        let mut state = self.state();
        let open = state.open.remove(&tag)?;
        state.answering += 1;
        if open.holds > 0 && !open.former {
            state.held -= 1;
        }
        Some(open.receipt)
    }

    /// An answer has gone out.
    fn answered(&self) {
        let mut state = self.state();
        state.answering -= 1;
        let channel = state.unneeded();
        drop(state);
        drop(channel);
        self.changed.wake();
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.open.is_empty() && self.answering == 0
    }

    /// The channel, to be dropped outside of the lock, once nothing depends on it.
    fn unneeded(&mut self) -> Option<Arc<dyn ConsumerChannel>> {
        if self.left && self.is_idle() { self.channel.take() } else { None }
    }
}

#[async_trait]
impl Acknowledge for Shared {
    async fn ack(&self, tag: u64) {
        if let Some(receipt) = self.take(tag) {
            receipt.ack().await;
            self.answered();
        }
    }

    async fn requeue(&self, tag: u64) {
        if let Some(receipt) = self.take(tag) {
            receipt.requeue().await;
            self.answered();
        }
    }

    fn is_live(&self, tag: u64) -> bool {
        let receipt = self.state().open.get(&tag).map(|open| open.receipt.clone());
        receipt.is_some_and(|receipt| receipt.is_live())
    }

    fn hold(&self, tag: u64) {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(&tag) else { return };
        open.holds += 1;
        if open.holds == 1 && !open.former {
            state.held += 1;
            drop(state);
            self.changed.wake();
        }
    }

    fn release(&self, tag: u64) {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(&tag) else { return };
        open.holds -= 1;
        if open.holds == 0 && !open.former {
            state.held -= 1;
            drop(state);
            self.changed.wake();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Window").field("open", &state.open.len()).field("held", &state.held).finish()
    }
}
