//! What happens beside the processes: kills, restarts, outages, and in the end calm, and a look at what is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::Broker;
use fanfare_protocol::queue::DELAY_STEPS;
use fanfare_protocol::{QueueSpec, ServiceName, header};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::processes::Processes;
use super::random::Random;
use super::scenario::{CALLBACKS, Scenario, TARGETS};
use super::world::{Death, Shared};
use crate::oracle::{Disturbance, Event, Role};

/// How long what is open may take to end once nothing goes wrong any more. It is never waited for where all ends.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// Between two looks at whether all has ended.
const LOOK: Duration = Duration::from_secs(2);
/// How long processes have for stopping at the end.
const STOP_LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Mischief {
    shared: Arc<Shared>,
    scenario: Arc<Scenario>,
    random: Random,
    processes: Processes,
    died: mpsc::UnboundedReceiver<Death>,
    /// What is to happen when. Of what happens at the same time, what was planned first.
    agenda: BTreeMap<(Instant, u64), Act>,
    planned: u64,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Start(usize),
    Kill,
    Stop,
    DeleteQueue,
    RestartBroker,
    BrokerIsBack,
    TakeQueueOut,
    QueueIsBack,
    Calm,
}

impl Mischief {
    pub(super) fn new(
        shared: Arc<Shared>,
        scenario: Arc<Scenario>,
        random: &Random,
        died: mpsc::UnboundedReceiver<Death>,
    ) -> Self {
        let processes = Processes::new(Arc::clone(&shared), Arc::clone(&scenario), random.fork());
        let random = random.fork();
        Self { shared, scenario, random, processes, died, agenda: BTreeMap::new(), planned: 0 }
    }

    /// Returns whether every invocation has returned in the end.
    pub(super) async fn run(mut self) -> bool {
        for queue in self.queues() {
            self.shared.broker.declare(&queue).await.expect("nothing is wrong yet");
        }
        self.processes.start_all();
        self.plan(self.scenario.faults.lasts, Act::Calm);
        for act in [Act::Kill, Act::Stop, Act::DeleteQueue, Act::RestartBroker, Act::TakeQueueOut] {
            self.plan_again(act);
        }
        while self.next().await {}
        self.calm().await;
        let all_returned = self.processes.all_invoked();
        self.stop_all().await;
        self.look_at_what_is_left().await;
        all_returned
    }

    /// Queues that live for ever. They are there from the start, or most of what is invoked would be refused.
    fn queues(&self) -> Vec<QueueSpec> {
        let names = &self.shared.names;
        let services = TARGETS.iter().chain(&CALLBACKS);
        let services = services.map(|name| names.service(&ServiceName::new(*name).expect("a proper name")));
        let shards = (0..self.scenario.shards).map(|shard| names.shard(shard));
        [names.fanin(), names.dead(), names.parked()].into_iter().chain(shards).chain(services).collect()
    }

    /// Queues in which retries wait, as far as there are any.
    fn delays(&self) -> impl Iterator<Item = QueueSpec> {
        DELAY_STEPS.into_iter().map(|seconds| self.shared.names.delay(seconds))
    }

    fn plan(&mut self, after: Duration, act: Act) {
        self.planned += 1;
        self.agenda.insert((Instant::now() + after, self.planned), act);
    }

    /// Plans the next of what happens again and again, where this seed has it.
    fn plan_again(&mut self, act: Act) {
        let faults = &self.scenario.faults;
        let mean = match act {
            Act::Kill => faults.kill,
            Act::Stop => faults.stop,
            Act::DeleteQueue => faults.delete_queue,
            Act::RestartBroker => faults.broker_restart,
            Act::TakeQueueOut => faults.queue_outage,
            Act::Start(_) | Act::BrokerIsBack | Act::QueueIsBack | Act::Calm => None,
        };
        if let Some(mean) = mean {
            let after = mean.mul_f64(2.0 * self.random.fraction());
            self.plan(after.max(Duration::from_millis(1)), act);
        }
    }

