//! What operators ask, and what they are told.

use fanfare_protocol::{
    AtWorker, Doing, EndedBy, ExplainAnswer, ExplainRequest, Explained, FailedTarget, FanOutState,
    FanOutStatus, Lately, MissingTarget, QueueNames, RecentFailure, RespondedTarget, Sort, StatusAnswer,
    StatusQuery, StatusRequest, Totals, WorkerAnswer,
};

use crate::samples::{check, cid, key, run, service, source, time};

const REPLY_TO: &str = "fanfare.wait.fedcba9876543210fedcba9876543210";
const RUN: &str = "0123456789abcdef0123456789abcdef";
const STATUS: &str = r#""cid":"63e7c3a2ba616badecb125ce","run":"0123456789abcdef0123456789abcdef","source":"fanout1.my-service","req_ts_utc":"2025-01-19 19:55:45","targets":3,"done":2,"failed":1"#;

fn status(state: FanOutState) -> FanOutStatus {
    FanOutStatus {
        cid: cid(),
        run: run(),
        source: source(),
        req_ts_utc: time("2025-01-19 19:55:45"),
        targets: 3,
        done: 2,
        failed: 1,
        deadline_utc: None,
        state,
    }
}

fn ended() -> FanOutState {
    let ended_utc = time("2025-01-19 19:56:00");
    FanOutState::Ended { ended_utc, missing: 1, ended_by: Some(EndedBy::Deadline) }
}

const ENDED: &str = r#""state":"ended","ended_utc":"2025-01-19 19:56:00","missing":1,"ended_by":"deadline""#;

/// A message from whoever is asked.
fn answer(kind: &str, body: &str) -> String {
    let who = body.split('"').nth(3).unwrap();
    format!(
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/{kind}/{who}\n\
         type: fanfare.{kind}\n\
         fanfare-version = 1\n\
         {body}"
    )
}

