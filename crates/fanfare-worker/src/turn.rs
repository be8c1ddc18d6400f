use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

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

/// Turns of the invocations that run alone. While one has its turn, no other invocation begins. To empty the worker of all others takes
/// as long as the slowest of them, up to a limit, so it is not done for each: one that has run hands the empty worker to the next that
/// waits, until the turn is over. Within bounds, a turn lasts as long as emptying the worker took; then the others, where any wait, have
/// the worker for as long as they have waited. One that runs for longer than the limit goes on, and its turn is over.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    slots: Arc<Semaphore>,
    all: u32,
    /// How long the worker is emptied, and how long one that runs keeps others from beginning, at most.
    limit: Duration,
    gate: Arc<Gate>,
    /// From when on the next turn may begin; locked by the one that empties the worker, until its turn is over.
    next: Arc<tokio::sync::Mutex<Option<Instant>>>,
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

/// What others wait at while somebody has a turn. They are woken in their order, so that a seed of the simulation tells all: a watch would
/// wake them in any.
#[derive(Debug, Default)]
struct Gate {
    is_closed: AtomicBool,
    waiting: AtomicUsize,
    opened: Notify,
}

/// One of those who wait at a gate, until this is dropped.
struct AtGate<'a>(&'a Gate);

impl<'a> AtGate<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.waiting.fetch_add(1, Ordering::SeqCst);
        Self(gate)
    }
}

