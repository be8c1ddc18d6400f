//! What is particular to fan-outs that share their queues.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fanfare_coordinator::Limits;
use fanfare_protocol::{Cid, EndedBy, FinalPayload, Manifest, Message, QueueNames, ServiceName, StatusQuery};
use fanfare_publisher::{Accepted, Failure, Fanout, InvokeError, Publisher, Target};
use fanfare_tests::{PATIENCE, Stack, answer, eventually, eventually_seen, services};

/// Turns async functions that take a [`Stack`] into tests on both brokers, with so many shards.
macro_rules! with_shards {
    ($($name:ident: $shards:literal),+ $(,)?) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                fanfare_tests::run(fanfare_tests::Stack::in_memory().sharing($shards), super::$name).await;
            })+
        }
        mod on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                fanfare_tests::run(fanfare_tests::Stack::on_rabbitmq().sharing($shards), super::$name).await;
            })+
        }
    };
}

with_shards!(
    no_queue_is_declared_for_a_fan_out: 2,
    shards_are_divided_among_coordinators_and_pass_on_when_one_leaves: 6,
    the_shards_of_one_that_is_killed_pass_to_the_one_that_lives: 6,
    a_shard_passes_on_though_a_fan_out_in_it_waits_for_a_queue_that_takes_nothing: 16,
    fan_outs_end_once_while_coordinators_come_and_go: 4,
    a_fan_out_wider_than_the_window_ends_though_its_results_come_before_its_manifest: 1,
    many_fan_outs_are_held_open_and_survive_a_crash: 2,
    a_publisher_is_refused_when_too_much_waits_in_its_shard: 1,
    a_publisher_is_refused_when_as_many_fan_outs_are_open_as_may_be_and_nothing_is_lost: 1,
    many_results_are_held_open_with_few_unacked: 1,
    what_no_fan_out_claims_is_dropped: 1,
    a_shard_that_is_deleted_ends_its_fan_outs_with_what_is_missing_failed: 1,
    a_manifest_for_a_shard_beyond_those_that_are_served_is_parked_and_no_shard_declared: 1,
    a_manifest_that_was_parked_goes_to_its_shard_from_where_manifests_go: 1,
    a_fan_out_of_a_publisher_that_was_told_of_fewer_shards_is_found: 4,
    how_a_fan_out_with_a_queue_of_its_own_has_ended_is_known_beside_shards: 2,
    another_manifest_of_a_run_in_a_shard_is_parked_and_the_first_stands: 1,
    another_manifest_of_a_run_is_parked_and_the_first_stands: 0,
);

async fn invoke(publisher: &Publisher, service: &str, payload: impl serde::Serialize) -> Accepted {
    let fanout = publisher.fanout("my.source").target(service, payload).on_final("my.done");
    fanout.invoke().await.expect("accepted")
}

