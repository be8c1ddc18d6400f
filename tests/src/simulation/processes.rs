//! The simulated processes: who runs, who is leaving, and who is dead.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use fanfare_broker::{Broker, Environment};
use fanfare_coordinator::Coordinator;
use fanfare_protocol::Cid;
use fanfare_publisher::{Accepted, Aggregation, Publisher};
use fanfare_worker::Worker;
use futures_util::future::BoxFuture;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::environment::Simulated;
use super::link::{Link, SimulatedBroker};
use super::random::Random;
use super::scenario::{Scenario, Step};
use super::services;
use super::world::Shared;
use crate::oracle::{Disturbance, Role};

/// How long the broker takes to see that a process is dead.
const DEATH_SEEN_MS: u64 = 2_000;

/// The time at which every simulation begins.
const EPOCH: DateTime<Utc> = DateTime::from_timestamp(1_737_316_545, 0).expect("it is in range");

/// One place for a process: when one dies or leaves, another takes it.
struct Slot {
    role: Role,
    name: String,
    generation: u32,
    running: Option<Process>,
    /// Of a publisher: what it has not begun to invoke.
    script: Arc<Mutex<VecDeque<Step>>>,
}

struct Process {
    link: Arc<Link>,
    stop: CancellationToken,
    task: AbortHandle,
    done: CancellationToken,
}

/// All of them.
pub(super) struct Processes {
    shared: Arc<Shared>,
    scenario: Arc<Scenario>,
    random: Random,
    slots: Vec<Slot>,
    /// Links of all processes that ever ran, to be cut off when the broker goes down.
    links: Vec<Arc<Link>>,
}