impl Drop for AtGate<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
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
    pub(crate) fn new(slots: Arc<Semaphore>, all: u32, limit: Duration) -> Self {
        Self { slots, all, limit, gate: Arc::default(), next: Arc::default(), waiting: Arc::default() }
    }

    /// Waits until no other has its turn, nobody waits who comes before this one, and the worker is empty or was emptied for as long
    /// as the limit says: what runs then has run for so long that it is left to itself.
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

    /// Waits until nobody has a turn.
    pub(crate) async fn over(&self) {
        // Who only looks is not to count among those who wait.
        while self.are_under_way() {
            let _waits = AtGate::new(&self.gate);
            let opened = self.gate.opened.notified();
            if self.are_under_way() {
                opened.await;
            }
        }
    }

    /// Whether somebody has a turn, and others have to wait.
    pub(crate) fn are_under_way(&self) -> bool {
        self.gate.is_closed.load(Ordering::SeqCst)
    }

    /// Whether somebody has the worker, or waits for it.
    pub(crate) fn are_wanted(&self) -> bool {
        self.next.try_lock().is_err() || !self.waiting().is_empty()
    }

    /// Takes the worker where it is empty.
    pub(crate) fn try_take(&self) -> Option<Turn> {
        let next = Arc::clone(&self.next).try_lock_owned().ok()?;
        let closed = Closed::new(&self.gate);
        // Whoever takes a slot from here on sees that it is closed.
        let _all = self.slots.try_acquire_many(self.all).ok()?;
        Some(self.turn(next, closed, Instant::now()))
    }

    /// Empties the worker.
    async fn begin(&self, from: Instant) -> Turn {
        // A timer takes a moment even where none is left.
        if from > Instant::now() {
            sleep_until(from).await;
        }
        let next = Arc::clone(&self.next).lock_owned().await;
        if let Some(from) = *next {
            sleep_until(from).await;
        }
        let (since, closed) = (Instant::now(), Closed::new(&self.gate));
        // Who has run has given its slot back.
        let _ = timeout(self.limit, self.slots.acquire_many(self.all)).await;
        self.turn(next, closed, since)
    }

    fn turn(&self, next: OwnedMutexGuard<Option<Instant>>, closed: Closed, since: Instant) -> Turn {
        let until = Instant::now() + since.elapsed().clamp(SHORTEST_TURN, LONGEST_TURN);
        let floor = Floor { closed, next, since, until, patience: PATIENCE };
        Turn { floor: Arc::new(Mutex::new(Some(floor))), limited: JoinSet::new(), turns: self.clone() }
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

/// The turn of one invocation. Dropped, it goes to the next that waits for it, or is over.
#[derive(Debug)]
pub(crate) struct Turn {
    /// There until it is dropped, or over.
    floor: Arc<Mutex<Option<Floor>>>,
    /// Ends it in time.
    limited: JoinSet<()>,
    turns: Turns,
}

/// That no other invocation begins.
#[derive(Debug)]
struct Floor {
    closed: Closed,
    next: OwnedMutexGuard<Option<Instant>>,
    since: Instant,
    until: Instant,
    patience: Duration,
}

/// Others have to wait until this is dropped.
#[derive(Debug)]
struct Closed(Arc<Gate>);

impl Closed {
    fn new(gate: &Arc<Gate>) -> Self {
        gate.is_closed.store(true, Ordering::SeqCst);
        Self(Arc::clone(gate))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.is_closed.store(false, Ordering::SeqCst);
        self.0.opened.notify_waiters();
    }
}

impl Turn {
    /// Waits for something within what is left of the turn's patience.
    pub(crate) async fn wait_for(&mut self, something: impl Future<Output = ()>) {
        let patience = lock(&self.floor).as_ref().map_or(Duration::ZERO, |floor| floor.patience);
        let since = Instant::now();
        let _ = timeout(patience, something).await;
        if let Some(floor) = lock(&self.floor).as_mut() {
            floor.patience = patience.saturating_sub(since.elapsed());
        }
    }

    /// Its invocation begins to run: from the limit on, others may begin beside it.
    pub(crate) fn begin(&mut self) {
        let (floor, limit) = (Arc::clone(&self.floor), self.turns.limit);
        self.limited.spawn(async move {
            sleep(limit).await;
            // Of its own statement: it wakes others.
            let over = lock(&floor).take();
            drop(over);
        });
    }

    /// Whether others may begin by now.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.floor).is_none()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut floor = lock(&self.floor).take();
        while floor.as_ref().is_some_and(|floor| Instant::now() < floor.until) {
            // Of its own statement: a turn that nobody takes comes back, and may be dropped only when nothing is locked.
            let Some(next) = self.turns.first() else { break };
            let handed = Arc::new(Mutex::new(floor.take()));
            let turn = Self { floor: handed, limited: JoinSet::new(), turns: self.turns.clone() };
            floor = next.send(turn).err().and_then(|refused| lock(&refused.floor).take());
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let length = self.since.elapsed().max(SHORTEST_TURN);
        // Nobody looks on but those who wait.
        let others = self.closed.0.waiting.load(Ordering::SeqCst);
        *self.next = (others > 0).then(|| Instant::now() + length);
    }
}

fn lock(floor: &Mutex<Option<Floor>>) -> MutexGuard<'_, Option<Floor>> {
    floor.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::{OwnedSemaphorePermit, mpsc};
    use tokio::time::{advance, sleep};

    use super::*;

    const ALL: u32 = 3;
    const AT_ONCE: Place = Place { order: 0, settling: Duration::ZERO };

    const LIMIT: Duration = Duration::from_secs(100);

    fn turns() -> (Turns, Arc<Semaphore>) {
        let slots = Arc::new(Semaphore::new(ALL as usize));
        (Turns::new(slots.clone(), ALL, LIMIT), slots)
    }

    /// A slot of one that runs beside others.
    async fn beside(turns: Turns) -> OwnedSemaphorePermit {
        loop {
            turns.over().await;
            let slot = turns.slots.clone().acquire_owned().await.unwrap();
            if !turns.are_under_way() {
                return slot;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_worker_is_emptied_once_for_all_that_wait() {
        let (turns, _slots) = turns();
        let running = beside(turns.clone()).await;
        let [mut first, mut second] = [(); 2].map(|()| Box::pin(turns.take(AT_ONCE)));
        assert!((&mut first).now_or_never().is_none());
        let mut other = Box::pin(beside(turns.clone()));
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
        let (turns, _slots) = turns();
        let turn = turns.take(AT_ONCE).await;
        let mut other = Box::pin(beside(turns.clone()));
        assert!((&mut other).now_or_never().is_none());
        let mut next = Box::pin(turns.take(AT_ONCE));
        assert!((&mut next).now_or_never().is_none());
        advance(SHORTEST_TURN).await;
        drop(turn);
        drop((&mut other).now_or_never().expect("the turn is over"));
        advance(SHORTEST_TURN / 2).await;
        assert!((&mut next).now_or_never().is_none());
        let another = beside(turns.clone()).now_or_never().expect("nobody is about to empty the worker");
        advance(SHORTEST_TURN / 2).await;
        assert!((&mut next).now_or_never().is_none(), "one runs");
        assert!(beside(turns.clone()).now_or_never().is_none(), "nobody overtakes the turn");
        drop(another);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_lasts_as_long_as_emptying_the_worker_took_within_bounds() {
        for (took, lasts) in [(0, 1), (5, 5), (60, 10)]
            .map(|(took, lasts)| (Duration::from_secs(took), Duration::from_secs(lasts)))
        {
            let (turns, _slots) = turns();
            let running = beside(turns.clone()).await;
            let [mut first, mut second, mut third] = [(); 3].map(|()| Box::pin(turns.take(AT_ONCE)));
            for waiting in [&mut first, &mut second, &mut third] {
                assert!(waiting.now_or_never().is_none());
            }
            let mut other = Box::pin(beside(turns.clone()));
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

    #[tokio::test(start_paused = true)]
    async fn who_runs_for_longer_than_the_limit_keeps_others_waiting_no_more() {
        let (turns, _slots) = turns();
        let mut turn = turns.take(AT_ONCE).await;
        turn.begin();
        let mut other = Box::pin(beside(turns.clone()));
        assert!((&mut other).now_or_never().is_none());
        let mut next = Box::pin(turns.take(AT_ONCE));
        assert!((&mut next).now_or_never().is_none());
        sleep(LIMIT - Duration::from_millis(1)).await;
        assert!((&mut other).now_or_never().is_none() && !turn.is_over());
        sleep(Duration::from_millis(2)).await;
        assert!(turn.is_over());
        drop((&mut other).now_or_never().expect("it may begin"));
        assert!((&mut next).now_or_never().is_none(), "the others have the worker for as long");
        sleep(LIMIT).await;
        let next = next.now_or_never().expect("its turn has come");
        drop(turn);
        assert!(turns.are_under_way(), "a turn that is over ends no other");
        drop(next);
        assert!(!turns.are_under_way());
    }

    #[tokio::test(start_paused = true)]
    async fn the_worker_is_emptied_for_no_longer_than_the_limit() {
        let (turns, _slots) = turns();
        let _running = beside(turns.clone()).await;
        let mut turn = Box::pin(turns.take(AT_ONCE));
        assert!((&mut turn).now_or_never().is_none());
        let mut other = Box::pin(beside(turns.clone()));
        assert!((&mut other).now_or_never().is_none(), "it waits behind who is to run alone");
        advance(LIMIT).await;
        let turn = turn.now_or_never().expect("what runs is left to itself");
        assert!((&mut other).now_or_never().is_none(), "and nothing else begins");
        drop(turn);
        assert!(other.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_of_those_that_run_for_long_leaves_half_of_the_time_to_the_others() {
        let (turns, _slots) = turns();
        for _ in 0..10 {
            let turns = turns.clone();
            tokio::spawn(async move {
                let mut turn = turns.take(AT_ONCE).await;
                turn.begin();
                sleep(LIMIT * 50).await;
            });
        }
        let since = Instant::now();
        let mut begun = 0;
        while since.elapsed() < LIMIT * 30 {
            drop(beside(turns.clone()).await);
            sleep(Duration::from_secs(1)).await;
            begun += 1;
        }
        let seconds = usize::try_from(LIMIT.as_secs()).unwrap() * 30;
        assert!(begun * 2 >= seconds, "{begun} in {seconds} s");
    }
}
