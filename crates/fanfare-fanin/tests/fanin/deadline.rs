//! What has not answered by the deadline fails, by messages like any other.

use std::time::Duration;

use fanfare_fanin::{Deadline, Event};
use fanfare_protocol::{EndedBy, Manifest};

use crate::samples;
use crate::story::{OWN, Story};

/// As [`samples::manifest`], with the deadline that the stories are told of.
fn manifest<const N: usize>(keys: [&str; N], on_target: usize, on_final: usize) -> Manifest {
    Manifest { deadline_ms: Some(60_000), ..samples::manifest(keys, on_target, on_final) }
}

const DEADLINE: Duration = Duration::from_secs(60);
const LATE: &str = "!deadline exceeded after 60s";

#[test]
fn a_deadline_appends_failures_for_what_is_missing_and_they_count_when_they_are_read() {
    let mut story = Story::fresh(manifest(["a", "b"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    assert_eq!(story.quiet_for(), Some(DEADLINE));
    let missing = format!("missing b={LATE}");
    story.wait(DEADLINE).check(&[&missing]);
    story.confirm("missing").check(&[]);
    story.own_missing("r2", "b", 0).check(&[&format!("final 0 with [a=one b={LATE}], ended by deadline")]);
}

#[test]
fn a_deadline_of_nothing_is_told_in_its_unit() {
    let manifest = Manifest { deadline_ms: Some(0), ..manifest(["a"], 0, 1) };
    let mut story = Story::fresh(manifest).until(Duration::ZERO);
    story.opened().check(&["missing a=!deadline exceeded after 0ms"]);
}

#[test]
fn a_deadline_that_the_manifest_does_not_tell_is_written_down_early() {
    let unwritten = Deadline { at: DEADLINE, written_at: Some(DEADLINE / 10) };
    let mut story = Story::fresh(manifest(["a"], 0, 1)).with_deadline(unwritten);
    story.opened().check(&[]);
    assert_eq!(story.quiet_for(), Some(DEADLINE / 10));
    story.wait(DEADLINE / 10).check(&["renewal"]);
    story.manifest("m2").check(&[]);
    story.confirm("renewal").check(&["ack m1"]);
    assert_eq!(story.quiet_for(), Some(DEADLINE * 9 / 10));
}

#[test]
fn a_result_that_comes_before_the_failure_stands() {
    let mut story = Story::fresh(manifest(["a"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.wait(DEADLINE).check(&[&format!("missing a={LATE}")]);
    story.result("r1", "a", "just in time").check(&["final 0 with [a=just in time]"]);
    story.own_missing("r2", "a", 0).check(&["ack r2"]);
}

#[test]
fn a_deadline_decides_once_and_not_before_the_queue_is_read() {
    let mut story = Story::taken_over(manifest(["a"], 0, 1)).until(DEADLINE);
    story.wait(DEADLINE).check(&[]);
    assert_ne!(story.quiet_for(), Some(Duration::ZERO), "nothing can be done yet");
    story.opened().check(&[&format!("missing a={LATE}")]);
    story.wait(Duration::from_secs(1)).check(&[]);
    story.own_missing("r1", "a", 0).check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", &format!("final 0 with [a={LATE}], ended by deadline")]);
}

#[test]
fn a_deadline_after_the_last_result_changes_nothing() {
    let mut story = Story::fresh(manifest(["a"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
    story.wait(DEADLINE).check(&[]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
}

#[test]
fn a_deadline_waits_until_what_a_predecessor_left_is_read() {
    let mut story = Story::taken_over(manifest(["a", "b", "c"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.wait(DEADLINE).check(&["fence"]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(30)), "only the fence is waited for");
    story.result("r2", "b", "two").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", &format!("missing c={LATE}")]);
}

#[test]
fn a_deadline_survives_a_change_of_coordinator_and_each_missing_target_fails_once() {
    let mut story = Story::fresh(manifest(["a", "b", "c"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    story.wait(DEADLINE).check(&[&format!("missing b={LATE}"), &format!("missing c={LATE}")]);
    story.event(Event::ChannelLost).check(&["abandon [\"m1\"]"]);
    // One of the two had come into the queue.
    let mut story = Story::taken_over(manifest(["a", "b", "c"], 0, 1)).until(DEADLINE * 2);
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.missing("r2", "b", EndedBy::Deadline).check(&[]);
    story.fence("f1", OWN).check(&["ack f1", &format!("missing c={LATE}")]);
    story
        .own_missing("r3", "c", 0)
        .check(&[&format!("final 0 with [a=one b=!missing c={LATE}], ended by deadline")]);
}

#[test]
fn what_answers_after_the_deadline_is_dropped_and_counted_as_late() {
    let mut story = Story::fresh(manifest(["a"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.wait(DEADLINE).check(&[&format!("missing a={LATE}")]);
    story.own_missing("r1", "a", 0).check(&[&format!("final 0 with [a={LATE}], ended by deadline")]);
    story.result("r2", "a", "late").check(&["ack r2"]);
    story.confirm("final").check(&["delete"]);
    story.result("r3", "a", "later").check(&[]);
    story.event(Event::Deleted).check(&["ack r1", "ack r3", "ack m1", "end, completed, 2 late"]);
}
