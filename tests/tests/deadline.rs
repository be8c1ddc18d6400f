//! A fan-out ends at its deadline, whoever is missing.

use std::time::Duration;

use fanfare_tests::{Stack, in_shards, on_both_brokers, services};

on_both_brokers!(targets_that_nobody_runs_fail_at_the_deadline);

in_shards!(targets_that_nobody_runs_fail_at_the_deadline,);

/// The target that is served has answered by then, on a machine that has much else to do too.
const DEADLINE: Duration = Duration::from_secs(5);

async fn targets_that_nobody_runs_fail_at_the_deadline(stack: Stack) {
    let mut done = stack.record("done").await;
    let mut called = stack.record("called").await;
    let worker = stack.worker([services::echo()]).await;
    let coordinator = stack.coordinator();
    let accepted = stack
        .publisher()
        .fanout("nightly")
        .declare_missing()
        .target("test.echo", "here")
        .target("nobody.serves-this", ())
        .on_target("called")
        .on_final("done")
        .deadline(DEADLINE)
        .invoke()
        .await
        .expect("accepted");
    stack.note_service("nobody.serves-this");

    let payload = done.next_final().await;
    assert_eq!(payload.get::<String>("test.echo").expect("it answered"), "here");
    let failure = payload.failures().next().expect("one target has failed");
    assert_eq!(failure.key, "nobody.serves-this");
    assert!(failure.exception.contains("deadline"), "{}", failure.exception);
    assert!(called.next_result().await.ok);
    assert!(!called.next_result().await.ok, "a target that fails has completed");

    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    coordinator.stop().await;
    worker.stop().await;
    assert!(done.rest().await.is_empty());
}
