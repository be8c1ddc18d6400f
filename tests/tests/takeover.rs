//! A coordinator dies before and after every step that it takes, and another brings the fan-out to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfare_broker::Broker;
use fanfare_coordinator::{Config, Limits};
use fanfare_protocol::{FinalPayload, Manifest, Message, QueueSpec, RunId};
use fanfare_publisher::{Accepted, Publisher, QueueType, Target};
use fanfare_tests::{
    Death, Mortal, Operator, Recorder, Running, Stack, answer, eventually, in_shards, on_both_brokers, run,
};

on_both_brokers!(
    a_crash_before_any_step_is_made_good_by_the_next_coordinator,
    a_crash_after_any_step_is_made_good_by_the_next_coordinator,
    a_crash_before_any_step_is_made_good_by_a_standby,
    a_crash_after_any_step_is_made_good_by_a_standby,
    a_crash_before_any_step_of_sending_a_payload_in_parts_is_made_good,
    a_crash_after_any_step_of_sending_a_payload_in_parts_is_made_good,
    a_queue_that_comes_back_from_its_deletion_ends_no_fan_out_twice,
    a_queue_that_comes_back_empty_after_its_coordinators_death_ends_no_fan_out_twice,
);

// Nobody stands by at a shard, which is not deleted with a fan-out.
in_shards!(
    a_crash_before_any_step_is_made_good_by_the_next_coordinator,
    a_crash_after_any_step_is_made_good_by_the_next_coordinator,
    a_crash_before_any_step_of_sending_a_payload_in_parts_is_made_good,
    a_crash_after_any_step_of_sending_a_payload_in_parts_is_made_good,
);

/// Steps that a coordinator takes for the smallest fan-out of these tests at least: a run that took fewer is not what the
/// test is about.
const FEWEST_STEPS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    /// It starts after the crash.
    Starts,
    /// It holds a renewed copy of the manifest and waits for its turn at the aggregation queue.
    StandsBy,
}

async fn a_crash_before_any_step_is_made_good_by_the_next_coordinator(stack: Stack) {
    Scene::new(stack).await.crash_at_every_step(Successor::Starts, false).await;
}

async fn a_crash_after_any_step_is_made_good_by_the_next_coordinator(stack: Stack) {
    Scene::new(stack).await.crash_at_every_step(Successor::Starts, true).await;
}

async fn a_crash_before_any_step_is_made_good_by_a_standby(stack: Stack) {
    Scene::new(stack).await.crash_at_every_step(Successor::StandsBy, false).await;
}

async fn a_crash_after_any_step_is_made_good_by_a_standby(stack: Stack) {
    Scene::new(stack).await.crash_at_every_step(Successor::StandsBy, true).await;
}

async fn a_crash_before_any_step_of_sending_a_payload_in_parts_is_made_good(stack: Stack) {
    Scene::new(stack).await.in_parts().crash_at_every_step(Successor::Starts, false).await;
}

async fn a_crash_after_any_step_of_sending_a_payload_in_parts_is_made_good(stack: Stack) {
    Scene::new(stack).await.in_parts().crash_at_every_step(Successor::Starts, true).await;
}

async fn a_queue_that_comes_back_from_its_deletion_ends_no_fan_out_twice(stack: Stack) {
    let scene = Scene::new(stack).await;
    let accepted = scene.invoke().await;
    let empty = scene.stack.names().aggregation(&accepted.cid, accepted.run);
    let instead = replace(scene.stack.bystander(), empty);
    scene.half_delete(&accepted, instead).await.check(&accepted, false).await;
}

