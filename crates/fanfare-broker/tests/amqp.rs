//! What holds for RabbitMQ in particular. What holds for every broker is in the conformance suite, which runs here too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Broker, BrokerError, Consumer, ConsumerChannel, PublishError};
use fanfare_protocol::queue::Argument;
use futures_util::future::join_all;
use futures_util::poll;
use support::log::Log;
use support::proxy::Proxy;
use support::{broker, config, consume, declared, eventually, id, message, next, queue, split, url, within};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Nothing listens there.
const NOBODY: &str = "amqp://guest:guest@127.0.0.1:1";

#[tokio::test]
async fn server_tells_product_and_version_without_a_password() {
    let broker = broker(config(&url()));
    let server = broker.server().await.unwrap();
    assert_eq!(server.product, "RabbitMQ");
    assert!(server.version.starts_with(|c: char| c.is_ascii_digit()), "{server:?}");
    assert!(!server.address.contains("guest@"), "{server:?}");
    assert_eq!(broker.server().await.unwrap(), server);
    broker.close().await;
}

#[tokio::test]
async fn list_falls_over_to_the_address_that_answers() {
    let broker = broker(config(&format!("{NOBODY},{}", url())));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message(1)).await.unwrap();
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn list_falls_over_when_the_address_in_use_goes_away() {
    let (first, second) = (Proxy::start(&url()).await, Proxy::start(&url()).await);
    let broker = broker(config(&format!("{},{}", first.url, second.url)));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message(1)).await.unwrap();
    first.cut();
    eventually("falling over", async || broker.publish(&queue, message(2)).await).await;
    second.cut();
    first.restore();
    eventually("falling back", async || broker.publish(&queue, message(3)).await).await;
    eventually("deleting", async || broker.delete(&queue).await).await;
    broker.close().await;
}

