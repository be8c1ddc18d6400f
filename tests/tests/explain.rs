//! What an operator is told of a fan-out that does not end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanfare_broker::System;
use fanfare_operator::{
    Config as OperatorConfig, Explanation, Operator, ServiceQueue, Shard, Told, Whereabouts,
};
use fanfare_protocol::{Cid, EndedBy, FanOutState, Message, QueueNames, RunId, WireTime, header};
use fanfare_publisher::{Accepted, Fanout, Publisher, Target};
use fanfare_tests::{PATIENCE, Stack, eventually, in_shards, on_both_brokers, services};
use fanfare_worker::{Context, Registration, Retry, service};
use serde_json::Value;
use uuid::Uuid;

on_both_brokers!(
    each_missing_target_is_told_of_with_where_it_is,
    a_target_that_waits_for_another_attempt_is_told_of_with_its_exception,
    missing_targets_beyond_the_limit_are_counted,
    a_fan_out_that_has_ended_is_told_of_with_its_failures,
    a_fan_out_that_ends_is_told_of_all_the_while,
    a_fan_out_that_waits_for_a_coordinator_is_told_from_one_that_is_not_known,
    a_coordinator_that_does_not_answer_may_hold_what_the_others_do_not_know,
    a_queue_that_is_gone_and_a_message_that_is_parked_are_told_of,
    what_is_not_worth_putting_back_is_to_be_purged,
    a_target_that_nobody_shows_is_told_of_with_where_it_may_be,
    only_the_run_that_is_meant_is_told_of,
);

in_shards!(
    each_missing_target_is_told_of_with_where_it_is,
    a_target_that_waits_for_another_attempt_is_told_of_with_its_exception,
    missing_targets_beyond_the_limit_are_counted,
    a_fan_out_that_has_ended_is_told_of_with_its_failures,
    a_fan_out_that_ends_is_told_of_all_the_while,
    a_coordinator_that_does_not_answer_may_hold_what_the_others_do_not_know,
    a_queue_that_is_gone_and_a_message_that_is_parked_are_told_of,
    what_is_not_worth_putting_back_is_to_be_purged,
    a_target_that_nobody_shows_is_told_of_with_where_it_may_be,
    only_the_run_that_is_meant_is_told_of,
    a_fan_out_that_waits_in_its_shard_is_told_from_one_that_is_not_known,
);

/// Long enough for those who answer, and short where nobody does.
const SHORT: Duration = Duration::from_secs(2);

/// Runs until it is told to end.
fn holding() -> Registration {
    let holding = service("my.holding", |context: Context, _: Value| async move {
        context.cancellation().cancelled().await;
        Ok(())
    });
    holding.concurrency(1).prefetch(1)
}

async fn invoke(fanout: Fanout) -> Accepted {
    fanout.on_final("my.done").invoke().await.expect("accepted")
}

/// Waits until what is told is as wanted.
async fn explained(
    operator: &Operator,
    cid: &Cid,
    run: Option<RunId>,
    wanted: impl Fn(&Explanation) -> bool,
) -> Explanation {
    let latest = Mutex::new(None);
    eventually("what is told is as wanted", || async {
        let explanation = operator.explain(cid, run, 10).await.ok();
        let is_wanted = explanation.as_ref().is_some_and(&wanted);
        *latest.lock().expect("nobody panics") = explanation;
        is_wanted
    })
    .await;
    latest.into_inner().expect("nobody panics").expect("something is told")
}

fn one(explanation: &Explanation) -> &Told {
    let [fan_out] = &explanation.fan_outs[..] else { panic!("{explanation:?}") };
    fan_out
}

fn at<'a>(fan_out: &'a Told, key: &str) -> &'a Whereabouts {
    let mut missing = fan_out.missing.iter();
    &missing.find(|target| target.target.key.as_str() == key).expect("it is missing").whereabouts
}

#[track_caller]
fn advises(explanation: &Explanation, stack: &Stack, words: &[&str]) {
    let advice = explanation.advice(stack.names()).join("\n");
    for words in words {
        assert!(advice.contains(words), "{words:?} is not in: {advice}");
    }
}

