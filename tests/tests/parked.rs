//! Parked messages are looked at without changing anything, put back once, and dropped only where that is asked for.

use std::sync::Arc;

use fanfare_broker::{Broker, System};
use fanfare_operator::{Config, Operator, ParkedQuery, ReplayError};
use fanfare_protocol::{Message, RunId, ServiceName, WireTime, header};
use fanfare_tests::{Death, Mortal, PATIENCE, Stack, Step, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, Retry, service};
use serde_json::Value;
use uuid::Uuid;

on_both_brokers!(
    to_look_loses_nothing_and_keeps_the_order,
    what_is_parked_is_told_with_why_since_when_and_where_from,
    a_callback_that_failed_is_run_again_when_it_is_put_back,
    a_manifest_that_was_parked_goes_on_when_it_is_put_back,
    the_order_of_those_that_stay_is_kept,
    what_has_no_queue_to_go_back_to_stays_parked_and_says_why,
    an_origin_that_is_no_queue_of_this_system_is_not_believed,
    a_replay_that_dies_leaves_each_message_in_a_queue,
    two_who_look_at_a_time_hinder_nobody,
    who_looks_second_sees_all_of_it_in_its_order,
    who_else_consumes_what_is_parked_is_told_of,
    what_the_broker_forgot_is_settled_again,
    a_drop_that_the_broker_forgot_is_one_also_without_a_name,
    what_is_parked_again_meanwhile_stays,
    what_is_parked_of_a_run_is_seen_behind_a_hundred_others_of_its_cid,
);

in_shards!(a_manifest_that_was_parked_goes_on_when_it_is_put_back);

/// Numbered by its body.
fn numbered(number: usize) -> Message {
    let mut message = Message { body: number.to_string().into(), ..Message::default() };
    message.properties.message_id = Some(format!("c/{number}").into());
    message.properties.correlation_id = Some("c".into());
    message.properties.kind = Some(header::TYPE_CALLBACK.into());
    message
}

/// What is parked of a message from a queue: another copy each time.
fn copy_of(from: &str, number: usize) -> Message {
    let at = WireTime::from_timestamp(1_000).expect("a time");
    numbered(number).parked(from, &format!("reason {number}"), at, Uuid::new_v4())
}

async fn park(stack: &Stack, from: &str, number: usize) -> Message {
    stack.bystander().declare(&stack.names().parked()).await.expect("it is declared");
    stack.publish(&stack.names().parked().name, copy_of(from, number)).await;
    numbered(number)
}

fn mortal_operator(stack: &Stack) -> (Arc<Mortal>, Operator) {
    let mortal = Mortal::new(stack.connect());
    let config = Config { names: stack.names().clone(), ..Config::default() };
    let operator = Operator::new(Arc::clone(&mortal) as Arc<dyn Broker>, Arc::new(System), config);
    (mortal, operator)
}

fn service_queue(stack: &Stack, name: &str) -> String {
    stack.names().service_queue(&ServiceName::new(name).expect("a proper name"))
}

