use fanfare_protocol::CompletionPolicy;

use super::*;

/// A log in the making: one fan-out, `i`, with targets `a` and `b`, an on-target callback `each` and a final one `done`.
struct Log {
    at_ms: u64,
    notice_ms: u64,
    records: Vec<Record>,
}

const RUN: &str = "0123456789abcdef0123456789abcdef";

fn plan() -> Plan {
    let target = |key: &str| PlannedTarget { key: key.to_owned(), service: "work".to_owned(), attempts: 1 };
    Plan {
        cid: "c".to_owned(),
        targets: vec![target("a"), target("b")],
        on_target: vec!["each".to_owned()],
        on_final: vec!["done".to_owned()],
        ..Plan::default()
    }
}

fn result(response: &str, exception: Option<&str>) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let (response, ok, exception) = match exception {
        None => (quoted(response), true, "null".to_owned()),
        Some(text) => ("null".to_owned(), false, quoted(text)),
    };
    format!(
        r#"{{"source":"s","target":"work","response":{response},"req_ts_utc":"2025-01-19 19:55:45","resp_ts_utc":"2025-01-19 19:55:46","ok":{ok},"exception":{exception},"cid":"c"}}"#
    )
}

/// A failed result that a coordinator wrote in a target's place.
fn not_awaited(by: &str) -> String {
    result("", Some("not awaited")).replace(r#""cid":"c"}"#, &format!(r#""cid":"c","ended_by":"{by}"}}"#))
}

fn payload(results: &[(&str, String)]) -> String {
    let data: Vec<String> = results.iter().map(|(key, body)| format!("{key:?}:{body}")).collect();
    format!(
        r#"{{"source":"s","req_ts_utc":"2025-01-19 19:55:45","on_target":["each"],"on_final":["done"],"data":{{{}}}}}"#,
        data.join(",")
    )
}

fn both() -> String {
    payload(&[("a", result("[e1]", None)), ("b", result("[e2]", None))])
}

impl Log {
    fn invoking(plan: Plan) -> Self {
        let log = Self { at_ms: 0, notice_ms: 0, records: Vec::new() };
        log.then(Event::Invoking { invocation: "i".to_owned(), plan })
    }

    /// Up to where all targets have answered.
    fn answered() -> Self {
        Self::invoking(plan()).accepted().started("a", "e1").started("b", "e2")
    }

    /// Up to where all is done.
    fn complete() -> Self {
        Self::answered().each(0).each(1).done(&both())
    }

    fn then(mut self, event: Event) -> Self {
        self.at_ms += 10;
        self.records.push(Record { at_ms: self.at_ms, by: "test".to_owned(), event });
        self
    }

    fn returned(self, outcome: Outcome) -> Self {
        self.then(Event::Returned { invocation: "i".to_owned(), outcome })
    }

    fn accepted(self) -> Self {
        self.returned(Outcome::Accepted { run: RUN.to_owned() })
    }

    fn started(self, key: &str, execution: &str) -> Self {
        self.attempted(key, 1, execution)
    }

    fn attempted(self, key: &str, attempt: u32, execution: &str) -> Self {
        let (invocation, run) = ("i".to_owned(), RUN.to_owned());
        let (key, execution) = (key.to_owned(), execution.to_owned());
        self.then(Event::Started { invocation, run, key, attempt, execution })
    }

    fn called(self, callback: &str, key: Option<&str>, message_id: &str, body: &str) -> Self {
        self.then(Event::Called {
            invocation: "i".to_owned(),
            run: RUN.to_owned(),
            cid: "c".to_owned(),
            callback: callback.to_owned(),
            channel: if key.is_some() { "fanout-on-target" } else { "fanout-on-final" }.to_owned(),
            key: key.map(str::to_owned),
            message_id: message_id.to_owned(),
            body: body.to_owned(),
            redelivered: false,
        })
    }

    fn each(self, place: usize) -> Self {
        let (key, answer) = [("a", "[e1]"), ("b", "[e2]")][place];
        self.called("each", Some(key), &format!("c/{place}/on-target/each"), &result(answer, None))
    }

    fn done(self, body: &str) -> Self {
        self.called("done", None, "c/on-final/done", body)
    }

    fn published(self, message_id: &str) -> Self {
        let (invocation, run) = ("i".to_owned(), RUN.to_owned());
        self.then(Event::Published { invocation, run, message_id: message_id.to_owned() })
    }

    fn disturbed(self, role: Role, how: Disturbance) -> Self {
        self.then(Event::Disturbed { role, name: "one".to_owned(), how })
    }

    fn killed(self) -> Self {
        self.disturbed(Role::Coordinator, Disturbance::Killed)
    }

    fn left(self, queue: &str, kind: &str, message_id: &str) -> Self {
        self.left_with(queue, kind, message_id, None)
    }

    fn left_with(self, queue: &str, kind: &str, message_id: &str, reason: Option<&str>) -> Self {
        self.then(Event::MessageLeft {
            queue: queue.to_owned(),
            kind: kind.to_owned(),
            run: Some(RUN.to_owned()),
            message_id: Some(message_id.to_owned()),
            reason: reason.map(str::to_owned),
        })
    }

    /// With the manifest parked, because there is no queue.
    fn parked(self) -> Self {
        let reason = "the fan-out's aggregation queue does not exist";
        self.left_with("parked", "fanfare.manifest", "c/manifest", Some(reason))
    }

    fn queue_deleted(self) -> Self {
        self.then(Event::QueueDeleted { run: RUN.to_owned() })
    }

    fn ended_unread(self) -> Self {
        self.then(Event::EndedUnread { run: RUN.to_owned() })
    }

    fn judge(self) -> Verdict {
        judge(self.records, Rules { calls_at_risk: 1, notice_ms: self.notice_ms })
    }

    #[track_caller]
    fn holds(self) -> Counts {
        let verdict = self.judge();
        assert_eq!(verdict.violations, [], "{verdict}");
        verdict.counts
    }

    #[track_caller]
    fn violates(self, kinds: &[Kind]) {
        let verdict = self.judge();
        let found: Vec<Kind> = verdict.violations.iter().map(|violation| violation.kind).collect();
        assert_eq!(found, kinds, "{verdict}");
    }
}

#[test]
fn a_fan_out_that_went_well_violates_nothing() {
    let counts = Log::complete().holds();
    assert_eq!((counts.invoked, counts.accepted, counts.ended), (1, 1, 1));
    assert_eq!((counts.executions, counts.calls), (2, 3));
}

#[test]
fn a_log_survives_lines_of_json() {
    let records = Log::complete().killed().records;
    let lines: Vec<String> = records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    assert!(lines.iter().all(|line| !line.contains('\n')));
    let read: Vec<Record> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, records);
}

