//! What an operator is told of fan-outs that are open, or have ended.

use std::sync::Mutex;
use std::time::Duration;

use fanfare_operator::{AskError, Operator, Status};
use fanfare_protocol::{EndedBy, FanOutState, FanOutStatus, ServiceName, Sort, Source, StatusQuery};
use fanfare_publisher::{Accepted, Publisher, Target};
use fanfare_tests::{PATIENCE, Stack, answer, eventually, in_shards, on_both_brokers, services};

on_both_brokers!(
    fan_outs_of_all_coordinators_are_told_of_with_how_far_they_have_come,
    those_that_do_not_match_are_left_out_and_those_beyond_the_limit_counted,
    those_that_have_ended_are_told_of_with_how_they_ended,
    one_whose_queue_was_deleted_is_told_to_have_ended_by_that,
    what_has_happened_lately_is_told_to_who_asks_for_it,
    one_that_another_coordinator_has_ended_is_not_told_to_be_open,
    a_coordinator_that_does_not_answer_is_counted,
    without_a_coordinator_nobody_tells,
    coordinators_of_certain_users_tell_them_only,
    a_question_of_a_later_version_is_ignored,
);

// Nobody stands by at a fan-out in a shard, so no other coordinator ends it unseen.
in_shards!(
    fan_outs_of_all_coordinators_are_told_of_with_how_far_they_have_come,
    those_that_do_not_match_are_left_out_and_those_beyond_the_limit_counted,
    those_that_have_ended_are_told_of_with_how_they_ended,
    one_whose_queue_was_deleted_is_told_to_have_ended_by_that,
    what_has_happened_lately_is_told_to_who_asks_for_it,
    a_coordinator_that_does_not_answer_is_counted,
    without_a_coordinator_nobody_tells,
    coordinators_of_certain_users_tell_them_only,
    a_question_of_a_later_version_is_ignored,
);

/// A fan-out of one target that responds, one that fails, and so many that nobody runs.
async fn invoke(publisher: &Publisher, source: &str, cid: &str, missing: usize) -> Accepted {
    let keyed = |n: usize| Target::new("nobody", 1).key(format!("missing-{n}"));
    let fanout = publisher.fanout(source).cid(cid).target("test.echo", 1).target("test.fail", "why");
    let fanout = (0..missing).map(keyed).fold(fanout, fanfare_publisher::Fanout::add);
    fanout.on_final("my.done").invoke().await.expect("accepted")
}

/// Waits until what is told is as wanted.
async fn told(operator: &Operator, query: &StatusQuery, wanted: impl Fn(&Status) -> bool) -> Status {
    let latest = Mutex::new(None);
    eventually("what is told is as wanted", || async {
        let status = operator.status(query).await.ok();
        let is_wanted = status.as_ref().is_some_and(&wanted);
        *latest.lock().expect("nobody panics") = status;
        is_wanted
    })
    .await;
    latest.into_inner().expect("nobody panics").expect("something is told")
}

fn all_have_done(status: &Status, count: usize, done: usize) -> bool {
    status.matching == count && status.fan_outs.iter().all(|fan_out| fan_out.done == done)
}

fn cids(status: &Status) -> Vec<&str> {
    status.fan_outs.iter().map(|fan_out| fan_out.cid.as_str()).collect()
}

async fn fan_outs_of_all_coordinators_are_told_of_with_how_far_they_have_come(stack: Stack) {
    let _done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    stack.declare_service("nobody").await;
    // Each has room for one.
    let config =
        || fanfare_coordinator::Config { prefetch: 1, most_channels: 1, ..stack.coordinator_config() };
    let _coordinators = [(); 2].map(|()| stack.coordinator_with(config()));
    let publisher = stack.publisher();
    let accepted =
        [invoke(&publisher, "my.source", "one", 1).await, invoke(&publisher, "my.source", "two", 2).await];
    let query = StatusQuery { sort: Sort::Missing, ..StatusQuery::default() };
    // In shards, the first coordinator may have taken up both before the other listens.
    let both_tell = |status: &Status| status.coordinators.answered == 2 && all_have_done(status, 2, 2);
    let status = told(&stack.operator(PATIENCE), &query, both_tell).await;
    assert_eq!(status.coordinators.silent, Some(0));
    for (fan_out, (accepted, targets)) in status.fan_outs.iter().zip([(&accepted[1], 4), (&accepted[0], 3)]) {
        let FanOutStatus { cid, run, source, targets: of, failed, deadline_utc, state, .. } = fan_out;
        assert_eq!((cid, *run, source.as_str()), (&accepted.cid, accepted.run, "my.source"));
        assert_eq!((*of, *failed, *state), (targets, 1, FanOutState::Gathering));
        assert!(deadline_utc.is_some_and(|at| at > fan_out.req_ts_utc));
    }
}

