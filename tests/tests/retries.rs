//! Failures that are tried again, through the broker's delay queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fanfare_tests::{Stack, in_shards, on_both_brokers};
use fanfare_worker::{Context, Registration, Retry, ServiceError, service};
use serde_json::Value;

on_both_brokers!(
    a_target_that_fails_twice_succeeds_at_its_third_attempt_and_counts_once,
    a_fatal_failure_is_the_result_at_once,
    a_callback_that_fails_is_invoked_again_and_parked_when_its_attempts_are_over,
);

in_shards!(
    a_target_that_fails_twice_succeeds_at_its_third_attempt_and_counts_once,
    a_fatal_failure_is_the_result_at_once,
    a_callback_that_fails_is_invoked_again_and_parked_when_its_attempts_are_over,
);

/// Fails before its third attempt.
fn third(name: &str) -> Registration {
    let third = |context: Context, payload: Value| async move {
        if context.attempt() < 3 {
            return Err(format!("attempt {} fails", context.attempt()).into());
        }
        Ok((context.attempt(), context.message_id().to_owned(), payload))
    };
    service(name, third).retry(Retry::exponential(3))
}

async fn a_target_that_fails_twice_succeeds_at_its_third_attempt_and_counts_once(stack: Stack) {
    stack.note_retries();
    let (mut progress, mut done) = (stack.record("my.progress").await, stack.record("my.done").await);
    let worker = stack.worker([third("my.third")]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.third", "as it was");
    let accepted = fanout.on_target("my.progress").on_final("my.done").invoke().await.expect("accepted");
    let result = progress.next_result().await;
    let expected = (3, format!("{}/0", accepted.cid), Value::from("as it was"));
    assert_eq!(result.response::<(u32, String, Value)>().expect("it succeeded"), expected);
    assert!(done.next_final().await.data.get("my.third").expect("its result").ok);
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    for recorder in [&mut progress, &mut done] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_fatal_failure_is_the_result_at_once(stack: Stack) {
    stack.note_retries();
    let mut done = stack.record("my.done").await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let wrong = move |_: Context, _: Value| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<(), _>(ServiceError::fatal("no such order")) }
    };
    let worker = stack.worker([service("my.wrong", wrong).retry(Retry::exponential(5))]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.wrong", 1).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let payload = done.next_final().await;
    let exception = payload.data.get("my.wrong").expect("its result").exception.clone();
    assert_eq!(exception.as_deref(), Some("no such order"));
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

async fn a_callback_that_fails_is_invoked_again_and_parked_when_its_attempts_are_over(stack: Stack) {
    stack.note_retries();
    let (mut parked, mut told) = (stack.record_parked().await, stack.record("my.told").await);
    let recovers = |context: Context, _: Value| async move {
        if context.attempt() == 1 {
            return Err("not yet".into());
        }
        context.send("my.told", context.attempt()).await?;
        Ok(())
    };
    let fails = |_: Context, _: Value| async { Err::<(), _>("the disk is full".into()) };
    let services = [service("my.recovers", recovers), service("my.fails", fails)];
    let retry = Retry::exponential(2);
    let echo = fanfare_tests::services::echo();
    let services = services.map(|service| service.retry(retry)).into_iter().chain([echo]);
    let worker = stack.worker(services).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 1);
    let accepted = fanout.on_final(["my.recovers", "my.fails"]).invoke().await.expect("accepted");
    assert_eq!(told.next().await.body, "2".as_bytes());
    let message = parked.next().await;
    assert_eq!(message.text("fanfare-reason"), Some("my.fails failed 2 times: the disk is full"));
    assert_eq!(message.int("fanfare-attempt"), Some(2));
    stack.ended([&accepted], coordinator).await;
    worker.stop().await;
    for recorder in [&mut told, &mut parked] {
        assert_eq!(recorder.rest().await, []);
    }
}