#[test]
fn a_callback_that_never_came_is_lost() {
    Log::answered().each(0).done(&both()).violates(&[Kind::Lost]);
    Log::answered().each(0).each(1).violates(&[Kind::Lost]);
    Log::answered().violates(&[Kind::Lost]);
}

#[test]
fn what_is_still_on_its_way_has_never_ended() {
    Log::answered().then(Event::QueueLeft { run: RUN.to_owned() }).violates(&[Kind::NeverEnded]);
    Log::answered().left("fanin", "fanfare.manifest", "c/manifest").violates(&[Kind::NeverEnded]);
    Log::complete().left("fanin", "fanfare.manifest", "c/manifest").violates(&[Kind::NeverEnded]);
    Log::answered()
        .each(0)
        .each(1)
        .left("service.done", "fanfare.callback", "c/on-final/done")
        .violates(&[Kind::NeverEnded]);
    Log::complete().left("service.work", "fanfare.request", "c/0").violates(&[Kind::NeverEnded]);
    Log::complete().left("delay.4", "fanfare.request", "c/0").violates(&[Kind::NeverEnded]);
}

#[test]
fn a_killed_broker_may_bring_a_deleted_queue_back() {
    let queue_left = || Event::QueueLeft { run: RUN.to_owned() };
    let kill = |log: Log| log.disturbed(Role::Broker, Disturbance::Killed);
    kill(Log::complete()).then(queue_left()).holds();
    kill(Log::answered()).each(0).each(1).done(&both()).then(queue_left()).violates(&[Kind::NeverEnded]);
    kill(Log::answered().each(0).each(1)).then(queue_left()).violates(&[Kind::NeverEnded]);
    kill(Log::complete())
        .then(queue_left())
        .left("fanin", "fanfare.manifest", "c/manifest")
        .violates(&[Kind::NeverEnded]);
    Log::complete().killed().then(queue_left()).violates(&[Kind::NeverEnded]);
}