#[test]
fn a_question_for_the_status_says_only_what_is_wanted() {
    for (query, body) in [
        (StatusQuery::default(), r#"{"sort":"age","limit":100}"#),
        (
            StatusQuery {
                ended: true,
                source: Some(source()),
                cid_prefix: Some("63".to_owned()),
                service: Some(service("my.service1")),
                min_age_s: Some(60),
                lately: true,
                sort: Sort::Deadline,
                limit: 1,
            },
            r#"{"ended":true,"source":"fanout1.my-service","cid_prefix":"63","service":"my.service1","min_age_s":60,"lately":true,"sort":"deadline","limit":1}"#,
        ),
    ] {
        let request = StatusRequest { id: cid(), reply_to: REPLY_TO.to_owned(), query };
        check(
            &request.encode(),
            &format!(
                "content_type: application/json\n\
                 correlation_id: 63e7c3a2ba616badecb125ce\n\
                 reply_to: {REPLY_TO}\n\
                 message_id: 63e7c3a2ba616badecb125ce/status\n\
                 type: fanfare.status\n\
                 fanfare-version = 1\n\
                 {body}"
            ),
        );
        assert_eq!(StatusRequest::decode(&request.encode(), &QueueNames::default()), Ok(request));
    }
}

#[test]
fn an_answer_about_the_status() {
    let deadline =
        FanOutStatus { deadline_utc: Some(time("2025-01-20 19:55:45")), ..status(FanOutState::Gathering) };
    let all = StatusAnswer {
        coordinator: run(),
        name: None,
        refused: None,
        matching: 7,
        fan_outs: vec![deadline, status(FanOutState::Calling), status(ended())],
        lately: None,
    };
    let body = format!(
        r#"{{"coordinator":"{RUN}","matching":7,"fan_outs":[{{{STATUS},"deadline_utc":"2025-01-20 19:55:45","state":"gathering"}},{{{STATUS},"state":"calling"}},{{{STATUS},{ENDED}}}]}}"#
    );
    check(&all.encode(&cid()), &answer("status-answer", &body));
    let refused =
        StatusAnswer { refused: Some("why".to_owned()), matching: 0, fan_outs: vec![], ..all.clone() };
    let body = format!(r#"{{"coordinator":"{RUN}","refused":"why","matching":0,"fan_outs":[]}}"#);
    check(&refused.encode(&cid()), &answer("status-answer", &body));
    let target = FailedTarget { key: key("k"), service: service("my.service1"), exception: "why".to_owned() };
    let failure = RecentFailure { cid: cid(), run: run(), at_utc: time("2025-01-19 19:55:46"), target };
    let watched = StatusAnswer {
        name: Some("host:7".to_owned()),
        matching: 0,
        fan_outs: vec![],
        lately: Some(Lately {
            ended: vec![status(ended())],
            failures: vec![failure],
            services: vec![service("my.service1")],
            totals: Totals { fan_outs: 1, fan_in_ms: 900, succeeded: 1, failed: 2 },
        }),
        ..all.clone()
    };
    let body = format!(
        r#"{{"coordinator":"{RUN}","name":"host:7","matching":0,"fan_outs":[],"lately":{{"ended":[{{{STATUS},{ENDED}}}],"failures":[{{"cid":"63e7c3a2ba616badecb125ce","run":"{RUN}","at_utc":"2025-01-19 19:55:46","key":"k","service":"my.service1","exception":"why"}}],"services":["my.service1"],"totals":{{"fan_outs":1,"fan_in_ms":900,"succeeded":1,"failed":2}}}}}}"#
    );
    check(&watched.encode(&cid()), &answer("status-answer", &body));
    for answer in [all, refused, watched] {
        assert_eq!(StatusAnswer::decode(&answer.encode(&cid())), Ok(answer));
    }
}

#[test]
fn a_question_about_one_fan_out_names_the_run_where_it_is_known() {
    for (run, header) in [(None, String::new()), (Some(run()), format!("fanfare-run = \"{RUN}\"\n"))] {
        let request = ExplainRequest { cid: cid(), run, reply_to: REPLY_TO.to_owned(), limit: 20 };
        check(
            &request.encode(),
            &format!(
                "content_type: application/json\n\
                 correlation_id: 63e7c3a2ba616badecb125ce\n\
                 reply_to: {REPLY_TO}\n\
                 message_id: 63e7c3a2ba616badecb125ce/explain\n\
                 type: fanfare.explain\n\
                 {header}fanfare-version = 1\n\
                 {{\"limit\":20}}"
            ),
        );
        assert_eq!(ExplainRequest::decode(&request.encode(), &QueueNames::default()), Ok(request));
    }
}

#[test]
fn what_a_coordinator_answers_about_one_fan_out() {
    let missing = MissingTarget { place: 2, key: key("ключ 2"), service: service("my.service2") };
    let failed = FailedTarget { key: key("k"), service: service("my.service1"), exception: "why".to_owned() };
    let responded = |place, ok, ended_by| {
        let (key, service) = (key("k"), service("my.service1"));
        RespondedTarget { place, key, service, ok, at_utc: time("2025-01-19 19:55:46"), ended_by }
    };
    let explained = Explained {
        status: status(FanOutState::Gathering),
        missing: vec![missing],
        responded: vec![responded(0, true, None), responded(1, false, Some(EndedBy::Cancel))],
        failures: vec![failed],
    };
    let over = Explained { status: status(ended()), missing: vec![], responded: vec![], failures: vec![] };
    let fan_outs = vec![explained, over];
    let all = ExplainAnswer { coordinator: run(), name: None, refused: None, matching: 2, fan_outs };
    let body = format!(
        r#"{{"coordinator":"{RUN}","matching":2,"fan_outs":[{{{STATUS},"state":"gathering","missing_targets":[{{"place":2,"key":"ключ 2","service":"my.service2"}}],"responded_targets":[{{"place":0,"key":"k","service":"my.service1","ok":true,"at_utc":"2025-01-19 19:55:46"}},{{"place":1,"key":"k","service":"my.service1","ok":false,"at_utc":"2025-01-19 19:55:46","ended_by":"cancel"}}],"failed_targets":[{{"key":"k","service":"my.service1","exception":"why"}}]}},{{{STATUS},{ENDED},"missing_targets":[],"failed_targets":[]}}]}}"#
    );
    check(&all.encode(&cid()), &answer("explain-answer", &body));
    assert_eq!(ExplainAnswer::decode(&all.encode(&cid())), Ok(all));
}

#[test]
fn what_a_worker_answers_about_one_fan_out() {
    let target = |doing| AtWorker { run: run(), key: key("k"), service: service("a"), attempt: 2, doing };
    let at = time("2025-01-19 19:55:46");
    let all = WorkerAnswer {
        worker: run(),
        name: Some("host:7".to_owned()),
        matching: 2,
        targets: vec![
            target(Doing::Running { since_utc: at }),
            target(Doing::Retrying { until_utc: at, exception: "why".to_owned() }),
        ],
    };
    let head = format!(r#""run":"{RUN}","key":"k","service":"a","attempt":2"#);
    let body = format!(
        r#"{{"worker":"{RUN}","name":"host:7","matching":2,"targets":[{{{head},"doing":"running","since_utc":"2025-01-19 19:55:46"}},{{{head},"doing":"retrying","until_utc":"2025-01-19 19:55:46","exception":"why"}}]}}"#
    );
    check(&all.encode(&cid()), &answer("worker-answer", &body));
    assert_eq!(WorkerAnswer::decode(&all.encode(&cid())), Ok(all));
}

#[test]
fn a_question_whose_answer_would_go_to_no_waiter_is_refused() {
    let names = QueueNames::default();
    for reply_to in ["fanfare.service.a", "fanfare.fanin", "other.wait.x", ""] {
        let status =
            StatusRequest { id: cid(), reply_to: reply_to.to_owned(), query: StatusQuery::default() };
        let explain = ExplainRequest { cid: cid(), run: None, reply_to: reply_to.to_owned(), limit: 1 };
        assert!(StatusRequest::decode(&status.encode(), &names).is_err(), "{reply_to}");
        assert!(ExplainRequest::decode(&explain.encode(), &names).is_err(), "{reply_to}");
    }
}