async fn those_that_do_not_match_are_left_out_and_those_beyond_the_limit_counted(stack: Stack) {
    let _done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    stack.declare_service("nobody").await;
    let _coordinator = stack.coordinator();
    let publisher = stack.publisher();
    for (source, cid) in [("shop", "b-1"), ("shop", "a-1"), ("mill", "a-2")] {
        invoke(&publisher, source, cid, 1).await;
    }
    let echo = publisher.fanout("shop").cid("c").target("nobody", 1).on_final("my.done");
    echo.invoke().await.expect("accepted");
    let operator = stack.operator(PATIENCE);
    let by_cid = || StatusQuery { sort: Sort::Cid, ..StatusQuery::default() };
    told(&operator, &by_cid(), |status| status.matching == 4).await;
    for (query, expected) in [
        (StatusQuery { source: Source::new("shop").ok(), ..by_cid() }, &["a-1", "b-1", "c"][..]),
        (StatusQuery { cid_prefix: Some("a-".to_owned()), ..by_cid() }, &["a-1", "a-2"]),
        (StatusQuery { service: ServiceName::new("test.echo").ok(), ..by_cid() }, &["a-1", "a-2", "b-1"]),
        (StatusQuery { min_age_s: Some(3600), ..by_cid() }, &[]),
        (StatusQuery { ended: true, ..by_cid() }, &[]),
    ] {
        let status = operator.status(&query).await.expect("it is told");
        assert_eq!((cids(&status), status.matching), (expected.to_vec(), expected.len()), "{query:?}");
    }
    let few = operator.status(&StatusQuery { limit: 1, ..by_cid() }).await.expect("it is told");
    assert_eq!((cids(&few), few.matching), (vec!["a-1"], 4));
}

async fn those_that_have_ended_are_told_of_with_how_they_ended(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    stack.declare_service("nobody").await;
    let _coordinator = stack.coordinator();
    let publisher = stack.publisher();
    invoke(&publisher, "my.source", "by-itself", 0).await;
    done.next_final().await;
    let operator = stack.operator(PATIENCE);
    let ended = StatusQuery { ended: true, ..StatusQuery::default() };
    told(&operator, &ended, |status| status.matching == 1).await;
    let cancelled = invoke(&publisher, "my.source", "cancelled", 1).await;
    told(&operator, &StatusQuery::default(), |status| all_have_done(status, 1, 2)).await;
    publisher.cancel(&cancelled).await.expect("it is cancelled");
    done.next_final().await;

    let status = told(&operator, &ended, |status| status.matching == 2).await;
    let mut how: Vec<_> = Vec::new();
    for fan_out in &status.fan_outs {
        let FanOutState::Ended { ended_utc, missing, ended_by } = fan_out.state else {
            panic!("{fan_out:?}")
        };
        assert!(ended_utc >= fan_out.req_ts_utc);
        how.push((fan_out.cid.as_str(), fan_out.done, fan_out.failed, missing, ended_by));
    }
    how.sort_unstable();
    assert_eq!(how, [("by-itself", 2, 1, 0, None), ("cancelled", 3, 2, 1, Some(EndedBy::Cancel))]);
    assert_eq!(told(&operator, &StatusQuery::default(), |status| status.matching == 0).await.fan_outs, []);
}

async fn one_whose_queue_was_deleted_is_told_to_have_ended_by_that(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    stack.declare_service("nobody").await;
    let _coordinator = stack.coordinator();
    let deleted = invoke(&stack.publisher(), "my.source", "deleted", 1).await;
    let operator = stack.operator(PATIENCE);
    told(&operator, &StatusQuery::default(), |status| all_have_done(status, 1, 2)).await;
    stack.bystander().delete(&stack.results_of(&deleted)).await.expect("it is deleted");
    assert_eq!(done.next_final().await.ended_by(), Some(EndedBy::Deletion));
    let ended = StatusQuery { ended: true, ..StatusQuery::default() };
    let status = told(&operator, &ended, |status| status.matching == 1).await;
    let state = status.fan_outs[0].state;
    assert!(
        matches!(state, FanOutState::Ended { missing: 1, ended_by: Some(EndedBy::Deletion), .. }),
        "{state:?}"
    );
}

