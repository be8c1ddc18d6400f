use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_broker::{Hold, Receipt};
use fanfare_publisher::{WhileWaiting, Yielded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::turn::{Place, Turn, Turns};

/// How long those who wait for a slot have to give back what they have of it, where another has its turn.
const GIVING_BACK: Duration = Duration::from_millis(100);

/// How many invocations may run at the same time: of one service, and of all services of its worker.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    service: Arc<Semaphore>,
    all: AllSlots,
    /// There where no other invocation is to begin.
    alone: Option<Place>,
}

/// How many invocations of all services of a worker may run at the same time.
#[derive(Debug, Clone)]
pub(crate) struct AllSlots {
    free: Arc<Semaphore>,
    /// Invocations that have given their slot back for good, and whose deliveries are not answered yet.
    finishing: TaskTracker,
    /// Whose turn it is to have all slots.
    turns: Turns,
}

impl AllSlots {
    /// So many. One that is to run alone keeps others from beginning for as long as the limit says.
    pub(crate) fn new(count: usize, alone_limit: Duration) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let free = Arc::new(Semaphore::new(count as usize));
        let finishing = TaskTracker::new();
        // It can be waited for at any time.
        finishing.close();
        Self { turns: Turns::new(Arc::clone(&free), count, alone_limit), free, finishing }
    }
}

impl Slots {
    pub(crate) fn new(service: usize, all: AllSlots) -> Self {
        Self { service: Arc::new(Semaphore::new(service)), all, alone: None }
    }

    /// The same, for an invocation beside which no other of this worker may begin, of whatever service, before it has run for as long as
    /// the limit says. Those that have given their slots back to wait for fan-outs of their own do not run; they go on when it has
    /// ended, waits itself, or has run for so long.
    pub(crate) fn alone(&self, place: Place) -> Self {
        Self { alone: Some(place), ..self.clone() }
    }

    /// The same, for an invocation that others may run beside.
    fn beside(&self) -> Self {
        Self { alone: None, ..self.clone() }
    }

    /// Whether the worker holds invocations that are to run alone, or runs one that others have to wait for.
    pub(crate) fn holds_suspects(&self) -> bool {
        self.all.turns.are_wanted()
    }

    /// Waits for a slot. Everyone takes the service's part first, so nobody waits in a circle.
    pub(crate) async fn take(&self) -> Permits {
        if let Some(place) = self.alone {
            return self.take_alone(place).await;
        }
        loop {
            self.all.turns.over().await;
            let permits = self.with(one_of(&self.service).await).await;
            // One that waited before the turn has begun waits again.
            if !self.all.turns.are_under_way() {
                return permits;
            }
        }
    }

    async fn take_alone(&self, place: Place) -> Permits {
        let mut of_service = None;
        loop {
            let mut turn = self.all.turns.take(place).await;
            let permit = match of_service.take() {
                Some(permit) => Ok(permit),
                None => timeout(GIVING_BACK, one_of(&self.service)).await,
            };
            let Ok(permit) = permit else {
                // As many of its service as may run do, for longer than the limit: nobody is to wait for them but this one.
                drop(turn);
                of_service = Some(one_of(&self.service).await);
                continue;
            };
            let permits = self.with(permit).await;
            // They have run, and would run again if this process ended now. An outage keeps them from being answered for long,
            // and nothing is to wait for that here.
            turn.wait_for(self.all.finishing.wait()).await;
            turn.begin();
            return Permits { turn: Some(turn), ..permits };
        }
    }

    async fn with(&self, of_service: OwnedSemaphorePermit) -> Permits {
        Permits { _service: of_service, _worker: one_of(&self.all.free).await, turn: None }
    }

    fn try_take(&self) -> Option<Permits> {
        let turn = match self.alone {
            Some(_) => Some(self.all.turns.try_take()?),
            None if self.all.turns.are_under_way() => return None,
            None => None,
        };
        let service = Arc::clone(&self.service).try_acquire_owned().ok()?;
        let worker = Arc::clone(&self.all.free).try_acquire_owned().ok()?;
        let mut permits = Permits { _service: service, _worker: worker, turn };
        permits.turn.iter_mut().for_each(Turn::begin);
        Some(permits)
    }
}

async fn one_of(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(slots).acquire_owned().await.expect("the semaphores are never closed")
}

/// A slot that is taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Permits {
    _service: OwnedSemaphorePermit,
    _worker: OwnedSemaphorePermit,
    /// Dropped last: whoever is handed it needs a slot. There where no other may begin.
    turn: Option<Turn>,
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
    /// Whether it has run for so long that others may begin beside it.
    has_outlived: bool,
    /// There while it waits: the delivery is held for long.
    hold: Option<Hold>,
    finished: bool,
    /// There from its end until its delivery is answered.
    finishing: Option<TaskTrackerToken>,
}

impl Slot {
    pub(crate) fn new(slots: Slots, permits: Permits, receipt: Receipt) -> Self {
        let state = State {
            permits: Some(permits),
            waits: 0,
            has_outlived: false,
            hold: None,
            finished: false,
            finishing: None,
        };
        Self { shared: Arc::new(SharedSlot { slots, receipt, state: Mutex::new(state) }) }
    }

