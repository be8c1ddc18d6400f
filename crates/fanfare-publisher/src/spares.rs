//! Aggregation queues that are declared before a fan-out needs them.
//!
//! A broker that keeps its list of queues in Mnesia, as RabbitMQ does up to 4.1 unless told otherwise, answers a declaration when it is in its
//! log, and the decision for it may not be there yet: where it is killed then, it starts without the queue. The next change of that
//! list, once it is answered, has brought the decision to the disk. So no manifest is published before another queue was declared, or deleted, after its own.
//! Where that is the queue of the next fan-out, it costs nothing, and that one need not wait for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fanfare_broker::BrokerError;
use fanfare_protocol::{Cid, QueueSpec, RunId};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Failure;
use crate::publisher::Shared;

/// Queues kept for fan-outs whose CID is drawn. As many as are invoked at once find one.
const MOST: usize = 16;
/// Those kept where only others are invoked: one is declared and deleted in turns.
const FEWEST: usize = 1;
/// After which a queue that nobody has used is deleted.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// After which it is declared again before it is used: no broker is killed and back within that time.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The queues of one publisher that are ready, and the changes that it has made of the broker's list of queues.
#[derive(Debug)]
pub(crate) struct Spares {
    state: Mutex<State>,
    /// Told when a change has come to its end.
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    ready: VecDeque<Spare>,
    /// Changes that were begun.
    begun: u64,
    /// Those that have not ended.
    open: BTreeSet<u64>,
    /// The last to begin of those that were answered.
    answered: u64,
    /// Whether somebody looks for spares that nobody uses.
    is_watched: bool,
    is_closed: bool,
}

/// An aggregation queue that no fan-out uses yet.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) cid: Cid,
    pub(crate) run: RunId,
    pub(crate) queue: QueueSpec,
    declared: Declared,
    since: Instant,
}

impl Spare {
    /// When it was declared, where it is sure to be there still.
    pub(crate) fn trusted(&self) -> Option<Declared> {
        (self.since.elapsed() < TRUSTED_FOR).then_some(self.declared)
    }
}

/// A declaration that was answered when so many changes had begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declared(u64);

/// A change that is under way.
struct Change {
    shared: Arc<Shared>,
    number: u64,
}

impl Default for Spares {
    fn default() -> Self {
        Self { state: Mutex::default(), ended: watch::Sender::new(()) }
    }
}

impl Spares {
    /// The oldest that is ready.
    pub(crate) fn take(&self) -> Option<Spare> {
        self.state().ready.pop_front()
    }

    /// One that is to be deleted, where as many are ready as are kept.
    fn take_surplus(&self, kept: usize) -> Option<Spare> {
        let mut state = self.state();
        (state.ready.len() >= kept).then(|| state.ready.pop_front()).flatten()
    }

    fn take_unused(&self, kept_for: Duration) -> Vec<Spare> {
        let mut state = self.state();
        let unused = state.ready.iter().take_while(|spare| spare.since.elapsed() >= kept_for).count();
        state.ready.drain(..unused).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    fn begin(shared: &Arc<Shared>) -> Self {
        let mut state = shared.spares.state();
        state.begun += 1;
        let number = state.begun;
        state.open.insert(number);
        Self { shared: Arc::clone(shared), number }
    }

    fn answered(self) -> Declared {
        let mut state = self.shared.spares.state();
        state.answered = state.answered.max(self.number);
        Declared(state.begun)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let Spares { ended, .. } = &self.shared.spares;
        self.shared.spares.state().open.remove(&self.number);
        ended.send_replace(());
    }
}

impl Shared {
    /// Declares an aggregation queue.
    pub(crate) async fn declare_aggregation(
        self: &Arc<Self>,
        queue: &QueueSpec,
    ) -> Result<Declared, BrokerError> {
        let change = Change::begin(self);
        self.broker.declare(queue).await?;
        Ok(change.answered())
    }

    /// Begins to declare the queue of the next fan-out whose CID is drawn.
    pub(crate) fn declare_next(self: &Arc<Self>) {
        let changed = self.change(MOST);
        // Where it fails, whoever needs a change makes one.
        tokio::spawn(async move { drop(changed.await) });
    }

