//! What is refused before anything is sent.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use fanfare_broker::{Environment, System};
use fanfare_protocol::{Cid, RunId, limits};
use fanfare_publisher::{Config, Fanout, Invalid, InvokeError, Publisher, Target, WaitError};
use fanfare_tests::{Recorder, Stack, on_both_brokers, services};
use serde_json::{Value, json};
use uuid::Uuid;

on_both_brokers!(
    unknown_targets_and_callbacks_are_all_named_and_nothing_is_sent,
    a_plain_invocation_of_an_unknown_service_is_refused,
    services_may_start_after_the_fan_out_that_declares_them,
    every_rule_is_checked_before_anything_is_sent,
    what_is_just_within_the_limits_is_accepted,
);

const CID: &str = "my-cid";

/// Draws the same run each time, so that a test knows the names of queues that must not exist.
#[derive(Debug)]
struct SameRun(Uuid);

impl Environment for SameRun {
    fn now(&self) -> DateTime<Utc> {
        System.now()
    }

    fn unique(&self) -> Uuid {
        self.0
    }

    fn sequential(&self) -> Uuid {
        System.sequential()
    }

    fn jitter(&self) -> f64 {
        System.jitter()
    }
}

/// A publisher, and whatever could receive something from it.
struct Watched {
    publisher: Publisher,
    run: Uuid,
    services: [Recorder; 2],
    fanin: Recorder,
}

async fn watched(stack: &Stack) -> Watched {
    let run = Uuid::new_v4();
    let config = Config { names: stack.names().clone(), ..Config::default() };
    let fanin = stack.names().fanin();
    stack.bystander().declare(&fanin).await.expect("the queue can be declared");
    Watched {
        publisher: Publisher::new(stack.connect(), Arc::new(SameRun(run)), config),
        run,
        services: [stack.record("known.target").await, stack.record("known.callback").await],
        fanin: stack.record_queue(&fanin.name).await,
    }
}

impl Watched {
    /// A fan-out in which nothing is wrong.
    fn good(&self) -> Fanout {
        self.publisher
            .fanout("my.source")
            .cid(CID)
            .target("known.target", 1)
            .on_target("known.callback")
            .on_final("known.callback")
    }

    async fn nothing_was_sent(&mut self, stack: &Stack) {
        for recorder in self.services.iter_mut().chain([&mut self.fanin]) {
            assert_eq!(recorder.rest().await, []);
        }
        let cid = Cid::new(CID).expect("a CID");
        let aggregation = stack.names().aggregation(&cid, RunId::from(self.run)).name;
        assert_eq!(stack.bystander().inspect(&aggregation).await.expect("an answer"), None);
    }
}

async fn unknown_targets_and_callbacks_are_all_named_and_nothing_is_sent(stack: Stack) {
    let mut watched = watched(&stack).await;
    let fanout = watched.good().target("no.target2", 1).target("no.target1", 1);
    let error = fanout.on_target("no.progress").on_final("no.done").invoke().await.expect_err("unknown");
    assert!(matches!(error, InvokeError::Invalid(Invalid::Unserved(_))), "{error:?}");
    assert_eq!(
        error.to_string(),
        "no worker serves `no.done`, `no.progress`, `no.target1`, `no.target2`: start one, or pass declare_missing"
    );
    for (fanout, name) in [
        (watched.good().target("no.target", 1), "no.target"),
        (watched.good().on_target("no.progress"), "no.progress"),
        (watched.good().on_final("no.done"), "no.done"),
    ] {
        let error = fanout.invoke().await.expect_err("unknown").to_string();
        assert_eq!(error, format!("no worker serves `{name}`: start one, or pass declare_missing"));
        let queue = format!("{}.service.{name}", stack.names().prefix());
        assert_eq!(stack.bystander().inspect(&queue).await.expect("an answer"), None, "nothing is declared");
    }
    let waiting = watched.good().target("no.target", 1).invoke_and_wait(Duration::from_secs(60)).await;
    assert!(matches!(waiting, Err(WaitError::Invoke(InvokeError::Invalid(_)))), "{waiting:?}");
    watched.nothing_was_sent(&stack).await;

    watched.good().invoke().await.expect("nothing is wrong with it");
    watched.fanin.next().await;
    let cid = Cid::new(CID).expect("a CID");
    let aggregation = stack.names().aggregation(&cid, RunId::from(watched.run)).name;
    stack.bystander().delete(&aggregation).await.expect("the queue that a refused one would have left");
}

async fn a_plain_invocation_of_an_unknown_service_is_refused(stack: Stack) {
    let error = stack.publisher().send("my.source", "no.service", 1).await.expect_err("unknown");
    assert_eq!(error.to_string(), "no worker serves `no.service`: start one, or pass declare_missing");
}

async fn services_may_start_after_the_fan_out_that_declares_them(stack: Stack) {
    for name in ["test.echo", "my.progress", "my.done"] {
        stack.note_service(name);
    }
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 1).declare_missing();
    let fanout = fanout.on_target("my.progress").on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let coordinator = stack.coordinator();
    let _worker = stack.worker([services::echo()]).await;
    let mut progress = stack.record("my.progress").await;
    let mut done = stack.record("my.done").await;
    progress.next_result().await;
    assert_eq!(done.next_final().await.get::<u32>("test.echo").expect("it answered"), 1);
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut progress, &mut done] {
        assert_eq!(recorder.rest().await, []);
    }
}

