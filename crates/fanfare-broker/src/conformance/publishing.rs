use std::collections::BTreeSet;

use fanfare_protocol::queue::Argument;
use fanfare_protocol::{HeaderValue, Headers, Message, Properties, limits};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::bench::{Bench, PATIENCE, consume, message, next, number, numbers, take, within};
use crate::{BrokerError, PublishError};

pub(super) async fn a_message_arrives_as_it_was_published(bench: &Bench<'_>) {
    let table = Headers::from([("κλειδί", "τιμή".into()), ("n", 1.into())]);
    let properties = Properties {
        content_type: Some("application/json".into()),
        correlation_id: Some("cid".into()),
        reply_to: Some("fanfare.agg.cid.run".into()),
        message_id: Some("cid/0".into()),
        kind: Some("fanfare.request".into()),
        app_id: Some("source".into()),
        timestamp: Some(1_737_316_545),
        user_id: Some(bench.user().into()),
        expiration: None,
    };
    let headers = Headers::from([
        ("text", "żółw 亀 🐢".into()),
        ("least", i64::MIN.into()),
        ("most", i64::MAX.into()),
        ("yes", HeaderValue::Bool(true)),
        ("table", HeaderValue::Table(table)),
        ("list", HeaderValue::List(vec!["a".into(), 2.into()])),
    ]);
    let sent = Message { properties, headers, body: (0..=255).collect::<Vec<u8>>().into() };
    let queue = bench.declare("q", "classic", &[]).await;
    for message in [&sent, &Message::default()] {
        bench.broker.publish(&queue, message.clone()).await.unwrap();
    }
    let (_channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
    let arrived = next(&mut consumer).await;
    assert_eq!((arrived.message, arrived.redelivered), (sent, false));
    assert_eq!(next(&mut consumer).await.message, Message::default());
}

pub(super) async fn a_confirmed_message_is_in_its_queue(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    for count in 1..=20 {
        bench.fill(&queue, [count]).await;
        let state = bench.broker.inspect(&queue).await.unwrap().unwrap();
        assert_eq!(state.messages, count as u64);
    }
}

pub(super) async fn messages_keep_the_order_in_which_they_were_published(bench: &Bench<'_>) {
    for kind in super::bench::KINDS {
        let queue = bench.declare(kind, kind, &[]).await;
        bench.fill(&queue, 0..100).await;
        let (_channel, mut consumer) = consume(&bench.broker, &queue, 200).await;
        assert_eq!(numbers(&take(&mut consumer, 100).await), (0..100).collect::<Vec<_>>());
        bench.fill(&queue, 100..200).await;
        assert_eq!(numbers(&take(&mut consumer, 100).await), (100..200).collect::<Vec<_>>());
    }
}

pub(super) async fn a_message_to_a_missing_queue_comes_back(bench: &Bench<'_>) {
    let queue = bench.name("missing");
    let outcome = bench.broker.publish(&queue, message(1)).await;
    assert!(matches!(&outcome, Err(PublishError::Unroutable(name)) if *name == queue), "{outcome:?}");
}

pub(super) async fn each_of_many_publishes_gets_its_own_outcome(bench: &Bench<'_>) {
    let there = bench.declare("there", "classic", &[]).await;
    let missing = bench.name("missing");
    let publishes = (0..200).map(|number| {
        let queue = if number % 2 == 0 { &there } else { &missing };
        async move { (number, bench.broker.publish(queue, message(number)).await) }
    });
    for (number, outcome) in within("all outcomes", join_all(publishes)).await {
        match outcome {
            Ok(()) => assert!(number % 2 == 0, "message {number} was taken by no queue"),
            Err(PublishError::Unroutable(queue)) => assert!(number % 2 == 1 && queue == missing, "{number}"),
            Err(error) => panic!("message {number}: {error:?}"),
        }
    }
    let (_channel, mut consumer) = consume(&bench.broker, &there, 200).await;
    let arrived: BTreeSet<usize> = take(&mut consumer, 100).await.iter().map(number).collect();
    assert_eq!(arrived, (0..200).step_by(2).collect());
}

pub(super) async fn any_number_of_publishes_may_be_under_way(bench: &Bench<'_>) {
    const MESSAGES: usize = 5_000;
    let queue = bench.declare("q", "classic", &[]).await;
    within("all confirms", bench.fill_at_once(&queue, MESSAGES)).await;
    let state = bench.broker.inspect(&queue).await.unwrap().unwrap();
    assert_eq!(state.messages, MESSAGES as u64);
}

pub(super) async fn a_message_that_comes_too_late_is_not_sent(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    let now = Instant::now();
    let outcome = bench.broker.publish_by(&queue, message(1), Some(now)).await;
    assert!(matches!(outcome, Err(PublishError::NotSent(ref cause)) if cause.is_outage()), "{outcome:?}");
    bench.broker.publish_by(&queue, message(2), Some(now + PATIENCE)).await.unwrap();
    let (_channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
    assert_eq!(number(&next(&mut consumer).await), 2);
    assert_eq!(bench.broker.inspect(&queue).await.unwrap().unwrap().messages, 0);
}

pub(super) async fn a_message_that_is_too_large_is_not_sent(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    let bytes = limits::MESSAGE_BYTES + 1;
    let large = Message { body: vec![b' '; bytes].into(), ..Message::default() };
    let outcome = bench.broker.publish(&queue, large).await;
    let Err(PublishError::TooLarge { bytes: is, most }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((is, most), (bytes, limits::MESSAGE_BYTES));
    bench.fill(&queue, [1]).await;
    assert_eq!(bench.broker.inspect(&queue).await.unwrap().unwrap().messages, 1);
}

pub(super) async fn a_user_id_that_is_not_the_publishers_login_is_refused(bench: &Bench<'_>) {
    let queue = bench.declare("q", "classic", &[]).await;
    let exchange = bench.declare_exchange("x").await;
    bench.broker.bind(&queue, &exchange).await.unwrap();
    let signed = |number: usize, user: String| {
        let mut message = message(number);
        message.properties.user_id = Some(user.into());
        message
    };
    let another = signed(1, format!("not-{}", bench.user()));
    for outcome in [
        bench.broker.publish(&queue, another.clone()).await,
        bench.broker.publish_through(&exchange, "", another).await,
    ] {
        assert!(matches!(&outcome, Err(PublishError::NotSent(BrokerError::WrongUser(_)))), "{outcome:?}");
    }
    let checked = bench.broker.check_user_id(&format!("not-{}", bench.user())).await;
    assert!(
        matches!(&checked, Err(BrokerError::WrongUser(reason)) if reason.contains(&bench.user())),
        "{checked:?}"
    );
    bench.broker.check_user_id(&bench.user()).await.unwrap();
    bench.broker.publish(&queue, signed(2, bench.user())).await.unwrap();
    bench.fill(&queue, [3]).await;
    let (_channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
    let arrived = take(&mut consumer, 2).await;
    assert_eq!(numbers(&arrived), [2, 3]);
    let users: Vec<_> =
        arrived.iter().map(|delivery| delivery.message.properties.user_id.as_deref()).collect();
    assert_eq!(users, [Some(&*bench.user()), None]);
}

pub(super) async fn a_full_queue_refuses_messages(bench: &Bench<'_>) {
    let limits = [("x-max-length", Argument::Int(3)), ("x-overflow", "reject-publish".into())];
    let queue = bench.declare("q", "classic", &limits).await;
    bench.fill(&queue, 0..3).await;
    let outcome = bench.broker.publish(&queue, message(3)).await;
    assert!(matches!(&outcome, Err(PublishError::Refused(name)) if *name == queue), "{outcome:?}");
    let (_channel, mut consumer) = consume(&bench.broker, &queue, 10).await;
    assert_eq!(numbers(&take(&mut consumer, 3).await), [0, 1, 2]);
    bench.until_ready(&queue, 0).await;
    bench.fill(&queue, [4]).await;
    assert_eq!(number(&next(&mut consumer).await), 4);
}
