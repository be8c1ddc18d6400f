use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fanfare_broker::{Hold, Receipt};
use fanfare_publisher::{WhileWaiting, Yielded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// How many invocations may run at the same time: of one service, and of all services of its worker.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    service: Arc<Semaphore>,
    worker: Arc<Semaphore>,
}

impl Slots {
    pub(crate) fn new(service: usize, worker: Arc<Semaphore>) -> Self {
        Self { service: Arc::new(Semaphore::new(service)), worker }
    }

    /// Waits for a slot. Everyone takes the service's part first, so nobody waits in a circle.
    pub(crate) async fn take(&self) -> Permits {
        let closed = "the semaphores are never closed";
        let service = Arc::clone(&self.service).acquire_owned().await.expect(closed);
        let worker = Arc::clone(&self.worker).acquire_owned().await.expect(closed);
        Permits { _service: service, _worker: worker }
    }

    fn try_take(&self) -> Result<Permits, TryAcquireError> {
        let service = Arc::clone(&self.service).try_acquire_owned()?;
        let worker = Arc::clone(&self.worker).try_acquire_owned()?;
        Ok(Permits { _service: service, _worker: worker })
    }
}

/// A slot that is taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Permits {
    _service: OwnedSemaphorePermit,
    _worker: OwnedSemaphorePermit,
}

/// The slot of one running invocation, which is given back while the invocation waits for a fan-out of its own.
///
/// An invocation may wait for several at once. It takes a slot again when the last of these waits has ended: one that
/// took it earlier would keep it from the very targets that its other waits are for.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    shared: Arc<SharedSlot>,
}

#[derive(Debug)]
struct SharedSlot {
    slots: Slots,
    receipt: Receipt,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    permits: Option<Permits>,
    waits: usize,
    /// There while it waits: the delivery is held for long.
    hold: Option<Hold>,
    finished: bool,
}

impl Slot {
    pub(crate) fn new(slots: Slots, permits: Permits, receipt: Receipt) -> Self {
        let state = State { permits: Some(permits), waits: 0, hold: None, finished: false };
        Self { shared: Arc::new(SharedSlot { slots, receipt, state: Mutex::new(state) }) }
    }

    /// The invocation has ended: the slot is free for good, whoever still has a context of it.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.state();
        state.finished = true;
        state.permits = None;
        state.hold = None;
    }
}

impl SharedSlot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a wait has ended. True where it was the last and the slot is to be taken again.
    fn wait_ended(&self) -> bool {
        let mut state = self.state();
        state.waits -= 1;
        let last = state.waits == 0;
        if last {
            state.hold = None;
        }
        last && !state.finished
    }

    fn resume(&self, permits: Permits) {
        let mut state = self.state();
        if state.waits == 0 && !state.finished {
            state.permits = Some(permits);
        }
    }
}

impl WhileWaiting for Slot {
    fn begin(&self) -> Box<dyn Yielded> {
        let mut state = self.shared.state();
        state.waits += 1;
        if state.waits == 1 && !state.finished {
            state.permits = None;
            state.hold = Some(self.shared.receipt.hold());
        }
        Box::new(Waiting { slot: Some(Arc::clone(&self.shared)) })
    }
}

struct Waiting {
    slot: Option<Arc<SharedSlot>>,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

#[async_trait]
impl Yielded for Waiting {
    async fn end(mut self: Box<Self>) {
        let slot = self.slot.take().expect("a wait ends once");
        if slot.wait_ended() {
            let permits = slot.slots.take().await;
            slot.resume(permits);
        }
    }
}

impl Drop for Waiting {
    /// The wait was dropped, by a time-out around it for instance. Its service goes on at once, so the slot is taken where
    /// one is free; otherwise it runs beside the limit until it ends.
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take()
            && slot.wait_ended()
            && let Ok(permits) = slot.slots.try_take()
        {
            slot.resume(permits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_broker::Acknowledge;
    use futures_util::FutureExt;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[derive(Debug, Default)]
    struct Holds(AtomicI64);

    #[async_trait]
    impl Acknowledge for Holds {
        async fn ack(&self, _: u64) {}
        async fn requeue(&self, _: u64) {}
        fn hold(&self, _: u64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn release(&self, _: u64) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn slot() -> (Slots, Slot, Arc<Holds>) {
        let slots = Slots::new(1, Arc::new(Semaphore::new(1)));
        let holds = Arc::new(Holds::default());
        let permits = slots.take().await;
        let slot = Slot::new(slots.clone(), permits, Receipt::new(holds.clone(), 1));
        (slots, slot, holds)
    }

    #[tokio::test]
    async fn a_wait_gives_the_slot_back_and_takes_it_again() {
        let (slots, slot, holds) = slot().await;
        assert!(slots.try_take().is_err());
        let wait = slot.begin();
        assert!(slots.try_take().is_ok());
        assert_eq!(holds.0.load(Ordering::Relaxed), 1);
        wait.end().await;
        assert!(slots.try_take().is_err());
        assert_eq!(holds.0.load(Ordering::Relaxed), 0);
        slot.finish();
        assert!(slots.try_take().is_ok());
    }

    #[tokio::test]
    async fn the_slot_stays_free_until_the_last_of_several_waits_ends() {
        let (slots, slot, _) = slot().await;
        let (first, second) = (slot.begin(), slot.begin());
        let other = slots.try_take().unwrap();
        first.end().now_or_never().expect("it goes on without a slot");
        drop(other);
        assert!(slots.try_take().is_ok());
        second.end().await;
        assert!(slots.try_take().is_err());
    }

    #[tokio::test]
    async fn a_dropped_wait_takes_the_slot_only_where_it_is_free() {
        let (slots, slot, holds) = slot().await;
        drop(slot.begin());
        assert!(slots.try_take().is_err());
        let wait = slot.begin();
        let other = slots.try_take().unwrap();
        drop(wait);
        assert_eq!(holds.0.load(Ordering::Relaxed), 0);
        drop(other);
        assert!(slots.try_take().is_ok());
    }

    #[tokio::test]
    async fn a_wait_that_outlives_its_invocation_takes_nothing() {
        let (slots, slot, _) = slot().await;
        let wait = slot.begin();
        slot.finish();
        wait.end().await;
        assert!(slots.try_take().is_ok());
    }
}
