use fanfare_protocol::queue::Argument;
use fanfare_protocol::{ExchangeSpec, HeaderValue, QueueSpec};
use futures_util::future::join_all;

use super::bench::{Bench, consume, message, next, number, numbers, take, within};
use crate::{BrokerError, PublishError};

pub(super) async fn every_queue_bound_to_an_exchange_takes_what_is_published_to_it(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    let queues = [bench.declare("one", "classic", &[]).await, bench.declare("two", "quorum", &[]).await];
    for queue in &queues {
        bench.broker.bind(queue, &exchange).await.unwrap();
        bench.broker.bind(queue, &exchange).await.unwrap();
    }
    let unbound = bench.declare("unbound", "classic", &[]).await;
    for number in 0..5 {
        bench.broker.publish_through(&exchange, &unbound, message(number)).await.unwrap();
    }
    for queue in &queues {
        let (_channel, mut consumer) = consume(&bench.broker, queue, 10).await;
        assert_eq!(numbers(&take(&mut consumer, 5).await), [0, 1, 2, 3, 4]);
        bench.until_ready(queue, 0).await;
    }
    bench.until_ready(&unbound, 0).await;
}

pub(super) async fn declaring_an_exchange_again_keeps_its_bindings(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    let queue = bench.declare("q", "classic", &[]).await;
    bench.broker.bind(&queue, &exchange).await.unwrap();
    let again = ExchangeSpec { name: exchange.clone() };
    bench.broker.declare_exchange(&again).await.unwrap();
    bench.connect().await.declare_exchange(&again).await.unwrap();
    bench.broker.publish_through(&exchange, &queue, message(1)).await.unwrap();
    bench.until_ready(&queue, 1).await;
}

pub(super) async fn a_message_to_an_exchange_without_bindings_comes_back(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    // The name of a queue that is there, but not bound.
    let queue = bench.declare("q", "classic", &[]).await;
    let outcome = bench.broker.publish_through(&exchange, &queue, message(1)).await;
    assert!(matches!(&outcome, Err(PublishError::Unbound(name)) if *name == exchange), "{outcome:?}");
    bench.broker.bind(&queue, &exchange).await.unwrap();
    bench.broker.publish_through(&exchange, &queue, message(2)).await.unwrap();
    bench.broker.delete(&queue).await.unwrap();
    let outcome = bench.broker.publish_through(&exchange, &queue, message(3)).await;
    assert!(matches!(&outcome, Err(PublishError::Unbound(name)) if *name == exchange), "{outcome:?}");
}

pub(super) async fn a_missing_exchange_is_told_and_hurts_no_other_message(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    let queue = bench.declare("q", "classic", &[]).await;
    bench.broker.bind(&queue, &exchange).await.unwrap();
    let missing = bench.name("missing");
    let publishes = (0..150).map(|number| {
        let (exchange, missing, queue) = (&exchange, &missing, &queue);
        async move {
            match number % 3 {
                0 => bench.broker.publish(queue, message(number)).await.unwrap(),
                1 => bench.broker.publish_through(exchange, "nowhere", message(number)).await.unwrap(),
                _ => {
                    let outcome = bench.broker.publish_through(missing, queue, message(number)).await;
                    let Err(PublishError::NoExchange(name)) = &outcome else { panic!("{outcome:?}") };
                    assert_eq!(name, missing);
                }
            }
        }
    });
    within("all outcomes", join_all(publishes)).await;
    bench.until_ready(&queue, 100).await;
}

pub(super) async fn a_deleted_exchange_is_missing_and_hurts_no_message_to_a_queue(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    let queue = bench.declare("q", "classic", &[]).await;
    bench.broker.bind(&queue, &exchange).await.unwrap();
    bench.broker.publish_through(&exchange, "", message(0)).await.unwrap();
    // Another client deletes it, and this one has no way to know.
    let other = bench.connect().await;
    other.delete_exchange(&exchange).await.unwrap();
    other.delete_exchange(&exchange).await.unwrap();
    let to_queue = async { join_all((1..50).map(|n| bench.broker.publish(&queue, message(n)))).await };
    let to_exchange = bench.broker.publish_through(&exchange, "", message(50));
    let (to_queue, to_exchange) = within("both", futures_util::future::join(to_queue, to_exchange)).await;
    to_queue.into_iter().for_each(Result::unwrap);
    let outcome = match to_exchange {
        Err(PublishError::Unknown(_)) => bench.broker.publish_through(&exchange, "", message(50)).await,
        outcome => outcome,
    };
    assert!(matches!(&outcome, Err(PublishError::NoExchange(name)) if *name == exchange), "{outcome:?}");
    bench.until_ready(&queue, 50).await;
    bench.broker.declare_exchange(&ExchangeSpec { name: exchange.clone() }).await.unwrap();
    let outcome = bench.broker.publish_through(&exchange, "", message(51)).await;
    assert!(matches!(outcome, Err(PublishError::Unbound(_))), "its bindings went with it: {outcome:?}");
}

