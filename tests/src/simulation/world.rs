//! What all simulated processes share: the broker, chance, and what is wrong at the moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, BrokerError, ConsumerChannel};
use fanfare_protocol::{Manifest, Message, QueueNames, QueueSpec, header};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::defects::Defect;
use super::journal::{Journal, invocation_of};
use super::link::wait;
use super::random::Random;
use super::scenario::Faults;
use crate::oracle::{Disturbance, Event, Role};

/// The longest that a classic queue takes to write a message to the disk.
const WRITE_MS: u64 = 200;

/// The longest that a step on the broker takes where nothing is wrong.
const LATENCY_MS: u64 = 3;

pub(super) struct Shared {
    pub(super) started: Instant,
    pub(super) broker: MemoryBroker,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) defect: Option<Defect>,
    pub(super) journal: Journal,
    pub(super) names: QueueNames,
    /// Whether anything may go wrong.
    trouble: AtomicBool,
    broker_is_down: AtomicBool,
    steps: AtomicU64,
    numbers: AtomicU64,
    deaths: mpsc::UnboundedSender<Death>,
    state: Mutex<State>,
}

/// What has died.
pub(super) enum Death {
    /// A process, of this name.
    OfProcess(String),
    /// The broker, over what it was doing.
    OfBroker,
}

#[derive(Default)]
struct State {
    /// Aggregation queues that were declared, by run.
    aggregation: BTreeMap<String, QueueSpec>,
    /// Runs whose manifest came into its queue.
    committed: Vec<String>,
    /// By classic queue, what the broker has written of it to its disk.
    written: BTreeMap<String, Written>,
    /// The aggregation queue that was declared last, where nothing was declared or deleted since.
    undecided: Option<String>,
    /// The quorum queue that was declared last, whose log a broker that is killed does not find again.
    unregistered: Option<String>,
    /// How often the broker was killed.
    killed: u64,
    /// The queue that is out, and by queue what ends when it goes out.
    out: Option<String>,
    outages: BTreeMap<String, CancellationToken>,
}

/// How far a classic queue is on the broker's disk, by places.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    small: u64,
    /// These lie in another store, with which all small ones are written that came before.
    large: u64,
}

impl Written {
    fn holds(&self, place: u64, message: &Message) -> bool {
        place < if is_large(message) { self.large } else { self.small.max(self.large) }
    }
}

/// RabbitMQ's limit is 4,096 bytes, which a mark has; results here have more than this or less.
const LARGE_BYTES: usize = 190;

fn is_large(message: &Message) -> bool {
    message.body.len() >= LARGE_BYTES
}