impl Processes {
    pub(super) fn new(shared: Arc<Shared>, scenario: Arc<Scenario>, random: Random) -> Self {
        let slot = |role: Role, n: usize, script: Vec<Step>| Slot {
            role,
            name: format!("{role:?}-{n}").to_lowercase(),
            generation: 0,
            running: None,
            script: Arc::new(Mutex::new(script.into())),
        };
        let mut slots = Vec::new();
        slots.extend((0..scenario.coordinators).map(|n| slot(Role::Coordinator, n as usize, Vec::new())));
        slots.extend((0..scenario.workers).map(|n| slot(Role::Worker, n as usize, Vec::new())));
        let scripts = scenario.scripts.iter().cloned().enumerate();
        slots.extend(scripts.map(|(n, script)| slot(Role::Publisher, n, script)));
        Self { shared, scenario, random, slots, links: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Starts whatever is not running.
    pub(super) fn start_all(&mut self) {
        (0..self.slots.len()).for_each(|slot| self.start(slot));
    }

    /// Starts a process where none runs.
    pub(super) fn start(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        if slot.running.is_some() {
            return;
        }
        slot.generation += 1;
        let name = format!("{}.{}", slot.name, slot.generation);
        self.shared.journal.trace(|| format!("chaos: {name} starts"));
        let link = Link::new(Arc::clone(&self.shared), name, slot.role);
        let skew = i64::try_from(self.random.of(0..=2 * self.scenario.faults.skew_ms)).unwrap_or_default()
            - i64::try_from(self.scenario.faults.skew_ms).unwrap_or_default();
        let epoch = EPOCH + chrono::Duration::milliseconds(skew) + self.shared.started.elapsed();
        let environment: Arc<dyn Environment> =
            Arc::new(Simulated::new(self.random.fork(), Instant::now(), epoch));
        let (stop, done) = (CancellationToken::new(), CancellationToken::new());
        let stopped: BoxFuture<'static, ()> = Box::pin(stop.clone().cancelled_owned());
        let broker: Arc<dyn Broker> = Arc::new(SimulatedBroker(Arc::clone(&link)));
        let scenario = Arc::clone(&self.scenario);
        let aggregation = match scenario.shards {
            0 => Aggregation::PerCid,
            shards => Aggregation::Shared { shards },
        };
        let names = self.shared.names.clone();
        let config = fanfare_publisher::Config { names, aggregation, ..Default::default() };
        let publisher = Publisher::new(Arc::clone(&broker), Arc::clone(&environment), config);
        let work: BoxFuture<'static, ()> = match slot.role {
            Role::Coordinator => {
                let config = fanfare_coordinator::Config {
                    names: self.shared.names.clone(),
                    limits: scenario.limits,
                    shards: scenario.shards,
                    shard_limits: scenario.shard_limits,
                    prefetch: scenario.manifest_prefetch,
                    most_channels: scenario.manifest_channels,
                    stop_within: scenario.coordinator_stop_within,
                    ..Default::default()
                };
                let coordinator = Coordinator::new(broker, environment, config);
                Box::pin(async move { coordinator.run_until(stopped).await.expect("the limits are sound") })
            }
            Role::Worker => {
                let config = fanfare_worker::Config {
                    shutdown_deadline: scenario.worker_stop_within,
                    // Nothing here kills its worker, and workers die many times faster than any limit is made for.
                    redelivery_limit: u32::MAX,
                    ..Default::default()
                };
                let worker = Worker::new(publisher, config);
                let worker = worker.services(services::all(&link, scenario.concurrency));
                Box::pin(async move { worker.run_until(stopped).await.expect("the services are sound") })
            }
            Role::Publisher | Role::Broker => {
                Box::pin(publish(Arc::clone(&link), publisher, Arc::clone(&slot.script)))
            }
        };
        let finished = done.clone();
        let task = tokio::spawn(async move {
            work.await;
            finished.cancel();
        });
        self.links.push(Arc::clone(&link));
        slot.running = Some(Process { link, stop, task: task.abort_handle(), done });
    }

    /// A process has died by itself: the broker sees it some time later. Returns its place, for another to take.
    pub(super) fn bury(&mut self, name: &str) -> Option<usize> {
        let is_it = |slot: &Slot| slot.running.as_ref().is_some_and(|process| process.link.name == name);
        let at = self.slots.iter().position(is_it)?;
        let process = self.slots[at].running.take()?;
        self.hang_up(process.link, process.task);
        Some(at)
    }

    fn hang_up(&self, link: Arc<Link>, task: AbortHandle) {
        let seen = Duration::from_millis(self.random.of(0..=DEATH_SEEN_MS));
        tokio::spawn(async move {
            tokio::time::sleep(seen).await;
            link.hang_up().await;
            task.abort();
        });
    }

    /// Kills a process.
    pub(super) fn kill(&self, at: usize) {
        if let Some(process) = &self.slots[at].running {
            process.link.kill();
        }
    }

    /// Kills all processes of a role.
    pub(super) fn kill_all(&self, role: Role) {
        let places = (0..self.slots.len()).filter(|at| self.slots[*at].role == role);
        places.for_each(|at| self.kill(at));
    }

    /// Asks a process to stop, as in a rolling restart. Its place is free at once.
    pub(super) fn stop(&mut self, at: usize) -> Option<CancellationToken> {
        let within = match self.slots[at].role {
            Role::Coordinator => self.scenario.coordinator_stop_within,
            Role::Worker => self.scenario.worker_stop_within,
            Role::Publisher | Role::Broker => return None,
        };
        let Process { link, stop, task, done } = self.slots[at].running.take()?;
        let shared = Arc::clone(&self.shared);
        shared.journal.trace(|| format!("chaos: {} is asked to stop", link.name));
        stop.cancel();
        let seen = Duration::from_millis(self.random.of(0..=DEATH_SEEN_MS));
        let left = CancellationToken::new();
        let leaving = left.clone();
        tokio::spawn(async move {
            let gone = async {
                // Whatever happens at the very end of the time counts as cut short.
                let almost = within.saturating_sub(Duration::from_millis(1));
                if tokio::time::timeout(almost, done.cancelled()).await.is_err() {
                    shared.disturb(&link.name, link.role, Disturbance::StopCutShort);
                    done.cancelled().await;
                }
                shared.journal.trace(|| format!("chaos: {} has stopped", link.name));
                // A program closes its connection before it ends, after what is still on its way, acks above all.
                tokio::time::sleep(shared.longest_latency()).await;
            };
            tokio::select! {
                biased;
                () = link.over() => tokio::time::sleep(seen).await,
                () = gone => link.end(),
            }
            link.hang_up().await;
            task.abort();
            leaving.cancel();
        });
        Some(left)
    }

    /// The broker goes down, with all connections, or comes back.
    pub(super) fn isolate(&mut self, isolated: bool) {
        self.shared.set_broker_down(isolated);
        self.links.retain(|link| !link.is_over());
        for link in &self.links {
            link.isolate(isolated);
        }
    }

    /// The broker's machine is about to die.
    pub(super) fn lose_host(&self) {
        self.links.iter().for_each(Link::lose_host);
    }

    /// Whether no publisher has anything left to do.
    pub(super) fn all_invoked(&self) -> bool {
        let mut publishers = self.slots.iter().filter(|slot| slot.role == Role::Publisher);
        publishers.all(|slot| slot.running.as_ref().is_some_and(|process| process.done.is_cancelled()))
    }

    /// Whether any service runs anywhere.
    pub(super) fn is_any_busy(&self) -> bool {
        self.links.iter().any(|link| !link.is_over() && link.busy.load(Ordering::Relaxed) > 0)
    }
}

/// Invokes what a script says, several at a time. Another publisher goes on with what this one has not begun.
async fn publish(link: Arc<Link>, publisher: Publisher, script: Arc<Mutex<VecDeque<Step>>>) {
    let mut under_way = JoinSet::new();
    loop {
        let next = script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(step) = next else { break };
        link.alive(tokio::time::sleep(step.pause)).await;
        let (link, publisher) = (Arc::clone(&link), publisher.clone());
        under_way.spawn(async move {
            let Step { name, cid, draft, wait, cancel, .. } = step;
            let fanout = if draft.parallel { publisher.parallel("sim") } else { publisher.fanout("sim") };
            let run = link.alive(services::invoke(&link, fanout, &name, &cid, &draft, wait)).await;
            if let (Some(run), Some(after)) = (run, cancel) {
                link.alive(tokio::time::sleep(after)).await;
                let cid = Cid::new(cid).expect("a proper CID");
                let outcome = link.alive(publisher.cancel(&Accepted { cid, run })).await;
                link.shared.journal.trace(|| format!("{}: cancel of {name}: {outcome:?}", link.name));
            }
        });
    }
    while let Some(invoked) = under_way.join_next().await {
        invoked.expect("an invocation does not panic");
    }
}