#[test]
fn a_killed_broker_may_bring_a_deleted_queue_back_without_what_was_in_it() {
    let parked = |log: Log| {
        let reason = "the fan-out's aggregation queue has lost what was in it";
        log.left_with("parked", "fanfare.manifest", "c/manifest", Some(reason))
    };
    let kill = |log: Log| log.disturbed(Role::Broker, Disturbance::Killed);
    assert_eq!(parked(kill(Log::complete())).holds().parked, 1);
    parked(Log::complete()).violates(&[Kind::Unexpected]);
    parked(kill(Log::answered()).each(0).each(1)).violates(&[Kind::Lost]);
}

#[test]
fn nothing_may_come_of_what_was_not_accepted() {
    let refused = || Log::invoking(plan()).returned(Outcome::NotAccepted);
    refused().started("a", "e1").holds();
    refused()
        .started("a", "e1")
        .started("b", "e2")
        .each(0)
        .each(1)
        .done(&both())
        .violates(&[Kind::Unexpected]);
}

#[test]
fn of_an_unknown_invocation_comes_all_or_nothing() {
    let unknown =
        || Log::invoking(plan()).returned(Outcome::Unknown { run: RUN.to_owned() }).started("a", "e1");
    unknown().holds();
    unknown().started("b", "e2").each(0).each(1).done(&both()).holds();
    unknown().each(0).violates(&[Kind::Lost]);
    unknown().parked().violates(&[Kind::Lost]);
    // The caller was killed before it could tell.
    Log::invoking(plan()).holds();
    Log::invoking(plan()).started("a", "e1").each(0).violates(&[Kind::Lost]);
}

#[test]
fn a_final_payload_without_a_target_is_early() {
    let one = payload(&[("a", result("[e1]", None))]);
    Log::answered().each(0).each(1).done(&one).violates(&[Kind::Early]);
}

#[test]
fn a_final_callback_before_an_on_target_callback_is_early() {
    let published = |ids: [&str; 3]| ids.into_iter().fold(Log::answered(), Log::published);
    let called = |log: Log| log.each(0).each(1).done(&both());
    called(published(["c/0/on-target/each", "c/1/on-target/each", "c/on-final/done"])).holds();
    called(published(["c/0/on-target/each", "c/on-final/done", "c/1/on-target/each"]))
        .violates(&[Kind::Early]);
}

#[test]
fn two_final_payloads_that_differ_contradict_each_other() {
    let other = payload(&[("a", result("[e1]", None)), ("b", result("[e3]", None))]);
    let log = Log::answered().disturbed(Role::Worker, Disturbance::Killed).started("b", "e3").each(0);
    let log = log.done(&both()).killed().done(&other);
    log.called("each", Some("b"), "c/1/on-target/each", &result("[e3]", None))
        .violates(&[Kind::Contradicted, Kind::Contradicted]);
}

#[test]
fn an_on_target_callback_that_saw_another_result_than_the_final_one_contradicts_it() {
    Log::answered()
        .disturbed(Role::Worker, Disturbance::Killed)
        .started("b", "e3")
        .each(0)
        .called("each", Some("b"), "c/1/on-target/each", &result("[e3]", None))
        .done(&both())
        .violates(&[Kind::Contradicted]);
}

#[test]
fn who_waits_sees_what_callbacks_see() {
    let waited =
        |payload: String| Log::complete().then(Event::Waited { invocation: "i".to_owned(), payload });
    waited(both()).holds();
    let other = payload(&[("a", result("[e1]", None)), ("b", result("[e1]", None))]);
    waited(other).violates(&[Kind::Contradicted, Kind::Unexpected, Kind::Contradicted]);
}

