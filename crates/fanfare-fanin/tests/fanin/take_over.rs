//! A hold that another may have gone before.

use std::time::Duration;

use fanfare_fanin::{Event, Limits};

use crate::samples::{checkpoint, manifest, numbered};
use crate::story::{OWN, Story};

#[test]
fn a_hold_that_takes_over_publishes_nothing_before_its_fence_is_read_back() {
    let mut story = Story::taken_over(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.result("r2", "b", "two").check(&[]);
    story.confirm("fence").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one", "call 0 with b=two"]);
}

#[test]
fn a_standby_publishes_nothing_at_all() {
    let mut story = Story::taken_over(manifest(["a"], 1, 1));
    story.opened().check(&[]);
    story.wait(Duration::from_secs(300)).check(&[]);
    story.event(Event::QueueGone).check(&["ack m1", "end"]);
}

#[test]
fn whatever_is_redelivered_begins_a_take_over() {
    let mut story = Story::fresh(manifest(["a"], 1, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
}

#[test]
fn anothers_checkpoint_or_fence_begins_a_take_over() {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.checkpoint("x1", &checkpoint(7, 0, true, &[("a", "one")])).check(&["fence"]);
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.fence("f1", 7).check(&["ack f1", "fence"]);
}

#[test]
fn anothers_fence_does_not_open_the_way() {
    let mut story = Story::taken_over(manifest(["a"], 1, 1));
    story.opened().check(&[]);
    story.fence("f1", 7).check(&["ack f1", "fence"]);
    story.redelivered("r1", "a", "one").check(&[]);
    story.fence("f2", 8).check(&["ack f2"]);
    story.fence("f3", OWN).check(&["ack f3", "call 0 with a=one"]);
    story.fence("f4", OWN).check(&["ack f4"]);
}

#[test]
fn a_fence_that_does_not_come_back_is_sent_again() {
    let mut story = Story::taken_over(manifest(["a"], 1, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(30)));
    story.wait(Duration::from_secs(29)).check(&[]);
    story.wait(Duration::from_secs(1)).check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one"]);
}

#[test]
fn a_fence_is_sent_again_while_a_stop_waits() {
    let limits = Limits { window: 4, results_held: 2, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b", "c"], 1, 1), true, limits);
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.redelivered("r2", "b", "two").check(&["checkpoint of uncalled [a=one b=two]"]);
    story.event(Event::Stop).check(&[]);
    story.wait(Duration::from_secs(30)).check(&["fence"]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(30)));
    story.confirm("checkpoint").check(&["ack r1", "ack r2", "abandon [\"m1\"]"]);
}

#[test]
fn a_predecessors_checkpoint_overrides_the_results_before_it() {
    let mut story = Story::taken_over(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "second").check(&["fence"]);
    story.checkpoint("x1", &checkpoint(7, 0, true, &[("a", "first")])).check(&["ack r1"]);
    story.result("r2", "a", "third").check(&["ack r2"]);
    story.fence("f1", OWN).check(&["ack f1"]);
    story.result("r3", "b", "two").check(&["call 0 with b=two"]);
    story.confirm("call").check(&["final 0 with [a=first b=two]"]);
}

#[test]
fn a_called_checkpoint_overrides_an_uncalled_one_and_the_first_of_a_kind_stands() {
    let mut story = Story::taken_over(manifest(["a", "b", "c"], 1, 1));
    story.opened().check(&[]);
    story.checkpoint("u1", &checkpoint(7, 0, false, &[("a", "u1"), ("b", "u1")])).check(&["fence"]);
    story.checkpoint("u2", &checkpoint(7, 1, false, &[("a", "u2")])).check(&["ack u2"]);
    story.checkpoint("c1", &checkpoint(8, 0, true, &[("a", "c1"), ("c", "c1")])).check(&[]);
    story.checkpoint("c2", &checkpoint(9, 0, true, &[("a", "c2"), ("b", "c2")])).check(&["ack u1"]);
    story.checkpoint("u3", &checkpoint(9, 1, false, &[("c", "u3")])).check(&["ack u3"]);
    story.fence("f1", OWN).check(&["ack f1", "final 0 with [a=c1 b=c2 c=c1]"]);
}

#[test]
fn results_of_a_called_checkpoint_are_not_called_again_and_those_of_an_uncalled_one_are() {
    let mut story = Story::taken_over(manifest(["a", "b"], 2, 1));
    story.opened().check(&[]);
    story.checkpoint("c1", &checkpoint(7, 0, true, &[("a", "one")])).check(&["fence"]);
    story.checkpoint("c2", &checkpoint(7, 1, false, &[("b", "two")])).check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with b=two", "call 1 with b=two"]);
}

#[test]
fn the_same_checkpoint_of_another_is_held_once() {
    let mut story = Story::taken_over(manifest(["a", "b"], 0, 1));
    story.opened().check(&[]);
    let written = checkpoint(7, 0, true, &[("a", "one"), ("a", "again"), ("unheard-of", "x")]);
    story.checkpoint("c1", &written).check(&["fence"]);
    story.checkpoint("c2", &written).check(&["ack c2"]);
    story.checkpoint("c3", &checkpoint(7, 1, true, &[])).check(&["ack c3"]);
}

/// Nine results that a predecessor left, then whatever the story is about.
fn wide_backlog() -> Story {
    let limits = Limits { window: 4, results_held: 2, ..Limits::default() };
    let mut story = Story::with(numbered(6, 1, 1), true, limits);
    story.opened().check(&[]);
    story.redelivered("r0", "0", "x").check(&["fence"]);
    story.redelivered("r1", "1", "x").check(&["checkpoint of uncalled [0=x 1=x]"]);
    story
}

#[test]
fn a_backlog_wider_than_the_window_is_written_together_before_the_fence() {
    let mut story = wide_backlog();
    story.confirm("checkpoint").check(&["ack r0", "ack r1"]);
    story.redelivered("r2", "2", "x").check(&[]);
    story.redelivered("r3", "3", "x").check(&["checkpoint of uncalled [2=x 3=x]"]);
    story.confirm("checkpoint").check(&["ack r2", "ack r3"]);
    story.result("r4", "4", "x").check(&[]);
    story.fence("f1", OWN).check(&[
        "ack f1",
        "call 0 with 0=x",
        "call 0 with 1=x",
        "call 0 with 2=x",
        "call 0 with 3=x",
        "call 0 with 4=x",
    ]);
    story.own_checkpoint("c0", 0).check(&[]);
    story.own_checkpoint("c1", 1).check(&[]);
}

#[test]
fn what_was_written_before_the_fence_does_not_outrank_what_a_predecessor_wrote_before_it() {
    let mut story = wide_backlog();
    story.confirm("checkpoint").check(&["ack r0", "ack r1"]);
    // It lies before this hold's own checkpoint in the queue, and whoever wrote it may have acted upon it.
    story.checkpoint("u1", &checkpoint(7, 0, false, &[("0", "decided")])).check(&[]);
    story.own_checkpoint("c0", 0).check(&[]);
    // It lies behind it, so this hold's own stands.
    story.checkpoint("u2", &checkpoint(8, 0, false, &[("1", "later")])).check(&["ack u2"]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with 0=decided", "call 0 with 1=x"]);
}

#[test]
fn a_checkpoint_read_while_another_of_its_results_is_written_stands() {
    let mut story = wide_backlog();
    story
        .checkpoint("u1", &checkpoint(7, 0, true, &[("0", "decided"), ("1", "decided")]))
        .check(&["ack r0", "ack r1"]);
    // The one on its way turns out to hold nothing that lives there.
    story.own_checkpoint("c0", 0).check(&[]);
    story.confirm("checkpoint").check(&["ack c0"]);
    story.fence("f1", OWN).check(&["ack f1"]);
}

#[test]
fn a_checkpoint_without_use_is_acked_even_if_it_arrives_after_its_confirm() {
    let mut story = wide_backlog();
    story
        .checkpoint("u1", &checkpoint(7, 0, true, &[("0", "decided"), ("1", "decided")]))
        .check(&["ack r0", "ack r1"]);
    story.confirm("checkpoint").check(&[]);
    story.own_checkpoint("c0", 0).check(&["ack c0"]);
}

#[test]
fn a_final_payload_is_not_overridden_once_it_is_published() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
    story.checkpoint("x1", &checkpoint(7, 0, true, &[("a", "other")])).check(&["ack x1"]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
}