impl Shared {
    pub(super) fn new(
        random: Random,
        faults: Faults,
        defect: Option<Defect>,
        journal: Journal,
        deaths: mpsc::UnboundedSender<Death>,
    ) -> Self {
        Self {
            started: Instant::now(),
            broker: MemoryBroker::new(),
            random,
            faults,
            defect,
            journal,
            names: QueueNames::default(),
            trouble: AtomicBool::new(true),
            broker_is_down: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            deaths,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the processes have this defect.
    pub(super) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm_down(&self) {
        self.trouble.store(false, Ordering::Relaxed);
    }

    /// Whether something of this probability goes wrong now.
    pub(super) fn happens(&self, probability: f64) -> bool {
        self.trouble.load(Ordering::Relaxed) && self.random.chance(probability)
    }

    /// How long a step takes to the broker, or from there.
    pub(super) fn latency(&self) -> Duration {
        let most = if self.happens(self.faults.stall) { self.faults.stall_ms } else { LATENCY_MS };
        Duration::from_millis(self.random.of(0..=most))
    }

    /// After which whatever was sent has arrived.
    pub(super) fn longest_latency(&self) -> Duration {
        Duration::from_millis(self.faults.stall_ms.max(LATENCY_MS) + 1)
    }

    pub(super) async fn travel(&self) {
        wait(self.latency()).await;
    }

    pub(super) fn count_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// A number that is not given twice.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn disturb(&self, name: &str, role: Role, how: Disturbance) {
        self.journal.record("chaos", Event::Disturbed { role, name: name.to_owned(), how });
    }

    pub(super) fn died(&self, name: &str) {
        let _ = self.deaths.send(Death::OfProcess(name.to_owned()));
    }

    pub(super) fn broker_is_down(&self) -> bool {
        self.broker_is_down.load(Ordering::Relaxed)
    }

    pub(super) fn set_broker_down(&self, down: bool) {
        self.broker_is_down.store(down, Ordering::Relaxed);
    }

    /// Takes a queue away for now, or gives it back.
    pub(super) fn take_out(&self, queue: Option<String>) {
        let mut state = self.state();
        let begun = queue.as_ref().and_then(|queue| state.outages.remove(queue));
        state.out = queue;
        drop(state);
        if let Some(begun) = begun {
            begun.cancel();
        }
    }

    /// What the broker says to whoever wants a queue that is out.
    pub(super) fn outage_of(&self, queue: &str) -> Option<BrokerError> {
        (self.state().out.as_deref() == Some(queue)).then(|| BrokerError::Unavailable {
            queue: queue.to_owned(),
            reason: "its node is down".to_owned(),
        })
    }

    pub(super) fn check(&self, queue: &str) -> Result<(), BrokerError> {
        self.outage_of(queue).map_or(Ok(()), Err)
    }

    /// Returns when a queue goes out.
    pub(super) async fn outage_begins(&self, queue: &str) {
        let begins = self.state().outages.entry(queue.to_owned()).or_default().clone();
        begins.cancelled().await;
    }

    /// A message has come into its queue.
    pub(super) fn arrived(&self, by: &str, queue: &str, message: &Message) {
        match message.kind() {
            header::TYPE_MANIFEST if self.takes_manifests(queue) && !Manifest::is_renewed(message) => {
                let Ok(manifest) = Manifest::decode(message, &self.names) else { return };
                let run = manifest.run.to_string();
                let invocation = invocation_of(message).unwrap_or_else(|| {
                    manifest.metadata.get(super::journal::INVOCATION).unwrap_or_default().to_owned()
                });
                self.state().committed.push(run.clone());
                self.journal.record(by, Event::Committed { invocation, run });
            }
            header::TYPE_CALLBACK if !queue.starts_with(&self.names.parked().name) => {
                let Some(invocation) = invocation_of(message) else { return };
                let run = message.run().map(|run| run.to_string()).unwrap_or_default();
                let message_id = message.properties.message_id.clone().unwrap_or_default().to_string();
                if message_id.contains("/on-") && !message_id.ends_with("/on-final") {
                    self.journal.record(by, Event::Published { invocation, run, message_id });
                }
            }
            _ => {}
        }
    }

    fn takes_manifests(&self, queue: &str) -> bool {
        queue == self.names.fanin_queue() || self.names.shard_number(queue).is_some()
    }

    /// A queue was declared, which was not there before or was.
    pub(super) fn declared(&self, queue: &QueueSpec, is_new: bool) {
        if is_new {
            self.state().undecided = self.run_of(&queue.name).map(|_| queue.name.clone());
        }
        if is_new && queue.is_quorum() {
            self.state().unregistered = Some(queue.name.clone());
        }
        if let Some(run) = self.run_of(&queue.name) {
            self.state().aggregation.insert(run, queue.clone());
        }
    }

    /// A queue was deleted, where it was there. The list of queues has changed then, so what was changed before is decided for good.
    pub(super) fn deleted(&self, was_there: bool) {
        if was_there {
            self.state().undecided = None;
        }
    }

    /// The broker was killed, and may be back without the queue that was declared last.
    pub(super) async fn lose_undecided(&self) {
        let undecided = self.state().undecided.take();
        if let Some(queue) = undecided
            && self.random.chance(0.5)
        {
            self.journal.trace(|| format!("the broker is without {queue}"));
            self.broker.delete(&queue).await.expect("it can be reached from here");
        }
    }

    /// The broker was killed, and may be back without what was in the quorum queue that was declared last.
    pub(super) fn lose_unregistered(&self) {
        let unregistered = self.state().unregistered.take();
        if let Some(queue) = unregistered
            && self.random.chance(0.5)
        {
            self.journal.trace(|| format!("the broker is without what was in {queue}"));
            self.broker.lose(&queue, |_, _| true);
        }
    }

    /// A queue is being deleted. Where the broker is killed over that, the queue is back, and what was in it is not.
    pub(super) async fn delete(&self, channel: &dyn ConsumerChannel, queue: &str) -> Result<(), BrokerError> {
        self.check(queue)?;
        let was_there = self.broker.exists(queue).await?;
        channel.delete(queue).await?;
        self.deleted(was_there);
        let spec = self.run_of(queue).and_then(|run| self.state().aggregation.get(&run).cloned());
        match spec.filter(|_| self.happens(self.faults.half_delete)) {
            None => Ok(()),
            Some(spec) => {
                self.broker.declare(&spec).await?;
                let _ = self.deaths.send(Death::OfBroker);
                Err(BrokerError::Unreachable("the broker was killed".to_owned()))
            }
        }
    }

    /// A message has come into its queue, where it may be handed out. Returns whether it was not lost until it was on disk, which it is at
    /// once in a quorum queue.
    pub(super) async fn written(&self, queue: &str, message: &Message) -> bool {
        let state = || self.state();
        let is_classic = |run: String| state().aggregation.get(&run).is_some_and(is_classic);
        if !self.run_of(queue).is_some_and(is_classic) {
            return true;
        }
        let killed = state().killed;
        if self.happens(self.faults.half_write) {
            wait(Duration::from_millis(self.random.of(0..=WRITE_MS))).await;
            let _ = self.deaths.send(Death::OfBroker);
        }
        let longest = Duration::from_millis(WRITE_MS);
        let takes = if is_large(message) && self.faults.slow_store {
            longest.mul_f64(self.random.fraction())
        } else {
            self.latency().min(longest)
        };
        wait(takes).await;
        let mut state = state();
        if state.killed > killed {
            return false;
        }
        // All that is in its store is written at once.
        let place = self.broker.next_place(queue);
        let written = state.written.entry(queue.to_owned()).or_default();
        *(if is_large(message) { &mut written.large } else { &mut written.small }) = place;
        true
    }

    /// The broker was killed, and all connections have ended: what it had not written is lost.
    pub(super) fn lose_unwritten(&self) {
        let mut state = self.state();
        state.killed += 1;
        for queue in state.aggregation.values().filter(|queue| is_classic(queue)) {
            let written = state.written.get(&queue.name).copied().unwrap_or_default();
            self.broker.lose(&queue.name, |place, message| !written.holds(place, message));
        }
    }

    /// The run whose aggregation queue this is, if it is one.
    pub(super) fn run_of(&self, queue: &str) -> Option<String> {
        let of = queue.strip_prefix(self.names.prefix().as_str())?.strip_prefix(".agg.")?;
        of.rsplit('.').next().map(str::to_owned)
    }

    /// Aggregation queues by run, as far as they were ever declared.
    pub(super) fn aggregation_queues(&self) -> Vec<(String, String)> {
        self.state().aggregation.iter().map(|(run, queue)| (run.clone(), queue.name.clone())).collect()
    }

    /// Whether a run exists.
    pub(super) fn is_committed(&self, run: &str) -> bool {
        self.state().committed.iter().any(|committed| committed == run)
    }
}

fn is_classic(queue: &QueueSpec) -> bool {
    queue.arguments.get("x-queue-type") == Some(&"classic".into())
}