fn numbers(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

async fn left(stack: &Stack) -> Vec<String> {
    numbers(&stack.record_parked().await.rest().await)
}

async fn to_look_loses_nothing_and_keeps_the_order(stack: Stack) {
    for number in 0..40 {
        park(&stack, "elsewhere", number).await;
    }
    let operator = stack.operator(PATIENCE);
    for _ in 0..3 {
        let seen = operator.parked(&ParkedQuery::default(), 5).await.expect("it can be looked at");
        assert_eq!((seen.matching, seen.unseen, seen.messages.len()), (40, 0, 5));
        let ids: Vec<_> = seen.messages.iter().map(|parked| parked.message_id.as_deref()).collect();
        assert_eq!(ids, [Some("c/0"), Some("c/1"), Some("c/2"), Some("c/3"), Some("c/4")]);
        let (_, one) =
            operator.parked_message(&seen.messages[3].id).await.expect("it can be looked at").expect("there");
        assert_eq!(one.body, "3");
    }
    let expected: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(left(&stack).await, expected);
}

async fn what_is_parked_is_told_with_why_since_when_and_where_from(stack: Stack) {
    let operator = stack.operator(PATIENCE);
    let none =
        operator.parked(&ParkedQuery::default(), 5).await.expect("nothing is parked, nor is there a queue");
    assert_eq!((none.matching, none.messages.len()), (0, 0));
    let failing = service("my.failing", |_: Context, _: Value| async { Err::<(), _>("no luck".into()) })
        .retry(Retry::exponential(1));
    let _worker = stack.worker([failing]).await;
    let sent = stack.publisher().send("my.source", "my.failing", 1).await.expect("it is sent");
    stack.queue_has(&stack.names().parked().name, "a message", |queue| queue.messages == 1).await;
    let seen = operator.parked(&ParkedQuery::default(), 5).await.expect("it can be looked at");
    let [parked] = &seen.messages[..] else { panic!("{seen:?}") };
    assert_eq!(
        (&parked.reason[..], &parked.cid, parked.run),
        ("my.failing failed: no luck", &Some(sent.cid), Some(sent.run))
    );
    assert_eq!(parked.from, Some(service_queue(&stack, "my.failing")));
    assert_eq!((parked.service.as_ref().map(ServiceName::as_str), parked.bytes), (Some("my.failing"), 1));
    assert!(parked.parked_at.is_some());
}

async fn a_callback_that_failed_is_run_again_when_it_is_put_back(stack: Stack) {
    let failing = service("my.done", |_: Context, _: Value| async { Err::<(), _>("no luck".into()) })
        .retry(Retry::exponential(1));
    let worker = stack.worker([services::echo(), failing]).await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 7).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    stack.queue_has(&stack.names().parked().name, "a message", |queue| queue.messages == 1).await;
    worker.stop().await;
    let mut mended = stack.record("my.done").await;
    let query = ParkedQuery { service: ServiceName::new("my.done").ok(), ..ParkedQuery::default() };
    let replayed = stack.operator(PATIENCE).replay(&query).await.expect("it can be put back");
    assert!(matches!(&replayed[..], [one] if one.outcome.is_ok()), "{replayed:?}");
    let again = mended.next().await;
    assert_eq!(again.properties.message_id, Some(format!("{}/on-final/my.done", accepted.cid).into()));
    assert_eq!(again.run(), Ok(accepted.run));
    assert!(
        again.headers.iter().all(|(name, _)| !name.starts_with("fanfare-parked") && name != header::REASON)
    );
    let payload: fanfare_protocol::FinalPayload =
        serde_json::from_slice(&again.body).expect("a final payload");
    assert_eq!(payload.get::<u32>("test.echo").expect("it has responded"), 7);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(mended.rest().await, []);
    assert_eq!(left(&stack).await, Vec::<String>::new());
}

async fn a_manifest_that_was_parked_goes_on_when_it_is_put_back(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo()]).await;
    let config = || fanfare_coordinator::Config {
        accepted_users: Some([].into()),
        user_id: Some(stack.user().to_owned()),
        ..stack.coordinator_config()
    };
    let coordinator = stack.coordinator_with(config());
    // It does not say whose it is.
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 7).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    stack.queue_has(&stack.names().parked().name, "a message", |queue| queue.messages == 1).await;
    let query = ParkedQuery { cid: Some(accepted.cid.clone()), ..ParkedQuery::default() };
    let replayed = stack.operator_of(stack.user()).replay(&query).await.expect("it can be put back");
    assert!(matches!(&replayed[..], [one] if one.outcome.is_ok()), "{replayed:?}");
    assert_eq!(done.next_final().await.failures().count(), 0);
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn the_order_of_those_that_stay_is_kept(stack: Stack) {
    let mut there = stack.record("there").await;
    let queue = service_queue(&stack, "there");
    for number in 0..12 {
        park(&stack, &queue, number).await;
    }
    let operator = stack.operator(PATIENCE);
    let all = operator.parked(&ParkedQuery::default(), 100).await.expect("it can be looked at").messages;
    let chosen = |places: &[usize]| ParkedQuery {
        ids: places.iter().map(|&place| all[place].id.clone()).collect(),
        ..ParkedQuery::default()
    };
    let replayed = operator.replay(&chosen(&[3, 7])).await.expect("they can be put back");
    assert_eq!(replayed.iter().filter(|one| one.outcome.is_ok()).count(), 2);
    assert_eq!(numbers(&there.rest().await), ["3", "7"]);
    let purged = operator.purge(&chosen(&[0, 11])).await.expect("they can be dropped");
    assert_eq!(purged.len(), 2);
    let by_reason = ParkedQuery { reason: Some("reason 5".to_owned()), ..ParkedQuery::default() };
    assert_eq!(operator.purge(&by_reason).await.expect("it can be dropped").len(), 1);
    assert_eq!(operator.purge(&by_reason).await.expect("there is none").len(), 0);
    assert_eq!(left(&stack).await, ["1", "2", "4", "6", "8", "9", "10"]);
}