    /// Returns when a declaration has outlived whatever may kill the broker: when a change that began after it is answered.
    pub(crate) async fn settle(self: &Arc<Self>, declared: Declared, until: Instant) -> Result<(), Failure> {
        let mut ended = self.spares.ended.subscribe();
        loop {
            let is_under_way = {
                let state = self.spares.state();
                if state.answered > declared.0 {
                    return Ok(());
                }
                state.open.last().is_some_and(|open| *open > declared.0)
            };
            if is_under_way {
                ended.changed().await.expect("its sender lives as long as the publisher");
            } else {
                self.through_outages(until, || self.change(FEWEST)).await?;
            }
        }
    }

    /// Declares a queue for the next fan-out, or deletes one where there are as many as are kept.
    /// It has begun when this returns.
    fn change(self: &Arc<Self>, kept: usize) -> impl Future<Output = Result<(), BrokerError>> + use<> {
        let (change, surplus) = (Change::begin(self), self.spares.take_surplus(kept));
        let shared = Arc::clone(self);
        async move { shared.make(change, surplus).await }
    }

    async fn make(self: &Arc<Self>, change: Change, surplus: Option<Spare>) -> Result<(), BrokerError> {
        if let Some(surplus) = surplus {
            self.broker.delete(&surplus.queue.name).await?;
            change.answered();
            return Ok(());
        }
        let (cid, run) = (Cid::from(self.environment.sequential()), RunId::from(self.environment.unique()));
        let queue = self.config.gathering(&cid, run).expect("it was checked for the fan-out");
        self.broker.declare(&queue).await?;
        let spare = Spare { cid, run, queue, declared: change.answered(), since: Instant::now() };
        self.keep(spare).await;
        Ok(())
    }

    async fn keep(self: &Arc<Self>, spare: Spare) {
        let closed = {
            let mut state = self.spares.state();
            if state.is_closed {
                Some(spare)
            } else {
                state.ready.push_back(spare);
                if !std::mem::replace(&mut state.is_watched, true) {
                    tokio::spawn(delete_unused(Arc::downgrade(self)));
                }
                None
            }
        };
        if let Some(spare) = closed {
            self.delete(&spare.queue.name).await;
        }
    }

