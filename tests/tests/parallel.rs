//! Parallel execution: on-target callbacks, and no final ones.

use std::collections::BTreeMap;

use fanfare_tests::{Recorder, Stack, on_both_brokers, services};
use serde_json::Value;

on_both_brokers!(
    each_target_is_reported_once_and_then_the_execution_ends,
    a_parallel_execution_without_targets_ends,
    a_failing_target_is_reported_like_any_other,
);

async fn each_target_is_reported_once_and_then_the_execution_ends(stack: Stack) {
    let mut callbacks = [stack.record("my.cb1").await, stack.record("my.cb2").await];
    let mut target = stack.record("my.target").await;
    let _worker = stack.worker([services::echo(), services::sleep()]).await;
    let coordinator = stack.coordinator();
    let parallel = stack.publisher().parallel("my.source").target("test.echo", "x").target("test.sleep", 20);
    let parallel = parallel.target("my.target", Value::Null).on_target(["my.cb1", "my.cb2"]);
    let accepted = parallel.invoke().await.expect("accepted");
    let request = target.next().await;
    assert_eq!(request.text("fanfare-channel"), Some("parallel-exec-call"));
    fanfare_tests::answer(&stack, &request, "by hand").await;
    for callback in &mut callbacks {
        let reported = reported(callback, 3).await;
        assert_eq!(reported["test.echo"], "\"x\"");
        assert_eq!(reported["test.sleep"], "20");
        assert_eq!(reported["my.target"], "\"by hand\"");
    }
    stack.ended([&accepted], coordinator).await;
    for callback in &mut callbacks {
        assert_eq!(callback.rest().await, []);
    }
}

/// The responses, by key, of the next calls of an on-target callback.
async fn reported(callback: &mut Recorder, calls: usize) -> BTreeMap<String, String> {
    let mut reported = BTreeMap::new();
    for _ in 0..calls {
        let message = callback.next().await;
        assert_eq!(message.text("fanfare-channel"), Some("parallel-exec-on-target"));
        let key = message.text("fanfare-key").expect("a key").to_owned();
        let result = fanfare_protocol::TargetResult::from_body(&message.body).expect("a result");
        let told = result.exception.unwrap_or_else(|| result.response.get().to_owned());
        assert_eq!(reported.insert(key, told), None, "each target is reported once");
    }
    reported
}

async fn a_parallel_execution_without_targets_ends(stack: Stack) {
    let mut progress = stack.record("my.progress").await;
    let coordinator = stack.coordinator();
    let parallel = stack.publisher().parallel("my.source").on_target("my.progress");
    let accepted = parallel.invoke().await.expect("accepted");
    stack.ended([&accepted], coordinator).await;
    assert_eq!(progress.rest().await, []);
}

async fn a_failing_target_is_reported_like_any_other(stack: Stack) {
    let mut progress = stack.record("my.progress").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    let coordinator = stack.coordinator();
    let parallel = stack.publisher().parallel("my.source").target("test.fail", "no").target("test.echo", 1);
    let accepted = parallel.on_target("my.progress").invoke().await.expect("accepted");
    let reported = reported(&mut progress, 2).await;
    assert_eq!(reported["test.fail"], "no");
    assert_eq!(reported["test.echo"], "1");
    stack.ended([&accepted], coordinator).await;
    assert_eq!(progress.rest().await, []);
}