#[tokio::test]
async fn outage_is_told_within_seconds_and_as_not_sent() {
    let broker = broker(config(NOBODY));
    let started = Instant::now();
    for _ in 0..20 {
        let error = broker.publish("queue", message(1)).await.unwrap_err();
        assert!(matches!(error, PublishError::NotSent(BrokerError::Unreachable(_))), "{error:?}");
        assert!(!format!("{error:?}").contains("guest:guest"), "{error:?}");
    }
    assert!(broker.open().await.unwrap_err().is_outage());
    assert!(broker.inspect("queue").await.unwrap_err().is_outage());
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn lost_connection_ends_the_channel_and_the_next_one_goes_on() {
    let proxy = Proxy::start(&url()).await;
    let broker = broker(config(&proxy.url));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message("held")).await.unwrap();
    let (channel, mut consumer) = consume(&*broker, &queue).await;
    let held = next(&mut consumer).await;

    proxy.cut();
    within("the end of the channel", channel.ended()).await;
    let end = within("the end of the consumer", consumer.next()).await;
    assert!(matches!(end, Some(Err(BrokerError::Unreachable(_)))), "{end:?}");
    assert!(within("the end of the consumer", consumer.next()).await.is_none());
    // Its channel is gone, and so is its tag.
    held.receipt.ack().await;

    proxy.restore();
    let channel = eventually("reconnecting", async || broker.open().await).await;
    let mut consumer = eventually("consuming", async || channel.consume(&queue, 10).await).await;
    let again = next(&mut consumer).await;
    assert_eq!((id(&again), again.redelivered), ("held", true));
    again.receipt.ack().await;
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn acks_given_together_leave_what_is_held_between_them() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    for n in 0..100 {
        broker.publish(&queue, message(n)).await.unwrap();
    }
    let (channel, mut consumer) = consume(&*broker, &queue).await;
    let mut deliveries = Vec::new();
    for _ in 0..100 {
        deliveries.push(next(&mut consumer).await);
    }
    let acked = deliveries.iter().filter(|delivery| id(delivery) != "50");
    join_all(acked.map(|delivery| delivery.receipt.ack())).await;
    // As if whoever acks went away before the ack is written: it was asked for.
    let mut last = pin!(deliveries[50].receipt.ack());
    let _ = poll!(&mut last);
    broker.publish(&queue, message("held")).await.unwrap();
    let held = next(&mut consumer).await;
    channel.close().await;
    drop(held);
    let (_channel, mut consumer) = consume(&*broker, &queue).await;
    let again = next(&mut consumer).await;
    assert_eq!((id(&again), again.redelivered), ("held", true), "all others were acked");
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn channel_that_nothing_is_owed_on_serves_the_next_and_any_other_is_closed() {
    let broker = broker(config(&url()));
    let held = declared(&*broker, "classic").await;
    let mut numbers = Vec::new();
    for round in 0..3 {
        let queue = declared(&*broker, "classic").await;
        broker.publish(&queue, message(round)).await.unwrap();
        let (channel, mut consumer) = consume(&*broker, &queue).await;
        numbers.push(format!("{channel:?}"));
        next(&mut consumer).await.receipt.ack().await;
        channel.delete(&queue).await.unwrap();
        assert!(within("the end of the consumer", consumer.next()).await.is_none());
        channel.close().await;
        let error = channel.consume(&held, 1).await.unwrap_err();
        assert!(error.is_outage(), "who has closed it may not use it: {error:?}");
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");

    broker.publish(&held, message("held")).await.unwrap();
    let (channel, mut consumer) = consume(&*broker, &held).await;
    assert_eq!(format!("{channel:?}"), numbers[0]);
    let delivery = next(&mut consumer).await;
    channel.close().await;
    let (channel, mut consumer) = consume(&*broker, &held).await;
    assert!(next(&mut consumer).await.redelivered, "it was given back");
    // What was handed out before has been answered by the close.
    delivery.receipt.ack().await;
    channel.delete(&held).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn broker_that_falls_silent_is_given_up() {
    let proxy = Proxy::start(&url()).await;
    let broker = broker(config(&format!("{}?heartbeat=1", proxy.url)));
    let channel = broker.open().await.unwrap();
    proxy.silence();
    let started = Instant::now();
    within("the end of the channel", channel.ended()).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn message_whose_confirm_is_lost_is_unknown() {
    let proxy = Proxy::start(&url()).await;
    let broker = broker(config(&proxy.url));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message(1)).await.unwrap();
    proxy.silence();
    let publishing = tokio::spawn({
        let (broker, queue) = (broker.clone(), queue.clone());
        async move { broker.publish(&queue, message(2)).await }
    });
    // It has arrived, and nobody here has been told.
    let direct = support::broker(config(&url()));
    eventually("the message's arrival", async || {
        match direct.inspect(&queue).await.unwrap().unwrap().messages {
            2 => Ok(()),
            messages => Err(messages),
        }
    })
    .await;
    proxy.cut();
    let error = within("the answer", publishing).await.unwrap().unwrap_err();
    assert!(matches!(error, PublishError::Unknown(BrokerError::Unreachable(_))), "{error:?}");
    direct.delete(&queue).await.unwrap();
    join_all([broker.close(), direct.close()]).await;
}

#[tokio::test]
async fn message_whose_confirm_is_late_is_waited_for_and_not_sent_twice() {
    let proxy = Proxy::start(&url()).await;
    let mut config = config(&proxy.url);
    config.send_timeout = Duration::from_millis(500);
    let broker = broker(config);
    let queue = declared(&*broker, "classic").await;
    // The first has to wait for its channel, too.
    eventually("sending", async || broker.publish(&queue, message(1)).await).await;
    proxy.silence();
    let mut sent = pin!(broker.publish(&queue, message(2)));
    assert!(poll!(&mut sent).is_pending());
    // It looks like the one before, waits for that, and is not sent in time.
    let twin = broker.publish(&queue, message(2)).await;
    assert!(matches!(&twin, Err(PublishError::NotSent(BrokerError::Unavailable { .. }))), "{twin:?}");
    assert!(
        poll!(&mut sent).is_pending(),
        "only the end of its channel leaves open what became of a message"
    );
    proxy.restore();
    within("the late confirm", sent).await.unwrap();
    assert_eq!(broker.inspect(&queue).await.unwrap().unwrap().messages, 2);
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn channel_that_was_refused_a_message_makes_way_and_what_it_has_sent_is_still_confirmed() {
    let proxy = Proxy::start(&url()).await;
    let broker = broker(config(&proxy.url));
    let there = declared(&*broker, "classic").await;
    let mut full = queue("classic");
    full.arguments.extend([("x-max-length", Argument::Int(1)), ("x-overflow", "reject-publish".into())]);
    broker.declare(&full).await.unwrap();
    broker.publish(&full.name, message(1)).await.unwrap();
    let refused = broker.publish(&full.name, message(2)).await;
    assert!(matches!(refused, Err(PublishError::Refused(_))), "{refused:?}");

    proxy.silence_present();
    let (mut sent, mut twin) =
        (pin!(broker.publish(&there, message(3))), pin!(broker.publish(&there, message(3))));
    assert!(poll!(&mut sent).is_pending() && poll!(&mut twin).is_pending());
    let direct = support::broker(config(&url()));
    let messages = async || direct.inspect(&there).await.unwrap().unwrap().messages;
    eventually("its arrival", async || match messages().await {
        1 => Ok(()),
        messages => Err(messages),
    })
    .await;
    // The channel is as old as it has to be.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    within("the confirm on another channel", broker.publish(&there, message(4))).await.unwrap();
    within("the confirm of what looks like one under way", twin).await.unwrap();
    assert!(poll!(&mut sent).is_pending(), "nobody was told of it yet");
    proxy.restore();
    within("the confirm on the first channel", sent).await.unwrap();
    assert_eq!(messages().await, 3, "nothing was sent twice");
    for queue in [&there, &full.name] {
        direct.delete(queue).await.unwrap();
    }
    join_all([broker.close(), direct.close()]).await;
}

#[tokio::test]
async fn queues_are_named_where_a_message_cannot_be_read() {
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(log.subscriber());
    let proxy = Proxy::start(&url()).await;
    let broker = broker(config(&proxy.url));
    let queue = declared(&*broker, "classic").await;
    let (_channel, mut consumer) = consume(&*broker, &queue).await;
    proxy.garble();
    let direct = support::broker(config(&url()));
    direct.publish(&queue, message(1)).await.unwrap();
    assert!(within("the end of the consumer", consumer.next()).await.unwrap().is_err());
    eventually("a word about it", async || {
        let said = log.text();
        let told =
            said.lines().find(|line| line.contains("a message that cannot be read")).map(str::to_owned);
        told.filter(|told| told.contains(&queue)).ok_or(said)
    })
    .await;
    direct.delete(&queue).await.unwrap();
    join_all([broker.close(), direct.close()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_under_load_gets_its_own_outcome() {
    let broker = broker(config(&url()));
    let there = [declared(&*broker, "classic").await, declared(&*broker, "quorum").await];
    let missing = queue("classic").name;
    let outcomes = join_all((0..6_000).map(|number| {
        let (broker, there, missing) = (&broker, &there, &missing);
        async move {
            let queue = match number % 5 {
                0 | 1 => &there[0],
                2 => &there[1],
                _ => missing,
            };
            (number % 5 < 3, broker.publish(queue, message(number)).await)
        }
    }))
    .await;
    for (taken, outcome) in outcomes {
        match outcome {
            Ok(()) => assert!(taken, "a message to a missing queue was called taken"),
            Err(PublishError::Unroutable(queue)) => assert!(!taken && queue == missing),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(broker.inspect(&there[0]).await.unwrap().unwrap().messages, 2_400);
    for queue in there {
        broker.delete(&queue).await.unwrap();
    }
    broker.close().await;
}

#[tokio::test]
async fn messages_that_look_the_same_are_all_sent() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    let outcomes = join_all((0..50).map(|_| broker.publish(&queue, message("same")))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(broker.inspect(&queue).await.unwrap().unwrap().messages, 50);
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn message_that_looks_like_one_that_nobody_waits_for_is_sent() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message(0)).await.unwrap();
    let mut publishes: Vec<_> = (0..3).map(|_| Box::pin(broker.publish(&queue, message(1)))).collect();
    for publish in &mut publishes {
        assert!(poll!(publish).is_pending());
    }
    // The task that publishes sends the first, and keeps the others until that is confirmed.
    tokio::task::yield_now().await;
    drop(publishes.remove(1));
    for outcome in within("both outcomes", join_all(publishes)).await {
        outcome.unwrap();
    }
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn message_of_the_largest_size_passes_and_comes_back_and_a_larger_one_is_not_sent() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    let most = fanfare_protocol::limits::MESSAGE_BYTES;
    let mut large = message("large");
    large.body = vec![b'x'; most].into();
    broker.publish(&queue, large.clone()).await.unwrap();
    let missing = support::queue("classic").name;
    let error = broker.publish(&missing, large.clone()).await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable(_)), "{error:?}");
    let (_channel, mut consumer) = consume(&*broker, &queue).await;
    assert_eq!(next(&mut consumer).await.message.body.len(), most);
    large.body = vec![b'x'; most + 1].into();
    let error = broker.publish(&queue, large).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { bytes, .. } if bytes == most + 1), "{error:?}");
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn message_that_amqp_cannot_hold_is_refused_and_hurts_no_other() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    let mut foreign = message("foreign");
    foreign.properties.app_id = Some("x".repeat(256).into());
    let error = broker.publish(&queue, foreign).await.unwrap_err();
    assert!(matches!(error, PublishError::NotSent(BrokerError::Refused(_))), "{error:?}");
    broker.publish(&queue, message("other")).await.unwrap();
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_says_of_a_mistake_is_told_however_its_channel_ends() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    let mut mistaken = message(0);
    mistaken.properties.user_id = Some("nobody".into());
    // Each of these makes the publisher look at its channel, also between lapin's marking that as ended and its telling why.
    let mut crowd = JoinSet::new();
    for number in 1..=100 {
        let (broker, queue) = (broker.clone(), queue.clone());
        crowd.spawn(async move {
            loop {
                // It may be on the channel that the mistake ends.
                let _ = broker.publish(&queue, message(number)).await;
            }
        });
    }
    for round in 0..200 {
        let outcome = broker.publish(&queue, mistaken.clone()).await;
        let refused = matches!(&outcome, Err(PublishError::NotSent(BrokerError::WrongUser(_))));
        assert!(refused, "round {round}: {outcome:?}");
    }
    crowd.shutdown().await;
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn queues_are_told_missing_however_often_one_looks() {
    // More than a connection has channels: each look at a missing queue costs one.
    const LOOKS: usize = 2_200;
    let broker = broker(config(&url()));
    let there = declared(&*broker, "classic").await;
    let missing = queue("classic").name;
    for round in 0..LOOKS / 20 {
        let looks = join_all((0..20).map(|_| broker.inspect(&missing))).await;
        assert!(looks.iter().all(|look| matches!(look, Ok(None))), "round {round}: {looks:?}");
        assert!(broker.inspect(&there).await.unwrap().is_some(), "round {round}");
    }
    broker.delete(&there).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn look_at_a_missing_queue_that_is_given_up_leaves_the_connection_alone() {
    let broker = broker(config(&url()));
    let (there, missing) = (declared(&*broker, "classic").await, queue("classic").name);
    for microseconds in (0..2_000).step_by(5) {
        let given_up = Duration::from_micros(microseconds);
        let _ = tokio::time::timeout(given_up, broker.inspect(&missing)).await;
        assert!(broker.inspect(&there).await.unwrap().is_some());
    }
    broker.delete(&there).await.unwrap();
    broker.close().await;
}

/// Nothing that happened on the connection has ended the channel of a bystander, whose queue is deleted then.
async fn is_left_alone(
    broker: &dyn Broker,
    queue: &str,
    (bystander, mut consumer): (Arc<dyn ConsumerChannel>, Consumer),
) {
    broker.publish(queue, message("still there")).await.unwrap();
    next(&mut consumer).await.receipt.ack().await;
    let ended = tokio::time::timeout(Duration::from_millis(200), bystander.ended()).await;
    assert!(ended.is_err(), "the connection was closed");
    broker.delete(queue).await.unwrap();
}

#[tokio::test]
async fn channel_that_is_dropped_while_what_it_asks_for_fails_leaves_the_connection_alone() {
    let broker = broker(config(&url()));
    let (kept, missing) = (declared(&*broker, "classic").await, queue("classic").name);
    let (bystander, consumer) = consume(&*broker, &kept).await;
    for microseconds in (0..2_000).step_by(5) {
        let given_up = Duration::from_micros(microseconds);
        let channel = broker.open().await.unwrap();
        let _ = tokio::time::timeout(given_up, channel.consume(&missing, 1)).await;
        drop(channel);
    }
    is_left_alone(&*broker, &kept, (bystander, consumer)).await;
    broker.close().await;
}

#[tokio::test]
async fn consumer_dropped_after_its_queue_was_deleted_leaves_the_connection_alone() {
    let broker = broker(config(&url()));
    let kept = declared(&*broker, "classic").await;
    let (bystander, consumer) = consume(&*broker, &kept).await;
    for kind in ["classic", "quorum"].repeat(10) {
        let queue = declared(&*broker, kind).await;
        let channel = broker.open().await.unwrap();
        let doomed = channel.consume(&queue, 10).await.unwrap();
        // The request to delete is on its way when the consumer is dropped.
        let (deleted, ()) = tokio::join!(channel.delete(&queue), async { drop(doomed) });
        deleted.unwrap();
        channel.close().await;
    }
    is_left_alone(&*broker, &kept, (bystander, consumer)).await;
    broker.close().await;
}

#[tokio::test]
async fn a_thousand_channels_share_a_connection_and_more_get_another() {
    let proxy = Proxy::start(&url()).await;
    let broker = broker(config(&proxy.url));
    let queue = declared(&*broker, "classic").await;
    let mut held = Vec::new();
    // The first connection is the one that declares.
    for (channels, connections) in [(1_000, 2), (1_001, 3)] {
        while held.len() < channels {
            let channel = broker.open().await.unwrap();
            let consumer = channel.consume(&queue, 1).await.unwrap();
            held.push((channel, consumer));
        }
        assert_eq!(broker.inspect(&queue).await.unwrap().unwrap().consumers, channels as u64);
        assert_eq!(proxy.connections(), connections, "for {channels} channels");
    }
    held.clear();
    eventually("closing the channels", async || {
        match broker.inspect(&queue).await.unwrap().unwrap().consumers {
            0 => Ok(()),
            consumers => Err(consumers),
        }
    })
    .await;
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn channels_that_last_do_not_pin_connections_that_others_have_used_up() {
    let url = url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let broker = broker(config(&format!("{url}{separator}channel_max=10")));
    let mut lasting = Vec::new();
    for round in 0..40 {
        lasting.push(broker.open().await.unwrap_or_else(|error| panic!("round {round}: {error}")));
        for _ in 0..10 {
            let passing = broker.open().await.unwrap_or_else(|error| panic!("round {round}: {error}"));
            passing.close().await;
        }
    }
    drop(lasting);
    broker.close().await;
}

#[tokio::test]
async fn closing_confirms_what_is_under_way_and_fails_what_follows() {
    let broker = broker(config(&url()));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message(0)).await.unwrap();
    let (channel, mut consumer) = consume(&*broker, &queue).await;
    next(&mut consumer).await;
    within("closing", broker.close()).await;
    within("closing twice", broker.close()).await;
    within("the end of the channel", channel.ended()).await;
    assert!(matches!(within("the end", consumer.next()).await, Some(Err(_)) | None));
    let error = broker.publish(&queue, message(1)).await.unwrap_err();
    assert!(matches!(error, PublishError::NotSent(BrokerError::Closed)), "{error:?}");
    assert!(matches!(broker.inspect(&queue).await, Err(BrokerError::Closed)));
    assert!(matches!(broker.open().await, Err(BrokerError::Closed)));
    assert!(matches!(channel.consume(&queue, 1).await, Err(BrokerError::Closed)));
    let other = support::broker(config(&url()));
    assert_eq!(other.inspect(&queue).await.unwrap().unwrap().messages, 1);
    other.delete(&queue).await.unwrap();
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_that_finds_a_place_while_the_handle_closes_is_told_to_be_not_sent() {
    for number in 0..10_000 {
        let broker = broker(config(NOBODY));
        broker.close().await;
        // This starts the task that publishes, which ends at once: now and then between the finding of a place and its use.
        let outcome = within("the outcome", broker.publish("q", message(number))).await;
        assert!(matches!(outcome, Err(PublishError::NotSent(BrokerError::Closed))), "{number}: {outcome:?}");
    }
}

#[tokio::test]
async fn wrong_password_is_no_outage() {
    let url = url();
    let (scheme, _, host, path) = split(&url);
    let broker = broker(config(&format!("{scheme}://nobody:wrong@{host}{path}")));
    let error = broker.inspect("queue").await.unwrap_err();
    assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");
    assert!(!error.to_string().contains("wrong"), "{error}");
}
