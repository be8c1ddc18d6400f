//! Nodes of a cluster are killed while fan-outs are under way, and come back later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fanfare_protocol::{FinalPayload, Message, StatusQuery};
use fanfare_publisher::{Accepted, Fanout, InvokeError, Publisher, QueueType, Target};
use fanfare_tests::{Cluster, PATIENCE, Running, Stack, eventually, eventually_seen, full, run};
use fanfare_worker::{Context, service};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Fan-outs that wait for results when a node is killed.
const HELD: usize = 20;
const TARGETS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quorum_queues_lose_nothing_with_a_node() {
    if let Some(cluster) = Cluster::start().await {
        // All clients are connected to the first node, which therefore leads all queues. It says the most; the others take their time.
        for node in if full() { 0..3 } else { 0..1 } {
            run(Stack::at(cluster.urls()), async |stack| loses_nothing(stack, &cluster, node).await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_lose_nothing_with_a_node() {
    if let Some(cluster) = Cluster::start().await {
        let stack = Stack::at(cluster.urls()).sharing(2);
        run(stack, async |stack| loses_nothing(stack, &cluster, 0).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classic_aggregation_queues_wait_for_their_node_and_then_end() {
    if let Some(cluster) = Cluster::start().await {
        run(Stack::at(cluster.urls()), async |stack| waits(stack, &cluster).await).await;
    }
}

/// Kills a node with fan-outs in all stages.
async fn loses_nothing(stack: Stack, cluster: &Cluster, node: usize) {
    let done = stack.declare_service("my.done").await;
    let gate = Gate::default();
    let (_worker, coordinator) = (gate.worker(&stack).await, stack.coordinator());
    let publisher = stack.publisher_of(QueueType::Quorum);
    let held = invoke(&publisher, HELD, "my.held").await;
    gate.reached(&stack).await;

    let killed = CancellationToken::new();
    let moving = tokio::spawn(invoke_until(publisher.clone(), killed.clone()));
    cluster.kill(node).await;
    gate.open();
    // What the loss of its leader does to a queue is over when a new fan-out has come through.
    let after = invoke_one(&publisher).await;
    killed.cancel();
    let moving = moving.await.expect("it does not panic");

    let mut finals = Finals::default();
    let mut done = stack.record_queue(&done).await;
    let accepted: Vec<_> = held.iter().chain([&after]).chain(&moving).collect();
    while !accepted.iter().all(|accepted| finals.times(accepted) > 0) {
        finals.take(done.next().await);
    }
    cluster.start_again(node).await;
    // The node may have brought back the names of queues that were deleted while it started: the coordinator deletes them again. Where it
    // has left the name of one that was being deleted when it died, the fan-out's manifest is still to be parked.
    for Accepted { cid, run } in &accepted {
        stack.queue_is_gone(&stack.names().aggregation(cid, *run).name).await;
    }
    let held_messages = async || coordinator.mortal().held_messages();
    eventually_seen("the coordinator holds nothing", held_messages, Vec::is_empty).await;
    stack.ended(accepted.iter().copied(), coordinator).await;
    finals.take_all(done.rest().await);
    assert!(held.iter().all(|accepted| finals.times(accepted) == 1), "{finals:?}");
}

async fn waits(stack: Stack, cluster: &Cluster) {
    let done = stack.declare_service("my.done").await;
    let gate = Gate::default();
    let (_worker, coordinator) = (gate.worker(&stack).await, stack.coordinator());
    let classic = stack.publisher_of(QueueType::Classic);
    let held = invoke(&classic, HELD, "my.held").await;
    gate.reached(&stack).await;

    cluster.kill(0).await;
    gate.open();
    gate.passed().await;
    // Others come through meanwhile.
    let quorum = stack.publisher_of(QueueType::Quorum);
    let meanwhile = invoke_one(&quorum).await;
    let mut done = stack.record_queue(&done).await;
    let mut finals = Finals::default();
    while finals.times(&meanwhile) == 0 {
        finals.take(done.next().await);
    }
    assert!(held.iter().all(|accepted| finals.times(accepted) == 0), "{finals:?}");

    cluster.start_again(0).await;
    while !held.iter().all(|accepted| finals.times(accepted) > 0) {
        finals.take(done.next().await);
    }
    stack.ended(held.iter().chain([&meanwhile]), coordinator).await;
    finals.take_all(done.rest().await);
    assert!(held.iter().all(|accepted| finals.times(accepted) == 1), "{finals:?}");
}

/// Holds invocations of `my.held` back, all but the first target of each fan-out.
struct Gate {
    permits: Arc<Semaphore>,
    started: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), started: Arc::default(), answered: Arc::default() }
    }
}

impl Gate {
    /// A worker that serves it, and `my.echo`, which answers at once.
    async fn worker(&self, stack: &Stack) -> Running {
        let (permits, started, answered) =
            (Arc::clone(&self.permits), Arc::clone(&self.started), Arc::clone(&self.answered));
        let held = service("my.held", move |_: Context, n: usize| {
            let (permits, started, answered) =
                (Arc::clone(&permits), Arc::clone(&started), Arc::clone(&answered));
            async move {
                started.fetch_add(1, Ordering::Relaxed);
                if n > 0 {
                    permits.acquire().await?.forget();
                }
                answered.fetch_add(1, Ordering::Relaxed);
                Ok(n)
            }
        });
        let echo = service("my.echo", |_: Context, n: usize| async move { Ok(n) });
        stack.worker([held.concurrency(HELD * TARGETS), echo]).await
    }

    /// Waits until all targets run, and the coordinator has the first result of each fan-out.
    async fn reached(&self, stack: &Stack) {
        eventually("all targets run", async || self.started.load(Ordering::Relaxed) == HELD * TARGETS).await;
        let operator = stack.operator(PATIENCE);
        eventually("the first results are in", async || {
            let status = operator.status(&StatusQuery::default()).await;
            status.is_ok_and(|status| {
                status.matching == HELD && status.fan_outs.iter().all(|fan_out| fan_out.done == 1)
            })
        })
        .await;
    }

    fn open(&self) {
        self.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits until every target has answered.
    async fn passed(&self) {
        eventually("all targets answer", async || self.answered.load(Ordering::Relaxed) >= HELD * TARGETS)
            .await;
    }
}

fn fan_out(publisher: &Publisher, service: &str) -> Fanout {
    let targets = (0..TARGETS).map(|n| Target::new(service, n).key(n.to_string()));
    targets.fold(publisher.fanout("my.source"), Fanout::add).on_final("my.done")
}

async fn invoke(publisher: &Publisher, count: usize, service: &str) -> Vec<Accepted> {
    let invoked = join_all((0..count).map(|_| fan_out(publisher, service).invoke())).await;
    invoked.into_iter().map(|accepted| accepted.expect("accepted")).collect()
}

/// Invokes a fan-out of its own until one is accepted: a manifest that the broker refuses during an election is not sent again.
async fn invoke_one(publisher: &Publisher) -> Accepted {
    loop {
        match fan_out(publisher, "my.echo").invoke().await {
            Ok(accepted) => return accepted,
            Err(InvokeError::Unknown { .. } | InvokeError::NotAccepted { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Invokes one fan-out after the other, and returns those that were accepted.
async fn invoke_until(publisher: Publisher, end: CancellationToken) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    while !end.is_cancelled() {
        // What the death of the node left open may have been accepted or not, and is not counted.
        accepted.extend(fan_out(&publisher, "my.echo").invoke().await);
    }
    accepted
}

/// Final callbacks by run.
#[derive(Debug, Default)]
struct Finals(BTreeMap<String, Final>);

#[derive(Debug)]
struct Final {
    message: Message,
    times: usize,
}

impl Finals {
    /// Takes one, which must be complete, and equal to any other of its run.
    fn take(&mut self, message: Message) {
        let payload: FinalPayload = serde_json::from_slice(&message.body).expect("a final payload");
        let answers: Vec<(String, usize)> = payload
            .data
            .iter()
            .map(|(key, result)| (key.to_owned(), result.response().expect("it answered")))
            .collect();
        assert_eq!(answers, (0..TARGETS).map(|n| (n.to_string(), n)).collect::<Vec<_>>());
        let run = message.run().expect("a run").to_string();
        let seen = self.0.entry(run).or_insert_with(|| Final { message: message.clone(), times: 0 });
        assert_eq!(seen.message, message);
        seen.times += 1;
    }

    fn take_all(&mut self, messages: Vec<Message>) {
        messages.into_iter().for_each(|message| self.take(message));
    }

    fn times(&self, accepted: &Accepted) -> usize {
        self.0.get(&accepted.run.to_string()).map_or(0, |seen| seen.times)
    }
}
