//! The connection of one simulated process: everything that goes over it can go wrong.

use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, BrokerError, ConsumerChannel, PublishError, QueueState, ServerInfo};
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::channel::SimulatedChannel;
use super::defects::{Remembered, Sending};
use super::scenario::DEAF_MS;
use super::world::Shared;
use crate::oracle::{Disturbance, Role};

/// A process's connection to the broker, and its life: a process that is dead does nothing any more.
///
/// A step travels to the broker, has its effect there, and its answer travels back. Where the connection is cut on the
/// way there, the step has no effect; on the way back, it has, and who took it does not learn of it.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    pub(super) role: Role,
    memory: Arc<MemoryBroker>,
    over: CancellationToken,
    /// Cancelled when the connection is cut; each connection has its own.
    line: Mutex<CancellationToken>,
    /// Services that run in the process.
    pub(super) busy: AtomicUsize,
    /// While the broker cannot be reached.
    isolated: AtomicBool,
    remembered: Mutex<Remembered>,
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>, name: String, role: Role) -> Arc<Self> {
        let memory = Arc::new(shared.broker.connect());
        let isolated = shared.broker_is_down();
        if isolated {
            memory.isolate();
        }
        Arc::new(Self {
            shared,
            name,
            role,
            memory,
            over: CancellationToken::new(),
            line: Mutex::new(CancellationToken::new()),
            busy: AtomicUsize::new(0),
            isolated: AtomicBool::new(isolated),
            remembered: Mutex::default(),
        })
    }

    /// The process is killed: nothing that it does has an effect any more.
    pub(super) fn kill(&self) {
        if !self.is_over() {
            self.shared.disturb(&self.name, self.role, Disturbance::Killed);
            self.end();
            self.shared.died(&self.name);
        }
    }

    /// Nothing that the process does has an effect any more.
    pub(super) fn end(&self) {
        self.over.cancel();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// The broker learns that the process is dead.
    pub(super) async fn hang_up(&self) {
        self.memory.close().await;
    }

    /// The connection is lost. The process may open another at once.
    pub(super) fn cut(&self) {
        self.shared.disturb(&self.name, self.role, Disturbance::Cut);
        self.drop_line();
    }

    fn drop_line(&self) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *line).cancel();
        self.memory.cut();
    }

    /// The broker is away, or is back.
    pub(super) fn isolate(&self, isolated: bool) {
        self.isolated.store(isolated, Ordering::Relaxed);
        if isolated {
            self.drop_line();
            self.memory.isolate();
        } else {
            self.memory.rejoin();
        }
    }

    /// What the process remembers because of its defect.
    pub(super) fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> CancellationToken {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Awaits what the process does; for ever where it is dead before that is done.
    pub(super) async fn alive<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = self.over.cancelled() => {}
            done = work => {
                if !self.is_over() {
                    return done;
                }
            }
        }
        pending().await
    }

    /// A moment at which the process may die or its connection be cut.
    pub(super) fn step(&self) {
        let shared = &self.shared;
        shared.count_step();
        let faults = &shared.faults;
        if shared.happens(faults.crash) {
            self.kill();
        } else if shared.happens(faults.cut) {
            self.cut();
        }
    }

    /// A moment at which the connection that a coordinator consumes on may die without a word, which it notices some time later. What it publishes
    /// takes another way.
    pub(super) fn hear(self: &Arc<Self>) {
        let shared = &self.shared;
        if self.role == Role::Coordinator && shared.happens(shared.faults.deafen) && !self.is_over() {
            self.deafen();
        }
    }

    fn deafen(self: &Arc<Self>) {
        self.shared.disturb(&self.name, self.role, Disturbance::Deafened);
        self.memory.deafen();
        let (link, lasts) = (Arc::clone(self), Duration::from_millis(self.shared.random.of(0..=DEAF_MS)));
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            link.memory.notice();
        });
    }

    /// The broker's machine is about to die without a word. What a coordinator publishes on is found dead by its next message; what it consumes
    /// on may be found dead later than the broker is back.
    pub(super) fn lose_host(self: &Arc<Self>) {
        let deaf = self.shared.faults.deafen > 0.0 && self.shared.random.chance(0.5);
        if self.role == Role::Coordinator && deaf && !self.is_over() {
            self.deafen();
        }
    }

    /// Takes a step on the broker. `None` where the connection is cut on the way there or back.
    async fn take<T>(&self, what: impl FnOnce() -> String, work: impl Future<Output = T>) -> Option<T> {
        self.alive(async {
            self.shared.journal.trace(|| format!("{}: {}", self.name, what()));
            self.step();
            if self.is_over() {
                return pending().await;
            }
            let line = self.line();
            if self.isolated.load(Ordering::Relaxed) {
                return None;
            }
            let there_and_back = async {
                self.shared.travel().await;
                let outcome = work.await;
                self.step();
                self.shared.travel().await;
                outcome
            };
            tokio::select! {
                biased;
                () = line.cancelled() => None,
                outcome = there_and_back => Some(outcome),
            }
        })
        .await
    }

    async fn operate<T>(
        &self,
        what: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        self.take(what, work).await.unwrap_or_else(|| Err(unreachable()))
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        self.operate(|| format!("declare {}", queue.name), async {
            self.shared.check(&queue.name)?;
            let is_new = !self.memory.exists(&queue.name).await?;
            self.memory.declare(queue).await?;
            self.shared.declared(queue, is_new);
            Ok(())
        })
        .await
    }

    fn puts_off(&self, queue: &QueueSpec) -> bool {
        let is_aggregation = self.shared.run_of(&queue.name).is_some();
        self.shared.defect.is_some_and(|defect| defect.puts_off(self.role, &queue.name, is_aggregation))
    }

    /// Declares a queue that is needed now, where that was put off.
    async fn declare_put_off(&self, queue: &str) -> Result<(), BrokerError> {
        let Some(queue) = self.remembered().take_up(queue) else { return Ok(()) };
        self.declare(&queue).await.inspect_err(|_| self.remembered().put_off(queue))
    }

    /// Sends a message, and tells the oracle of it where it arrives. What is sent goes its way also where nobody waits any
    /// more.
    async fn send(self: Arc<Self>, queue: String, message: Message, line: CancellationToken) -> Option<Sent> {
        let travel = self.shared.latency();
        tokio::select! {
            biased;
            () = line.cancelled() => return None,
            () = self.over.cancelled() => return None,
            () = tokio::time::sleep(travel) => {}
        }
        if self.shared.happens(self.shared.faults.lose_message) {
            self.shared.journal.trace(|| format!("{}: a message to {queue} is lost", self.name));
            return None;
        }
        if let Some(error) = self.shared.outage_of(&queue) {
            return Some(Err(if self.shared.random.chance(0.5) {
                PublishError::Unroutable(queue)
            } else {
                PublishError::Unknown(error)
            }));
        }
        let taken = self.memory.publish(&queue, message.clone()).await;
        if taken.is_ok() {
            self.shared.arrived(&self.name, &queue, &message);
            if !self.shared.written(&queue, &message).await {
                self.shared.journal.trace(|| format!("{}: a message in {queue} is lost", self.name));
                return None;
            }
        }
        Some(taken)
    }
}

