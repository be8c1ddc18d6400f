//! Fan-outs as a user sees them, on both brokers.

use fanfare_tests::{Stack, on_both_brokers, services};
use serde_json::json;

on_both_brokers!(two_targets_and_two_callbacks);

async fn two_targets_and_two_callbacks(stack: Stack) {
    let mut logger = stack.record("helpers.logger").await;
    let mut done = stack.record("my.cb1").await;
    let _worker = stack.worker([services::echo(), services::sleep()]).await;
    let coordinator = stack.coordinator();
    let accepted = stack
        .publisher()
        .fanout("my.source")
        .target("test.echo", json!({"a": 1}))
        .target("test.sleep", 5)
        .on_final(["my.cb1", "helpers.logger"])
        .invoke()
        .await
        .expect("accepted");
    let payload = done.next_final().await;
    assert_eq!(payload.get::<serde_json::Value>("test.echo").unwrap(), json!({"a": 1}));
    assert_eq!(payload.get::<u64>("test.sleep").unwrap(), 5);
    logger.next_final().await;
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    coordinator.stop().await;
    assert!(done.rest().await.is_empty());
    assert!(logger.rest().await.is_empty());
}