async fn each_missing_target_is_told_of_with_where_it_is(stack: Stack) {
    let _done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), holding()]).await;
    stack.exchange_is_heard(&stack.names().workers()).await;
    stack.declare_service("nobody").await;
    let _coordinators = [stack.coordinator(), stack.coordinator()];
    let keyed = |key: &str| Target::new("my.holding", ()).key(key);
    let publisher = stack.publisher();
    let fanout = publisher.fanout("my.source").target("test.echo", 1).target("nobody", 1);
    let accepted = invoke(fanout.add(keyed("runs"))).await;
    let waits = invoke(publisher.fanout("my.source").add(keyed("waits"))).await;

    let operator = stack.operator(SHORT);
    let explanation = explained(&operator, &accepted.cid, None, |explanation| {
        explanation.fan_outs.iter().any(|fan_out| {
            fan_out.status.done == 1
                && fan_out.missing.iter().any(|it| matches!(it.whereabouts, Whereabouts::Running { .. }))
        })
    })
    .await;
    let fan_out = one(&explanation);
    assert_eq!((fan_out.status.run, fan_out.status.targets, fan_out.missing.len()), (accepted.run, 3, 2));
    let Whereabouts::Running { since_utc, attempt: 1, .. } = at(fan_out, "runs") else {
        panic!("{fan_out:?}")
    };
    assert!(*since_utc >= fan_out.status.req_ts_utc);
    assert_eq!(at(fan_out, "nobody"), &Whereabouts::Queued);
    let nobody =
        format!("no worker consumes `{}.service.nobody`, where 1 message waits", stack.names().prefix());
    advises(&explanation, &stack, &[&nobody, "1 target of my.holding runs"]);

    // The worker holds one at a time.
    let explanation = explained(&operator, &waits.cid, Some(waits.run), |it| it.matching == 1).await;
    assert_eq!(at(one(&explanation), "waits"), &Whereabouts::Queued);
    advises(&explanation, &stack, &["1 message waits in", "for 1 consumer "]);
    for accepted in [accepted, waits] {
        publisher.cancel(&accepted).await.expect("it is cancelled");
    }
}

async fn a_target_that_waits_for_another_attempt_is_told_of_with_its_exception(stack: Stack) {
    stack.note_retries();
    let _done = stack.record("my.done").await;
    let moody = service("moody", |_: Context, _: Value| async { Err::<(), _>("not today".into()) });
    let retry = Retry::exponential(3).first_delay(Duration::from_secs(200));
    let _worker = stack.worker([moody.retry(retry)]).await;
    stack.exchange_is_heard(&stack.names().workers()).await;
    let _coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let accepted = invoke(publisher.fanout("my.source").target("moody", 1)).await;
    let explanation = explained(&stack.operator(SHORT), &accepted.cid, None, |explanation| {
        let missing = explanation.fan_outs.iter().flat_map(|fan_out| &fan_out.missing);
        missing.clone().any(|it| matches!(it.whereabouts, Whereabouts::Retrying { .. }))
    })
    .await;
    let fan_out = one(&explanation);
    let Whereabouts::Retrying { until_utc, attempt: 1, exception } = at(fan_out, "moody") else {
        panic!("{fan_out:?}")
    };
    assert_eq!(exception, "not today");
    assert!(until_utc.timestamp() > fan_out.status.req_ts_utc.timestamp() + 100);
    advises(&explanation, &stack, &["1 target of moody has failed, and is run again after a pause"]);
    publisher.cancel(&accepted).await.expect("it is cancelled");
}

async fn missing_targets_beyond_the_limit_are_counted(stack: Stack) {
    let _done = stack.record("my.done").await;
    stack.declare_service("nobody").await;
    let _coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let keyed = |n: usize| Target::new("nobody", 1).key(n.to_string());
    let accepted = invoke((0..25).map(keyed).fold(publisher.fanout("my.source"), Fanout::add)).await;
    let operator = stack.operator(PATIENCE);
    let explanation =
        explained(&operator, &accepted.cid, None, |explanation| explanation.matching == 1).await;
    let fan_out = one(&explanation);
    assert_eq!((fan_out.missing.len(), fan_out.status.targets, fan_out.status.done), (10, 25, 0));
    publisher.cancel(&accepted).await.expect("it is cancelled");
}