async fn no_queue_is_declared_for_a_fan_out(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let accepted = invoke(&stack.publisher(), "test.echo", 1).await;
    let own = stack.names().aggregation(&accepted.cid, accepted.run).name;
    assert_eq!(stack.bystander().inspect(&own).await.expect("the broker is there"), None);
    let shard = stack.names().shard(QueueNames::shard_of(&accepted.cid, 2)).name;
    stack.queue_has(&shard, "the manifest and the result", |state| state.messages == 2).await;
    let coordinator = stack.coordinator();
    done.next_final().await;
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

/// Waits until each shard has this many consumers.
async fn consumers_of_each(stack: &Stack, shards: u32, consumers: u64) {
    for shard in 0..shards {
        let queue = stack.names().shard(shard).name;
        stack.queue_has(&queue, "its consumers", |state| state.consumers == consumers).await;
    }
}

async fn shards_are_divided_among_coordinators_and_pass_on_when_one_leaves(stack: Stack) {
    const SHARDS: u32 = 6;
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let (one, other) = (stack.coordinator(), stack.coordinator());
    consumers_of_each(&stack, SHARDS, 1).await;
    let publisher = stack.publisher();
    for n in 0..20 {
        invoke(&publisher, "test.echo", n).await;
        done.next_final().await;
    }
    one.stop().await;
    consumers_of_each(&stack, SHARDS, 1).await;
    let accepted = invoke(&publisher, "test.echo", 20).await;
    done.next_final().await;
    stack.ended([&accepted], other).await;
    assert_eq!(done.rest().await, []);
}

async fn the_shards_of_one_that_is_killed_pass_to_the_one_that_lives(stack: Stack) {
    const SHARDS: u32 = 6;
    const FAN_OUTS: usize = 24;
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let coordinators = [stack.coordinator(), stack.coordinator()];
    consumers_of_each(&stack, SHARDS, 1).await;
    let publisher = stack.publisher();
    let mut accepted = Vec::new();
    let mut requests = Vec::new();
    for n in 0..FAN_OUTS {
        accepted.push(invoke(&publisher, "my.target", n).await);
        requests.push(target.next().await);
    }
    let held = || coordinators.each_ref().map(|coordinator| coordinator.mortal().held_messages().len());
    let held = async || held();
    eventually_seen("each holds fan-outs of its own", held, |held| {
        held.iter().sum::<usize>() == FAN_OUTS && !held.contains(&0)
    })
    .await;
    let [killed, lives] = coordinators;
    killed.kill().await;
    for (n, request) in requests.iter().enumerate() {
        answer(&stack, request, n).await;
    }
    let mut answers = BTreeSet::new();
    for _ in 0..FAN_OUTS {
        answers.insert(done.next_final().await.get::<usize>("my.target").expect("it answered"));
    }
    assert_eq!(answers, (0..FAN_OUTS).collect());
    stack.ended(&accepted, lives).await;
    assert_eq!(done.rest().await, []);
}

async fn a_shard_passes_on_though_a_fan_out_in_it_waits_for_a_queue_that_takes_nothing(stack: Stack) {
    const SHARDS: u32 = 16;
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let mut full = stack.names().service(&ServiceName::new("my.full").expect("a name"));
    full.arguments.extend([("x-max-length", 1.into()), ("x-overflow", "reject-publish".into())]);
    let bystander = stack.bystander();
    bystander.declare(&full).await.expect("declared");
    stack.note_service("my.full");
    bystander.publish(&full.name, Message::default()).await.expect("it has room for one");
    let mut config = stack.coordinator_config();
    config.stop_within = Duration::from_secs(1);
    let one = stack.coordinator_with(config.clone());
    consumers_of_each(&stack, SHARDS, 1).await;
    let publisher = stack.publisher();
    let in_shard = |shard: u32, what: &str| {
        let mut cids = (0..).map(|n| Cid::new(format!("{what}-{n}")).expect("a CID"));
        cids.find(|cid| QueueNames::shard_of(cid, SHARDS) == shard).expect("any shard has CIDs")
    };
    for shard in 0..SHARDS {
        let stuck = publisher.fanout("my.source").target("test.echo", 1).on_final("my.full");
        stuck.cid(in_shard(shard, "stuck")).invoke().await.expect("accepted");
    }
    // Half of the shards are this one's, about.
    let other = stack.coordinator_with(config);
    eventually("the other has taken shards up", async || other.mortal().held() > 0).await;
    for shard in 0..SHARDS {
        let next = publisher.fanout("my.source").target("test.echo", 2).on_final("my.done");
        next.cid(in_shard(shard, "next")).invoke().await.expect("accepted");
    }
    for _ in 0..SHARDS {
        done.next_final().await;
    }
    one.kill().await;
    other.kill().await;
}

async fn fan_outs_end_once_while_coordinators_come_and_go(stack: Stack) {
    const FAN_OUTS: usize = 300;
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let start = || {
        let mut config = stack.coordinator_config();
        // A result that travelled with one of a fan-out that was still open goes back with it, and waits that long for a manifest that
        // has been acked.
        config.shard_limits.patience = Duration::from_secs(30);
        stack.coordinator_with(config)
    };
    let mut coordinator = start();
    let publisher = stack.publisher();
    let mut ended: BTreeMap<String, usize> = BTreeMap::new();
    for n in 0..FAN_OUTS {
        invoke(&publisher, "test.echo", n).await;
        if n % 60 == 59 {
            let next = start();
            std::mem::replace(&mut coordinator, next).stop().await;
        }
    }
    while ended.len() < FAN_OUTS {
        let message = done.next().await;
        *ended.entry(message.properties.correlation_id.expect("a CID").to_string()).or_default() += 1;
    }
    stack.ended([], coordinator).await;
    assert!(ended.values().all(|times| *times == 1), "a stop repeats nothing: {ended:?}");
    assert_eq!(done.rest().await, []);
}

async fn a_fan_out_wider_than_the_window_ends_though_its_results_come_before_its_manifest(stack: Stack) {
    const TARGETS: usize = 3_000;
    const WINDOW: u16 = 500;
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker_of_single_results([services::echo()]).await;
    let targets = (0..TARGETS).map(|n| Target::new("test.echo", n).key(n.to_string()));
    let fanout = targets.fold(stack.publisher().fanout("my.source"), Fanout::add);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let shard = stack.names().shard(0).name;
    stack.queue_has(&shard, "all results", |state| state.messages == TARGETS as u64 + 1).await;
    let mut config = stack.coordinator_config();
    config.limits = Limits { window: WINDOW, results_held: 100, ..config.limits };
    config.shard_limits.window = WINDOW;
    let coordinator = stack.coordinator_with(config);
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), TARGETS);
    assert_eq!(payload.failures().count(), 0);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn many_fan_outs_are_held_open_and_survive_a_crash(stack: Stack) {
    let fan_outs = if fanfare_tests::full() { 20_000 } else { 500 };
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let config = || {
        let mut config = stack.coordinator_config();
        (config.shard_limits.window, config.shard_limits.most_open) = (40_000, 20_000);
        config
    };
    let first = stack.coordinator_with(config());
    let publisher = stack.publisher();
    for n in 0..fan_outs {
        invoke(&publisher, "my.target", n).await;
    }
    eventually("the coordinator holds all manifests", async || first.mortal().held() == fan_outs).await;
    first.kill().await;
    let second = stack.coordinator_with(config());
    for _ in 0..fan_outs {
        let request = target.next().await;
        fanfare_tests::answer(&stack, &request, Some("an answer")).await;
    }
    for _ in 0..fan_outs {
        let payload: FinalPayload = done.next_final().await;
        assert_eq!(payload.get::<String>("my.target").expect("it answered"), "an answer");
    }
    stack.ended([], second).await;
    assert_eq!(done.rest().await, []);
}

