use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};

/// How long a turn lasts at least, where that many wait for it.
const SHORTEST_TURN: Duration = Duration::from_secs(1);
/// How long a turn lasts at most. One that runs is not cut short by it.
const LONGEST_TURN: Duration = Duration::from_secs(10);
/// How long a turn waits, in all, for answers of those that have run. The broker confirms within moments, unless it is away or
/// blocked.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one that is to run alone waits for its company to arrive.
const SETTLING: Duration = Duration::from_millis(250);

/// Where an invocation comes among those that are to run alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The least goes first.
    order: i64,
    /// How long it waits for others that come before it.
    settling: Duration,
}

impl Place {
    /// That of one that was begun already, and goes on.
    pub(crate) const BEGUN: Self = Self { order: i64::MIN, settling: Duration::ZERO };

    /// That of one which was handed out with others that may all be as suspect as itself.
    pub(crate) const fn among_others(order: i64) -> Self {
        Self { order, settling: SETTLING }
    }

    /// That of one which was handed out while the worker held nothing else.
    pub(crate) const fn alone(order: i64) -> Self {
        Self { order, settling: Duration::ZERO }
    }
}

/// Turns of the invocations that run alone. To empty the worker of all others takes as long as the slowest of them, so it is not done
/// for each: one that has run hands the empty worker to the next that waits, until the turn is over. Within bounds, a turn lasts as
/// long as emptying the worker took; then the others, where any wait, have the worker for as long.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    slots: Arc<Semaphore>,
    all: u32,
    /// From when on the next turn may begin; locked by the one that empties the worker, until its turn is over.
    next: Arc<tokio::sync::Mutex<Option<Instant>>>,
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    order: i64,
    /// When it has waited long enough for those that come before it.
    from: Instant,
    turn: oneshot::Sender<Turn>,
}

impl Turns {
    /// Turns at all of these slots, which are as many.
    pub(crate) fn new(slots: Arc<Semaphore>, all: u32) -> Self {
        Self { slots, all, next: Arc::default(), waiting: Arc::default() }
    }

    /// Waits until the worker is empty, and nobody waits who comes before this one.
    pub(crate) async fn take(&self, place: Place) -> Turn {
        let (turn, mut handed) = oneshot::channel();
        let from = Instant::now() + place.settling;
        self.waiting().push(Waiting { order: place.order, from, turn });
        loop {
            tokio::select! {
                biased;
                Ok(turn) = &mut handed => return turn,
                // It goes to whoever is first, which may be another.
                turn = self.begin(from) => drop(turn),
            }
        }
    }

    /// Whether somebody has the worker, or waits for it.
    pub(crate) fn are_wanted(&self) -> bool {
        self.next.try_lock().is_err() || !self.waiting().is_empty()
    }

    /// Takes the worker where it is empty.
    pub(crate) fn try_take(&self) -> Option<Turn> {
        let next = Arc::clone(&self.next).try_lock_owned().ok()?;
        let permit = Arc::clone(&self.slots).try_acquire_many_owned(self.all).ok()?;
        Some(self.empty(next, permit, Duration::ZERO))
    }

    /// Empties the worker. The semaphore is fair: whoever wants a slot meanwhile waits behind this.
    async fn begin(&self, from: Instant) -> Turn {
        // A timer takes a moment even where none is left.
        if from > Instant::now() {
            sleep_until(from).await;
        }
        let next = Arc::clone(&self.next).lock_owned().await;
        if let Some(from) = *next {
            sleep_until(from).await;
        }
        let since = Instant::now();
        let permit = Arc::clone(&self.slots).acquire_many_owned(self.all).await;
        self.empty(next, permit.expect("the semaphore is never closed"), since.elapsed())
    }

    fn empty(
        &self,
        next: OwnedMutexGuard<Option<Instant>>,
        permit: OwnedSemaphorePermit,
        took: Duration,
    ) -> Turn {
        let began = Instant::now();
        let until = began + took.clamp(SHORTEST_TURN, LONGEST_TURN);
        let empty = Empty { permit: Some(permit), next, began, until, patience: PATIENCE };
        Turn { empty: Some(empty), turns: self.clone() }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|next| !next.turn.is_closed());
        waiting
    }

    /// Takes out the first of those that have waited long enough.
    fn first(&self) -> Option<oneshot::Sender<Turn>> {
        let (mut waiting, now) = (self.waiting(), Instant::now());
        let settled = waiting.iter().enumerate().filter(|(_, next)| next.from <= now);
        let (first, _) = settled.min_by_key(|(_, next)| next.order)?;
        Some(waiting.remove(first).turn)
    }
}

/// The whole worker, for one invocation. Dropped, it goes to the next that waits for it, or to everyone.
#[derive(Debug)]
pub(crate) struct Turn {
    /// There until it is dropped.
    empty: Option<Empty>,
    turns: Turns,
}

#[derive(Debug)]
struct Empty {
    permit: Option<OwnedSemaphorePermit>,
    next: OwnedMutexGuard<Option<Instant>>,
    began: Instant,
    until: Instant,
    patience: Duration,
}