async fn a_fan_out_that_has_ended_is_told_of_with_its_failures(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    let _coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("test.echo", 1).target("test.fail", "why");
    let accepted = invoke(fanout).await;
    done.next_final().await;
    let explanation = explained(&stack.operator(SHORT), &accepted.cid, None, |explanation| {
        explanation.fan_outs.iter().any(|it| matches!(it.status.state, FanOutState::Ended { .. }))
    })
    .await;
    let fan_out = one(&explanation);
    let [failed] = &fan_out.failures[..] else { panic!("{fan_out:?}") };
    assert_eq!(
        (failed.key.as_str(), failed.service.as_str(), &failed.exception[..]),
        ("test.fail", "test.fail", "why")
    );
    assert_eq!((fan_out.status.done, fan_out.status.failed, fan_out.missing.len()), (2, 1, 0));
    let responded = |place: usize| (fan_out.responded[place].key.as_str(), fan_out.responded[place].ok);
    assert_eq!((responded(0), responded(1)), (("test.echo", true), ("test.fail", false)));
    assert!(fan_out.responded.iter().all(|target| target.at_utc >= fan_out.status.req_ts_utc));
    assert_eq!(explanation.advice(stack.names()), Vec::<String>::new());
}

async fn a_fan_out_that_ends_is_told_of_all_the_while(stack: Stack) {
    let _done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let _coordinator = stack.coordinator();
    let operator = stack.operator(PATIENCE);
    for n in 0..10 {
        let accepted = invoke(stack.publisher().fanout("my.source").target("my.target", n)).await;
        explained(&operator, &accepted.cid, None, |explanation| !explanation.fan_outs.is_empty()).await;
        let request = target.next().await;
        let asked = async {
            loop {
                let told = operator.follow(&accepted.cid, None, 10).await.expect("it is told");
                if matches!(one(&told).status.state, FanOutState::Ended { .. }) {
                    break;
                }
            }
        };
        tokio::join!(asked, fanfare_tests::answer(&stack, &request, "an answer"));
    }
}

async fn a_fan_out_that_waits_for_a_coordinator_is_told_from_one_that_is_not_known(stack: Stack) {
    let _done = stack.record("my.done").await;
    stack.declare_service("nobody").await;
    let config = fanfare_coordinator::Config { prefetch: 1, most_channels: 1, ..stack.coordinator_config() };
    let _coordinator = stack.coordinator_with(config);
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let operator = stack.operator(PATIENCE);
    let unknown: Cid = "unknown".parse().expect("a CID");
    let none = operator.explain(&unknown, None, 1).await.expect("it is told");
    assert_eq!((none.matching, none.manifests_waiting), (0, Some(0)));
    advises(&none, &stack, &["no coordinator knows unknown: it has ended longer ago"]);

    let publisher = stack.publisher();
    let open = invoke(publisher.fanout("my.source").target("nobody", 1)).await;
    let queue = stack.names().aggregation(&open.cid, open.run).name;
    stack.queue_has(&queue, "a consumer", |state| state.consumers == 1).await;
    let waits = invoke(publisher.fanout("my.source").target("nobody", 1)).await;
    let explanation = operator.explain(&waits.cid, None, 1).await.expect("it is told");
    assert_eq!((explanation.matching, explanation.manifests_waiting), (0, Some(1)));
    advises(&explanation, &stack, &["until a coordinator has room"]);
    for accepted in [open, waits] {
        explained(&operator, &accepted.cid, None, |explanation| explanation.matching == 1).await;
        publisher.cancel(&accepted).await.expect("it is cancelled");
    }
}