    /// Deletes what is ready, and keeps nothing ready from now on.
    pub(crate) async fn close_spares(&self) {
        let ready = {
            let mut state = self.spares.state();
            state.is_closed = true;
            std::mem::take(&mut state.ready)
        };
        join_all(ready.iter().map(|spare| self.delete(&spare.queue.name))).await;
    }
}

/// Deletes what nobody uses, for as long as there is anything.
async fn delete_unused(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(KEPT_FOR).await;
        let Some(shared) = shared.upgrade() else { return };
        let unused = shared.spares.take_unused(KEPT_FOR);
        join_all(unused.iter().map(|spare| shared.delete(&spare.queue.name))).await;
        let mut state = shared.spares.state();
        if state.ready.is_empty() {
            state.is_watched = false;
            return;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let ready = std::mem::take(&mut self.spares.state().ready);
        if ready.is_empty() {
            return;
        }
        // One try: what stays goes by itself, since nobody uses it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let broker = Arc::clone(&self.broker);
            runtime.spawn(async move {
                join_all(ready.iter().map(|spare| broker.delete(&spare.queue.name))).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_broker::{Broker, System};
    use futures_util::FutureExt;

    use super::*;
    use crate::{Accepted, Config, Publisher};

    fn publisher(broker: &Arc<MemoryBroker>) -> Publisher {
        let broker = Arc::clone(broker) as Arc<dyn Broker>;
        Publisher::new(broker, Arc::new(System), Config { declare_missing: true, ..Config::default() })
    }

    async fn invoke(publisher: &Publisher, cid: Option<&str>) -> Accepted {
        let fanout = publisher.fanout("test").target("price.quote", 1).on_final("done");
        let fanout = if let Some(cid) = cid { fanout.cid(cid) } else { fanout };
        let accepted = fanout.invoke().await.unwrap();
        // What was begun for the next one comes to its end.
        tokio::time::sleep(Duration::from_millis(1)).await;
        accepted
    }

    fn ready(publisher: &Publisher) -> Vec<String> {
        let state = publisher.shared.spares.state();
        state.ready.iter().map(|spare| spare.queue.name.clone()).collect()
    }

    fn queue_of(publisher: &Publisher, Accepted { cid, run }: &Accepted) -> String {
        publisher.config().names.aggregation(cid, *run).name
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_fan_out_is_gathered_in_the_queue_that_was_declared_after_the_last_one() {
        let broker = Arc::new(MemoryBroker::new());
        let publisher = publisher(&broker);
        let first = invoke(&publisher, None).await;
        for _ in 0..3 {
            let next = ready(&publisher);
            assert_eq!(next.len(), 1);
            let accepted = invoke(&publisher, None).await;
            assert_eq!(next, [queue_of(&publisher, &accepted)]);
            assert_ne!(accepted, first);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_cids_are_given_a_queue_is_declared_and_deleted_in_turns() {
        let broker = Arc::new(MemoryBroker::new());
        let publisher = publisher(&broker);
        for kept in [1, 0, 1, 0] {
            let accepted = invoke(&publisher, Some("mine")).await;
            assert_eq!(accepted.cid.as_str(), "mine");
            assert_eq!(ready(&publisher).len(), kept);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_gone_by_the_time_that_it_is_used_is_declared_again() {
        let broker = Arc::new(MemoryBroker::new());
        let publisher = publisher(&broker);
        invoke(&publisher, None).await;
        let next = ready(&publisher).pop().unwrap();
        broker.delete(&next).await.unwrap();
        tokio::time::sleep(TRUSTED_FOR).await;
        let accepted = invoke(&publisher, None).await;
        assert_eq!(queue_of(&publisher, &accepted), next);
        assert_eq!(broker.inspect(&next).await.unwrap().map(|queue| queue.messages), Some(1), "its sentinel");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_is_deleted() {
        let broker = Arc::new(MemoryBroker::new());
        let publisher = publisher(&broker);
        invoke(&publisher, None).await;
        let unused = ready(&publisher).pop().unwrap();
        tokio::time::sleep(2 * KEPT_FOR).await;
        assert!(!broker.exists(&unused).await.unwrap());
        assert_eq!(ready(&publisher), [""; 0]);
        // Whoever looks for them begins anew.
        invoke(&publisher, None).await;
        let unused = ready(&publisher).pop().unwrap();
        tokio::time::sleep(2 * KEPT_FOR).await;
        assert!(!broker.exists(&unused).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_publisher_that_is_closed_or_dropped_leaves_none() {
        let broker = Arc::new(MemoryBroker::new());
        let closed = publisher(&broker);
        invoke(&closed, None).await;
        let left = ready(&closed).pop().unwrap();
        closed.close().await;
        assert!(!broker.exists(&left).await.unwrap());
        invoke(&closed, None).await;
        assert_eq!(ready(&closed), [""; 0]);
        let dropped = publisher(&broker);
        invoke(&dropped, None).await;
        let left = ready(&dropped).pop().unwrap();
        drop(dropped);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!broker.exists(&left).await.unwrap());
    }

    #[tokio::test]
    async fn a_declaration_is_settled_by_the_answer_to_what_began_after_its_own() {
        let broker = Arc::new(MemoryBroker::new());
        let publisher = publisher(&broker);
        let Publisher { shared } = &publisher;
        let until = Instant::now() + Duration::from_secs(60);
        let before = Change::begin(shared);
        let declared = Change::begin(shared).answered();
        let after = Change::begin(shared);
        before.answered();
        assert!(shared.settle(declared, until).now_or_never().is_none());
        let mut settled = Box::pin(shared.settle(declared, until));
        assert!((&mut settled).now_or_never().is_none());
        after.answered();
        settled.await.unwrap();
        assert_eq!(ready(&publisher), [""; 0]);
    }

    #[tokio::test]
    async fn where_a_change_fails_who_waits_for_it_makes_another() {
        let broker = Arc::new(MemoryBroker::new());
        let publisher = publisher(&broker);
        let Publisher { shared } = &publisher;
        let declared = Change::begin(shared).answered();
        let failing = Change::begin(shared);
        let mut settled = Box::pin(shared.settle(declared, Instant::now() + Duration::from_secs(60)));
        assert!((&mut settled).now_or_never().is_none());
        drop(failing);
        settled.await.unwrap();
        assert_eq!(ready(&publisher).len(), 1);
    }
}
