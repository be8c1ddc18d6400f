//! Results are written back to the queue, and their deliveries let go.

use std::time::Duration;

use fanfare_fanin::{Event, Limits};

use crate::samples::{checkpoint, manifest};
use crate::story::Story;

/// Two confirmed on-target callbacks are written into a checkpoint.
fn two_at_a_time() -> Limits {
    Limits { calls_at_risk: 4, ..Limits::default() }
}

/// Four targets, of which a and b are in a checkpoint that is on its way.
fn writing() -> Story {
    let mut story = Story::with(manifest(["a", "b", "c", "d"], 1, 1), false, two_at_a_time());
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.result("r2", "b", "two").check(&["call 0 with b=two"]);
    story.confirm("call 0 with b").check(&[]);
    story.confirm("call 0 with a").check(&["checkpoint of called [b=two a=one]"]);
    story
}

#[test]
fn the_originals_are_acked_once_their_checkpoint_is_confirmed() {
    let mut story = writing();
    story.confirm("checkpoint").check(&["ack r2", "ack r1"]);
    story.own_checkpoint("c1", 0).check(&[]);
    story.event(Event::ChannelLost).check(&["abandon [\"m1\"]"]);
}

#[test]
fn a_checkpoint_that_arrives_before_its_confirm_is_held_like_any_other() {
    let mut story = writing();
    story.own_checkpoint("c1", 0).check(&[]);
    // The broker would take the ack of a copy for its end, and confirm it without writing it.
    story.own_checkpoint("c1-again", 0).check(&[]);
    story.confirm("checkpoint").check(&["ack c1-again", "ack r2", "ack r1"]);
    let _ = story.result("r3", "c", "three").lines();
    let _ = story.result("r4", "d", "four").lines();
    story.confirm("call 0 with c").check(&[]);
    let lines = story.confirm("call 0 with d").lines();
    assert_eq!(lines, ["final 0 with [a=one b=two c=three d=four]", "checkpoint of called [c=three d=four]"]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r3", "ack r4", "ack c1", "ack m1", "end, completed"]);
}

#[test]
fn a_checkpoint_published_twice_is_acked_the_second_time() {
    let mut story = writing();
    story.confirm("checkpoint").check(&["ack r2", "ack r1"]);
    story.own_checkpoint("c1", 0).check(&[]);
    story.own_checkpoint("c2", 0).check(&["ack c2"]);
}

#[test]
fn a_checkpoint_being_written_at_the_end_is_acked_with_the_rest() {
    let mut story = Story::with(manifest(["a", "b"], 1, 1), false, two_at_a_time());
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    let _ = story.result("r2", "b", "two").lines();
    let _ = story.confirm("call").lines();
    let lines = story.confirm("call").lines();
    assert_eq!(lines, ["final 0 with [a=one b=two]", "checkpoint of called [a=one b=two]"]);
    story.own_checkpoint("c1", 0).check(&[]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack r2", "ack c1", "ack m1", "end, completed"]);
}

#[test]
fn ten_checkpoints_of_a_level_are_folded_into_one_of_the_next_and_let_go() {
    let keys: Vec<String> = (0..12).map(|n| format!("k{n:02}")).collect();
    let limits = Limits { results_held: 1, ..Limits::default() };
    let mut story = Story::with(manifest(keys.iter().map(String::as_str), 0, 1), false, limits);
    story.opened().check(&[]);
    let tags = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9"];
    for (n, tag) in tags.into_iter().enumerate() {
        let lines = story.result("r", &keys[n], "x").lines();
        assert_eq!(lines, [format!("checkpoint of called [k{n:02}=x]")]);
        story.confirm("checkpoint").check(&["ack r"]);
        if n < 9 {
            story.own_checkpoint(tag, n).check(&[]);
        }
    }
    let lines = story.own_checkpoint("c9", 9).lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(story.checkpoints()[10].entries.len(), 10);
    let acks: Vec<String> = tags.iter().map(|tag| format!("ack {tag}")).collect();
    assert_eq!(story.confirm("checkpoint").lines(), acks);
    // The folded one is not folded again with nine of the lower level.
    story.own_checkpoint("c10", 10).check(&[]);
}

#[test]
fn what_is_held_for_half_of_the_renewal_time_moves_into_a_newer_checkpoint() {
    let limits = Limits { renewal: Duration::from_secs(800), ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b", "c"], 1, 1), false, limits);
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    let _ = story.confirm("call 0 with a").lines();
    let _ = story.result("r2", "b", "two").lines();
    for _ in 0..3 {
        story.wait(Duration::from_secs(100)).check(&[]);
    }
    // The callbacks of b are not confirmed, so it goes into a checkpoint that says so.
    story.wait(Duration::from_secs(100)).check(&["checkpoint of called [a=one]"]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(400)), "the next is the manifest's renewal");
    story.confirm("checkpoint").check(&["ack r1", "checkpoint of uncalled [b=two]"]);
    story.confirm("checkpoint").check(&["ack r2"]);
    story.own_checkpoint("c1", 0).check(&[]);
    story.own_checkpoint("c2", 1).check(&[]);
    for _ in 0..3 {
        story.wait(Duration::from_secs(100)).check(&[]);
    }
    story.wait(Duration::from_secs(100)).check(&["checkpoint of called [a=one]", "renewal"]);
    story.confirm("checkpoint").check(&["ack c1", "checkpoint of uncalled [b=two]"]);
    story.confirm("checkpoint").check(&["ack c2"]);
}

#[test]
fn an_uncalled_checkpoint_is_let_go_when_its_callbacks_are_settled() {
    let limits = Limits { renewal: Duration::from_secs(800), calls_at_risk: 2, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b"], 1, 1), false, limits);
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    story.wait(Duration::from_secs(400)).check(&["checkpoint of uncalled [a=one]"]);
    story.own_checkpoint("c1", 0).check(&[]);
    story.confirm("checkpoint").check(&["ack r1"]);
    story.confirm("call").check(&["checkpoint of called [a=one]"]);
    story.confirm("checkpoint").check(&["ack c1"]);
}

#[test]
fn time_passing_is_never_asked_for_in_vain() {
    let limits = Limits { renewal: Duration::from_secs(8), ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b", "c"], 1, 1), true, limits);
    story.opened().check(&[]);
    for step in 0..200 {
        match step {
            3 => drop(story.redelivered("r1", "a", "one").lines()),
            20 => drop(story.fence("f1", crate::story::OWN).lines()),
            40 => drop(story.confirm("call").lines()),
            60 => drop(story.event(Event::Stop).lines()),
            _ => {}
        }
        if story.is_done() {
            return;
        }
        let Some(quiet) = story.quiet_for() else { continue };
        let _ = story.wait(quiet).lines();
        assert_ne!(story.quiet_for(), Some(Duration::ZERO), "step {step}");
    }
}

#[test]
fn a_stop_settles_what_a_crash_would_repeat_and_then_lets_go() {
    let mut story = Story::fresh(manifest(["a", "b", "c"], 1, 1));
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    story.event(Event::Stop).check(&[]);
    story.result("r2", "b", "two").check(&[]);
    story.confirm("call 0 with a").check(&["checkpoint of called [a=one]"]);
    story.confirm("checkpoint").check(&["ack r1", "abandon [\"m1\"]"]);
}

#[test]
fn a_stop_with_nothing_at_risk_lets_go_at_once() {
    let mut story = Story::fresh(manifest(["a"], 1, 1));
    story.event(Event::Stop).check(&["abandon [\"m1\"]"]);
    let mut story = Story::taken_over(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence"]);
    story.event(Event::Stop).check(&["abandon [\"m1\"]"]);
}

#[test]
fn what_is_past_gathering_goes_to_its_end_in_spite_of_a_stop() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let _ = story.result("r1", "a", "one").lines();
    story.event(Event::Stop).check(&[]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
}

#[test]
fn anothers_checkpoint_of_what_was_acted_upon_is_not_needed() {
    let mut story = Story::fresh(manifest(["a", "b"], 1, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.checkpoint("x1", &checkpoint(7, 0, true, &[("a", "other")])).check(&["ack x1", "fence"]);
    story.confirm("call").check(&[]);
}

#[test]
fn a_window_full_of_a_predecessors_checkpoints_still_lets_the_fence_through() {
    let limits = Limits { window: 16, results_held: 10, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b", "c", "d", "e"], 1, 1), true, limits);
    story.opened().check(&[]);
    story.checkpoint("c1", &checkpoint(7, 0, true, &[("a", "one")])).check(&["fence"]);
    story.checkpoint("c2", &checkpoint(7, 1, true, &[("b", "two")])).check(&[]);
    // Its order among other uncalled ones counts until the fence is read.
    story.checkpoint("u1", &checkpoint(7, 2, false, &[("c", "three")])).check(&[]);
    story.checkpoint("c3", &checkpoint(7, 3, true, &[("d", "four")])).check(&[]);
    let folded = "checkpoint of called [a=one b=two d=four e=five]";
    story.checkpoint("c4", &checkpoint(7, 4, true, &[("e", "five")])).check(&[folded]);
    story.confirm("checkpoint").check(&["ack c1", "ack c2", "ack c3", "ack c4"]);
    story.fence("f", 42).check(&["ack f", "call 0 with c=three"]);
}

#[test]
fn in_a_small_window_fewer_checkpoints_are_folded() {
    let limits = Limits { window: 8, calls_at_risk: 2, results_held: 2, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b", "c"], 1, 1), false, limits);
    story.opened().check(&[]);
    for (n, (key, tag)) in [("a", "r1"), ("b", "r2")].into_iter().enumerate() {
        let _ = story.result(tag, key, "x").lines();
        assert_eq!(story.confirm("call").lines(), [format!("checkpoint of called [{key}=x]")]);
        let _ = story.confirm("checkpoint").lines();
        assert_eq!(story.checkpoints().len(), n + 1);
    }
    story.own_checkpoint("c1", 0).check(&[]);
    story.own_checkpoint("c2", 1).check(&["checkpoint of called [a=x b=x]"]);
    story.confirm("checkpoint").check(&["ack c1", "ack c2"]);
}

#[test]
fn results_of_a_checkpoint_lie_in_one_piece_of_memory() {
    let mut story = writing();
    let _ = story.result("r3", "c", "three").lines();
    let [a, b, c] = [0, 1, 2].map(|place| story.body(place).as_ptr_range());
    assert_eq!(b.end, a.start, "in the order in which their callbacks were confirmed");
    assert_ne!(a.end, c.start);
}
