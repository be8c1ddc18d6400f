//! A cancel ends a fan-out by messages like any other, and tells when it cannot be undone any more.

use fanfare_fanin::Event;
use fanfare_protocol::{CompletionPolicy, EndedBy, Manifest};

use crate::samples::{manifest, numbered};
use crate::story::{OWN, Story};

const DONE: &str = "cancelled: 1 responded, 1 missing, by cancel";

#[test]
fn a_cancel_appends_failures_and_tells_when_they_are_safe() {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.confirm("call").check(&[]);
    story.cancel().check(&["missing b=!cancelled"]);
    story.confirm("missing").check(&[DONE]);
    story.own_missing("r2", "b", 0).check(&["call 0 with b=!cancelled"]);
    story.confirm("call").check(&["final 0 with [a=one b=!cancelled], ended by cancel"]);
}

#[test]
fn a_cancel_that_is_asked_for_again_appends_nothing_and_tells_again() {
    let mut story = Story::fresh(manifest(["a", "b"], 0, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    story.cancel().check(&["missing b=!cancelled"]);
    story.cancel().check(&[]);
    story.confirm("missing").check(&[DONE]);
    story.cancel().check(&[DONE]);
}

#[test]
fn a_cancel_that_comes_too_late_changes_nothing() {
    let mut story = Story::fresh(manifest(["a"], 1, 1));
    story.opened().check(&[]);
    let nothing = "cancelled: 1 responded, 0 missing, by nothing";
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.cancel().check(&[nothing]);
    story.confirm("call").check(&["final 0 with [a=one]"]);
    story.cancel().check(&[nothing]);
    story.confirm("final").check(&["delete"]);
    story.cancel().check(&[nothing]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
    story.cancel().check(&[]);
}

#[test]
fn a_cancel_after_a_policy_was_met_tells_of_that() {
    let policy = CompletionPolicy { responded: Some(1), ..CompletionPolicy::default() };
    let mut story = Story::fresh(Manifest { completion: Some(policy), ..manifest(["a", "b"], 0, 1) });
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    story.cancel().check(&[]);
    story.confirm("missing").check(&["cancelled: 1 responded, 1 missing, by completion"]);
}

#[test]
fn a_cancel_waits_for_the_queue_and_for_what_a_predecessor_left() {
    let mut story = Story::taken_over(manifest(["a", "b", "c"], 0, 1));
    story.cancel().check(&[]);
    story.opened().check(&["missing a=!cancelled", "missing b=!cancelled", "missing c=!cancelled"]);
    let mut story = Story::taken_over(manifest(["a", "b"], 0, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.cancel().check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "missing b=!cancelled"]);
}

#[test]
fn a_cancel_of_which_anything_is_in_the_queue_is_brought_to_its_end_by_whoever_takes_over() {
    let mut story = Story::taken_over(manifest(["a", "b", "c"], 0, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.missing("r2", "b", EndedBy::Cancel).check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "missing c=!cancelled"]);
    story.own_missing("r3", "c", 0).check(&["final 0 with [a=one b=!missing c=!cancelled], ended by cancel"]);
}

#[test]
fn a_cancel_while_a_stop_waits_is_left_to_the_next() {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.event(Event::Stop).check(&[]);
    story.cancel().check(&[]);
}

#[test]
fn a_cancel_tells_nothing_before_the_last_failure_of_a_wide_fan_out_is_safe() {
    let mut story = Story::fresh(numbered(300, 0, 1));
    story.opened().check(&[]);
    assert_eq!(story.cancel().lines().len(), 256);
    for _ in 0..299 {
        let told = story.confirm("missing").lines();
        assert!(told.iter().all(|line| line.starts_with("missing")), "{told:?}");
    }
    story.confirm("missing").check(&["cancelled: 0 responded, 300 missing, by cancel"]);
}
