//! An operator has told the broker to take smaller messages than the protocol allows.

use fanfare_publisher::Target;
use fanfare_tests::{Stack, answer, run};

#[tokio::test]
async fn a_fan_out_ends_though_its_payload_is_too_large_for_the_broker() {
    run(Stack::in_memory(), a_fan_out_ends).await;
}

async fn a_fan_out_ends(stack: Stack) {
    const TARGETS: usize = 300;
    let mut done = stack.record("my.done").await;
    let mut called = stack.record("my.progress").await;
    let mut target = stack.record("my.target").await;
    let coordinator = stack.coordinator();
    let targets = (0..TARGETS).map(|n| Target::new("my.target", n).key(n.to_string()));
    let fan_out = stack.publisher().fanout("my.source").on_target("my.progress").on_final("my.done");
    let accepted = targets.fold(fan_out, fanfare_publisher::Fanout::add).invoke().await.expect("accepted");
    // Checkpoints of 50 results and the final payload of all are above it; each result is far below.
    stack.limit_messages(100_000);
    let response = "x".repeat(3_000);
    for _ in 0..TARGETS {
        answer(&stack, &target.next().await, &response).await;
    }
    for _ in 0..TARGETS {
        assert_eq!(called.next_result().await.response::<String>().expect("it answered"), response);
    }
    let payload = done.next_final().await;
    assert_eq!((payload.data.len(), payload.failures().count()), (TARGETS, 0));
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(called.rest().await, []);
}
