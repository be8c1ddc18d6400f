//! A fan-out that nothing disturbs.

use fanfare_fanin::Event;
use fanfare_protocol::Channel;

use crate::samples::{id, manifest, result_of};
use crate::story::Story;

#[test]
fn two_targets_and_two_callbacks_of_each_kind_end_once() {
    let mut story = Story::fresh(manifest(["a", "b"], 2, 2));
    story.opened().check(&[]);
    story.result("r1", "b", "two").check(&["call 0 with b=two", "call 1 with b=two"]);
    story.result("r2", "a", "one").check(&["call 0 with a=one", "call 1 with a=one"]);
    story.confirm("call 1 with a").check(&[]);
    story.confirm("call 0 with b").check(&[]);
    story.confirm("call 0 with a").check(&[]);
    story.confirm("call 1 with b").check(&["final 0 with [a=one b=two]", "final 1 with [a=one b=two]"]);
    story.confirm("final 1").check(&[]);
    story.confirm("final 0").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r2", "ack r1", "ack m1", "end, completed"]);
    assert!(story.is_done());
}

#[test]
fn the_others_still_count_when_the_first_target_fails() {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "!broken").check(&["call 0 with a=!broken"]);
    story.confirm("call 0 with a").check(&[]);
    story.result("r2", "b", "two").check(&["call 0 with b=two"]);
    story.confirm("call 0 with b").check(&["final 0 with [a=!broken b=two]"]);
}

#[test]
fn zero_targets_invoke_the_final_callbacks_at_once() {
    let mut story = Story::fresh(manifest([], 1, 1));
    story.opened().check(&["final 0 with []"]);
    story.confirm("final 0").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack m1", "end, completed"]);
}

#[test]
fn zero_targets_taken_over_wait_for_their_fence() {
    let mut story = Story::taken_over(manifest([], 1, 1));
    story.opened().check(&["fence"]);
    story.confirm("fence").check(&[]);
    story.fence("f1", crate::story::OWN).check(&["ack f1", "final 0 with []"]);
}

#[test]
fn a_parallel_execution_ends_without_final_callbacks() {
    let parallel = fanfare_protocol::Manifest { channel: Channel::ParallelExecCall, ..manifest(["a"], 1, 0) };
    let mut story = Story::fresh(parallel);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.confirm("call 0 with a").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
}

#[test]
fn the_caller_who_waits_is_answered_beside_the_final_callbacks() {
    let waited =
        fanfare_protocol::Manifest { waiter: Some("fanfare.wait.1".to_owned()), ..manifest(["a"], 0, 1) };
    let mut story = Story::fresh(waited);
    story.opened().check(&[]);
    story.result("r1", "a", "!no").check(&["final 0 with [a=!no]", "waiter with [a=!no]"]);
    story.confirm("final 0").check(&[]);
    story.confirm("waiter").check(&["delete"]);
}

#[test]
fn no_final_callback_is_published_before_each_on_target_callback_is_confirmed() {
    let mut story = Story::fresh(manifest(["a", "b"], 2, 1));
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    let _ = story.result("r2", "b", "two").lines();
    for line in ["call 0 with a", "call 1 with b", "call 0 with b"] {
        story.confirm(line).check(&[]);
    }
    story.confirm("call 1 with a").check(&["final 0 with [a=one b=two]"]);
}

#[test]
fn a_target_counts_once_and_the_first_result_stands() {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.result("r2", "a", "one").check(&["ack r2"]);
    story.result("r3", "a", "another").check(&["ack r3"]);
    story.confirm("call 0 with a").check(&[]);
    story.result("r4", "b", "two").check(&["call 0 with b=two"]);
    story.confirm("call 0 with b").check(&["final 0 with [a=one b=two]"]);
    story.result("r5", "b", "late").check(&["ack r5"]);
}

#[test]
fn strangers_and_other_runs_never_count() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    story.result("r1", "unheard-of", "one").check(&["ack r1"]);
    let other_run = result_of(id(99), "a", crate::samples::body("other"));
    story.message("r2", false, &other_run).check(&["ack r2"]);
    story.result("r3", "a", "one").check(&["final 0 with [a=one]"]);
}

#[test]
fn what_arrives_while_the_queue_is_deleted_is_acked_with_the_rest_before_the_manifest() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    story.confirm("final 0").check(&["delete"]);
    story.result("r2", "a", "late").check(&[]);
    story.fence("f1", 7).check(&[]);
    assert_eq!(story.quiet_for(), None);
    story.event(Event::Deleted).check(&["ack r1", "ack r2", "ack f1", "ack m1", "end, completed"]);
}

#[test]
fn nothing_comes_out_of_a_machine_that_is_done() {
    let mut story = Story::fresh(manifest([], 0, 1));
    let _ = story.opened().lines();
    let _ = story.confirm("final 0").lines();
    let _ = story.event(Event::Deleted).lines();
    for event in [Event::Opened, Event::QueueGone, Event::Deleted, Event::ChannelLost, Event::Stop] {
        story.event(event).check(&[]);
    }
    story.result("r1", "a", "one").check(&[]);
    assert_eq!(story.quiet_for(), None);
}

#[test]
fn an_event_that_cannot_be_meant_changes_nothing() {
    let mut story = Story::fresh(manifest(["a"], 1, 1));
    story.event(Event::Deleted).check(&[]);
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    story.event(Event::NeverOpened).check(&[]);
    let _ = story.confirm("call 0").lines();
    story.opened().check(&[]);
    story.event(Event::NeverOpened).check(&[]);
    story.event(Event::Deleted).check(&[]);
    story.confirm("final 0").check(&["delete"]);
    story.opened().check(&[]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
}
