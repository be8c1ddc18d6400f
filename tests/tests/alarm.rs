//! A broker that is short of memory, and takes no messages from anyone.

use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Broker, System};
use fanfare_operator::{AskError, ParkedQuery, ReplayError};
use fanfare_protocol::{Message, StatusQuery, WireTime};
use fanfare_publisher::{CancelError, Fanout, InvokeError, Publisher, Target};
use fanfare_tests::{Operator, PATIENCE, Stack, eventually, run};
use fanfare_worker::{Context, service};
use tokio::sync::Semaphore;
use uuid::Uuid;

const TARGETS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_bounds_the_wait_of_publishers_and_delays_everyone_else() {
    with_alarms(0, alarm).await;
}

mod in_shards {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_alarm_bounds_the_wait_of_publishers_and_delays_everyone_else() {
        with_alarms(2, alarm).await;
    }
}

/// Runs a test with fan-outs in so many shards, or in queues of their own where there are none.
async fn with_alarms(shards: u32, test: impl AsyncFnOnce(Stack, Operator)) {
    Operator::run(async |operator| {
        let stack = Stack::at(operator.url().to_owned()).sharing(shards);
        run(stack, async |stack| test(stack, operator).await).await;
    })
    .await;
}

async fn alarm(stack: Stack, operator: Operator) {
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let gate = Arc::new(Semaphore::new(0));
    let gated = {
        let gate = Arc::clone(&gate);
        service("my.target", move |_: Context, n: usize| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await?.forget();
                Ok(n)
            }
        })
    };
    let worker = stack.worker([gated]).await;
    let mut config = stack.coordinator_config();
    // Requests of what was refused may reach the worker all the same, and their results wait for a manifest in a shard.
    config.shard_limits.patience = Duration::from_secs(10);
    let coordinator = stack.coordinator_with(config);
    let before = stack.publisher();
    let open = fan_out(&before).invoke().await.expect("accepted");
    stack.declare_service("nobody").await;
    let hanging = before.fanout("my.source").target("nobody", 1).on_final("my.cancelled");
    let mut cancelled = stack.record("my.cancelled").await;
    let hanging = hanging.invoke().await.expect("accepted");
    eventually("the worker holds all requests", async || worker.mortal().held() == TARGETS).await;

    operator.control(&["set_vm_memory_high_watermark", "0.0000001"]).await;
    // The worker's results stay with the broker's doorman.
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    eventually("the worker's connection is blocked", async || worker.mortal().is_blocked()).await;

    let config = fanfare_publisher::Config {
        time_limit: Duration::from_secs(2),
        cancel_limit: Duration::from_secs(2),
        ..stack.publisher_config()
    };
    let refused = Publisher::new(stack.connect(), Arc::new(System), config.clone());
    // The broker tells a connection of the alarm once something is published on it.
    let broker = Arc::clone(refused.broker());
    let unheard = tokio::spawn(async move { broker.publish("fanfare.nobody", Message::default()).await });
    eventually("the publisher's connection is blocked", async || refused.broker().is_blocked()).await;
    let invoked = tokio::time::timeout(PATIENCE, fan_out(&refused).invoke()).await;
    let error = invoked.expect("the wait has a bound").expect_err("the broker takes nothing");
    let InvokeError::NotAccepted { cid, run, source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("short of memory or disk"), "{source}");
    stack.queue_is_gone(&stack.names().aggregation(&cid, run).name).await;

    let leaving = Publisher::new(stack.connect(), Arc::new(System), config);
    fan_out(&leaving).invoke().await.expect_err("the broker takes nothing");
    // Less than lapin would wait for an answer.
    let closed = tokio::time::timeout(Duration::from_secs(9), leaving.broker().close()).await;
    closed.expect("it waits for no answer that the broker cannot give");

    let unknown = refused.cancel(&hanging).await.expect_err("nobody hears of it");
    assert!(matches!(unknown, CancelError::Unanswered { blocked: true, .. }), "{unknown:?}");

    let asking = stack.operator(Duration::from_secs(2));
    for error in [
        asking.status(&StatusQuery::default()).await.expect_err("nobody hears of it"),
        asking.explain(&hanging.cid, None, 1).await.expect_err("nobody hears of it"),
    ] {
        assert!(matches!(error, AskError::NoAnswer { blocked: true, .. }), "{error:?}");
        assert!(error.to_string().contains("short of memory or disk"), "{error}");
    }

    operator.control(&["set_vm_memory_high_watermark", "0.4"]).await;
    unheard.await.expect("it does not panic").expect_err("there is no such queue");
    // The publisher that was refused goes on too, and has as long as any other from now on.
    let unlimited = stack.publisher_config();
    let refused = Publisher::new(Arc::clone(refused.broker()), Arc::new(System), unlimited);
    refused.cancel(&hanging).await.expect("it is cancelled, now or by what was asked before");
    assert_eq!(cancelled.next_final().await.failures().count(), 1);
    assert_eq!(done.next_final().await.failures().count(), 0);
    stack.queue_is_gone(&stack.names().aggregation(&open.cid, open.run).name).await;
    let after = fan_out(&refused).invoke().await.expect("accepted again");
    assert_eq!(done.next_final().await.data.len(), TARGETS);
    stack.ended([&open, &after, &hanging], coordinator).await;
    assert_eq!(done.rest().await, []);
    assert_eq!(parked.rest().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_put_back_meanwhile_stays_parked_and_says_why() {
    with_alarms(0, put_back).await;
}

async fn put_back(stack: Stack, operator: Operator) {
    let queue = stack.declare_service("my.target").await;
    let parked = stack.names().parked();
    stack.bystander().declare(&parked).await.expect("it is declared");
    for id in [1, 2] {
        let message = Message { body: "1".into(), ..Message::default() };
        let at = WireTime::from_timestamp(1_000).expect("a time");
        stack.publish(&parked.name, message.parked(&queue, "why", at, Uuid::from_u128(id))).await;
    }
    operator.control(&["set_vm_memory_high_watermark", "0.0000001"]).await;
    let asking = stack.operator(PATIENCE);
    let replayed = tokio::time::timeout(PATIENCE, asking.replay(&ParkedQuery::default())).await;
    let replayed = replayed.expect("the wait has a bound").expect("what is parked can be looked at");
    let [first, second] = &replayed[..] else { panic!("{replayed:?}") };
    assert!(matches!(first.outcome, Err(ReplayError::Unconfirmed { blocked: true, .. })), "{first:?}");
    assert!(matches!(second.outcome, Err(ReplayError::Untried)), "{second:?}");
    operator.control(&["set_vm_memory_high_watermark", "0.4"]).await;
    assert_eq!(asking.purge(&ParkedQuery::default()).await.expect("both are there").len(), 2);
}

fn fan_out(publisher: &Publisher) -> Fanout {
    let targets = (0..TARGETS).map(|n| Target::new("my.target", n).key(n.to_string()));
    targets.fold(publisher.fanout("my.source"), Fanout::add).on_final("my.done")
}
