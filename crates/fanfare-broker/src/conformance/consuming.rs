use std::collections::BTreeSet;

use futures_util::FutureExt;

use super::bench::{Bench, KINDS, consume, next, number, numbers, take, within};
use crate::BrokerError;

pub(super) async fn prefetch_bounds_what_is_unacked(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..10).await;
        let (_channel, mut consumer) = consume(&bench.broker, &queue, 3).await;
        let mut held = take(&mut consumer, 3).await;
        for left in (2..7).rev() {
            bench.until_ready(&queue, left + 1).await;
            assert!(consumer.next().now_or_never().is_none(), "{} are held", held.len());
            held.remove(0).receipt.ack().await;
            held.push(next(&mut consumer).await);
        }
        assert_eq!(numbers(&held), [5, 6, 7]);
    }
}

pub(super) async fn prefetch_counts_for_each_consumer(bench: &Bench<'_>) {
    let queues = [bench.declare("one", "classic", &[]).await, bench.declare("two", "classic", &[]).await];
    for queue in &queues {
        bench.fill(queue, 0..5).await;
    }
    let channel = bench.broker.open().await.unwrap();
    let mut first = channel.consume(&queues[0], 1).await.unwrap();
    let mut second = channel.consume(&queues[1], 3).await.unwrap();
    let _held = (take(&mut first, 1).await, take(&mut second, 3).await);
    bench.until_ready(&queues[0], 4).await;
    bench.until_ready(&queues[1], 2).await;
}

pub(super) async fn prefetch_zero_is_refused(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, [1]).await;
    let channel = bench.broker.open().await.unwrap();
    let error = channel.consume(&queue, 0).await.unwrap_err();
    assert!(matches!(error, BrokerError::Refused(_)), "{error:?}");
    assert_eq!(number(&next(&mut channel.consume(&queue, 1).await.unwrap()).await), 1);
}

pub(super) async fn consuming_a_missing_queue_ends_the_channel(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, [1]).await;
    let (channel, mut bystander) = consume(&bench.broker, &queue, 1).await;
    let _held = next(&mut bystander).await;
    let missing = bench.name("missing");
    let error = channel.consume(&missing, 1).await.unwrap_err();
    assert!(matches!(&error, BrokerError::NoQueue(name) if *name == missing), "{error:?}");
    within("the end of the channel", channel.ended()).await;
    let end = within("the end of the bystander", bystander.next()).await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    assert!(bystander.next().await.is_none());
    assert!(channel.consume(&queue, 1).await.is_err());
    bench.until_ready(&queue, 1).await;
}

pub(super) async fn a_cancelled_consumer_ends_and_what_it_handed_out_stays_answerable(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..5).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 3).await;
    let mut held = vec![next(&mut consumer).await];
    bench.until_ready(&queue, 2).await;
    channel.cancel(consumer.tag()).await.unwrap();
    while let Some(on_its_way) = within("the end of the consumer", consumer.next()).await {
        held.push(on_its_way.unwrap());
    }
    for delivery in &held {
        delivery.receipt.ack().await;
    }
    bench.until(&queue, "no consumer", |state| state.consumers == 0).await;
    // The channel is still there, and gives back what it was not asked about.
    let mut again = channel.consume(&queue, 1).await.unwrap();
    assert_eq!(number(&next(&mut again).await), 3);
    channel.close().await;
    bench.until_ready(&queue, 5 - held.len() as u64).await;
}

pub(super) async fn a_dropped_consumer_lives_until_its_channel_ends(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[("x-single-active-consumer", true.into())]).await;
        bench.fill(&queue, [1]).await;
        let (channel, mut consumer) = consume(&bench.broker, &queue, 2).await;
        let _held = next(&mut consumer).await;
        drop(consumer);
        let (_standby_channel, mut standby) = consume(&bench.broker, &queue, 3).await;
        bench.fill(&queue, [2, 3]).await;
        bench.until_ready(&queue, 1).await;
        assert!(standby.next().now_or_never().is_none(), "the dropped one is the active one");
        channel.close().await;
        for expected in 1..=3 {
            assert_eq!(number(&next(&mut standby).await), expected);
        }
    }
}