async fn what_no_fan_out_claims_is_dropped(stack: Stack) {
    let mut target = stack.record("my.target").await;
    let mut done = stack.record("my.done").await;
    let publisher = stack.publisher();
    let accepted = invoke(&publisher, "my.target", 1).await;
    let request = target.next().await;
    fanfare_tests::answer(&stack, &request, Some("first")).await;
    let first = stack.coordinator();
    done.next_final().await;
    stack.ended([&accepted], first).await;

    // Nobody remembers the fan-out any more.
    fanfare_tests::answer(&stack, &request, Some("late")).await;
    let mut config = stack.coordinator_config();
    config.shard_limits.patience = Duration::from_millis(200);
    let second = stack.coordinator_with(config);
    stack.ended([&accepted], second).await;
    assert_eq!(done.rest().await, []);
}

async fn a_manifest_that_was_parked_goes_to_its_shard_from_where_manifests_go(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let accepted = invoke(&stack.publisher(), "my.target", 1).await;
    let mut shard = stack.record_queue(&stack.names().shard(0).name).await;
    let manifest = shard.next().await;
    drop(shard);
    let coordinator = stack.coordinator();
    let fanin = stack.names().fanin_queue();
    stack.queue_has(&fanin, "a consumer", |state| state.consumers == 1).await;
    stack.publish(&fanin, manifest).await;
    let request = target.next().await;
    fanfare_tests::answer(&stack, &request, Some("an answer")).await;
    done.next_final().await;
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn a_manifest_for_a_shard_beyond_those_that_are_served_is_parked_and_no_shard_declared(stack: Stack) {
    let _served = [stack.record("my.done").await, stack.record("my.target").await];
    let accepted = invoke(&stack.publisher(), "my.target", 1).await;
    let mut shard = stack.record_queue(&stack.names().shard(0).name).await;
    let mut manifest = Manifest::decode(&shard.next().await, stack.names()).expect("a manifest");
    drop(shard);
    let beyond = stack.names().shard(999).name;
    manifest.reply_to.clone_from(&beyond);
    let mut parked = stack.record_parked().await;
    let coordinator = stack.coordinator();
    let fanin = stack.names().fanin_queue();
    stack.queue_has(&fanin, "a consumer", |state| state.consumers == 1).await;
    stack.publish(&fanin, manifest.encode()).await;
    let message = parked.next().await;
    assert_eq!(message.run(), Ok(accepted.run));
    let reason = message.text("fanfare-reason").expect("a reason");
    assert!(reason.starts_with("it belongs in shard 999, and the coordinators serve 1 shards"), "{reason}");
    stack.queue_is_gone(&beyond).await;
    coordinator.stop().await;
}

async fn a_fan_out_of_a_publisher_that_was_told_of_fewer_shards_is_found(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _target = stack.record("my.target").await;
    let mut cids = (0..).map(|n| Cid::new(format!("c{n}")).expect("a CID"));
    let cid = cids.find(|cid| QueueNames::shard_of(cid, 4) != 0).expect("one is not of the first shard");
    let publisher = stack.clone().sharing(1).publisher();
    let coordinator = stack.coordinator();
    let fanout = publisher.fanout("my.source").cid(cid.as_str()).target("my.target", 1).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let operator = stack.operator(PATIENCE);
    eventually("the fan-out is explained", async || {
        // No coordinator listens at first.
        operator.explain(&cid, None, 10).await.is_ok_and(|explained| explained.fan_outs.len() == 1)
    })
    .await;
    let cancellation = publisher.cancel(&accepted).await.expect("cancelled");
    assert_eq!((cancellation.missing, cancellation.ended_by), (1, Some(EndedBy::Cancel)));
    assert_eq!(done.next_final().await.failures().count(), 1);
    // It is known how it has ended, too.
    assert_eq!(publisher.cancel(&accepted).await.expect("it has ended").missing, 1);
    stack.ended([&accepted], coordinator).await;
}

async fn how_a_fan_out_with_a_queue_of_its_own_has_ended_is_known_beside_shards(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let publisher = stack.clone().sharing(0).publisher();
    let accepted = invoke(&publisher, "test.echo", 1).await;
    done.next_final().await;
    let cancellation = publisher.cancel(&accepted).await.expect("it has ended");
    assert_eq!((cancellation.responded, cancellation.missing), (1, 0));
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
}

async fn another_manifest_of_a_run_in_a_shard_is_parked_and_the_first_stands(stack: Stack) {
    let shard = stack.names().shard(0).name;
    first_manifest_stands(stack, shard).await;
}

async fn another_manifest_of_a_run_is_parked_and_the_first_stands(stack: Stack) {
    let fanin = stack.names().fanin_queue();
    first_manifest_stands(stack, fanin).await;
}

async fn first_manifest_stands(stack: Stack, manifests: String) {
    let mut parked = stack.record_parked().await;
    let mut recorders = [stack.record("my.done").await, stack.record("my.other").await];
    let mut target = stack.record("my.target").await;
    let accepted = invoke(&stack.publisher(), "my.target", 1).await;
    let mut queue = stack.record_queue(&manifests).await;
    let first = queue.next().await;
    drop(queue);
    let mut second = Manifest::decode(&first, stack.names()).expect("a manifest");
    second.on_final = vec![ServiceName::new("my.other").expect("a name")];
    for manifest in [first.clone(), second.encode(), first] {
        stack.publish(&manifests, manifest).await;
    }
    let coordinator = stack.coordinator();
    let copy = parked.next().await;
    assert_eq!(copy.body, second.encode().body);
    let reason = copy.text("fanfare-reason").expect("why");
    assert!(reason.contains("says something else, and the first stands"), "{reason}");
    fanfare_tests::answer(&stack, &target.next().await, Some("an answer")).await;
    recorders[0].next_final().await;
    stack.ended([&accepted], coordinator).await;
    for recorder in recorders.iter_mut().chain([&mut parked]) {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_shard_that_is_deleted_ends_its_fan_outs_with_what_is_missing_failed(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").on_final("my.done");
    let fanout =
        ["a", "b"].iter().fold(fanout, |fanout, key| fanout.add(Target::new("my.target", key).key(key)));
    fanout.invoke().await.expect("accepted");
    fanfare_tests::answer(&stack, &target.next().await, Some("an answer")).await;
    eventually("manifest and result are held", async || coordinator.mortal().held() == 2).await;
    let shard = stack.names().shard(0).name;
    stack.bystander().delete(&shard).await.expect("it is deleted");
    let payload = done.next_final().await;
    assert_eq!(payload.get::<String>("a").expect("it answered"), "an answer");
    assert!(payload.failures().any(|failure| failure.exception.contains("was deleted")), "{payload:?}");
    // It is declared again, for others.
    stack.queue_has(&shard, "a consumer", |state| state.consumers == 1).await;
    stack.ended([], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn a_publisher_is_refused_when_too_much_waits_in_its_shard(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker_of_single_results([services::echo()]).await;
    let publisher = stack.publisher_bounded(1);
    let shard = stack.names().shard(0).name;
    let fanout = |width: usize| {
        let targets = (0..width).map(|n| Target::new("test.echo", n).key(n.to_string()));
        targets.fold(publisher.fanout("my.source"), Fanout::add).on_final("my.done")
    };
    let accepted = fanout(9).invoke().await.expect("accepted");
    stack.queue_has(&shard, "ten messages", |state| state.messages == 10).await;
    let refused = fanout(1).invoke().await;
    let Err(InvokeError::NotAccepted { source, requests_sent: false, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(source, Failure::Busy { waiting: 1, most: 1 }), "{source:?}");
    let coordinator = stack.coordinator();
    done.next_final().await;
    stack.ended([&accepted], coordinator).await;
}

async fn a_publisher_is_refused_when_as_many_fan_outs_are_open_as_may_be_and_nothing_is_lost(stack: Stack) {
    const MOST: usize = 5;
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let mut config = stack.coordinator_config();
    config.shard_limits.most_open = MOST;
    let coordinator = stack.coordinator_with(config);
    let mut accepted = Vec::new();
    for n in 0..MOST {
        accepted.push(invoke(&stack.publisher(), "my.target", n).await);
    }
    let full = stack.names().full().name;
    stack.queue_has(&full, "a consumer", |state| state.consumers > 0).await;
    let fanout = || stack.publisher().fanout("my.source").target("my.target", "more").on_final("my.done");
    let refused = fanout().invoke().await;
    let Err(InvokeError::NotAccepted { source: Failure::Full, requests_sent: false, .. }) = refused else {
        panic!("{refused:?}")
    };
    for _ in 0..MOST {
        fanfare_tests::answer(&stack, &target.next().await, Some("an answer")).await;
        done.next_final().await;
    }
    stack.queue_has(&full, "no consumer any more", |state| state.consumers == 0).await;
    // A message of somebody's keeps nobody from invoking.
    stack.bystander().publish(&full, Message::default()).await.expect("whoever may publish may do that");
    accepted.push(fanout().invoke().await.expect("there is room again"));
    fanfare_tests::answer(&stack, &target.next().await, Some("an answer")).await;
    done.next_final().await;
    stack.ended(&accepted, coordinator).await;
    assert_eq!((target.rest().await, done.rest().await), (vec![], vec![]));
}

async fn many_results_are_held_open_with_few_unacked(stack: Stack) {
    const FAN_OUTS: usize = 10;
    // Of each fan-out, so many results may be in no checkpoint.
    const RESULTS_HELD: usize = 100;
    let width = if fanfare_tests::full() { 10_000 } else { 500 };
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let _worker = stack.worker([services::echo()]).await;
    let mut config = stack.coordinator_config();
    config.limits.results_held = RESULTS_HELD;
    let coordinator = stack.coordinator_with(config);
    let publisher = stack.publisher();
    let mut accepted = Vec::new();
    for _ in 0..FAN_OUTS {
        let fanout = publisher.fanout("my.source").target("my.target", ());
        let targets = (0..width).map(|n| Target::new("test.echo", n).key(n.to_string()));
        let fanout = targets.fold(fanout, Fanout::add).on_final("my.done");
        accepted.push(fanout.invoke().await.expect("accepted"));
    }
    let operator = stack.operator(PATIENCE);
    eventually("all results are held", async || {
        let status = operator.status(&StatusQuery::default()).await.ok();
        status.is_some_and(|status| {
            status.matching == FAN_OUTS && status.fan_outs.iter().all(|fan_out| fan_out.done == width)
        })
    })
    .await;
    // A manifest, results, and checkpoints of three levels.
    let most = FAN_OUTS * (1 + RESULTS_HELD + 3 * 10);
    eventually("few deliveries are unacked", async || coordinator.mortal().held() <= most).await;
    for _ in 0..FAN_OUTS {
        fanfare_tests::answer(&stack, &target.next().await, Some("an answer")).await;
    }
    for _ in 0..FAN_OUTS {
        let payload = done.next_final().await;
        assert_eq!((payload.data.len(), payload.failures().count()), (width + 1, 0));
    }
    stack.ended(&accepted, coordinator).await;
    assert_eq!(done.rest().await, []);
}
