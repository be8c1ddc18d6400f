//! The manifest is published again before it has been held for too long.

use std::time::Duration;

use fanfare_fanin::Event;

use crate::samples::manifest;
use crate::story::{OWN, Story};

const RENEWAL: Duration = Duration::from_secs(600);

/// A hold whose renewed manifest is on its way.
fn renewing() -> Story {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    story.wait(RENEWAL - Duration::from_secs(1)).check(&[]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(1)));
    story.wait(Duration::from_secs(1)).check(&["renewal"]);
    story
}

/// The fan-out goes on to its end. Since another may hold the copy, a fence comes first.
fn deleting(story: &mut Story) {
    story.result("r1", "a", "one").check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", "final 0 with [a=one]"]);
    story.confirm("final").check(&["delete"]);
}

fn ends_with(mut story: Story, acks: &[&str]) {
    deleting(&mut story);
    story.event(Event::Deleted).check(acks);
}

#[test]
fn the_delivery_that_is_renewed_is_acked_when_its_copy_is_safe() {
    let mut story = renewing();
    story.wait(Duration::from_secs(60)).check(&[]);
    story.confirm("renewal").check(&["ack m1"]);
}

#[test]
fn a_copy_that_arrives_after_the_confirm_is_held_and_renewed_in_its_turn() {
    let mut story = renewing();
    story.confirm("renewal").check(&["ack m1"]);
    story.manifest("m2").check(&[]);
    story.wait(RENEWAL).check(&["renewal"]);
    story.manifest("m3").check(&[]);
    story.confirm("renewal").check(&["ack m2"]);
    ends_with(story, &["ack r1", "ack m3", "end, completed"]);
}

#[test]
fn a_copy_that_arrives_before_the_confirm_is_held_and_each_delivery_acked_once() {
    let mut story = renewing();
    story.manifest("m2").check(&[]);
    story.confirm("renewal").check(&["ack m1"]);
    ends_with(story, &["ack r1", "ack m2", "end, completed"]);
}

#[test]
fn a_copy_that_goes_elsewhere_leaves_a_hold_without_a_manifest_that_ends_all_the_same() {
    let mut story = renewing();
    story.confirm("renewal").check(&["ack m1"]);
    ends_with(story, &["ack r1", "end, completed"]);
}

#[test]
fn of_several_copies_the_newest_is_held() {
    let mut story = renewing();
    story.manifest("m2").check(&[]);
    story.manifest("m3").check(&["ack m2"]);
    story.manifest("m4").check(&["ack m3"]);
    story.confirm("renewal").check(&["ack m1"]);
    ends_with(story, &["ack r1", "ack m4", "end, completed"]);
}

#[test]
fn a_repeated_manifest_replaces_the_first() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    story.manifest("m2").check(&["ack m1"]);
    ends_with(story, &["ack r1", "ack m2", "end, completed"]);
}

#[test]
fn a_hold_that_lets_go_hands_back_all_its_manifests() {
    let mut story = renewing();
    story.event(Event::ChannelLost).check(&["abandon [\"m1\"]"]);
    let mut story = renewing();
    story.manifest("m2").check(&[]);
    story.event(Event::ChannelLost).check(&["abandon [\"m1\", \"m2\"]"]);
    let mut story = renewing();
    story.confirm("renewal").check(&["ack m1"]);
    story.event(Event::ChannelLost).check(&["abandon []"]);
}

#[test]
fn at_the_end_the_delivery_being_renewed_is_acked_too() {
    let mut story = renewing();
    deleting(&mut story);
    story.manifest("m2").check(&[]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "ack m2", "end, completed"]);
}

#[test]
fn a_manifest_waits_its_turn_while_another_is_renewed_and_is_then_renewed() {
    let mut story = renewing();
    story.manifest("m2").check(&[]);
    story.wait(RENEWAL * 2).check(&[]);
    assert_ne!(story.quiet_for(), Some(Duration::ZERO));
    story.confirm("renewal").check(&["ack m1", "renewal"]);
    story.confirm("renewal").check(&["ack m2"]);
}

#[test]
fn a_manifest_is_renewed_while_its_queue_cannot_be_opened() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.wait(RENEWAL).check(&["renewal"]);
    story.confirm("renewal").check(&["ack m1"]);
}

#[test]
fn a_copy_that_arrives_before_anything_is_read_makes_a_take_over_of_it() {
    let mut story = Story::fresh(manifest(["a"], 1, 1));
    story.manifest("m2").check(&["ack m1"]);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["fence"]);
}

#[test]
fn zero_targets_whose_manifest_was_renewed_meanwhile_wait_for_their_fence() {
    let mut story = Story::fresh(manifest([], 0, 1));
    story.wait(RENEWAL).check(&["renewal"]);
    story.opened().check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", "final 0 with []"]);
}