#[test]
fn a_repetition_needs_a_crash_before_it() {
    Log::complete().done(&both()).violates(&[Kind::Duplicated]);
    Log::complete().done(&both()).killed().violates(&[Kind::Duplicated]);
    let counts = Log::complete().killed().done(&both()).holds();
    assert_eq!(counts.repeated_on_final, 1);
    Log::complete().killed().done(&both()).done(&both()).violates(&[Kind::Duplicated]);
    Log::complete().disturbed(Role::Worker, Disturbance::Killed).done(&both()).violates(&[Kind::Duplicated]);
    Log::complete().disturbed(Role::Broker, Disturbance::Restarted).done(&both()).holds();
}

#[test]
fn who_is_cut_off_and_who_takes_over_may_both_repeat() {
    let twice = || Log::complete().disturbed(Role::Coordinator, Disturbance::Cut).done(&both()).done(&both());
    twice().holds();
    twice().done(&both()).violates(&[Kind::Duplicated]);
}

#[test]
fn a_repetition_needs_the_crash_after_the_first_publication() {
    let ids = ["c/0/on-target/each", "c/1/on-target/each", "c/on-final/done"];
    let log = |log: Log| ids.into_iter().fold(log, Log::published).each(0).each(1).done(&both());
    let before = || log(Log::answered().killed()).published("c/on-final/done");
    before().violates(&[Kind::Duplicated]);
    // It published that before it noticed.
    Log { notice_ms: 100, ..before() }.holds();
    log(Log::answered()).killed().published("c/on-final/done").holds();
}

#[test]
fn a_crash_repeats_only_so_many_on_target_callbacks() {
    Log::answered().each(0).each(1).killed().each(0).done(&both()).holds();
    Log::answered().each(0).each(1).killed().each(0).each(1).done(&both()).violates(&[Kind::Duplicated]);
}

#[test]
fn what_the_broker_hands_out_again_is_no_repetition() {
    let mut log = Log::complete().done(&both());
    let Some(Record { event: Event::Called { redelivered, .. }, .. }) = log.records.last_mut() else {
        panic!("the last record is a call")
    };
    *redelivered = true;
    log.holds();
}

#[test]
fn a_target_runs_again_only_after_a_disturbance() {
    let again = |log: Log| log.started("a", "e3").each(0).each(1).done(&both());
    again(Log::answered()).violates(&[Kind::Duplicated]);
    let counts = again(Log::answered().disturbed(Role::Worker, Disturbance::Killed)).holds();
    assert_eq!(counts.repeated_executions, 1);
}

#[test]
fn a_callback_that_is_not_in_the_plan_is_unexpected() {
    Log::complete().called("other", None, "c/on-final/other", &both()).violates(&[Kind::Unexpected]);
    Log::complete()
        .called("each", Some("x"), "c/2/on-target/each", &result("[e1]", None))
        .violates(&[Kind::Unexpected, Kind::Unexpected]);
    let nobody = Event::Started {
        invocation: "another".to_owned(),
        run: RUN.to_owned(),
        key: "a".to_owned(),
        attempt: 1,
        execution: "e".to_owned(),
    };
    Log::complete().then(nobody).violates(&[Kind::Unexpected]);
}

#[test]
fn a_result_that_no_target_gave_is_unexpected() {
    let made_up = payload(&[("a", result("[e1]", None)), ("b", result("[e9]", None))]);
    let log = Log::answered().each(0).called("each", Some("b"), "c/1/on-target/each", &result("[e9]", None));
    log.done(&made_up).violates(&[Kind::Unexpected, Kind::Unexpected]);
}

/// A log up to its end, in which `b` has this result.
fn with_b(plan: Plan, result_of_b: &str) -> Log {
    Log::invoking(plan)
        .accepted()
        .started("a", "e1")
        .started("b", "e2")
        .each(0)
        .called("each", Some("b"), "c/1/on-target/each", result_of_b)
        .done(&payload(&[("a", result("[e1]", None)), ("b", result_of_b.to_owned())]))
}