type Sent = Result<(), PublishError>;

pub(super) fn unreachable() -> BrokerError {
    BrokerError::Unreachable("the connection was lost".to_owned())
}

/// A process's handle on the broker.
#[derive(Clone)]
pub(super) struct SimulatedBroker(pub(super) Arc<Link>);

#[async_trait]
impl Broker for SimulatedBroker {
    async fn publish_by(
        &self,
        queue: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        let link = &self.0;
        let shared = &link.shared;
        link.alive(async {
            link.declare_put_off(queue).await.map_err(PublishError::NotSent)?;
            let (kind, id) = (message.kind().to_owned(), message.properties.message_id.clone());
            let shown = || format!("{kind} {} to {queue}", id.as_deref().unwrap_or_default());
            shared.journal.trace(|| format!("{}: publish {}", link.name, shown()));
            link.step();
            if link.is_over() {
                return pending().await;
            }
            let mut message = message;
            if let Some(defect) = shared.defect {
                defect.distort(&mut message);
            }
            let sending =
                shared.defect.map_or(Sending::Confirmed, |defect| defect.sending(link.role, &message));
            match sending {
                Sending::ToItself => {
                    link.remembered().say(queue, message);
                    return Ok(());
                }
                Sending::Nowhere => return Ok(()),
                Sending::Confirmed | Sending::Unconfirmed => {}
            }
            let too_late = latest.is_some_and(|latest| latest < Instant::now());
            if too_late || link.isolated.load(Ordering::Relaxed) || shared.happens(shared.faults.refuse / 2.0)
            {
                return Err(PublishError::NotSent(unreachable()));
            }
            if shared.happens(shared.faults.refuse / 2.0) {
                return Err(PublishError::Refused(queue.to_owned()));
            }
            let line = link.line();
            // It is on its way from here on, whoever waits for the confirm.
            let sent = tokio::spawn(Arc::clone(link).send(queue.to_owned(), message, line.clone()));
            if sending == Sending::Unconfirmed {
                return Ok(());
            }
            let Ok(Some(outcome)) = sent.await else {
                return Err(PublishError::Unknown(unreachable()));
            };
            link.step();
            if outcome.is_ok() && shared.happens(shared.faults.lose_confirm) {
                shared.disturb(&link.name, link.role, Disturbance::ConfirmLost);
                return Err(PublishError::Unknown(unreachable()));
            }
            tokio::select! {
                biased;
                () = line.cancelled() => Err(PublishError::Unknown(unreachable())),
                () = shared.travel() => outcome,
            }
        })
        .await
    }