    /// Does the next thing. False where calm comes.
    async fn next(&mut self) -> bool {
        let (&(at, number), _) = self.agenda.first_key_value().expect("calm comes");
        tokio::select! {
            biased;
            Some(death) = self.died.recv() => {
                match death {
                    Death::OfProcess(name) => self.bury(&name),
                    Death::OfBroker => self.broker_was_killed().await,
                }
                return true;
            }
            () = tokio::time::sleep_until(at) => {}
        }
        let act = self.agenda.remove(&(at, number)).expect("it was planned");
        self.shared.journal.trace(|| format!("chaos: {act:?}"));
        match act {
            Act::Start(slot) => self.processes.start(slot),
            Act::Kill => self.processes.kill(self.any_slot()),
            Act::Stop => {
                let slot = self.any_slot();
                if self.processes.stop(slot).is_some() {
                    self.plan(Duration::from_millis(self.random.of(0..=2_000)), Act::Start(slot));
                }
            }
            Act::DeleteQueue => self.delete_queue().await,
            Act::RestartBroker => self.take_broker_down(Disturbance::Restarted),
            Act::BrokerIsBack => self.processes.isolate(false),
            Act::TakeQueueOut => self.take_queue_out(),
            Act::QueueIsBack => self.shared.take_out(None),
            Act::Calm => return false,
        }
        self.plan_again(act);
        true
    }

    fn bury(&mut self, name: &str) {
        if let Some(slot) = self.processes.bury(name) {
            let after = Duration::from_millis(self.random.of(0..=5_000));
            self.plan(after, Act::Start(slot));
        }
    }

    fn take_broker_down(&mut self, how: Disturbance) {
        if !self.shared.broker_is_down() {
            self.shared.disturb("broker", Role::Broker, how);
            self.processes.isolate(true);
            // One that was killed takes seconds to start.
            let shortest = if how == Disturbance::Killed { 1_001 } else { 1 };
            self.plan(Duration::from_millis(self.random.of(shortest..=8_000)), Act::BrokerIsBack);
        }
    }

    /// Where it shares a machine with the coordinators, they go with it.
    async fn broker_was_killed(&mut self) {
        self.processes.lose_host();
        self.take_broker_down(Disturbance::Killed);
        self.shared.lose_undecided().await;
        self.shared.lose_unregistered();
        self.shared.lose_unwritten();
        if self.random.chance(0.5) {
            self.processes.kill_all(Role::Coordinator);
        }
    }

    fn any_slot(&self) -> usize {
        let last = self.processes.len() as u64 - 1;
        usize::try_from(self.random.of(0..=last)).expect("there are few")
    }

    /// An operator deletes an aggregation queue, whatever is in it.
    async fn delete_queue(&self) {
        let queues = self.shared.aggregation_queues();
        if queues.is_empty() {
            return;
        }
        let (run, queue) = self.random.pick(&queues);
        self.shared.journal.record("chaos", Event::QueueDeleted { run: run.clone() });
        self.shared.broker.delete(queue).await.expect("the operator reaches the broker");
    }

    /// The node of one queue goes down.
    fn take_queue_out(&mut self) {
        let mut queues: Vec<String> = self.queues().into_iter().map(|queue| queue.name).collect();
        queues.extend(self.shared.aggregation_queues().into_iter().map(|(_, queue)| queue));
        let queue = self.random.pick(&queues).clone();
        self.shared.disturb(&queue, Role::Broker, Disturbance::Cut);
        self.shared.take_out(Some(queue));
        self.plan(Duration::from_millis(self.random.of(1..=10_000)), Act::QueueIsBack);
    }

