use std::time::Duration;

use fanfare_protocol::QueueSpec;
use fanfare_protocol::queue::Argument;

use super::bench::{Bench, KINDS, consume, message, next, number, within};
use crate::{BrokerError, PublishError, QueueState, absence};

pub(super) async fn declaring_again_changes_nothing(bench: &Bench<'_>) {
    for kind in KINDS {
        let spec = bench.spec(kind, kind, &[]);
        bench.broker.declare(&spec).await.unwrap();
        bench.fill(&spec.name, 0..3).await;
        bench.broker.declare(&spec).await.unwrap();
        bench.connect().await.declare(&spec).await.unwrap();
        bench.until_ready(&spec.name, 3).await;
    }
}

pub(super) async fn declaring_with_other_arguments_is_refused(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..3).await;
    let others = [
        bench.spec("q", "quorum", &[]),
        bench.spec("q", "classic", &[("x-single-active-consumer", true.into())]),
        bench.spec("q", "classic", &[("x-expires", Argument::Int(1_000))]),
    ];
    for other in others {
        let error = bench.broker.declare(&other).await.unwrap_err();
        assert!(
            matches!(&error, BrokerError::QueueDiffers { queue: name, .. } if *name == queue),
            "{error:?}"
        );
        assert!(!error.is_outage());
    }
    assert_eq!(bench.broker.inspect(&queue).await.unwrap().unwrap().messages, 3);
}

pub(super) async fn a_missing_queue_is_none(bench: &Bench<'_>) {
    for _ in 0..3 {
        assert_eq!(bench.broker.inspect(&bench.name("missing")).await.unwrap(), None);
    }
}

pub(super) async fn messages_and_consumers_are_counted(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    let counts = async || bench.broker.inspect(&queue).await.unwrap().unwrap();
    assert_eq!(counts().await, QueueState { messages: 0, consumers: 0 });
    bench.fill(&queue, 0..5).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 2).await;
    let _second = channel.consume(&queue, 1).await.unwrap();
    let _delivery = next(&mut consumer).await;
    // What is out for delivery is not counted.
    bench.until(&queue, "two consumers", |state| *state == QueueState { messages: 2, consumers: 2 }).await;
}

pub(super) async fn a_deleted_queue_is_gone_with_what_it_held(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..3).await;
        bench.broker.delete(&queue).await.unwrap();
        assert_eq!(bench.broker.inspect(&queue).await.unwrap(), None);
        let outcome = bench.broker.publish(&queue, message(3)).await;
        assert!(matches!(outcome, Err(PublishError::Unroutable(_))), "{outcome:?}");
    }
}

pub(super) async fn deleting_a_missing_queue_succeeds(bench: &Bench<'_>) {
    let queue = bench.name("missing");
    bench.broker.delete(&queue).await.unwrap();
    let channel = bench.broker.open().await.unwrap();
    channel.delete(&queue).await.unwrap();
    let there = bench.declare("there", "classic", &[]).await;
    channel.consume(&there, 1).await.unwrap();
}

pub(super) async fn a_queue_declared_after_its_deletion_is_empty(bench: &Bench<'_>) {
    let spec = bench.spec("q", "classic", &[]);
    bench.broker.declare(&spec).await.unwrap();
    bench.fill(&spec.name, 0..3).await;
    let (_channel, mut consumer) = consume(&bench.broker, &spec.name, 1).await;
    let held = next(&mut consumer).await;
    bench.broker.delete(&spec.name).await.unwrap();
    bench.broker.declare(&spec).await.unwrap();
    held.receipt.requeue().await;
    assert!(within("the end of the consumer", consumer.next()).await.is_none());
    bench.fill(&spec.name, [7]).await;
    let (_channel, mut consumer) = consume(&bench.broker, &spec.name, 10).await;
    let delivery = next(&mut consumer).await;
    assert_eq!((number(&delivery), delivery.redelivered), (7, false));
    bench.until_ready(&spec.name, 0).await;
}

