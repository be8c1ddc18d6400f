//! Aggregation queues that are declared before a fan-out needs them.
//!
//! A broker that keeps its list of queues in Mnesia, as RabbitMQ up to 4.2 may, answers a declaration when it is in its
//! log, and the decision for it may not be there yet: where it is killed then, it starts without the queue. The next change of that
//! list, once it is answered, has brought the decision to the disk. So no manifest is published before another queue was declared, or
//! deleted, after its own. Where that is the queue of the next fan-out, it costs nothing, and that one need not wait for it. From 4.3 on
//! there is no Mnesia, and no manifest of a classic queue waits. Quorum queues need [another one's declaration](fanfare_broker::Broker::declare_for_good) on any version.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, PublishError};
use fanfare_protocol::{Cid, QueueSpec, RunId};
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::publisher::Shared;
use crate::{Failure, QueueType};

/// Queues kept for fan-outs whose CID is drawn. As many as are invoked at once find one.
const MOST: usize = 16;
/// After which a queue that nobody has used is deleted.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// For how long it is certain that what was there still is: no broker is killed and back within that time.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The queues of one publisher that are ready, and the changes that it has made of the broker's list of queues.
#[derive(Debug)]
pub(crate) struct Spares {
    state: Mutex<State>,
    /// Told when a change has come to its end. Those who wait are woken in their order.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    ready: VecDeque<Spare>,
    /// Those that are being declared.
    coming: usize,
    /// Changes that were begun.
    begun: u64,
    /// Those that have not ended.
    open: BTreeSet<u64>,
    /// The last to begin of those that were answered.
    answered: u64,
    /// Whether anything was invoked.
    is_used: bool,
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
}

/// A declaration that was answered when so many changes had begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declared {
    begun: u64,
    /// When the queue was there.
    seen: Instant,
}

impl Declared {
    /// Whether the queue is there, unless somebody has deleted it.
    fn is_trusted(self) -> bool {
        self.seen.elapsed() < TRUSTED_FOR
    }
}

/// A queue that was ready, while the broker is asked whether it is there. It is ready again where nobody waits for the answer any more.
struct LookedAt<'a> {
    spares: &'a Spares,
    spare: Option<Spare>,
}

impl Drop for LookedAt<'_> {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.spares.state().ready.push_front(spare);
        }
    }
}

/// A change that is under way.
struct Change {
    shared: Arc<Shared>,
    number: u64,
}

impl Default for Spares {
    fn default() -> Self {
        Self { state: Mutex::default(), ended: Notify::new() }
    }
}

impl Spares {
    /// Whether this is the first fan-out, which may be all that the program invokes: it leaves nothing ready.
    pub(crate) fn is_first(&self) -> bool {
        !std::mem::replace(&mut self.state().is_used, true)
    }

    /// Those that are ready, or will be.
    fn kept(&self) -> usize {
        let state = self.state();
        state.ready.len() + state.coming
    }

    /// The oldest, where it is certain that its deletion is a change.
    fn take_trusted(&self) -> Option<Spare> {
        self.state().ready.pop_front_if(|spare| spare.declared.is_trusted())
    }

    fn take_unused(&self) -> Vec<Spare> {
        let mut state = self.state();
        let is_unused = |spare: &&Spare| spare.declared.seen.elapsed() >= KEPT_FOR;
        let unused = state.ready.iter().take_while(is_unused).count();
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

    /// Ends it. None where it was not answered.
    fn ended(self, outcome: &Result<(), BrokerError>) -> Option<Declared> {
        outcome.is_ok().then(|| self.answered())
    }

    fn answered(self) -> Declared {
        let mut state = self.shared.spares.state();
        state.answered = state.answered.max(self.number);
        Declared { begun: state.begun, seen: Instant::now() }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let Spares { ended, .. } = &self.shared.spares;
        self.shared.spares.state().open.remove(&self.number);
        ended.notify_waiters();
    }
}

impl Shared {
    /// Declares an aggregation queue that was not there before.
    pub(crate) async fn declare_aggregation(
        self: &Arc<Self>,
        queue: &QueueSpec,
    ) -> Result<Declared, BrokerError> {
        let change = Change::begin(self);
        self.broker.declare(queue).await?;
        Ok(change.answered())
    }

