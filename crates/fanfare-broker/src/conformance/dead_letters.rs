use fanfare_protocol::queue::Argument;

use super::bench::{Bench, KINDS, consume, message, next, number};
use crate::Delivery;

pub(super) async fn what_waited_too_long_is_dead_lettered(bench: &Bench<'_>) {
    for kind in KINDS {
        let dead = bench.declare(&format!("dead-{kind}"), "classic", &[]).await;
        let mut arguments = dead_lettering_to(&dead);
        arguments.push(("x-message-ttl", Argument::Int(50)));
        let queue = bench.declare(kind, kind, &arguments).await;
        bench.fill(&queue, 0..3).await;
        let (_channel, mut consumer) = consume(&bench.broker, &dead, 10).await;
        for expected in 0..3 {
            let delivery = next(&mut consumer).await;
            assert_eq!(number(&delivery), expected);
            assert_died(&delivery, "expired", &queue);
        }
    }
}

pub(super) async fn a_message_expires_by_its_own_expiration(bench: &Bench<'_>) {
    let dead = bench.declare("dead", "classic", &[]).await;
    let queue = bench.declare("q", "classic", &dead_lettering_to(&dead)).await;
    let mut short_lived = message(1);
    short_lived.properties.expiration = Some("50".into());
    bench.broker.publish(&queue, short_lived).await.unwrap();
    bench.fill(&queue, [2]).await;
    let (_channel, mut consumer) = consume(&bench.broker, &dead, 10).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(number(&delivery), 1);
    assert_died(&delivery, "expired", &queue);
    assert_eq!(delivery.message.properties.expiration, None, "it does not expire twice");
    bench.until_ready(&queue, 1).await;
}

pub(super) async fn what_came_back_too_often_is_dead_lettered(bench: &Bench<'_>) {
    let dead = bench.declare("dead", "classic", &[]).await;
    let mut arguments = dead_lettering_to(&dead);
    arguments.push(("x-delivery-limit", Argument::Int(1)));
    let queue = bench.declare("q", "quorum", &arguments).await;
    bench.fill(&queue, [1]).await;
    for _ in 0..2 {
        let (client, kill) = bench.connect_mortal().await;
        let (_channel, mut consumer) = consume(&client, &queue, 1).await;
        assert_eq!(number(&next(&mut consumer).await), 1);
        kill();
    }
    let (_channel, mut consumer) = consume(&bench.broker, &dead, 10).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(number(&delivery), 1);
    assert_died(&delivery, "delivery_limit", &queue);
}

fn dead_lettering_to(queue: &str) -> Vec<(&'static str, Argument)> {
    vec![("x-dead-letter-exchange", "".into()), ("x-dead-letter-routing-key", queue.into())]
}

fn assert_died(delivery: &Delivery, reason: &str, queue: &str) {
    let message = &delivery.message;
    assert_eq!(message.text("x-first-death-reason"), Some(reason));
    assert_eq!(message.text("x-first-death-queue"), Some(queue));
    assert!(message.properties.message_id.is_some(), "the rest of it is kept");
}