/// Fan-outs that break one rule each, and what the error must say of the value and the rule.
fn mistakes(watched: &Watched) -> Vec<(Fanout, &'static str)> {
    let publisher = &watched.publisher;
    let good = || watched.good();
    let long = "x".repeat(limits::NAME_CHARS + 1);
    let callbacks: Vec<_> = (0..=limits::CALLBACKS).map(|n| format!("callback{n}")).collect();
    let keyed = |key: &str| good().add(Target::new("known.target", 1).key(key));
    let same = Target::new("known.target", 1);
    let targets = |count: usize| (0..count).map(|_| ("known.target", Value::Null));
    let of_key = |key: usize| Target::new("known.target", 1).key(format!("{key:0255}"));
    let wide = (0..60_000).map(of_key).fold(good(), Fanout::add);
    vec![
        (
            publisher.fanout("my source").on_final("known.callback"),
            "source \"my source\" is not allowed: ' '",
        ),
        (publisher.fanout(&long).on_final("known.callback"), "it has 101 characters, and 100 is the most"),
        (publisher.fanout("").on_final("known.callback"), "source \"\" is not allowed: it is empty"),
        (good().cid("a/b"), "CID \"a/b\" is not allowed: '/' is not one of A-Z a-z 0-9 . _ : -"),
        (good().target("ä", 1), "service name \"ä\" is not allowed"),
        (good().on_target("a b"), "service name \"a b\" is not allowed"),
        (good().on_final(["x", "a b"]), "service name \"a b\" is not allowed"),
        (keyed(""), "target key \"\" is not allowed: it is empty; give 1 to 255 bytes"),
        (keyed("a\nb"), "it holds the control character '\\n'"),
        (keyed(&"ü".repeat(128)), "it has 256 bytes, and 255 is the most"),
        (good().add(same), "two targets have the key \"known.target\""),
        (good().metadata("", 1), "metadata name \"\" is not allowed"),
        (good().metadata("x", "y".repeat(limits::METADATA_BYTES)), "metadata of 4097 bytes is not allowed"),
        (good().on_final("known.callback"), "`known.callback` is there twice as final callback"),
        (good().on_target(&callbacks), "102 on-target callbacks, and 100 is the most"),
        (good().on_final(&callbacks), "102 final callbacks, and 100 is the most"),
        (
            good().add(Target::raw("known.target", "{\"half\":").key("k")),
            "the payload of target \"k\" is not JSON",
        ),
        (
            good().add(Target::new("known.target", "x".repeat(limits::MESSAGE_BYTES - 1)).key("k")),
            "has 16711681 bytes, and 16711680 is the most",
        ),
        (good().targets(targets(limits::TARGETS)), "a fan-out of more than 100000 targets: split it"),
        (wide, "the list of targets has"),
        (good().deadline(Duration::ZERO), "a deadline of 0ns: give 1 ms to 365 days"),
        (publisher.fanout("my.source").target("known.target", 1), "a fan-out without a final callback"),
        (
            publisher.parallel("my.source").target("known.target", 1),
            "a parallel execution without an on-target callback",
        ),
        (
            publisher.parallel("my.source").on_target("known.callback").on_final("known.callback"),
            "a parallel execution has no final callbacks, and `known.callback` was given as one",
        ),
    ]
}

async fn every_rule_is_checked_before_anything_is_sent(stack: Stack) {
    let mut watched = watched(&stack).await;
    for (fanout, rule) in mistakes(&watched) {
        // With this, a service that does not exist is no mistake by itself.
        let error = fanout.declare_missing().invoke().await.expect_err(rule);
        assert!(matches!(error, InvokeError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(rule), "{error} does not say {rule:?}");
    }
    let parallel = watched.publisher.parallel("my.source").on_target("known.callback");
    let error = parallel.invoke_and_wait(Duration::from_secs(60)).await.expect_err("nothing to wait for");
    assert!(error.to_string().contains("no final payload to wait for"), "{error}");
    watched.nothing_was_sent(&stack).await;
}

async fn what_is_just_within_the_limits_is_accepted(stack: Stack) {
    let name = |start: &str| start.chars().cycle().take(limits::NAME_CHARS).collect::<String>();
    let (source, target, callback) = (name("source:_-."), name("Target.0"), name("callback"));
    let mut requests = stack.record(&target).await;
    let mut done = stack.record(&callback).await;
    let coordinator = stack.coordinator();
    let longest_key = "k".repeat(limits::KEY_BYTES);
    let fanout = stack.publisher().fanout(&source).cid(name("cid")).on_target(&callback).on_final(&callback);
    let fanout = fanout.metadata("m".repeat(128), "v".repeat(limits::METADATA_BYTES - 128));
    let largest = "x".repeat(limits::MESSAGE_BYTES - 2);
    let accepted =
        fanout.add(Target::new(&target, &largest).key(&longest_key)).invoke().await.expect("accepted");
    let request = requests.next().await;
    assert_eq!(request.body.len(), limits::MESSAGE_BYTES);
    assert_eq!(request.text("fanfare-key"), Some(longest_key.as_str()));
    let largest_answer = "x".repeat(limits::RESULT_BYTES - 1000);
    fanfare_tests::answer(&stack, &request, &largest_answer).await;
    let result = done.next_result().await;
    assert_eq!(result.response::<String>().expect("it answered"), largest_answer);
    let payload = done.next_final().await;
    assert_eq!(payload.get::<String>(&longest_key).expect("it answered"), largest_answer);
    assert_eq!(json!(payload.source), json!(source));
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut requests, &mut done] {
        assert_eq!(recorder.rest().await, []);
    }
}