/// As where the broker and the coordinator share a machine that loses its power.
async fn a_queue_that_comes_back_empty_after_its_coordinators_death_ends_no_fan_out_twice(stack: Stack) {
    let mut scene = Scene::new(stack).await;
    let accepted = scene.invoke().await;
    scene.answer_all().await;
    let mortal = Mortal::new(scene.stack.connect());
    let empty = scene.stack.names().aggregation(&accepted.cid, accepted.run);
    let (replaced, dying) = (replace(scene.stack.bystander(), empty), Arc::clone(&mortal));
    mortal.half_deletes(&scene.aggregation(&accepted), async move {
        replaced.await;
        dying.die();
    });
    let first = scene.stack.coordinator_on(Arc::clone(&mortal), scene.config());
    mortal.dead().await;
    first.kill().await;
    scene.stack.coordinators_are_gone_but(0).await;
    scene.without_queue.insert(accepted.run);
    let second = scene.stack.coordinator_with(scene.config());
    scene.finish(&accepted, second).await;
    scene.check(&accepted, true).await;
    assert!(scene.without_queue.is_empty(), "a copy of the manifest is parked");
}

/// What a node leaves that dies after it has deleted the members of a quorum queue, and before its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_queue_that_its_deletion_has_left_the_name_of_is_deleted_again() {
    Operator::run(async |operator| {
        run(Stack::at(operator.url().to_owned()), async |stack| {
            let mut scene = Scene::new(stack).await;
            scene.publisher = scene.stack.publisher_of(QueueType::Quorum);
            let accepted = scene.invoke().await;
            let queue = scene.aggregation(&accepted);
            let members = format!(
                "{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
                 {{ok, _}} = ra:delete_cluster([amqqueue:get_pid(Queue)])."
            );
            let instead = async move { drop(operator.control(&["eval", &members]).await) };
            let mut scene = scene.half_delete(&accepted, instead).await;
            scene.without_queue.insert(accepted.run);
            scene.check(&accepted, false).await;
        })
        .await;
    })
    .await;
}

/// Another queue in the place of one with this name.
async fn replace(broker: Arc<dyn Broker>, queue: QueueSpec) {
    broker.delete(&queue.name).await.expect("the queue is deleted");
    broker.declare(&queue).await.expect("the queue is back");
}

/// Three targets, which the test answers by hand, one service that is both an on-target and a final callback, so that the
/// order of the two can be seen, and a final callback beside it.
struct Scene {
    stack: Stack,
    publisher: Publisher,
    target: Recorder,
    both: Recorder,
    last: Recorder,
    parked: Recorder,
    /// Runs whose manifest may be parked, once: it was left without its queue, and nobody can tell from that whether the fan-out
    /// has completed.
    without_queue: BTreeSet<RunId>,
    /// Above which a final payload travels in parts.
    large_payload_bytes: usize,
}

const KEYS: [&str; 3] = ["a", "b", "c"];

impl Scene {
    async fn new(stack: Stack) -> Self {
        Self {
            publisher: stack.publisher(),
            target: stack.record("my.target").await,
            both: stack.record("my.both").await,
            last: stack.record("my.last").await,
            parked: stack.record_parked().await,
            without_queue: BTreeSet::new(),
            large_payload_bytes: Limits::default().large_payload_bytes,
            stack,
        }
    }

    /// The same with final payloads in parts of one result each.
    fn in_parts(self) -> Self {
        Self { large_payload_bytes: 1, ..self }
    }

    async fn crash_at_every_step(mut self, successor: Successor, takes_effect: bool) {
        for nth in 1.. {
            let death = Death { nth, of: None, takes_effect };
            let died = match successor {
                Successor::Starts => self.next_coordinator(death).await,
                Successor::StandsBy => self.standby(death).await,
            };
            if !died {
                assert!(nth > FEWEST_STEPS, "a coordinator that took only {nth} steps");
                return;
            }
        }
    }

