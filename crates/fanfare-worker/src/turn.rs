use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::time::Instant;

/// How long a turn lasts at least.
const SHORTEST_TURN: Duration = Duration::from_secs(1);

/// Turns of the invocations that run alone. To empty the worker of all others takes as long as the slowest of them, so it is not done
/// for each: one that has run hands the empty worker to the next that waits, until the turn is over and the others go on.
///
/// A turn lasts as long as its first had to wait for it, so that at least half of the time is put to use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    waiting: Arc<Mutex<VecDeque<oneshot::Sender<Turn>>>>,
}

impl Turns {
    /// Waits until the worker is empty. Whoever waits for a slot meanwhile waits behind this.
    pub(crate) async fn take(&self, slots: Arc<Semaphore>, all: u32) -> Turn {
        let (next, handed) = oneshot::channel();
        self.waiting().push_back(next);
        let since = Instant::now();
        tokio::select! {
            biased;
            Ok(turn) = handed => turn,
            emptied = slots.acquire_many_owned(all) => {
                self.begin(emptied.expect("the semaphore is never closed"), since.elapsed())
            }
        }
    }

    /// Takes the worker where it is empty.
    pub(crate) fn try_take(&self, slots: Arc<Semaphore>, all: u32) -> Result<Turn, TryAcquireError> {
        Ok(self.begin(slots.try_acquire_many_owned(all)?, Duration::ZERO))
    }

    fn begin(&self, permit: OwnedSemaphorePermit, waited: Duration) -> Turn {
        let until = Instant::now() + waited.max(SHORTEST_TURN);
        Turn { empty: Some(Empty { _permit: permit, until }), turns: self.clone() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Turn>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|next| !next.is_closed());
        waiting
    }
}

/// The whole worker, for one invocation. Dropped, it goes to the next that waits for it, or to everyone.
#[derive(Debug)]
pub(crate) struct Turn {
    empty: Option<Empty>,
    turns: Turns,
}

#[derive(Debug)]
struct Empty {
    _permit: OwnedSemaphorePermit,
    until: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut empty = self.empty.take();
        while empty.as_ref().is_some_and(|empty| Instant::now() < empty.until) {
            // Of its own statement: a turn that nobody takes comes back, and may be dropped only when nothing is locked.
            let next = self.turns.waiting().pop_front();
            let Some(next) = next else { break };
            let turn = Self { empty: empty.take(), turns: self.turns.clone() };
            empty = next.send(turn).err().and_then(|mut refused| refused.empty.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ALL: u32 = 3;

    fn slots() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(ALL as usize))
    }

    #[tokio::test(start_paused = true)]
    async fn the_worker_is_emptied_once_for_all_that_wait() {
        let (turns, slots) = (Turns::default(), slots());
        let running = slots.clone().acquire_owned().await;
        let [mut first, mut second] = [(); 2].map(|()| Box::pin(turns.take(slots.clone(), ALL)));
        assert!((&mut first).now_or_never().is_none());
        let mut other = Box::pin(slots.clone().acquire_owned());
        assert!((&mut other).now_or_never().is_none(), "it waits behind who is to run alone");
        assert!((&mut second).now_or_never().is_none());
        drop(running);
        let turn = first.now_or_never().expect("nothing runs");
        assert!((&mut second).now_or_never().is_none(), "one at a time");
        drop(turn);
        assert!((&mut other).now_or_never().is_none(), "the worker is handed on");
        drop(second.now_or_never().expect("it is handed the worker"));
        assert!(other.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_over_lets_the_others_go_on() {
        let (turns, slots) = (Turns::default(), slots());
        let turn = turns.take(slots.clone(), ALL).await;
        let mut other = Box::pin(slots.clone().acquire_owned());
        assert!((&mut other).now_or_never().is_none());
        let mut next = Box::pin(turns.take(slots.clone(), ALL));
        assert!((&mut next).now_or_never().is_none());
        tokio::time::advance(SHORTEST_TURN).await;
        drop(turn);
        let other = other.now_or_never().expect("it has waited for longer");
        assert!((&mut next).now_or_never().is_none());
        drop(other);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_no_longer_waits_is_passed_over() {
        let (turns, slots) = (Turns::default(), slots());
        let turn = turns.take(slots.clone(), ALL).await;
        let [mut gives_up, mut handed, mut last] = [(); 3].map(|()| Box::pin(turns.take(slots.clone(), ALL)));
        for waiting in [&mut gives_up, &mut handed, &mut last] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(gives_up);
        drop(turn);
        // It is handed the worker, and gives up before it sees it.
        drop(handed);
        assert!(last.now_or_never().is_some());
        assert_eq!(slots.available_permits(), ALL as usize);
    }
}