    async fn publish_through(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
    ) -> Result<(), PublishError> {
        let link = &self.0;
        let what = || format!("publish {} through {exchange}", message.kind().to_owned());
        let publish = async {
            let shared = &link.shared;
            if shared.happens(shared.faults.lose_message) {
                return Err(PublishError::Unknown(unreachable()));
            }
            let taken = link.memory.publish_through(exchange, routing_key, message.clone()).await;
            if taken.is_ok() && shared.happens(shared.faults.lose_confirm) {
                shared.disturb(&link.name, link.role, Disturbance::ConfirmLost);
                return Err(PublishError::Unknown(unreachable()));
            }
            taken
        };
        link.take(what, publish).await.unwrap_or_else(|| Err(PublishError::Unknown(unreachable())))
    }

    async fn declare_exchange(&self, exchange: &ExchangeSpec) -> Result<(), BrokerError> {
        let link = &self.0;
        link.operate(|| format!("declare {exchange:?}"), link.memory.declare_exchange(exchange)).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        let link = &self.0;
        link.operate(|| format!("bind {queue} to {exchange}"), link.memory.bind(queue, exchange)).await
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let link = &self.0;
        link.operate(|| format!("delete {exchange}"), link.memory.delete_exchange(exchange)).await
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let link = &self.0;
        if link.puts_off(queue) {
            link.remembered().put_off(queue.clone());
            return Ok(());
        }
        link.declare(queue).await
    }

    async fn inspect(&self, queue: &str) -> Result<Option<QueueState>, BrokerError> {
        let link = &self.0;
        link.declare_put_off(queue).await?;
        link.operate(|| format!("inspect {queue}"), async {
            link.shared.check(queue)?;
            link.memory.inspect(queue).await
        })
        .await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let link = &self.0;
        if link.remembered().take_up(queue).is_some() {
            return Ok(());
        }
        link.operate(|| format!("delete {queue}"), async {
            link.shared.check(queue)?;
            let was_there = link.memory.exists(queue).await?;
            link.memory.delete(queue).await?;
            link.shared.deleted(was_there);
            Ok(())
        })
        .await
    }

    async fn open(&self) -> Result<Arc<dyn ConsumerChannel>, BrokerError> {
        let link = &self.0;
        let inner = link.operate(|| "open a channel".to_owned(), link.memory.open()).await?;
        Ok(Arc::new(SimulatedChannel::new(Arc::clone(link), inner)))
    }

    async fn server(&self) -> Result<ServerInfo, BrokerError> {
        self.0.memory.server().await
    }

    async fn close(&self) {
        self.0.memory.close().await;
    }
}

impl fmt::Debug for SimulatedBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimulatedBroker").field(&self.0.name).finish()
    }
}

/// Sleeps, but not for nothing: even no time at all lets others run.
pub(super) async fn wait(time: Duration) {
    if time.is_zero() { tokio::task::yield_now().await } else { tokio::time::sleep(time).await }
}
