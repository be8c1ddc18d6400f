//! What has not answered by the deadline fails, by messages like any other.

use std::time::Duration;

use fanfare_fanin::Event;

use crate::samples::manifest;
use crate::story::{OWN, Story};

const DEADLINE: Duration = Duration::from_secs(60);
const LATE: &str = "!the deadline of the fan-out passed before this target had answered";

#[test]
fn a_deadline_appends_failures_for_what_is_missing_and_they_count_when_they_are_read() {
    let mut story = Story::fresh(manifest(["a", "b"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    assert_eq!(story.quiet_for(), Some(DEADLINE));
    let expired = format!("expired b={LATE}");
    story.wait(DEADLINE).check(&[&expired]);
    story.confirm("expired").check(&[]);
    story.result("r2", "b", LATE).check(&[&format!("final 0 with [a=one b={LATE}]")]);
}

#[test]
fn a_result_that_comes_before_the_failure_stands() {
    let mut story = Story::fresh(manifest(["a"], 0, 1)).until(DEADLINE);
    story.opened().check(&[]);
    story.wait(DEADLINE).check(&[&format!("expired a={LATE}")]);
    story.result("r1", "a", "just in time").check(&["final 0 with [a=just in time]"]);
    story.result("r2", "a", LATE).check(&["ack r2"]);
}

#[test]
fn a_deadline_decides_once_and_not_before_the_queue_is_read() {
    let mut story = Story::taken_over(manifest(["a"], 0, 1)).until(DEADLINE);
    story.wait(DEADLINE).check(&[]);
    assert_ne!(story.quiet_for(), Some(Duration::ZERO), "nothing can be done yet");
    story.opened().check(&[&format!("expired a={LATE}")]);
    story.wait(Duration::from_secs(1)).check(&[]);
    story.result("r1", "a", LATE).check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", &format!("final 0 with [a={LATE}]")]);
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
    story.fence("f1", OWN).check(&["ack f1", &format!("expired c={LATE}")]);
}