async fn one_that_another_coordinator_has_ended_is_not_told_to_be_open(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let mut config = stack.coordinator_config();
    config.limits.renewal = Duration::from_secs(1);
    // Whoever stands by finds out no earlier than that.
    config.absence_pause = PATIENCE * 10;
    let coordinators = [(); 2].map(|()| stack.coordinator_with(config.clone()));
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1).on_final("my.done");
    let accepted = fanout.invoke().await.expect("accepted");
    let queue = stack.results_of(&accepted);
    stack.queue_has(&queue, "a coordinator that stands by", |state| state.consumers == 2).await;
    answer(&stack, &target.next().await, 1).await;
    done.next_final().await;
    stack.queue_is_gone(&queue).await;
    let operator = stack.operator(PATIENCE);
    let ended = StatusQuery { ended: true, ..StatusQuery::default() };
    told(&operator, &ended, |status| all_have_done(status, 1, 1)).await;
    told(&operator, &StatusQuery::default(), |status| status.matching == 0).await;
    for coordinator in coordinators {
        coordinator.kill().await;
    }
}

async fn what_has_happened_lately_is_told_to_who_asks_for_it(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let _worker = stack.worker([services::echo(), services::fail()]).await;
    let config =
        fanfare_coordinator::Config { name: Some("host:7".to_owned()), ..stack.coordinator_config() };
    let _coordinator = stack.coordinator_with(config);
    let accepted = invoke(&stack.publisher(), "my.source", "c", 0).await;
    done.next_final().await;
    let query = StatusQuery { lately: true, ..StatusQuery::default() };
    let has_ended = |status: &Status| status.lately.values().any(|lately| lately.ended.len() == 1);
    let status = told(&stack.operator(PATIENCE), &query, has_ended).await;
    assert_eq!(status.coordinators.heard.values().collect::<Vec<_>>(), ["host:7"]);
    let lately = &status.lately[status.coordinators.heard.keys().next().expect("one has answered")];
    assert_eq!((lately.ended[0].run, lately.ended[0].failed), (accepted.run, 1));
    let [failure] = &lately.failures[..] else { panic!("{lately:?}") };
    assert_eq!((&failure.cid, failure.run), (&accepted.cid, accepted.run));
    assert_eq!((failure.target.key.as_str(), &failure.target.exception[..]), ("test.fail", "why"));
    let services: Vec<&str> = lately.services.iter().map(ServiceName::as_str).collect();
    assert_eq!(services, ["my.done", "test.echo", "test.fail"]);
    assert_eq!((lately.totals.fan_outs, lately.totals.succeeded, lately.totals.failed), (1, 1, 1));
    let unasked = stack.operator(PATIENCE).status(&StatusQuery::default()).await.expect("it is told");
    assert!(unasked.lately.is_empty());
}

async fn a_coordinator_that_does_not_answer_is_counted(stack: Stack) {
    let _coordinator = stack.coordinator();
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    // To the broker, whoever consumes the dead letters is a coordinator.
    let _deaf = stack.record_queue(&stack.names().dead_queue()).await;
    stack.queue_has(&stack.names().dead_queue(), "two consumers", |dead| dead.consumers == 2).await;
    let (operator, query) = (stack.operator(Duration::from_secs(2)), StatusQuery::default());
    let status = told(&operator, &query, |status| status.coordinators.answered > 0).await;
    assert_eq!((status.coordinators.answered, status.coordinators.silent), (1, Some(1)));
}

async fn without_a_coordinator_nobody_tells(stack: Stack) {
    let error = stack.operator(PATIENCE).status(&StatusQuery::default()).await.expect_err("there is none");
    assert!(matches!(error, AskError::NoCoordinator { .. }), "{error:?}");
}

async fn coordinators_of_certain_users_tell_them_only(stack: Stack) {
    let config = fanfare_coordinator::Config {
        accepted_users: Some([].into()),
        user_id: Some(stack.user().to_owned()),
        ..stack.coordinator_config()
    };
    let _coordinator = stack.coordinator_with(config);
    stack.exchange_is_heard(&stack.names().coordinators()).await;
    let refused =
        stack.operator(PATIENCE).status(&StatusQuery::default()).await.expect_err("it is of nobody");
    assert!(
        matches!(&refused, AskError::Refused(reason) if reason.contains("it has no user_id")),
        "{refused:?}"
    );
    let known = stack.operator_of(stack.user());
    assert_eq!(known.status(&StatusQuery::default()).await.expect("it is told").matching, 0);
}

async fn a_question_of_a_later_version_is_ignored(stack: Stack) {
    let _coordinator = stack.coordinator();
    let _worker = stack.worker([services::echo()]).await;
    for exchange in [stack.names().coordinators(), stack.names().workers()] {
        stack.exchange_is_heard(&exchange).await;
        let mut later = fanfare_protocol::Message::default();
        later.properties.kind = Some("fanfare.of-a-later-version".into());
        let asked = stack.bystander().publish_through(&exchange.name, "", later).await;
        asked.expect("somebody hears it");
    }
    assert_eq!(stack.operator(PATIENCE).status(&StatusQuery::default()).await.expect("told").matching, 0);
}