pub(super) async fn consumers_of_a_queue_share_its_messages(bench: &Bench<'_>) {
    const MESSAGES: usize = 100;
    let queue = bench.declare("q", "classic", &[]).await;
    let other = bench.connect().await;
    let (_first, mut first) = consume(&bench.broker, &queue, 1).await;
    let (_second, mut second) = consume(&other, &queue, 1).await;
    bench.fill(&queue, 0..MESSAGES).await;
    let mut shares = [BTreeSet::new(), BTreeSet::new()];
    // Each is handed some, however fast the other one is.
    let waiting = [next(&mut first).await, next(&mut second).await];
    for (share, delivery) in shares.iter_mut().zip(waiting) {
        share.insert(number(&delivery));
        delivery.receipt.ack().await;
    }
    within("all messages", async {
        while shares[0].len() + shares[1].len() < MESSAGES {
            let (share, delivery) = tokio::select! {
                delivery = first.next() => (0, delivery.unwrap().unwrap()),
                delivery = second.next() => (1, delivery.unwrap().unwrap()),
            };
            assert!(shares[share].insert(number(&delivery)));
            delivery.receipt.ack().await;
        }
    })
    .await;
    assert!(shares[0].is_disjoint(&shares[1]));
    other.close().await;
}

pub(super) async fn a_channel_carries_many_consumers(bench: &Bench<'_>) {
    const CONSUMERS: usize = 50;
    let channel = bench.broker.open().await.unwrap();
    let mut consumers = Vec::new();
    for place in 0..CONSUMERS {
        let queue = bench.declare(&place.to_string(), "classic", &[]).await;
        consumers.push(channel.consume(&queue, 1).await.unwrap());
        bench.fill(&queue, [place, place]).await;
    }
    let tags: BTreeSet<&str> = consumers.iter().map(|consumer| consumer.tag()).collect();
    assert_eq!(tags.len(), CONSUMERS);
    for (place, consumer) in consumers.iter_mut().enumerate() {
        for _ in 0..2 {
            let delivery = next(consumer).await;
            assert_eq!(number(&delivery), place);
            delivery.receipt.ack().await;
        }
    }
}

pub(super) async fn next_loses_nothing_when_it_is_dropped(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    let (_channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
    let mut arrived = Vec::new();
    let all = async {
        while arrived.len() < 100 {
            tokio::select! {
                biased;
                delivery = consumer.next() => {
                    let delivery = delivery.unwrap().unwrap();
                    arrived.push(number(&delivery));
                    delivery.receipt.ack().await;
                }
                () = tokio::task::yield_now() => {}
            }
        }
    };
    within("all messages", futures_util::future::join(bench.fill(&queue, 0..100), all)).await;
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());
}

pub(super) async fn deleting_on_the_consuming_channel_ends_the_stream_and_not_the_channel(bench: &Bench<'_>) {
    for kind in KINDS {
        let kept = bench.declare(&format!("kept-{kind}"), kind, &[]).await;
        let (channel, mut bystander) = consume(&bench.broker, &kept, 1).await;
        for round in 0..10 {
            let single = [("x-single-active-consumer", true.into())];
            let queue = bench.declare(&format!("{kind}-{round}"), kind, &single).await;
            bench.fill(&queue, 0..5).await;
            let mut consumer = channel.consume(&queue, 3).await.unwrap();
            let held = take(&mut consumer, 3).await;
            channel.delete(&queue).await.unwrap();
            let end = within("the end of the consumer", consumer.next()).await;
            assert!(end.is_none(), "{end:?}");
            drop(consumer);
            for delivery in held {
                delivery.receipt.ack().await;
            }
            assert_eq!(bench.broker.inspect(&queue).await.unwrap(), None);
        }
        bench.fill(&kept, [1]).await;
        next(&mut bystander).await.receipt.ack().await;
        bench.fill(&kept, [2]).await;
        assert_eq!(number(&next(&mut bystander).await), 2);
    }
}

pub(super) async fn deleting_elsewhere_ends_the_stream_and_not_the_channel(bench: &Bench<'_>) {
    for kind in KINDS {
        let kept = bench.declare(&format!("kept-{kind}"), kind, &[]).await;
        let doomed = bench.declare(kind, kind, &[]).await;
        bench.fill(&doomed, 0..5).await;
        let (channel, mut consumer) = consume(&bench.broker, &doomed, 3).await;
        let held = take(&mut consumer, 3).await;
        bench.broker.delete(&doomed).await.unwrap();
        let end = within("the end of the consumer", consumer.next()).await;
        assert!(end.is_none(), "{end:?}");
        held[0].receipt.ack().await;
        held[1].receipt.requeue().await;
        bench.fill(&kept, [1]).await;
        let mut on_the_same_channel = channel.consume(&kept, 1).await.unwrap();
        assert_eq!(number(&next(&mut on_the_same_channel).await), 1);
    }
}

