//! Services that wait for fan-outs of their own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Broker, ConsumerChannel, memory::MemoryBroker};
use fanfare_protocol::{Callback, CallbackKind, FinalPayloadBuilder, Manifest, Message, QueueNames};
use fanfare_worker::{Context, service};
use harness::Bench;

/// More than any payload here has.
const MOST: usize = fanfare_protocol::limits::MESSAGE_BYTES;

/// The least that a coordinator does: gathers the results of each fan-out, and answers its waiter.
async fn coordinate(broker: MemoryBroker) {
    let names = QueueNames::default();
    let broker = Arc::new(broker);
    broker.declare(&names.fanin()).await.unwrap();
    let channel = broker.open().await.unwrap();
    let mut manifests = channel.consume(&names.fanin_queue(), 100).await.unwrap();
    while let Some(Ok(delivery)) = manifests.next().await {
        let manifest = Manifest::decode(&delivery.message, &names).unwrap();
        let (broker, channel) = (Arc::clone(&broker), Arc::clone(&channel));
        tokio::spawn(async move {
            let answer = gather(&*channel, &manifest).await;
            broker.publish(manifest.waiter.as_deref().unwrap(), answer).await.unwrap();
            delivery.receipt.ack().await;
        });
    }
}

async fn gather(channel: &dyn ConsumerChannel, manifest: &Manifest) -> Message {
    let mut results = channel.consume(&manifest.reply_to, 100).await.unwrap();
    let mut bodies = vec![None; manifest.targets.len()];
    while bodies.iter().any(Option::is_none) {
        let result = results.next().await.unwrap().unwrap();
        // The sentinel has none.
        let Some(key) = fanfare_protocol::key_of(&result.message) else { continue };
        let place = manifest.targets.iter().position(|target| target.key.as_str() == key).unwrap();
        bodies[place] = Some(result.message.body.clone());
        result.receipt.ack().await;
    }
    let mut payload = FinalPayloadBuilder::new(manifest);
    for body in &bodies {
        payload.push(body.as_ref().unwrap());
    }
    let kind = CallbackKind::OnFinal { callback: None, ending: fanfare_protocol::Ending::default() };
    Callback { manifest, kind, body: payload.finish(MOST, MOST).joined() }.encode()
}

#[tokio::test(start_paused = true)]
async fn ten_outer_fan_outs_wait_for_inner_ones_on_a_worker_with_concurrency_1() {
    let bench = Bench::new();
    tokio::spawn(coordinate(bench.caller.connect()));
    let outer = service("outer", |context: Context, number: u32| async move {
        if number >= 100 {
            return Ok(number * 2);
        }
        let inner = context.fanout().target("outer", number + 100);
        let payload = inner.invoke_and_wait(Duration::from_secs(60)).await?;
        Ok(payload.get::<u32>("outer")?)
    })
    .concurrency(1);
    bench.call("outer", ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]).await;
    let config = fanfare_worker::Config { concurrency: 1, ..fanfare_worker::Config::default() };
    let worker = bench.start_with(config, [outer]).await;
    let mut answers: Vec<u32> =
        bench.results(10).await.iter().map(|result| result.response().unwrap()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [200, 202, 204, 206, 208, 210, 212, 214, 216, 218]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_waits_for_two_fan_outs_at_once_ends() {
    let bench = Bench::new();
    tokio::spawn(coordinate(bench.caller.connect()));
    let both = service("both", |context: Context, first: bool| async move {
        if !first {
            return Ok(());
        }
        let wait = || context.fanout().target("both", false).invoke_and_wait(Duration::from_secs(60));
        let (one, two) = tokio::join!(wait(), wait());
        one?;
        two?;
        Ok(())
    })
    .concurrency(1);
    bench.call("both", ["true"]).await;
    let _worker = bench.start([both]).await;
    let result = bench.result().await;
    assert!(result.ok, "{:?}", result.exception);
}

#[tokio::test(start_paused = true)]
async fn one_that_runs_alone_may_wait_and_be_what_another_waits_for() {
    let bench = Bench::new();
    tokio::spawn(coordinate(bench.caller.connect()));
    let nested = service("nested", |context: Context, depth: u32| async move {
        if depth == 0 {
            return Ok(7);
        }
        let inner = context.fanout().target("nested", depth - 1);
        Ok(inner.invoke_and_wait(Duration::from_secs(300)).await?.get::<u32>("nested")?)
    });
    bench.call("nested", ["2", "2", "2"]).await;
    bench.deliver("nested", 2, 2).await;
    let config = fanfare_worker::Config { concurrency: 2, ..fanfare_worker::Config::default() };
    let worker = bench.start_with(config, [nested]).await;
    for result in bench.results(3).await {
        assert_eq!(result.response::<u32>().unwrap(), 7);
    }
    worker.stop().await;
}