#[test]
fn a_fan_out_is_complete_early_only_as_its_policy_says() {
    let early = |policy: Option<CompletionPolicy>| {
        with_b(Plan { completion: policy, ..plan() }, &not_awaited("completion"))
    };
    let none = CompletionPolicy::default();
    early(None).violates(&[Kind::Unexpected, Kind::Early, Kind::Unexpected]);
    early(Some(CompletionPolicy { succeeded: Some(1), ..none })).holds();
    early(Some(CompletionPolicy { responded: Some(1), ..none })).holds();
    early(Some(CompletionPolicy { succeeded: Some(2), ..none })).violates(&[Kind::Early]);
    early(Some(CompletionPolicy { failed_above: Some(0), ..none })).violates(&[Kind::Early]);
}

#[test]
fn the_result_is_that_of_the_last_attempt() {
    let retried = |log: Log| log.each(0).each(1).done(&both());
    let twice = || {
        let mut plan = plan();
        plan.targets[1].attempts = 2;
        Log::invoking(plan).accepted().started("a", "e1")
    };
    retried(twice().started("b", "e0").attempted("b", 2, "e2")).holds();
    retried(twice().started("b", "e2")).violates(&[Kind::Unexpected, Kind::Unexpected]);
    // An attempt beyond the last, and one without the one before it.
    retried(Log::answered().attempted("b", 2, "e3")).violates(&[Kind::Unexpected]);
    retried(twice().attempted("b", 2, "e2")).violates(&[Kind::Unexpected]);
}

#[test]
fn a_failure_needs_an_explanation() {
    let failing = |plan: Plan, exception: &str| with_b(plan, &result("", Some(exception)));
    let twice = [Kind::Unexpected, Kind::Unexpected];
    failing(plan(), "it broke [e2]").holds();
    failing(plan(), "it broke").violates(&twice);
    failing(plan(), "timed out after 3s").holds();
    failing(Plan { excuses: vec!["poison".to_owned()], ..plan() }, "this is poison").holds();

    let late = |deadline_ms| with_b(Plan { deadline_ms, ..plan() }, &not_awaited("deadline"));
    late(None).violates(&twice);
    late(Some(30)).holds();
    late(Some(1_000)).violates(&[Kind::Early, Kind::Early]);
    with_b(plan(), &not_awaited("cancel")).violates(&twice);

    let gone = || with_b(plan(), &not_awaited("deletion"));
    gone().violates(&twice);
    gone().queue_deleted().holds();
}

#[test]
fn a_fan_out_whose_queue_an_operator_deleted_may_be_parked_or_taken_for_completed() {
    let deleted = || Log::answered().queue_deleted();
    assert_eq!(deleted().parked().holds().parked, 1);
    deleted().ended_unread().holds();
    Log::answered().parked().violates(&[Kind::Lost]);
    Log::answered().ended_unread().violates(&[Kind::Lost]);
}

#[test]
fn a_fan_out_that_somebody_had_read_when_its_queue_was_deleted_has_to_end() {
    Log::answered().queue_deleted().violates(&[Kind::Lost]);
    // Who was ended before had no part in it.
    Log::answered().ended_unread().queue_deleted().violates(&[Kind::Lost]);
}

#[test]
fn a_manifest_is_parked_for_the_want_of_a_queue_only() {
    Log::complete().parked().holds();
    Log::complete().left("parked", "fanfare.manifest", "c/manifest").violates(&[Kind::Unexpected]);
}

#[test]
fn a_parked_message_that_nothing_explains_is_unexpected() {
    Log::complete().left("parked", "fanfare.result", "c/0/result").violates(&[Kind::Unexpected]);
    Log::complete().left("dead", "fanfare.request", "c/0").violates(&[Kind::Unexpected]);
}

#[test]
fn verdicts_of_several_logs_add_up() {
    let mut sum = Log::complete().killed().judge();
    sum.add(Log::answered().killed().judge());
    assert_eq!((sum.counts.invoked, sum.counts.ended, sum.count(Kind::Lost)), (2, 1, 1));
    assert_eq!(sum.counts.disturbances.into_values().sum::<usize>(), 2);
}