    /// All results are there, a coordinator takes the fan-out up and dies, and another starts. Returns whether the first
    /// died before it was through.
    async fn next_coordinator(&mut self, death: Death) -> bool {
        let accepted = self.invoke().await;
        self.answer_all().await;
        let mortal = Mortal::new(self.stack.connect());
        mortal.dies_at(death);
        let first = self.stack.coordinator_on(Arc::clone(&mortal), self.config());
        let died = self.dies_before_the_end(&accepted, &mortal).await;
        if !died {
            first.stop().await;
            self.check(&accepted, died).await;
            return died;
        }
        first.kill().await;
        self.stack.coordinators_are_gone_but(0).await;
        let queue = self.stack.bystander().inspect(&self.aggregation(&accepted)).await;
        if queue.expect("the broker is there").is_none() {
            self.without_queue.insert(accepted.run);
        }
        let second = self.stack.coordinator_with(self.config());
        self.finish(&accepted, second).await;
        self.check(&accepted, died).await;
        died
    }

    /// One coordinator consumes the aggregation queue, another waits for its turn there, and the first dies while the
    /// results arrive.
    async fn standby(&mut self, death: Death) -> bool {
        let accepted = self.invoke().await;
        let manifest = self.take_manifest(&accepted).await;
        let fanin = self.stack.names().fanin_queue();
        let aggregation = self.aggregation(&accepted);

        // One that has no room for a second manifest.
        let config = Config { prefetch: 1, most_channels: 1, ..self.config() };
        let mortal = Mortal::new(self.stack.connect());
        let first = self.stack.coordinator_on(Arc::clone(&mortal), config);
        self.stack.publish(&fanin, manifest.encode()).await;
        self.stack.queue_has(&aggregation, "a consumer", |state| state.consumers == 1).await;
        let second = self.stack.coordinator_with(self.config());
        self.stack.publish(&fanin, manifest.encode_renewed(manifest.deadline_utc)).await;
        self.stack.queue_has(&aggregation, "a standby", |state| state.consumers == 2).await;

        mortal.dies_at(death);
        self.answer_all().await;
        let died = self.dies_before_the_end(&accepted, &mortal).await;
        if died {
            first.kill().await;
            self.stack.coordinators_are_gone_but(1).await;
        } else {
            first.stop().await;
        }
        self.finish(&accepted, second).await;
        // The standby sees the queue go, and knows by that what became of the fan-out. A manifest that the broker hands out again
        // after that finds no queue.
        self.without_queue.insert(accepted.run);
        self.check(&accepted, died).await;
        died
    }

    async fn invoke(&self) -> Accepted {
        let fanout = self.publisher.fanout("my.source");
        let fanout =
            KEYS.iter().fold(fanout, |fanout, key| fanout.add(Target::new("my.target", key).key(key)));
        let fanout = fanout.on_target("my.both").on_final(["my.both", "my.last"]);
        fanout.invoke().await.expect("accepted")
    }

    /// A coordinator completes a fan-out, and something else happens to its queue than to be deleted. Returns when nothing is left.
    async fn half_delete(
        mut self,
        accepted: &Accepted,
        instead: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.answer_all().await;
        let mortal = Mortal::new(self.stack.connect());
        mortal.half_deletes(&self.aggregation(accepted), instead);
        let coordinator = self.stack.coordinator_on(mortal, self.config());
        self.finish(accepted, coordinator).await;
        self
    }

    async fn answer_all(&mut self) {
        for _ in KEYS {
            let request = self.target.next().await;
            answer(&self.stack, &request, request.text("fanfare-key")).await;
        }
    }

    /// Takes the manifest of a fan-out out of its queue, where no other is left.
    async fn take_manifest(&self, accepted: &Accepted) -> Manifest {
        let names = self.stack.names();
        let mut manifests = self.stack.record_queue(&names.fanin_queue()).await;
        let manifest = Manifest::decode(&manifests.next().await, names).expect("a manifest");
        assert_eq!(manifest.run, accepted.run, "{manifest:?}");
        manifest
    }

    /// A coordinator that writes a checkpoint for every on-target callback, so that there are steps between them.
    fn config(&self) -> Config {
        let mut config = self.stack.coordinator_config();
        config.limits.calls_at_risk = 2;
        config.limits.fence_again = Duration::from_millis(200);
        config.limits.large_payload_bytes = self.large_payload_bytes;
        config.absence_pause = Duration::from_millis(50);
        // No result is sent before its manifest is there. What waits for one is left from where a coordinator has died.
        config.shard_limits.patience = Duration::from_millis(50);
        config
    }