async fn what_has_no_queue_to_go_back_to_stays_parked_and_says_why(stack: Stack) {
    park(&stack, &service_queue(&stack, "gone"), 1).await;
    let replayed = stack.operator(PATIENCE).replay(&ParkedQuery::default()).await.expect("it can be tried");
    let [one] = &replayed[..] else { panic!("{replayed:?}") };
    let error = one.outcome.as_ref().expect_err("there is no queue").to_string();
    assert!(error.contains("no queue") && error.contains(".service.gone"), "{error}");
    assert_eq!(left(&stack).await, ["1"]);
}

async fn an_origin_that_is_no_queue_of_this_system_is_not_believed(stack: Stack) {
    let elsewhere = format!("{}-elsewhere", stack.names().prefix());
    let foreign = stack.names().aggregation(
        &"other".parse().expect("a CID"),
        "0123456789abcdef0123456789abcdef".parse().expect("a run"),
    );
    for (number, from) in [&elsewhere, &stack.names().dead_queue(), &foreign.name].into_iter().enumerate() {
        park(&stack, from, number).await;
    }
    let replayed = stack.operator(PATIENCE).replay(&ParkedQuery::default()).await.expect("it can be tried");
    for one in &replayed {
        assert!(matches!(one.outcome, Err(ReplayError::Origin(Some(_)))), "{one:?}");
    }
    assert_eq!((replayed.len(), left(&stack).await.len()), (3, 3));
}

async fn a_replay_that_dies_leaves_each_message_in_a_queue(stack: Stack) {
    let mut there = stack.record("there").await;
    let queue = service_queue(&stack, "there");
    // It publishes and acks each of three, in turn.
    for (step, nth, takes_effect) in [
        (Step::Publish, 2, false),
        (Step::Publish, 2, true),
        (Step::Settle, 1, false),
        (Step::Settle, 1, true),
    ] {
        for number in 0..3 {
            park(&stack, &queue, number).await;
        }
        let (mortal, operator) = mortal_operator(&stack);
        mortal.dies_at(Death { nth, of: Some(step), takes_effect });
        let replay = tokio::spawn(async move { operator.replay(&ParkedQuery::default()).await.map(drop) });
        mortal.dead().await;
        mortal.close().await;
        replay.abort();
        let _ = replay.await;
        let (back, mut left) = (numbers(&there.rest().await), left(&stack).await);
        left.sort_unstable();
        let twice = left.iter().filter(|number| back.contains(number)).count();
        let all = ["0", "1", "2"].iter().all(|&number| back.iter().chain(&left).any(|of| of == number));
        assert!(all && twice <= 1, "{step:?} {nth} {takes_effect}: back {back:?}, left {left:?}");
    }
}

async fn two_who_look_at_a_time_hinder_nobody(stack: Stack) {
    let mut there = stack.record("there").await;
    let queue = service_queue(&stack, "there");
    for number in 0..20 {
        park(&stack, &queue, number).await;
    }
    let (one, other) = (stack.operator(PATIENCE), stack.operator(PATIENCE));
    let all = ParkedQuery::default();
    let (seen, replayed) = tokio::join!(one.parked(&all, 100), other.replay(&all));
    seen.expect("it can be looked at");
    replayed.expect("it can be put back");
    other.replay(&all).await.expect("it can be put back");
    let mut back = numbers(&there.rest().await);
    back.sort_by_key(|number| number.parse::<usize>().expect("a number"));
    assert_eq!(back, (0..20).map(|number| number.to_string()).collect::<Vec<_>>(), "each once");
    assert_eq!(left(&stack).await, Vec::<String>::new());
}

async fn who_looks_second_sees_all_of_it_in_its_order(stack: Stack) {
    for number in 0..200 {
        park(&stack, "elsewhere", number).await;
    }
    let operators = [stack.operator(PATIENCE), stack.operator(PATIENCE)];
    let same = operators[0].clone();
    let all = ParkedQuery::default();
    let (one, other, third) = tokio::join!(
        operators[0].parked(&all, 1_000),
        operators[1].parked(&all, 1_000),
        same.parked(&all, 1_000)
    );
    for seen in [one, other, third] {
        let seen = seen.expect("it can be looked at");
        assert_eq!((seen.matching, seen.unseen, seen.others), (200, 0, 0));
        let ids: Vec<_> = seen.messages.iter().map(|parked| parked.message_id.clone()).collect();
        assert_eq!(ids, (0..200).map(|number| Some(format!("c/{number}"))).collect::<Vec<_>>());
    }
}