impl Turn {
    /// Waits for something within what is left of the turn's patience.
    pub(crate) async fn wait_for(&mut self, something: impl Future<Output = ()>) {
        let empty = self.empty.as_mut().expect("it is not dropped");
        let since = Instant::now();
        let _ = tokio::time::timeout(empty.patience, something).await;
        empty.patience = empty.patience.saturating_sub(since.elapsed());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut empty = self.empty.take();
        while empty.as_ref().is_some_and(|empty| Instant::now() < empty.until) {
            // Of its own statement: a turn that nobody takes comes back, and may be dropped only when nothing is locked.
            let Some(next) = self.turns.first() else { break };
            let turn = Self { empty: empty.take(), turns: self.turns.clone() };
            empty = next.send(turn).err().and_then(|mut refused| refused.empty.take());
        }
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        let length = self.began.elapsed();
        let permit = self.permit.take().expect("it is there until now");
        let (slots, all) = (Arc::clone(permit.semaphore()), permit.num_permits());
        drop(permit);
        // Where a slot is gone at once, someone was waiting for it.
        *self.next = (slots.available_permits() < all).then(|| Instant::now() + length);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::mpsc;
    use tokio::time::{advance, sleep};

    use super::*;

    const ALL: u32 = 3;
    const AT_ONCE: Place = Place { order: 0, settling: Duration::ZERO };

    fn turns() -> (Turns, Arc<Semaphore>) {
        let slots = Arc::new(Semaphore::new(ALL as usize));
        (Turns::new(slots.clone(), ALL), slots)
    }

    #[tokio::test(start_paused = true)]
    async fn the_worker_is_emptied_once_for_all_that_wait() {
        let (turns, slots) = turns();
        let running = slots.clone().acquire_owned().await;
        let [mut first, mut second] = [(); 2].map(|()| Box::pin(turns.take(AT_ONCE)));
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
    async fn a_turn_that_is_over_leaves_the_worker_to_the_others_for_as_long() {
        let (turns, slots) = turns();
        let turn = turns.take(AT_ONCE).await;
        let mut other = Box::pin(slots.clone().acquire_owned());
        assert!((&mut other).now_or_never().is_none());
        let mut next = Box::pin(turns.take(AT_ONCE));
        assert!((&mut next).now_or_never().is_none());
        advance(SHORTEST_TURN).await;
        drop(turn);
        drop((&mut other).now_or_never().expect("the turn is over"));
        advance(SHORTEST_TURN / 2).await;
        assert!((&mut next).now_or_never().is_none());
        let another =
            slots.clone().acquire_owned().now_or_never().expect("nobody is about to empty the worker");
        advance(SHORTEST_TURN / 2).await;
        assert!((&mut next).now_or_never().is_none(), "one runs");
        assert!(slots.clone().acquire_owned().now_or_never().is_none(), "nobody overtakes the turn");
        drop(another);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_lasts_as_long_as_emptying_the_worker_took_within_bounds() {
        for (took, lasts) in [(0, 1), (5, 5), (60, 10)]
            .map(|(took, lasts)| (Duration::from_secs(took), Duration::from_secs(lasts)))
        {
            let (turns, slots) = turns();
            let running = slots.clone().acquire_owned().await;
            let [mut first, mut second, mut third] = [(); 3].map(|()| Box::pin(turns.take(AT_ONCE)));
            for waiting in [&mut first, &mut second, &mut third] {
                assert!(waiting.now_or_never().is_none());
            }
            let mut other = Box::pin(slots.clone().acquire_owned());
            assert!((&mut other).now_or_never().is_none());
            advance(took).await;
            drop(running);
            let turn = first.now_or_never().expect("nothing runs");
            advance(lasts - Duration::from_millis(1)).await;
            drop(turn);
            let turn = second.now_or_never().expect("it is handed the worker");
            advance(Duration::from_millis(1)).await;
            drop(turn);
            assert!(other.now_or_never().is_some() && third.now_or_never().is_none(), "the turn is over");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_arrives_in_time_runs_in_the_order_of_the_places() {
        let (turns, _slots) = turns();
        let (ran, mut order) = mpsc::unbounded_channel();
        let run = |place| {
            let (turns, ran) = (turns.clone(), ran.clone());
            tokio::spawn(async move {
                let _turn = turns.take(Place::among_others(place)).await;
                ran.send(place).unwrap();
            })
        };
        let _early = [3, 1].map(run);
        sleep(SETTLING - Duration::from_millis(1)).await;
        assert!(order.is_empty(), "others may come yet");
        let _late = [2, 0].map(run);
        let mut places = [0; 4];
        for place in &mut places {
            *place = order.recv().await.unwrap();
        }
        assert_eq!(places, [1, 3, 0, 2], "who was there first does not wait for who has just come");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_has_patience_only_once() {
        let (turns, _slots) = turns();
        let since = Instant::now();
        let mut turn = turns.take(AT_ONCE).await;
        turn.wait_for(std::future::pending()).await;
        assert_eq!(since.elapsed(), PATIENCE);
        turn.wait_for(std::future::pending()).await;
        assert_eq!(since.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_no_longer_waits_is_passed_over() {
        let (turns, slots) = turns();
        let turn = turns.take(AT_ONCE).await;
        let [mut gives_up, mut handed, mut last] = [(); 3].map(|()| Box::pin(turns.take(AT_ONCE)));
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