pub(super) async fn an_unused_queue_expires_and_a_consumed_one_does_not(bench: &Bench<'_>) {
    let expires = [("x-expires", Argument::Int(2_000))];
    // Nothing but to consume it is left to be done when it is there.
    let channel = bench.broker.open().await.unwrap();
    let consumed = bench.declare("consumed", "classic", &expires).await;
    let mut consumer = channel.consume(&consumed, 1).await.unwrap();
    let unused = bench.declare("unused", "classic", &expires).await;
    bench.until_gone(&unused).await;
    bench.fill(&consumed, [1]).await;
    assert_eq!(number(&next(&mut consumer).await), 1);
}

pub(super) async fn an_exclusive_queue_is_locked_for_others_who_may_publish_to_it(bench: &Bench<'_>) {
    let spec = QueueSpec { exclusive: true, ..bench.spec("q", "classic", &[]) };
    let owner = bench.connect().await;
    let channel = owner.open().await.unwrap();
    channel.declare_exclusive(&spec).await.unwrap();
    let mut consumer = channel.consume(&spec.name, 10).await.unwrap();

    let other = bench.broker.open().await.unwrap();
    let refusals = [
        other.declare_exclusive(&spec).await.unwrap_err(),
        bench.broker.inspect(&spec.name).await.unwrap_err(),
        bench.broker.delete(&spec.name).await.unwrap_err(),
        bench.broker.open().await.unwrap().consume(&spec.name, 1).await.unwrap_err(),
    ];
    for error in refusals {
        assert!(matches!(&error, BrokerError::Locked(name) if *name == spec.name), "{error:?}");
        assert!(!error.is_outage());
    }
    bench.fill(&spec.name, [1]).await;
    assert_eq!(number(&next(&mut consumer).await), 1);
    channel.delete(&spec.name).await.unwrap();
    owner.close().await;
}

pub(super) async fn an_exclusive_queue_goes_with_its_connection(bench: &Bench<'_>) {
    let spec = QueueSpec { exclusive: true, ..bench.spec("q", "classic", &[]) };
    let (owner, kill) = bench.connect_mortal().await;
    let channel = owner.open().await.unwrap();
    channel.declare_exclusive(&spec).await.unwrap();
    bench.fill(&spec.name, [1]).await;
    kill();
    bench.until_gone(&spec.name).await;
}

pub(super) async fn only_a_missing_queue_is_gone(bench: &Bench<'_>) {
    let pause = Duration::from_millis(10);
    let there = bench.declare("there", "classic", &[]).await;
    assert!(!absence::is_gone(&*bench.broker, &there, pause).await.unwrap());
    assert!(absence::is_gone(&*bench.broker, &bench.name("missing"), pause).await.unwrap());
}

pub(super) async fn the_server_tells_what_it_is(bench: &Bench<'_>) {
    let server = bench.broker.server().await.unwrap();
    for part in [&server.product, &server.version, &server.address] {
        assert!(!part.is_empty(), "{server:?}");
    }
    assert!(server.version.starts_with(|c: char| c.is_ascii_digit()), "{server:?}");
}

pub(super) async fn a_closed_handle_does_nothing_more(bench: &Bench<'_>) {
    let spec = bench.spec("q", "classic", &[]);
    bench.broker.declare(&spec).await.unwrap();
    bench.fill(&spec.name, [1]).await;
    let broker = bench.connect().await;
    let (channel, mut consumer) = consume(&broker, &spec.name, 1).await;
    let held = next(&mut consumer).await;
    broker.close().await;
    broker.close().await;

    within("the end of the channel", channel.ended()).await;
    assert!(!matches!(within("the end of the consumer", consumer.next()).await, Some(Ok(_))));
    held.receipt.ack().await;
    let outcome = broker.publish(&spec.name, message(2)).await;
    assert!(matches!(outcome, Err(PublishError::NotSent(BrokerError::Closed))), "{outcome:?}");
    let refusals = [
        broker.declare(&spec).await.unwrap_err(),
        broker.inspect(&spec.name).await.unwrap_err(),
        broker.delete(&spec.name).await.unwrap_err(),
        broker.open().await.unwrap_err(),
        broker.server().await.unwrap_err(),
        channel.consume(&spec.name, 1).await.unwrap_err(),
    ];
    for error in refusals {
        assert!(matches!(error, BrokerError::Closed), "{error:?}");
    }
    bench.until_ready(&spec.name, 1).await;
}