    /// Nothing goes wrong any more: everyone runs, and what is open has time to end.
    async fn calm(&mut self) {
        self.shared.journal.trace(|| "chaos: it is calm from here on".to_owned());
        self.shared.calm_down();
        self.shared.take_out(None);
        self.processes.isolate(false);
        let until = Instant::now() + PATIENCE;
        // What is under way may still be stalled, and who is deaf may not have noticed.
        let late = Duration::from_millis(self.scenario.faults.notice_ms());
        let mut quiet_since = Instant::now();
        let mut steps = 0;
        while Instant::now() < until {
            while let Ok(death) = self.died.try_recv() {
                if let Death::OfProcess(name) = death {
                    self.processes.bury(&name);
                }
            }
            self.processes.start_all();
            tokio::time::sleep(LOOK).await;
            // Coordinators that share shards are never quite silent.
            let silent =
                std::mem::replace(&mut steps, self.shared.steps()) == steps || self.scenario.shards > 0;
            if !self.has_ended().await || !silent {
                quiet_since = Instant::now();
            } else if quiet_since.elapsed() > late + LOOK {
                return;
            }
        }
    }

    async fn has_ended(&self) -> bool {
        if !self.processes.all_invoked() || self.processes.is_any_busy() {
            return false;
        }
        for (run, queue) in self.shared.aggregation_queues() {
            if self.shared.is_committed(&run) && self.waits_in(&queue).await.is_some() {
                return false;
            }
        }
        for queue in self.queues().into_iter().chain(self.delays()) {
            let kept = queue.name == self.shared.names.parked().name;
            let waiting = self.waits_in(&queue.name).await.unwrap_or(0);
            if !kept && (waiting > 0 || self.shared.broker.unacked(&queue.name) > 0) {
                return false;
            }
        }
        true
    }

    async fn waits_in(&self, queue: &str) -> Option<u64> {
        let state = self.shared.broker.inspect(queue).await.expect("the broker is in this process");
        state.map(|state| state.messages)
    }

    /// Stops everyone, so that whatever they hold goes back into its queue.
    async fn stop_all(&mut self) {
        let stopping: Vec<_> =
            (0..self.processes.len()).filter_map(|slot| self.processes.stop(slot)).collect();
        for stopped in stopping {
            if tokio::time::timeout(STOP_LIMIT, stopped.cancelled()).await.is_err() {
                self.shared.journal.trace(|| "chaos: a process did not stop".to_owned());
            }
        }
    }

    async fn look_at_what_is_left(&self) {
        for (run, queue) in self.shared.aggregation_queues() {
            if self.waits_in(&queue).await.is_some() {
                self.shared.journal.record("chaos", Event::QueueLeft { run });
            }
        }
        let channel = self.shared.broker.open().await.expect("the broker is in this process");
        for QueueSpec { name, .. } in self.queues().into_iter().chain(self.delays()) {
            let Some(waiting) = self.waits_in(&name).await else { continue };
            let mut consumer = channel.consume(&name, u16::MAX).await.expect("the queue is there");
            let queue = name.strip_prefix("fanfare.").unwrap_or(&name);
            for _ in 0..waiting {
                let Some(Ok(delivery)) = consumer.next().await else { break };
                let message = delivery.message;
                let run = message.run().ok().map(|run| run.to_string()).or_else(|| {
                    // A manifest tells its run in its body.
                    fanfare_protocol::Manifest::decode(&message, &self.shared.names)
                        .ok()
                        .map(|manifest| manifest.run.to_string())
                });
                let (id, reason) = (message.properties.message_id.as_deref(), message.text(header::REASON));
                self.left(queue, message.kind(), run, id.map(str::to_owned), reason.map(str::to_owned));
            }
        }
    }

    fn left(
        &self,
        queue: &str,
        kind: &str,
        run: Option<String>,
        message_id: Option<String>,
        reason: Option<String>,
    ) {
        let (queue, kind) = (queue.to_owned(), kind.to_owned());
        self.shared.journal.record("chaos", Event::MessageLeft { queue, kind, run, message_id, reason });
    }
}