    fn aggregation(&self, accepted: &Accepted) -> String {
        self.stack.names().aggregation(&accepted.cid, accepted.run).name
    }

    async fn dies_before_the_end(&self, accepted: &Accepted, mortal: &Mortal) -> bool {
        tokio::select! {
            biased;
            () = mortal.dead() => true,
            () = self.nothing_left(accepted, mortal) => {
                // To stop takes steps too, which are not what this is about.
                mortal.spare();
                false
            }
        }
    }

    /// Returns when there is neither an aggregation queue nor a manifest, and this coordinator holds nothing.
    async fn nothing_left(&self, accepted: &Accepted, mortal: &Mortal) {
        self.stack.queue_is_gone(&self.aggregation(accepted)).await;
        self.stack.shards_are_read(mortal).await;
        let fanin = self.stack.names().fanin_queue();
        self.stack.queue_has(&fanin, "no manifest", |state| state.messages == 0).await;
        eventually("the coordinator holds nothing", async || mortal.held() == 0).await;
    }

    /// Lets a coordinator work until nothing is left. Only when it has stopped is that certain: a copy of the manifest that was on its
    /// way to it was neither in a queue nor held.
    async fn finish(&self, accepted: &Accepted, mut coordinator: Running) {
        let fanin = self.stack.names().fanin_queue();
        loop {
            self.nothing_left(accepted, coordinator.mortal()).await;
            coordinator.stop().await;
            self.stack.coordinators_are_gone_but(0).await;
            let manifests = self.stack.bystander().inspect(&fanin).await.expect("the broker is there");
            if manifests.is_none_or(|manifests| manifests.messages == 0) {
                return;
            }
            coordinator = self.stack.coordinator_with(self.config());
        }
    }

    async fn check(&mut self, accepted: &Accepted, died: bool) {
        let both = self.both.rest().await;
        let last = self.last.rest().await;
        let cid = &accepted.cid;
        let finals = ["my.both", "my.last"].map(|name| format!("{cid}/on-final/{name}"));
        let calls = [0, 1, 2].map(|place| format!("{cid}/{place}/on-target/my.both"));

        let mut bodies: BTreeMap<&str, Vec<Bytes>> = BTreeMap::new();
        for message in both.iter().chain(&last) {
            assert_eq!(message.run(), Ok(accepted.run), "a repeat carries the same run");
            bodies.entry(id(message)).or_default().push(self.last.payload_of(message).await);
        }
        let mut expected: Vec<&str> = finals.iter().chain(&calls).map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(bodies.keys().copied().collect::<Vec<_>>(), expected);
        for (id, bodies) in &bodies {
            assert!(bodies.iter().all(|body| body == &bodies[0]), "{id} repeats with other bytes");
            assert!(died || bodies.len() == 1, "{id} came {} times without any crash", bodies.len());
        }
        let first = |id: &str| both.iter().position(|message| self::id(message) == id);
        for call in &calls {
            assert!(first(call) < first(&finals[0]), "{call} comes after the final callback");
        }
        for body in [&bodies[finals[0].as_str()][0], &bodies[finals[1].as_str()][0]] {
            let payload: FinalPayload = serde_json::from_slice(body).expect("a final payload");
            let answers: Vec<_> = KEYS.iter().map(|key| payload.get::<String>(key)).collect();
            assert!(answers.iter().zip(KEYS).all(|(answer, key)| matches!(answer, Ok(is) if is == key)));
        }

        for message in self.parked.rest().await {
            let run = message.run().expect("a run");
            let explained = message.kind() == "fanfare.manifest" && self.without_queue.remove(&run);
            assert!(explained, "parked: {message:?}");
        }
    }
}

fn id(message: &Message) -> &str {
    message.properties.message_id.as_deref().expect("every message has one")
}
