//! The channel is lost, or the queue is gone, at each step.

use fanfare_fanin::Event;

use crate::samples::manifest;
use crate::story::{OWN, Story};

/// Brings a story one step further.
type Go = fn(&mut Story);

/// A fan-out of two targets with one callback of each kind, brought to the end of a phase.
fn at(step: &str) -> Story {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    let steps: [(&str, Go); 7] = [
        ("opening", |_| ()),
        ("opened", |story| story.opened().check(&[])),
        ("one result", |story| story.result("r1", "a", "one").check(&["call 0 with a=one"])),
        ("one call confirmed", |story| story.confirm("call").check(&[])),
        ("both results", |story| story.result("r2", "b", "two").check(&["call 0 with b=two"])),
        ("finalizing", |story| story.confirm("call").check(&["final 0 with [a=one b=two]"])),
        ("deleting", |story| story.confirm("final").check(&["delete"])),
    ];
    for (name, go) in steps {
        go(&mut story);
        if name == step {
            return story;
        }
    }
    panic!("{step} is no step")
}

const STEPS: [&str; 7] =
    ["opening", "opened", "one result", "one call confirmed", "both results", "finalizing", "deleting"];

#[test]
fn a_channel_lost_at_any_step_hands_the_manifest_back_once_and_acks_nothing() {
    for step in STEPS {
        let mut story = at(step);
        if step == "deleting" {
            story.event(Event::ChannelLost).check(&["delete"]);
            continue;
        }
        story.event(Event::ChannelLost).check(&["abandon [\"m1\"]"]);
        assert!(story.is_done(), "{step}");
        story.event(Event::ChannelLost).check(&[]);
        story.event(Event::Deleted).check(&[]);
        assert_eq!(story.quiet_for(), None);
    }
}

#[test]
fn a_queue_that_was_never_there_parks_a_copy_and_publishes_nothing_else() {
    let mut story = at("opening");
    story.event(Event::NeverOpened).check(&["manifest, parked"]);
    assert_eq!(story.quiet_for(), None);
    story.event(Event::QueueGone).check(&[]);
    story.event(Event::Stop).check(&[]);
    story.manifest("m2").check(&["ack m1"]);
    story.confirm("manifest").check(&["ack m2", "end"]);
}

#[test]
fn a_queue_that_is_gone_before_anything_was_read_never_fires() {
    for step in ["opening", "opened"] {
        let mut story = at(step);
        story.event(Event::QueueGone).check(&["manifest, parked"]);
        story.confirm("manifest").check(&["ack m1", "end"]);
    }
}

#[test]
fn a_queue_deleted_under_a_hold_that_has_read_of_it_fails_what_is_missing() {
    let mut story = at("one result");
    let lines = story.event(Event::QueueGone).lines();
    assert_eq!(lines[0], "ack r1");
    assert!(lines[1].starts_with("call 0 with b=!the aggregation queue was deleted"), "{lines:?}");
    assert_eq!(lines.len(), 2);
    story.confirm("call").check(&[]);
    let lines = story.confirm("call").lines();
    assert!(lines[0].starts_with("final 0 with [a=one b=!the aggregation queue was deleted"), "{lines:?}");
    story.confirm("final").check(&["ack m1", "end, completed"]);
}

#[test]
fn a_queue_gone_after_all_has_been_read_changes_nothing_about_the_end() {
    let mut story = at("both results");
    story.event(Event::QueueGone).check(&["ack r1", "ack r2"]);
    story.confirm("call").check(&["final 0 with [a=one b=two]"]);
    story.confirm("final").check(&["ack m1", "end, completed"]);
    let mut story = at("finalizing");
    story.event(Event::QueueGone).check(&["ack r1", "ack r2"]);
    story.confirm("final").check(&["ack m1", "end, completed"]);
    let mut story = at("deleting");
    story.event(Event::QueueGone).check(&["ack r1", "ack r2", "ack m1", "end, completed"]);
}

#[test]
fn a_hold_that_has_not_passed_its_fence_never_contradicts_its_predecessor_when_the_queue_goes() {
    let mut story = Story::taken_over(manifest(["a", "b"], 0, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.event(Event::QueueGone).check(&["manifest, parked"]);
    story.confirm("manifest").check(&["ack r1", "ack m1", "end"]);
}

#[test]
fn a_hold_that_has_passed_its_fence_finishes_when_the_queue_goes() {
    let mut story = Story::taken_over(manifest(["a"], 1, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one"]);
    story.event(Event::QueueGone).check(&["ack r1"]);
    story.confirm("call").check(&["final 0 with [a=one]"]);
    story.confirm("final").check(&["ack m1", "end, completed"]);
}

#[test]
fn without_a_queue_neither_a_lost_channel_nor_a_stop_lets_go_of_what_is_here_only() {
    for event in [Event::ChannelLost, Event::Stop] {
        let mut story = at("both results");
        let _ = story.event(Event::QueueGone).lines();
        story.event(event.clone()).check(&[]);
        story.confirm("call").check(&["final 0 with [a=one b=two]"]);
        story.event(event).check(&[]);
        story.confirm("final").check(&["ack m1", "end, completed"]);
    }
}

#[test]
fn a_stop_before_the_queue_went_does_not_keep_the_fan_out_from_its_end() {
    let mut story = at("one result");
    story.event(Event::Stop).check(&[]);
    assert_eq!(story.event(Event::QueueGone).lines().len(), 2);
    story.confirm_all();
    assert!(story.is_done());
}