pub(super) async fn binding_tells_what_is_missing(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    let queue = bench.declare("q", "classic", &[]).await;
    let missing = bench.name("missing");
    let no_exchange = bench.broker.bind(&queue, &missing).await;
    assert!(
        matches!(&no_exchange, Err(BrokerError::NoExchange(name)) if *name == missing),
        "{no_exchange:?}"
    );
    let no_queue = bench.broker.bind(&missing, &exchange).await;
    assert!(matches!(&no_queue, Err(BrokerError::NoQueue(name)) if *name == missing), "{no_queue:?}");
}

pub(super) async fn an_exclusive_queue_is_bound_on_its_channel_and_by_nobody_else(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("x").await;
    let owner = bench.connect().await;
    let channel = owner.open().await.unwrap();
    let spec = QueueSpec { name: bench.name("q"), exclusive: true, arguments: classic() };
    channel.declare_exclusive(&spec).await.unwrap();
    let denied = bench.broker.bind(&spec.name, &exchange).await;
    assert!(matches!(denied, Err(BrokerError::Locked(_))), "{denied:?}");
    channel.bind(&spec.name, &exchange).await.unwrap();
    let mut consumer = channel.consume(&spec.name, 10).await.unwrap();
    bench.broker.publish_through(&exchange, "", message(1)).await.unwrap();
    assert_eq!(number(&next(&mut consumer).await), 1);
    owner.close().await;
    // The queue went with its connection, a moment later.
    within("the end of the binding", async {
        loop {
            match bench.broker.publish_through(&exchange, "", message(2)).await {
                // One that was routed to the queue just before that is refused.
                Ok(()) | Err(PublishError::Refused(_)) => tokio::task::yield_now().await,
                Err(PublishError::Unbound(_)) => return,
                Err(error) => panic!("{error:?}"),
            }
        }
    })
    .await;
}

/// A queue that delays: its messages expire, and go on to the queue that their routing key names.
pub(super) async fn what_expires_behind_an_exchange_goes_to_the_queue_of_its_routing_key(bench: &Bench<'_>) {
    let exchange = bench.declare_exchange("delay").await;
    let arguments = [
        ("x-message-ttl", Argument::Int(50)),
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
    ];
    let delay = bench.declare("delay", "quorum", &arguments).await;
    bench.broker.bind(&delay, &exchange).await.unwrap();
    let queues = [bench.declare("one", "quorum", &[]).await, bench.declare("two", "classic", &[]).await];
    for round in 0..2 {
        for (at, queue) in queues.iter().enumerate() {
            let number = round * 2 + at;
            bench.broker.publish_through(&exchange, queue, message(number)).await.unwrap();
            let (_channel, mut consumer) = consume(&bench.broker, queue, 1).await;
            let delivery = next(&mut consumer).await;
            assert_eq!(super::bench::number(&delivery), number);
            assert!(!delivery.redelivered, "it comes for the first time");
            assert_eq!(delivery.message.text("x-first-death-reason"), Some("expired"));
            assert_eq!(delivery.message.text("x-first-death-queue"), Some(delay.as_str()));
            assert_eq!(delivery.message.text("x-first-death-exchange"), Some(exchange.as_str()));
            assert!(matches!(delivery.message.headers.get("x-death"), Some(HeaderValue::List(_))));
            delivery.receipt.ack().await;
        }
    }
    bench.until_ready(&delay, 0).await;
}

fn classic() -> std::collections::BTreeMap<&'static str, Argument> {
    [("x-queue-type", "classic".into())].into()
}