async fn a_coordinator_that_does_not_answer_may_hold_what_the_others_do_not_know(stack: Stack) {
    let _coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    // To the broker, whoever consumes the dead letters is a coordinator.
    let _deaf = stack.record_queue(&stack.names().dead_queue()).await;
    stack.queue_has(&stack.names().dead_queue(), "two consumers", |dead| dead.consumers == 2).await;
    let unknown: Cid = "unknown".parse().expect("a CID");
    let operator = stack.operator(SHORT);
    let none = explained(&operator, &unknown, None, |told| told.coordinators.answered > 0).await;
    assert!(none.matching == 0 && !none.coordinators.are_all(), "{none:?}");
    let expected = [
        "1 of 2 coordinators did not answer in time",
        "restart one that stays silent",
        "no coordinator that has told knows unknown: one that has not may hold it",
    ];
    advises(&none, &stack, &expected);
}

async fn a_fan_out_that_waits_in_its_shard_is_told_from_one_that_is_not_known(stack: Stack) {
    let mut done = stack.record("my.done").await;
    stack.declare_service("nobody").await;
    let publisher = stack.publisher();
    let waits = invoke(publisher.fanout("my.source").target("nobody", 1)).await;
    // A coordinator that was not told of shards.
    let coordinator =
        stack.coordinator_with(fanfare_coordinator::Config { shards: 0, ..stack.coordinator_config() });
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let name = stack.names().shard(QueueNames::shard_of(&waits.cid, 2)).name;
    stack.queue_has(&name, "the manifest", |state| state.messages == 1).await;
    let waits_there = format!("or it is among what waits in `{name}` (1 message), which nobody consumes");
    let operator = stack.operator(PATIENCE);
    let explanation = operator.explain(&waits.cid, None, 1).await.expect("it is told");
    let queue = Some(ServiceQueue { there: true, waiting: 1, consumers: 0 });
    assert_eq!((explanation.matching, explanation.manifests_waiting), (0, Some(0)));
    assert_eq!(explanation.shard, Some(Shard { name, queue }));
    advises(&explanation, &stack, &[&waits_there]);

    // One that does not know how many shards there are says so.
    let config = OperatorConfig { names: stack.names().clone(), patience: PATIENCE, ..Default::default() };
    let unaware = Operator::new(stack.connect(), Arc::new(System), config);
    let explanation = unaware.explain(&waits.cid, None, 1).await.expect("it is told");
    assert_eq!(explanation.shard, None);
    advises(&explanation, &stack, &["whether it waits in a shard is not known here"]);

    coordinator.stop().await;
    let coordinator = stack.coordinator();
    explained(&operator, &waits.cid, None, |explanation| explanation.matching == 1).await;
    publisher.cancel(&waits).await.expect("it is cancelled");
    done.next_final().await;
    stack.ended([&waits], coordinator).await;
}

async fn a_queue_that_is_gone_and_a_message_that_is_parked_are_told_of(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let nobody = stack.declare_service("nobody").await;
    let _coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let accepted = invoke(publisher.fanout("my.source").target("nobody", 1).on_target("nobody")).await;
    stack.bystander().delete(&nobody).await.expect("it is deleted");
    let operator = stack.operator(PATIENCE);
    let gone = explained(&operator, &accepted.cid, None, |explanation| explanation.matching == 1).await;
    assert_eq!(at(one(&gone), "nobody"), &Whereabouts::NoQueue);
    advises(&gone, &stack, &["is gone, and 1 request with it"]);
    // Its on-target callback has no queue either.
    publisher.cancel(&accepted).await.expect("it is cancelled");
    done.next_final().await;
    // One that has just ended is for a moment neither open nor remembered.
    let is_told = |explanation: &Explanation| (explanation.matching, explanation.parked.len()) == (1, 1);
    let parked = explained(&operator, &accepted.cid, None, is_told).await;
    assert_eq!(parked.parked[0].run, Some(accepted.run));
    advises(&parked, &stack, &["1 message of it is parked", "fanfare parked replay --cid"]);
    let fan_out = one(&parked);
    assert_eq!(fan_out.responded[0].ended_by, Some(EndedBy::Cancel));
    // Whoever asks again and again leaves it where it is.
    let followed = operator.follow(&accepted.cid, None, 10).await.expect("it is told");
    assert_eq!((followed.matching, followed.parked.len()), (1, 0));
}