pub(super) async fn a_channel_that_lives_answers(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    bench.fill(&queue, 0..5).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 3).await;
    let mut held = take(&mut consumer, 2).await;
    for _ in 0..10 {
        within("an answer", channel.ping()).await.unwrap();
    }
    // Nothing has changed, for this consumer and for others on the channel.
    held.extend(take(&mut consumer, 1).await);
    bench.until_ready(&queue, 2).await;
    assert!(consumer.next().now_or_never().is_none());
    let mut another = channel.consume(&queue, 1).await.unwrap();
    held.extend(take(&mut another, 1).await);
    assert_eq!(numbers(&held), [0, 1, 2, 3]);
    bench.until_ready(&queue, 1).await;
}

pub(super) async fn a_channel_that_has_ended_does_not_answer(bench: &Bench<'_>) {
    let closed = bench.broker.open().await.unwrap();
    closed.close().await;
    assert!(closed.ping().await.is_err());
    let refused = bench.broker.open().await.unwrap();
    refused.consume(&bench.name("missing"), 1).await.unwrap_err();
    assert!(refused.ping().await.is_err());
    let (client, kill) = bench.connect_mortal().await;
    let lost = client.open().await.unwrap();
    within("an answer", lost.ping()).await.unwrap();
    kill();
    assert!(within("the end of the channel", lost.ping()).await.unwrap_err().is_outage());
}

pub(super) async fn only_the_first_single_active_consumer_is_served(bench: &Bench<'_>) {
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[("x-single-active-consumer", true.into())]).await;
        let standby = bench.connect().await;
        let (_first, mut first) = consume(&bench.broker, &queue, 5).await;
        let (_second, mut second) = consume(&standby, &queue, 5).await;
        bench.fill(&queue, 0..10).await;
        let held = take(&mut first, 5).await;
        assert_eq!(numbers(&held), [0, 1, 2, 3, 4]);
        // The window of the first is full, and still the second gets nothing.
        bench.until_ready(&queue, 5).await;
        assert!(second.next().now_or_never().is_none());
        for delivery in held {
            delivery.receipt.ack().await;
        }
        assert_eq!(numbers(&take(&mut first, 5).await), [5, 6, 7, 8, 9]);
        standby.close().await;
    }
}

pub(super) async fn a_single_active_consumer_may_hold_five_thousand(bench: &Bench<'_>) {
    const MESSAGES: usize = 5_000;
    let queue = bench.declare("q", "classic", &[("x-single-active-consumer", true.into())]).await;
    within("all confirms", bench.fill_at_once(&queue, MESSAGES)).await;
    let (channel, mut consumer) = consume(&bench.broker, &queue, 10_000).await;
    let held = within("all deliveries", take(&mut consumer, MESSAGES)).await;
    let arrived: BTreeSet<usize> = held.iter().map(number).collect();
    assert_eq!(arrived.len(), MESSAGES);
    for delivery in &held[..MESSAGES - 1] {
        delivery.receipt.ack().await;
    }
    channel.close().await;
    bench.until_ready(&queue, 1).await;
}

pub(super) async fn getting_takes_one_message_after_the_other_and_no_prefetch_counts_them(bench: &Bench<'_>) {
    const MESSAGES: usize = 50;
    for kind in KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..MESSAGES).await;
        let channel = bench.broker.open().await.unwrap();
        let mut taken = Vec::new();
        for at in 0..MESSAGES {
            let delivery = channel.get(&queue).await.unwrap().expect("there is one");
            assert_eq!((number(&delivery), delivery.redelivered), (at, false), "{kind}");
            taken.push(delivery);
        }
        assert!(channel.get(&queue).await.unwrap().is_none(), "all are out");
        // The first is done with, and the others stay with the channel until it ends.
        taken[0].receipt.ack().await;
        channel.close().await;
        bench.until_ready(&queue, MESSAGES as u64 - 1).await;
    }
}

pub(super) async fn getting_from_a_missing_queue_ends_the_channel(bench: &Bench<'_>) {
    let channel = bench.broker.open().await.unwrap();
    let missing = bench.name("missing");
    assert!(matches!(channel.get(&missing).await, Err(BrokerError::NoQueue(queue)) if queue == missing));
    within("the end of the channel", channel.ended()).await;
}
