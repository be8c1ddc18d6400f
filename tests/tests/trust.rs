//! Coordinators that accept the manifests of certain users only.

use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::Broker;
use fanfare_publisher::{Fanout, Publisher, Target};
use fanfare_tests::{Mortal, Running, Stack, eventually, in_shards, on_both_brokers, run, services};

on_both_brokers!(
    a_manifest_of_an_accepted_user_ends_through_its_renewals,
    a_manifest_that_does_not_say_whose_it_is_is_parked_with_the_reason,
    a_manifest_with_too_many_targets_is_parked_with_the_reason,
    a_fan_out_that_was_accepted_goes_on_whatever_is_allowed_now,
);

in_shards!(
    a_manifest_of_an_accepted_user_ends_through_its_renewals,
    a_manifest_that_does_not_say_whose_it_is_is_parked_with_the_reason,
    a_manifest_with_too_many_targets_is_parked_with_the_reason,
    a_fan_out_that_was_accepted_goes_on_whatever_is_allowed_now,
);

async fn a_manifest_of_an_accepted_user_ends_through_its_renewals(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let _worker = stack.worker([services::sleep()]).await;
    // The publisher logs in as the coordinator does, so the renewed manifests are of an accepted user too.
    let coordinator = stack.coordinator_with(accepting(&stack, &[], stack.user()));
    let accepted = fan_out(&signing(&stack, stack.user())).invoke().await.expect("accepted");
    assert_eq!(done.next_final().await.failures().count(), 0);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(parked.rest().await, []);
}

/// For RabbitMQ, the tests of permissions have another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_another_user_is_parked_with_the_reason() {
    for stack in [Stack::in_memory(), Stack::in_memory().sharing(2)] {
        run(stack, |stack| async move {
            let connection = Mortal::new(stack.connect_as("someone-else"));
            let coordinator = stack.coordinator_on(connection, accepting(&stack, &["shop"], "someone-else"));
            let reason = refusal_of(&stack, signing(&stack, stack.user()), coordinator).await;
            assert!(reason.contains(&format!("user_id `{}` is not among", stack.user())), "{reason}");
        })
        .await;
    }
}

async fn a_manifest_that_does_not_say_whose_it_is_is_parked_with_the_reason(stack: Stack) {
    let coordinator = stack.coordinator_with(accepting(&stack, &["shop"], stack.user()));
    let reason = refusal_of(&stack, stack.publisher(), coordinator).await;
    assert!(reason.contains("it has no user_id"), "{reason}");
}

async fn a_manifest_with_too_many_targets_is_parked_with_the_reason(stack: Stack) {
    let coordinator = stack.coordinator_with(allowing(&stack, 1));
    let reason = refusal_of(&stack, stack.publisher(), coordinator).await;
    assert_eq!(reason, "it has 2 targets, and 1 is the most here: split the fan-out, or raise most_targets");
}

async fn a_fan_out_that_was_accepted_goes_on_whatever_is_allowed_now(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let connection = Mortal::new(stack.connect());
    stack.declare_service("test.sleep").await;
    let _coordinator = stack.coordinator_on(Arc::clone(&connection), allowing(&stack, 2));
    let accepted = fan_out(&stack.publisher()).invoke().await.expect("accepted");
    stack.queue_has(&stack.results_of(&accepted), "a coordinator", |queue| queue.consumers == 1).await;
    // In a shard, it may consume before it is handed the manifest.
    eventually("the coordinator holds the manifest", async || connection.held() > 0).await;
    connection.die();
    connection.close().await;
    let coordinator = stack.coordinator_with(allowing(&stack, 1));
    let _worker = stack.worker([services::sleep()]).await;
    assert_eq!(done.next_final().await.failures().count(), 0);
    stack.ended([&accepted], coordinator).await;
}

fn allowing(stack: &Stack, most_targets: usize) -> fanfare_coordinator::Config {
    fanfare_coordinator::Config { most_targets, ..stack.coordinator_config() }
}

/// Why the manifest of a publisher is parked, which must be the only thing that happens to it.
async fn refusal_of(stack: &Stack, publisher: Publisher, coordinator: Running) -> String {
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let _worker = stack.worker([services::sleep()]).await;
    let accepted = fan_out(&publisher).invoke().await.expect("the broker takes it");
    let manifest = parked.next().await;
    assert_eq!(manifest.kind(), "fanfare.manifest");
    assert_eq!(manifest.run().expect("it has a run"), accepted.run);
    assert_eq!(manifest.text("fanfare-parked-user"), publisher.config().user_id.as_deref());
    coordinator.stop().await;
    assert_eq!(done.rest().await, []);
    assert_eq!(parked.rest().await, []);
    stack
        .bystander()
        .delete(&stack.results_of(&accepted))
        .await
        .expect("the queue of a refused fan-out can be deleted");
    manifest.text("fanfare-reason").expect("a parked message says why").to_owned()
}

fn accepting(stack: &Stack, users: &[&str], user_id: &str) -> fanfare_coordinator::Config {
    let mut config = stack.coordinator_config();
    config.accepted_users = Some(users.iter().map(|&user| user.to_owned()).collect());
    config.user_id = Some(user_id.to_owned());
    config.limits.renewal = Duration::from_millis(500);
    config
}

fn signing(stack: &Stack, user: &str) -> Publisher {
    let config = fanfare_publisher::Config { user_id: Some(user.to_owned()), ..stack.publisher_config() };
    Publisher::new(stack.connect(), Arc::new(fanfare_broker::System), config)
}

/// Takes several times the renewal.
fn fan_out(publisher: &Publisher) -> Fanout {
    let fanout = publisher.fanout("my.source").target("test.sleep", 2_200);
    fanout.add(Target::new("test.sleep", 1).key("other")).on_final("my.done")
}