/// A request that is parked has failed its target already.
async fn what_is_not_worth_putting_back_is_to_be_purged(stack: Stack) {
    let _coordinator = stack.coordinator();
    let operator = stack.operator(PATIENCE);
    stack.bystander().declare(&stack.names().parked()).await.expect("it is declared");
    let cid = Cid::new("c").expect("a proper CID");
    let park = async |kind: &str| {
        let mut message = Message { body: "1".into(), ..Message::default() };
        message.properties.kind = Some(kind.into());
        message.properties.correlation_id = Some(cid.as_str().into());
        let at = WireTime::from_timestamp(1_000).expect("a time");
        let parked = message.parked("fanfare.service.nobody", "expired", at, Uuid::new_v4());
        stack.publish(&stack.names().parked().name, parked).await;
    };
    park(header::TYPE_REQUEST).await;
    let requests = explained(&operator, &cid, None, |explanation| explanation.parked.len() == 1).await;
    advises(&requests, &stack, &["nothing waits for them", "fanfare parked purge --cid c"]);
    park(header::TYPE_CALLBACK).await;
    let both = explained(&operator, &cid, None, |explanation| explanation.parked.len() == 2).await;
    advises(
        &both,
        &stack,
        &[
            "put back those 1 that are callbacks",
            "drop the others with `fanfare parked purge ID --prefix test-",
        ],
    );
}

async fn a_target_that_nobody_shows_is_told_of_with_where_it_may_be(stack: Stack) {
    let _done = stack.record("my.done").await;
    let mut handed = stack.record("handed").await;
    let emptied = stack.declare_service("emptied").await;
    let _coordinator = stack.coordinator();
    let publisher = stack.publisher();
    let accepted = invoke(publisher.fanout("my.source").target("handed", 1).target("emptied", 1)).await;
    handed.next().await;
    stack.bystander().delete(&emptied).await.expect("it is deleted");
    stack.declare_service("emptied").await;
    let operator = stack.operator(SHORT);
    let explanation = explained(&operator, &accepted.cid, None, |it| it.matching == 1).await;
    assert_eq!(at(one(&explanation), "handed"), &Whereabouts::Handed);
    assert_eq!(at(one(&explanation), "emptied"), &Whereabouts::Elsewhere);
    let expected = [
        "each may wait for its turn, run at a worker that stands still or does not tell, or be lost;",
        "each may have been on its way when this looked, or be lost;",
    ];
    advises(&explanation, &stack, &expected);
    publisher.cancel(&accepted).await.expect("it is cancelled");
}

async fn only_the_run_that_is_meant_is_told_of(stack: Stack) {
    let _done = stack.record("my.done").await;
    stack.declare_service("nobody").await;
    let _coordinator = stack.coordinator();
    let publisher: Publisher = stack.publisher();
    let fanout = || publisher.fanout("my.source").cid("mine").target("nobody", 1);
    let [first, second] = [invoke(fanout()).await, invoke(fanout()).await];
    let operator = stack.operator(PATIENCE);
    let both = explained(&operator, &first.cid, None, |explanation| explanation.matching == 2).await;
    assert_eq!(both.fan_outs.len(), 2);
    advises(&both, &stack, &["2 messages wait (2 of the missing targets above)"]);
    assert_eq!(both.advice(stack.names()).len(), 1, "it is one queue for both");
    let another = "0123456789abcdef0123456789abcdef".parse().expect("a run");
    let none = operator.explain(&first.cid, Some(another), 1).await.expect("it is told");
    advises(&none, &stack, &[&format!("no coordinator knows run {another} of mine: ")]);
    for accepted in [first, second] {
        let one_of_them = operator.explain(&accepted.cid, Some(accepted.run), 1).await.expect("it is told");
        assert_eq!(one(&one_of_them).status.run, accepted.run);
        publisher.cancel(&accepted).await.expect("it is cancelled");
    }
}