async fn who_else_consumes_what_is_parked_is_told_of(stack: Stack) {
    for number in 0..3 {
        park(&stack, "elsewhere", number).await;
    }
    let foreign = stack.connect().open().await.expect("it can be opened");
    let mut holds = foreign.consume(&stack.names().parked().name, 2).await.expect("it can be consumed");
    let held = [holds.next().await, holds.next().await];
    let operator = stack.operator(PATIENCE);
    let seen = operator.parked(&ParkedQuery::default(), 10).await.expect("it can be looked at");
    assert_eq!((seen.matching, seen.others), (1, 1));
    foreign.close().await;
    drop((holds, held));
    let seen = operator.parked(&ParkedQuery::default(), 10).await.expect("it can be looked at");
    assert_eq!((seen.matching, seen.unseen, seen.others), (3, 0, 0));
}

async fn a_drop_that_the_broker_forgot_is_one_also_without_a_name(stack: Stack) {
    let parked = stack.names().parked();
    stack.bystander().declare(&parked).await.expect("it is declared");
    for number in 0..2 {
        let mut copy = copy_of("elsewhere", number);
        copy.headers.remove(header::PARKED_ID);
        stack.publish(&parked.name, copy).await;
    }
    let (mortal, operator) = mortal_operator(&stack);
    mortal.at_an_ack(true, async {});
    let one = ParkedQuery { reason: Some("reason 0".to_owned()), ..ParkedQuery::default() };
    assert_eq!(operator.purge(&one).await.expect("it can be dropped").len(), 1);
    assert_eq!(left(&stack).await, ["1"]);
}

async fn what_the_broker_forgot_is_settled_again(stack: Stack) {
    let mut there = stack.record("there").await;
    let queue = service_queue(&stack, "there");
    for number in 0..3 {
        park(&stack, &queue, number).await;
    }
    let (mortal, operator) = mortal_operator(&stack);
    let one = |words: &str| ParkedQuery { reason: Some(words.to_owned()), ..ParkedQuery::default() };
    mortal.at_an_ack(true, async {});
    assert_eq!(operator.purge(&one("reason 0")).await.expect("it can be dropped").len(), 1);
    mortal.at_an_ack(true, async {});
    assert_eq!(operator.replay(&one("reason 1")).await.expect("it can be put back").len(), 1);
    assert_eq!(numbers(&there.rest().await), ["1"]);
    assert_eq!(left(&stack).await, ["2"]);
}

/// As where a service fails on what was put back, within the second in which it was parked first. Without a name of its own that is an
/// exact copy.
async fn what_is_parked_again_meanwhile_stays(stack: Stack) {
    let queue = service_queue(&stack, "there");
    for (forgotten, named) in [(false, true), (true, true), (false, false)] {
        let mut there = stack.record("there").await;
        let mut copies = [copy_of(&queue, 1), copy_of(&queue, 1)];
        if !named {
            copies.iter_mut().for_each(|copy| drop(copy.headers.remove(header::PARKED_ID)));
        }
        let [parked, again] = copies;
        stack.bystander().declare(&stack.names().parked()).await.expect("it is declared");
        stack.publish(&stack.names().parked().name, parked).await;
        let (mortal, operator) = mortal_operator(&stack);
        let (broker, parked) = (stack.connect(), stack.names().parked().name);
        mortal.at_an_ack(forgotten, async move {
            broker.publish(&parked, again).await.expect("it is parked again");
        });
        let put_back = operator.replay(&ParkedQuery::default()).await.expect("it can be put back");
        assert_eq!(put_back.len(), 1, "forgotten: {forgotten}, named: {named}");
        assert_eq!(numbers(&there.rest().await), ["1"], "forgotten: {forgotten}, named: {named}");
        assert_eq!(left(&stack).await, ["1"], "forgotten: {forgotten}, named: {named}");
    }
}

async fn what_is_parked_of_a_run_is_seen_behind_a_hundred_others_of_its_cid(stack: Stack) {
    let _coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let fanin = stack.names().fanin_queue();
    for number in 0..100 {
        park(&stack, &fanin, number).await;
    }
    let run: RunId = Uuid::new_v4().into();
    let last = copy_of(&fanin, 100).with_header(header::RUN, run);
    stack.publish(&stack.names().parked().name, last).await;
    let cid = "c".parse().expect("a CID");
    let explained = stack.operator(PATIENCE).explain(&cid, Some(run), 10).await.expect("it is told of");
    assert!(matches!(&explained.parked[..], [one] if one.run == Some(run)), "{:?}", explained.parked);
}
