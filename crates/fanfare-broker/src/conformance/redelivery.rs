use std::collections::BTreeSet;
use std::pin::pin;

use fanfare_protocol::header;
use futures_util::FutureExt;

use super::bench::{Bench, KINDS, consume, message, next, number, numbers, take, within};

pub(super) async fn an_acked_message_never_comes_again(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..5).await;
        let (channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
        // Not in the order of the queue: an ack is for one delivery, and not for those before it.
        for delivery in take(&mut consumer, 5).await.iter().rev().step_by(2) {
            delivery.receipt.ack().await;
        }
        channel.close().await;
        bench.until_ready(&queue, 2).await;
        let (_channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
        assert_eq!(numbers(&take(&mut consumer, 2).await), [1, 3]);
    }
}

/// As where one task works on the ack of one message among others, and waits for the next.
pub(super) async fn an_ack_that_nobody_goes_on_with_holds_up_no_other(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..20).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 20).await;
    let held = take(&mut consumer, 20).await;
    for pair in held.chunks(2) {
        let mut begun = pin!(pair[0].receipt.ack());
        let _ = begun.as_mut().now_or_never();
        within("the other ack", pair[1].receipt.ack()).await;
    }
    channel.close().await;
    bench.until(&queue, "nothing left", |state| state.messages == 0 && state.consumers == 0).await;
}

pub(super) async fn a_requeued_message_comes_again_in_its_place(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..5).await;
        let (_channel, mut consumer) = consume(&bench.broker, &queue, 1).await;
        let first = next(&mut consumer).await;
        assert!(!first.redelivered);
        first.receipt.requeue().await;
        for (at, expected) in [(0, true), (1, false), (2, false)] {
            let delivery = next(&mut consumer).await;
            assert_eq!((number(&delivery), delivery.redelivered), (at, expected), "{kind}");
            delivery.receipt.ack().await;
        }
    }
}

pub(super) async fn a_closed_channel_gives_back_what_it_held(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..5).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 3).await;
    let _held = take(&mut consumer, 2).await;
    channel.close().await;
    channel.close().await;
    within("the end of the channel", channel.ended()).await;
    assert!(channel.consume(&queue, 1).await.is_err());
    came_back(bench, &queue, 3).await;
}

pub(super) async fn a_closed_channel_gives_back_what_it_got(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..5).await;
        let channel = bench.broker.open().await.unwrap();
        for at in 0..3 {
            assert_eq!(number(&channel.get(&queue).await.unwrap().unwrap()), at);
        }
        channel.close().await;
        came_back(bench, &queue, 3).await;
    }
}

pub(super) async fn a_dropped_channel_gives_back_what_it_held(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..5).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 3).await;
    // Neither the consumer nor a receipt is a handle of the channel.
    let _held = take(&mut consumer, 3).await;
    drop(channel);
    came_back(bench, &queue, 3).await;
}

pub(super) async fn a_killed_client_gives_back_what_it_held(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..5).await;
    let (client, kill) = bench.connect_mortal().await;
    let (channel, mut consumer) = consume(&client, &queue, 3).await;
    let _held = take(&mut consumer, 3).await;
    kill();
    within("the end of the channel", channel.ended()).await;
    let end = within("the end of the consumer", consumer.next()).await;
    let error = end.expect("a lost channel is an error").unwrap_err();
    assert!(error.is_outage(), "{error:?}");
    assert!(consumer.next().await.is_none());
    came_back(bench, &queue, 3).await;
}

/// Five messages are there again, in their order; those that had been handed out are marked.
async fn came_back(bench: &Bench<'_>, queue: &str, handed_out: usize) {
    bench.until_ready(queue, 5).await;
    let (_channel, mut consumer) = consume(&bench.broker, queue, 10).await;
    let deliveries = take(&mut consumer, 5).await;
    assert_eq!(numbers(&deliveries), [0, 1, 2, 3, 4]);
    for (at, delivery) in deliveries.iter().enumerate() {
        assert_eq!(delivery.redelivered, at < handed_out, "message {at}");
    }
}

pub(super) async fn answers_on_an_ended_channel_do_nothing(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..2).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 2).await;
    let late = take(&mut consumer, 2).await;
    channel.close().await;
    // The tags of the next channel start at 1 again.
    let (next_channel, mut consumer) = consume(&bench.broker, &queue, 2).await;
    let _held = take(&mut consumer, 2).await;
    late[0].receipt.ack().await;
    late[1].receipt.requeue().await;
    next_channel.close().await;
    bench.until_ready(&queue, 2).await;
}

pub(super) async fn a_standby_takes_over_from_a_killed_single_active_consumer_in_order(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[("x-single-active-consumer", true.into())]).await;
        let (active, kill) = bench.connect_mortal().await;
        let (_active, mut consumer) = consume(&active, &queue, 100).await;
        let (_standby, mut standby) = consume(&bench.broker, &queue, 1_000).await;
        bench.fill(&queue, 0..200).await;
        let held = take(&mut consumer, 100).await;
        // The first ten are done with, on the broker's side too: its window moves on.
        for delivery in &held[..10] {
            delivery.receipt.ack().await;
        }
        take(&mut consumer, 10).await;
        kill();
        let taken_over = take(&mut standby, 190).await;
        assert_eq!(numbers(&taken_over), (10..200).collect::<Vec<_>>(), "{kind}");
        for delivery in &taken_over {
            assert_eq!(delivery.redelivered, number(delivery) < 110, "{kind}: {}", number(delivery));
        }
    }
}

pub(super) async fn a_standby_takes_over_from_a_closed_single_active_consumer_in_order(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[("x-single-active-consumer", true.into())]).await;
        let (active, mut consumer) = consume(&bench.broker, &queue, 10).await;
        let (_standby, mut standby) = consume(&bench.broker, &queue, 100).await;
        bench.fill(&queue, 0..50).await;
        take(&mut consumer, 10).await;
        active.close().await;
        assert_eq!(numbers(&take(&mut standby, 50).await), (0..50).collect::<Vec<_>>(), "{kind}");
    }
}

pub(super) async fn a_quorum_queue_counts_what_killed_clients_were_handed(bench: &Bench<'_>) {
    let queue = bench.declare("q", "quorum", &[]).await;
    // A publisher's own header does not count.
    let sent = message(1).with_header("x-other", "kept");
    bench.broker.publish(&queue, sent).await.unwrap();
    let mut seen = BTreeSet::new();
    for deaths in 0..3 {
        let (client, kill) = bench.connect_mortal().await;
        let (_channel, mut consumer) = consume(&client, &queue, 1).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message.int(header::DELIVERY_COUNT).unwrap_or(0), deaths);
        assert_eq!(delivery.redelivered, deaths > 0);
        assert_eq!(delivery.message.text("x-other"), Some("kept"));
        seen.insert(delivery.message.properties.message_id);
        kill();
    }
    assert_eq!(seen.len(), 1, "it is the same message every time");
}
