//! What is wrong with an invocation is said before anything is sent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, System};
use fanfare_protocol::QueueNames;
use fanfare_publisher::{
    Aggregation, Completion, Config, Fanout, Invalid, InvokeError, Publisher, Target, WaitError,
};
use harness::Faulty;

/// Invokes what `build` builds, and checks that it is refused with `message` and that nothing was sent.
async fn refused(build: impl FnOnce(&Publisher) -> Fanout, message: &str) {
    let broker = Faulty::new();
    broker.serve(&["price", "stock", "done"]).await;
    let error = build(&broker.publisher()).invoke().await.unwrap_err();
    assert!(matches!(error, InvokeError::Invalid(_)), "{error:?}");
    let shown = error.to_string();
    assert!(shown.contains(message), "{shown:?} does not contain {message:?}");
    assert_eq!(broker.count("publish"), 0);
    assert_eq!(broker.count("declare fanfare.agg"), 0);
}

#[tokio::test]
async fn names_that_break_a_rule_are_refused_with_value_and_rule() {
    refused(|p| p.fanout("my shop").on_final("done"), r#"source "my shop" is not allowed: ' '"#).await;
    refused(|p| p.fanout("shop").target("a/b", 1).on_final("done"), r#"service name "a/b""#).await;
    refused(|p| p.fanout("shop").on_final("").target("price", 1), r#"service name """#).await;
    refused(|p| p.fanout("shop").on_target("ü").on_final("done"), r#"service name "ü""#).await;
    refused(|p| p.fanout("shop").cid("x".repeat(101)).on_final("done"), "101 characters").await;
    refused(
        |p| p.fanout("shop").add(Target::new("price", 1).key("a\nb")).on_final("done"),
        r#"target key "a\nb""#,
    )
    .await;
}

#[tokio::test]
async fn the_first_mistake_is_the_one_reported() {
    refused(|p| p.fanout("shop").target("a/b", 1).cid("c d").on_final("done"), "a/b").await;
}

#[tokio::test]
async fn a_fan_out_needs_a_final_callback_and_a_parallel_execution_an_on_target_one() {
    refused(|p| p.fanout("shop").target("price", 1).on_target("done"), "without a final callback").await;
    refused(|p| p.parallel("shop").target("price", 1), "without an on-target callback").await;
    refused(
        |p| p.parallel("shop").target("price", 1).on_target("done").on_final("done"),
        "no final callbacks, and `done`",
    )
    .await;
}

#[tokio::test]
async fn a_parallel_execution_cannot_be_waited_for() {
    let broker = Faulty::new();
    broker.serve(&["price", "done"]).await;
    let parallel = broker.publisher().parallel("shop").target("price", 1).on_target("done");
    let error = parallel.invoke_and_wait(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, WaitError::Invoke(InvokeError::Invalid(Invalid::WaitOfParallel))), "{error:?}");
    assert_eq!(broker.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn keys_and_callbacks_are_there_once() {
    refused(
        |p| p.fanout("shop").target("price", 1).target("price", 2).on_final("done"),
        r#"two targets have the key "price": give one of them another"#,
    )
    .await;
    refused(
        |p| p.fanout("shop").on_final(["done", "price", "done"]),
        "`done` is there twice as final callback",
    )
    .await;
    refused(
        |p| p.fanout("shop").on_target("done").on_target("done").on_final("done"),
        "`done` is there twice as on-target callback",
    )
    .await;
}

#[tokio::test]
async fn limits_are_named() {
    refused(
        |p| p.fanout("shop").metadata("note", "x".repeat(4096)).on_final("done"),
        "metadata of 4100 bytes is not allowed",
    )
    .await;
    refused(
        |p| p.fanout("shop").target("price", "x".repeat(17 << 20)).on_final("done"),
        r#"the payload of target "price" has 17825794 bytes, and 16711680 is the most"#,
    )
    .await;
    let names: Vec<String> = (0..101).map(|n| format!("callback.{n}")).collect();
    refused(|p| p.fanout("shop").on_final(&names), "101 final callbacks, and 100 is the most").await;
    let endless = (0..).map(|n| (format!("service.{n}"), n));
    refused(|p| p.fanout("shop").targets(endless).on_final("done"), "more than 100000 targets").await;
    let long = (0..90_000).map(|n| Target::new("price", n).key(format!("{n:0>250}")));
    refused(
        |p| long.fold(p.fanout("shop").on_final("done"), Fanout::add),
        "the list of targets has 25110335 bytes, and 16711680 is the most",
    )
    .await;
    for deadline in [Duration::ZERO, Duration::MAX] {
        refused(|p| p.fanout("shop").deadline(deadline).on_final("done"), "give 1 ms to 365 days").await;
    }
}

#[tokio::test]
async fn a_completion_rule_that_cannot_be_met_is_refused() {
    for (rule, says) in [
        (Completion::succeeded(2), "completion when 2 of 1 targets have succeeded"),
        (Completion::responded(0), "completion when 0 targets have responded: give 1 or more"),
        (Completion::failed_above(1), "more than 1 of 1 targets have failed: give fewer than 1"),
        (
            Completion::failed_share_above(1.0),
            "a share of 1 of the targets has failed: give 0 or more, and less than 1",
        ),
    ] {
        refused(|p| p.fanout("shop").target("price", 1).complete_when(rule).on_final("done"), says).await;
        refused(|p| p.parallel("shop").target("price", 1).complete_when(rule).on_target("done"), says).await;
    }
    let without_targets = "there are no targets: a fan-out without any is complete at once, so leave it out";
    for rule in [Completion::succeeded(1), Completion::responded(0), Completion::failed_above(0)] {
        refused(|p| p.fanout("shop").complete_when(rule).on_final("done"), without_targets).await;
    }
}

#[tokio::test]
async fn a_payload_that_is_not_json_names_its_target() {
    let not_json = std::collections::BTreeMap::from([(vec![1u8], 2)]);
    refused(
        |p| p.fanout("shop").target("price", not_json).on_final("done"),
        r#"the payload of target "price" is not JSON"#,
    )
    .await;
    refused(
        |p| p.fanout("shop").add(Target::raw("price", "{").key("k")).on_final("done"),
        r#"the payload of target "k" is not JSON"#,
    )
    .await;
}

#[tokio::test]
async fn all_that_is_wrong_is_said_at_once_and_nothing_that_follows_from_it() {
    refused(
        |p| p.fanout("my shop").target("price", 1).target("price", 2).on_target(["a", "a"]).on_final("b c"),
        "source \"my shop\" is not allowed: ' ' is not one of A-Z a-z 0-9 . _ : -; service name \"b c\" is not allowed: ' ' is not \
         one of A-Z a-z 0-9 . _ : -; `a` is there twice as on-target callback: give it once; two targets have the key",
    )
    .await;
    let endless = || std::iter::repeat_with(|| ("a b", 1));
    let broker = Faulty::new();
    let error = broker.publisher().fanout("shop").targets(endless()).invoke().await.unwrap_err();
    let InvokeError::Invalid(Invalid::Several(mistakes)) = error else { panic!("{error:?}") };
    assert_eq!(mistakes.len(), 10);
    let endless = std::iter::repeat_with(|| ("price", 1));
    let error =
        broker.publisher().fanout("shop").targets(endless).on_final("done").invoke().await.unwrap_err();
    let InvokeError::Invalid(Invalid::Several(mistakes)) = error else { panic!("{error:?}") };
    assert!(matches!(mistakes[0], Invalid::TooManyTargets(100_000)), "{mistakes:?}");
}

#[tokio::test]
async fn a_publisher_can_be_told_to_take_fewer_targets() {
    let config = Config { most_targets: 2, ..Config::default() };
    let publisher = Publisher::new(Arc::new(MemoryBroker::new()), Arc::new(System), config);
    let targets = [("price", 1), ("stock", 1), ("order", 1)];
    let error = publisher.fanout("shop").targets(targets).on_final("done").invoke().await.unwrap_err();
    assert_eq!(error.to_string(), "a fan-out of more than 2 targets: split it");
}

#[tokio::test]
async fn all_services_and_callbacks_that_nobody_serves_are_named_at_once() {
    refused(
        |p| p.fanout("shop").target("b.x", 1).target("price", 1).on_target("a.x").on_final(["done", "c.x"]),
        "no worker serves `a.x`, `b.x`, `c.x`: start one, or pass declare_missing",
    )
    .await;
}

#[tokio::test]
async fn a_time_limit_beyond_what_coordinators_of_shards_wait_is_refused() {
    let config = |time_limit| Config {
        aggregation: Aggregation::Shared { shards: 4 },
        time_limit,
        ..Config::default()
    };
    let invoke = async |time_limit| {
        let broker = Arc::new(MemoryBroker::new());
        for shard in 0..4 {
            broker.declare(&QueueNames::default().shard(shard)).await.unwrap();
        }
        let publisher = Publisher::new(broker, Arc::new(System), config(time_limit));
        publisher.fanout("shop").on_final("done").declare_missing().invoke().await
    };
    let error = invoke(Duration::from_secs(61)).await.unwrap_err().to_string();
    assert!(error.contains("a time limit of 61s in shared aggregation: give 60s or less"), "{error}");
    invoke(Duration::from_secs(60)).await.unwrap();
}
