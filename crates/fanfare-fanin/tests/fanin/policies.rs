//! A completion policy that is met ends a fan-out by messages like any other.

use fanfare_fanin::Event;
use fanfare_protocol::{CompletionPolicy, EndedBy, Manifest};

use crate::samples::{manifest, numbered};
use crate::story::{OWN, Story};

const NONE: CompletionPolicy = CompletionPolicy { succeeded: None, responded: None, failed_above: None };

fn until(policy: CompletionPolicy, manifest: Manifest) -> Manifest {
    Manifest { completion: Some(policy), ..manifest }
}

fn succeeded(count: usize) -> CompletionPolicy {
    CompletionPolicy { succeeded: Some(count), ..NONE }
}

fn unawaited(key: &str, met: &str) -> String {
    format!("missing {key}=!not awaited: the fan-out was complete when {met}")
}

#[test]
fn a_fan_out_is_complete_when_enough_targets_have_succeeded() {
    let mut story = Story::fresh(until(succeeded(2), manifest(["a", "b", "c", "d"], 0, 1)));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    story.result("r2", "b", "!broken").check(&[]);
    let missing = unawaited("d", "2 targets had succeeded");
    story.result("r3", "c", "three").check(&[&missing]);
    story.confirm("missing").check(&[]);
    story.own_missing("r4", "d", 0).check(&[
        "final 0 with [a=one b=!broken c=three d=!not awaited: the fan-out was complete when 2 targets had succeeded], \
         ended by completion",
    ]);
    story.result("r5", "d", "late").check(&["ack r5"]);
    story.confirm("final").check(&["delete"]);
    let end = ["ack r1", "ack r2", "ack r3", "ack r4", "ack m1", "end, completed, 1 late"];
    story.event(Event::Deleted).check(&end);
}

#[test]
fn a_fan_out_is_complete_when_enough_targets_have_responded() {
    let policy = CompletionPolicy { responded: Some(2), ..NONE };
    let mut story = Story::fresh(until(policy, manifest(["a", "b", "c"], 0, 1)));
    story.opened().check(&[]);
    story.result("r1", "a", "!broken").check(&[]);
    story.result("r2", "b", "two").check(&[&unawaited("c", "2 targets had responded")]);
}

#[test]
fn a_fan_out_fails_fast_when_too_many_targets_have_failed() {
    let policy = CompletionPolicy { failed_above: Some(1), ..NONE };
    let mut story = Story::fresh(until(policy, manifest(["a", "b", "c", "d"], 0, 1)));
    story.opened().check(&[]);
    story.result("r1", "a", "!one").check(&[]);
    story.result("r2", "b", "two").check(&[]);
    story.result("r3", "c", "!three").check(&[&unawaited("d", "more than 1 target had failed")]);
}

#[test]
fn a_result_that_comes_before_the_failure_in_its_place_stands() {
    let mut story = Story::fresh(until(succeeded(1), manifest(["a", "b"], 0, 1)));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[&unawaited("b", "1 target had succeeded")]);
    story.result("r2", "b", "two").check(&["final 0 with [a=one b=two]"]);
    story.own_missing("r3", "b", 0).check(&["ack r3"]);
}

#[test]
fn a_policy_that_the_last_result_meets_changes_nothing() {
    let mut story = Story::fresh(until(succeeded(2), manifest(["a", "b"], 0, 1)));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    story.result("r2", "b", "two").check(&["final 0 with [a=one b=two]"]);
}

#[test]
fn what_is_not_awaited_has_completed_to_on_target_callbacks() {
    let mut story = Story::fresh(until(succeeded(1), manifest(["a", "b"], 1, 0)));
    story.opened().check(&[]);
    let missing = unawaited("b", "1 target had succeeded");
    story.result("r1", "a", "one").check(&[&missing, "call 0 with a=one"]);
    let call = format!("call 0 with {}", missing.strip_prefix("missing ").unwrap());
    story.own_missing("r2", "b", 0).check(&[&call]);
}

#[test]
fn a_policy_waits_until_all_that_a_predecessor_left_is_read() {
    let mut story = Story::taken_over(until(succeeded(1), manifest(["a", "b", "c"], 0, 1)));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.result("r2", "b", "two").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", &unawaited("c", "1 target had succeeded")]);
}

#[test]
fn whoever_takes_over_goes_on_with_what_a_predecessor_had_not_appended() {
    let mut story = Story::taken_over(until(succeeded(1), manifest(["a", "b", "c", "d"], 0, 1)));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.missing("r2", "b", EndedBy::Completion).check(&[]);
    // It had answered before its failure was appended.
    story.result("r3", "c", "three").check(&[]);
    story.missing("r4", "c", EndedBy::Completion).check(&["ack r4"]);
    let missing = unawaited("d", "1 target had succeeded");
    story.fence("f1", OWN).check(&["ack f1", &missing]);
    // What the predecessor had published arrives late, and before this hold's own.
    story
        .missing("r5", "d", EndedBy::Completion)
        .check(&["final 0 with [a=one b=!missing c=three d=!missing], ended by completion"]);
    story.own_missing("r6", "d", 0).check(&["ack r6"]);
}

#[test]
fn failures_in_the_place_of_targets_meet_no_policy() {
    let policy = CompletionPolicy { failed_above: Some(0), responded: Some(1), ..NONE };
    let mut story = Story::taken_over(until(policy, manifest(["a", "b"], 0, 1)));
    story.opened().check(&[]);
    story.missing("r1", "a", EndedBy::Deadline).check(&["fence"]);
    // It ends by what has begun to end it.
    story.fence("f1", OWN).check(&["ack f1", "missing b=!deadline exceeded"]);
}

#[test]
fn a_fence_in_the_middle_of_closing_holds_it_up() {
    let mut story = Story::fresh(until(succeeded(1), numbered(300, 0, 1)));
    story.opened().check(&[]);
    let appended = story.result("r1", "0", "x").lines();
    assert_eq!(appended.len(), 256, "so many are on their way at once");
    story.fence("f1", 7).check(&["ack f1", "fence"]);
    story.confirm("missing").check(&[]);
    story.fence("f2", OWN).check(&["ack f2", &unawaited("257", "1 target had succeeded")]);
    for place in 258..300 {
        story.confirm("missing").check(&[&unawaited(&place.to_string(), "1 target had succeeded")]);
    }
    story.confirm("missing").check(&[]);
}

#[test]
fn a_stop_in_the_middle_of_closing_lets_go_and_appends_nothing_more() {
    let mut story = Story::fresh(until(succeeded(1), numbered(300, 0, 1)));
    story.opened().check(&[]);
    let _ = story.result("r1", "0", "x").lines();
    story.event(Event::Stop).check(&["abandon [\"m1\"]"]);
}