    /// The invocation has ended: the slot is free for good, whoever still has a context of it.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.state();
        if !state.finished {
            state.finishing = Some(self.shared.slots.all.finishing.token());
        }
        state.finished = true;
        state.permits = None;
        state.hold = None;
    }

    /// Makes room for other deliveries beside that of the invocation, which will be answered late.
    pub(crate) fn hold(&self) -> Hold {
        self.shared.receipt.hold()
    }

    /// The delivery of the invocation is answered.
    pub(crate) fn answered(&self) {
        self.shared.state().finishing = None;
    }
}

impl SharedSlot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it takes a slot again.
    fn slots(&self) -> Slots {
        if self.state().has_outlived { self.slots.beside() } else { self.slots.clone() }
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
            let turn = state.permits.take().and_then(|permits| permits.turn);
            state.has_outlived |= turn.is_some_and(|turn| turn.is_over());
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
            let permits = slot.slots().take().await;
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
            && let Some(permits) = slot.slots().try_take()
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

    const LIMIT: Duration = Duration::from_secs(30);

    #[derive(Debug, Default)]
    struct Holds(AtomicI64);

    #[async_trait]
    impl Acknowledge for Holds {
        async fn ack(&self, _: u64) {}
        async fn requeue(&self, _: u64) {}
        fn is_live(&self, _: u64) -> bool {
            true
        }
        fn hold(&self, _: u64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn release(&self, _: u64) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn slot() -> (Slots, Slot, Arc<Holds>) {
        slot_of(Slots::new(1, AllSlots::new(1, LIMIT))).await
    }

    async fn slot_of(slots: Slots) -> (Slots, Slot, Arc<Holds>) {
        let holds = Arc::new(Holds::default());
        let permits = slots.take().await;
        let slot = Slot::new(slots.clone(), permits, Receipt::new(holds.clone(), 1));
        (slots, slot, holds)
    }

    #[tokio::test]
    async fn a_wait_gives_the_slot_back_and_takes_it_again() {
        let (slots, slot, holds) = slot().await;
        assert!(slots.try_take().is_none());
        let wait = slot.begin();
        assert!(slots.try_take().is_some());
        assert_eq!(holds.0.load(Ordering::Relaxed), 1);
        wait.end().await;
        assert!(slots.try_take().is_none());
        assert_eq!(holds.0.load(Ordering::Relaxed), 0);
        slot.finish();
        assert!(slots.try_take().is_some());
    }

    #[tokio::test]
    async fn one_that_runs_alone_waits_for_all_others_and_keeps_them_waiting_until_it_waits_itself() {
        let all = AllSlots::new(3, LIMIT);
        let (one, other) = (Slots::new(2, all.clone()), Slots::new(2, all));
        let (running, later) = (one.take().await, other.alone(Place::BEGUN));
        let mut alone = Box::pin(later.take());
        assert!((&mut alone).now_or_never().is_none(), "another service runs");
        assert!(other.try_take().is_none(), "it is not overtaken");
        drop(running);
        let permits = alone.now_or_never().expect("nothing runs");
        let slot = Slot::new(later, permits, Receipt::new(Arc::new(Holds::default()), 1));
        assert!(one.try_take().is_none() && other.try_take().is_none());
        let wait = slot.begin();
        let inner = other.try_take().expect("what it waits for can run");
        let mut goes_on = wait.end();
        assert!((&mut goes_on).now_or_never().is_none(), "it is alone again when it goes on");
        drop(inner);
        goes_on.await;
        assert!(one.try_take().is_none());
        slot.finish();
        assert!(one.try_take().is_some());
    }

    #[tokio::test]
    async fn one_that_waits_for_a_fan_out_is_no_hindrance_to_one_that_runs_alone() {
        let (slots, waiting, _) = slot().await;
        let wait = waiting.begin();
        let alone = slots.alone(Place::BEGUN).take().now_or_never().expect("who waits does not run");
        let mut goes_on = wait.end();
        assert!((&mut goes_on).now_or_never().is_none());
        drop(alone);
        goes_on.await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_runs_alone_waits_for_answers_but_not_for_ever() {
        let (slots, finished, _) = slot().await;
        finished.finish();
        let suspects = slots.alone(Place::BEGUN);
        let mut alone = Box::pin(suspects.take());
        assert!((&mut alone).now_or_never().is_none(), "what ran is not answered for");
        finished.answered();
        alone.await;
        let (slots, finished, _) = slot().await;
        finished.finish();
        slots.alone(Place::BEGUN).take().await;
    }

    #[tokio::test]
    async fn the_slot_stays_free_until_the_last_of_several_waits_ends() {
        let (slots, slot, _) = slot().await;
        let (first, second) = (slot.begin(), slot.begin());
        let other = slots.try_take().unwrap();
        first.end().now_or_never().expect("it goes on without a slot");
        drop(other);
        assert!(slots.try_take().is_some());
        second.end().await;
        assert!(slots.try_take().is_none());
    }

    #[tokio::test]
    async fn a_dropped_wait_takes_the_slot_only_where_it_is_free() {
        let (slots, slot, holds) = slot().await;
        drop(slot.begin());
        assert!(slots.try_take().is_none());
        let wait = slot.begin();
        let other = slots.try_take().unwrap();
        drop(wait);
        assert_eq!(holds.0.load(Ordering::Relaxed), 0);
        drop(other);
        assert!(slots.try_take().is_some());
    }

    #[tokio::test]
    async fn a_wait_that_outlives_its_invocation_takes_nothing() {
        let (slots, slot, _) = slot().await;
        let wait = slot.begin();
        slot.finish();
        wait.end().await;
        assert!(slots.try_take().is_some());
    }
}