    /// The oldest that is ready, and there. None where that can't be told by then.
    pub(crate) async fn take_spare(&self, until: Instant) -> Option<(Spare, Declared)> {
        loop {
            let spare = self.spares.state().ready.pop_front()?;
            if spare.declared.is_trusted() {
                let declared = spare.declared;
                return Some((spare, declared));
            }
            let (seen, name) = (Instant::now(), spare.queue.name.clone());
            let mut looked_at = LookedAt { spares: &self.spares, spare: Some(spare) };
            match tokio::time::timeout_at(until, self.broker.exists(&name)).await {
                Ok(Ok(is_there)) => {
                    if let Some(spare) = looked_at.spare.take().filter(|_| is_there) {
                        let declared = Declared { seen, ..spare.declared };
                        return Some((spare, declared));
                    }
                }
                // Why, is told by who declares another.
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    /// Begins to declare the queue of the next fan-out whose CID is drawn. Whoever invokes one after the other,
    /// as one does who finds a queue ready, gets two: the one that is taken next is settled by the other already.
    pub(crate) fn declare_next(self: &Arc<Self>, was_ready: bool) {
        let fewest = if was_ready { 2 } else { 1 };
        while self.spares.kept() < MOST {
            // Where it fails, whoever needs a change makes one.
            drop(self.declare_spare());
            if self.spares.kept() >= fewest {
                return;
            }
        }
    }

    /// Returns when a declaration has outlived whatever may kill the broker: when a change that began after it is answered.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        queue: &QueueSpec,
        declared: Declared,
        is_first: bool,
    ) -> Result<(), Failure> {
        if !queue.is_quorum()
            && self.broker.server().await.is_ok_and(|server| server.has_written_declarations())
        {
            return Ok(());
        }
        let mut backoff = Backoff::default();
        loop {
            // Before anything is looked at, so that no end after the look is missed.
            let ended = self.spares.ended.notified();
            let is_under_way = {
                let state = self.spares.state();
                if state.answered > declared.begun {
                    break;
                }
                state.open.last().is_some_and(|open| *open > declared.begun)
            };
            if is_under_way {
                ended.await;
                continue;
            }
            match self.change(is_first).await.unwrap_or(Err(BrokerError::Closed)) {
                Err(error) if error.is_outage() => backoff.wait(&*self.environment).await,
                changed => changed?,
            }
        }
        // The change may have been answered by a broker that was killed before, and is back.
        while !declared.is_trusted() {
            match self.broker.exists(&queue.name).await {
                Ok(true) => break,
                Ok(false) => return Err(Failure::Sentinel(PublishError::Unroutable(queue.name.clone()))),
                Err(error) if error.is_outage() => backoff.wait(&*self.environment).await,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes a change for its own sake, in a task that comes to its end whoever waits for it. It has begun when this returns.
    fn change(self: &Arc<Self>, is_first: bool) -> JoinHandle<Result<(), BrokerError>> {
        // The deletion of a quorum queue does not bring another one's declaration to the disk.
        let is_classic = matches!(self.config.queue_type, QueueType::Classic);
        if let Some(surplus) = if is_classic { self.spares.take_trusted() } else { None } {
            let (change, shared) = (Change::begin(self), Arc::clone(self));
            return tokio::spawn(async move {
                let deleted = shared.broker.delete(&surplus.queue.name).await;
                if change.ended(&deleted).is_none() {
                    shared.delete(&surplus.queue.name).await;
                }
                deleted
            });
        }
        if !is_first && self.spares.kept() == 0 {
            return self.declare_spare();
        }
        let (change, shared, spare) = (Change::begin(self), Arc::clone(self), self.draw());
        tokio::spawn(async move {
            let declared = shared.broker.declare(&spare.queue).await;
            change.ended(&declared);
            shared.delete(&spare.queue.name).await;
            declared
        })
    }

    /// Declares a queue for the next fan-out.
    fn declare_spare(self: &Arc<Self>) -> JoinHandle<Result<(), BrokerError>> {
        let (change, shared, spare) = (Change::begin(self), Arc::clone(self), self.draw());
        self.spares.state().coming += 1;
        tokio::spawn(async move {
            let declared = shared.broker.declare(&spare.queue).await;
            shared.spares.state().coming -= 1;
            match change.ended(&declared) {
                Some(declared) => shared.keep(Spare { declared, ..spare }).await,
                // It may be there all the same.
                None => shared.delete(&spare.queue.name).await,
            }
            declared
        })
    }

    fn draw(&self) -> Spare {
        let (cid, run) = (Cid::from(self.environment.sequential()), RunId::from(self.environment.unique()));
        let queue = self.config.gathering(&cid, run).expect("it was checked for the fan-out");
        Spare { cid, run, queue, declared: Declared { begun: u64::MAX, seen: Instant::now() } }
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
async fn delete_unused(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(KEPT_FOR).await;
        let Some(shared) = shared.upgrade() else { return };
        let unused = shared.spares.take_unused();
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
mod tests;
