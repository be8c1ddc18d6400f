//! A classic queue hands a message out before it is on disk: nothing is done on the strength of what may be lost.

use std::time::Duration;

use fanfare_fanin::{Event, Limits};
use fanfare_protocol::{Checkpoint, CompletionPolicy, EndedBy, Manifest, Mark};

use crate::samples::{self, checkpoint};
use crate::story::{OWN, Story};

const RUN: u128 = 1;
const OTHER: u128 = 7;

fn manifest<const N: usize>(keys: [&str; N], on_target: usize) -> Manifest {
    Manifest { replicated: false, ..samples::manifest(keys, on_target, 1) }
}

fn written_by_another(called: bool, entries: &[(&str, &str)]) -> Checkpoint {
    checkpoint(OTHER, 0, called, entries)
}

#[test]
fn a_final_callback_waits_for_one_mark_behind_all_results() {
    let mut story = Story::fresh(manifest(["a", "b"], 0));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    story.result("r2", "b", "two").check(&["mark"]);
    // That it is read back says nothing: it may be lost like any other, and the broker confirms without writing it what is acked.
    story.fence("f1", RUN).check(&[]);
    story.confirm("mark").check(&["ack f1", "final 0 with [a=one b=two]"]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack r2", "ack m1", "end, completed"]);
}

#[test]
fn on_target_callbacks_wait_for_a_mark_behind_their_result_and_share_it() {
    let mut story = Story::fresh(manifest(["a", "b", "c"], 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    story.result("r2", "b", "two").check(&[]);
    story.result("r3", "c", "three").check(&[]);
    story.confirm("mark").check(&["call 0 with a=one", "mark"]);
    story.confirm("mark").check(&["call 0 with b=two", "call 0 with c=three"]);
    story.confirm("call").check(&[]);
    story.confirm("call").check(&[]);
    story.confirm("call").check(&["final 0 with [a=one b=two c=three]"]);
}

#[test]
fn a_duplicate_is_acked_when_the_result_that_counts_is_kept() {
    let mut story = Story::fresh(manifest(["a", "b"], 0));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    // Its target ran twice. Where the broker dies now, this may be the only answer that is left.
    story.result("r2", "a", "again").check(&["mark"]);
    story.confirm("mark").check(&["ack r2"]);
    story.result("r3", "a", "and again").check(&["ack r3"]);
}

#[test]
fn a_duplicate_that_is_not_acked_yet_is_acked_at_the_end_and_goes_back_where_the_channel_is_lost() {
    let with_duplicate = || {
        let mut story = Story::fresh(manifest(["a", "b"], 0));
        story.opened().check(&[]);
        story.result("r1", "a", "one").check(&[]);
        story.result("r2", "a", "again").check(&["mark"]);
        story
    };
    with_duplicate().event(Event::ChannelLost).check(&["abandon [\"m1\"]"]);
    let mut story = with_duplicate();
    story.event(Event::QueueGone).check(&[
        "ack r1",
        "ack r2",
        "final 0 with [a=one b=!the aggregation queue was deleted before this target's result had arrived], ended by deletion",
    ]);
}

#[test]
fn a_result_is_acked_when_the_checkpoint_that_overrides_it_is_kept_and_before_the_fence_is_read() {
    let mut story = Story::taken_over(manifest(["a", "b"], 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "again").check(&["fence"]);
    let decided = written_by_another(false, &[("a", "one")]);
    // The window may be full by then, and the fence behind it.
    story.checkpoint("c1", &decided).check(&["mark"]);
    story.confirm("mark").check(&["ack r1"]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one"]);
}

#[test]
fn what_overrides_has_to_be_kept_before_it_is_called() {
    let mut story = Story::taken_over(manifest(["a", "b"], 1));
    story.opened().check(&[]);
    story.redelivered("r1", "a", "again").check(&["fence"]);
    story.checkpoint("c1", &written_by_another(false, &[("a", "one")])).check(&["mark"]);
    story.fence("f1", OWN).check(&["ack f1"]);
    story.confirm("mark").check(&["ack r1", "call 0 with a=one"]);
}

#[test]
fn a_completion_policy_is_met_by_what_is_kept() {
    let policy = CompletionPolicy { succeeded: Some(1), responded: None, failed_above: None };
    let mut story = Story::fresh(Manifest { completion: Some(policy), ..manifest(["a", "b", "c"], 0) });
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    // What comes meanwhile does not put it off.
    story.result("r2", "b", "two").check(&[]);
    story
        .confirm("mark")
        .check(&["missing c=!not awaited: the fan-out was complete when 1 target had succeeded"]);
    story.own_missing("r3", "c", 0).check(&["mark"]);
    story.confirm("missing").check(&[]);
    story.confirm("mark").check(&[
        "final 0 with [a=one b=two c=!not awaited: the fan-out was complete when 1 target had succeeded], \
         ended by completion",
    ]);
}

#[test]
fn a_cancel_that_comes_too_late_is_told_when_that_is_sure() {
    let mut story = Story::fresh(manifest(["a"], 0));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    story.cancel().check(&[]);
    story.confirm("mark").check(&["final 0 with [a=one]", "cancelled: 1 responded, 0 missing, by nothing"]);
}

#[test]
fn a_failure_in_the_place_of_a_target_has_to_be_kept_like_any_result() {
    let mut story = Story::taken_over(manifest(["a"], 0));
    story.opened().check(&[]);
    story.missing("r1", "a", EndedBy::Cancel).check(&["fence", "mark"]);
    story.fence("f1", OWN).check(&["ack f1"]);
    story.confirm("mark").check(&["final 0 with [a=!missing], ended by cancel"]);
}

#[test]
fn without_targets_there_is_nothing_to_wait_for() {
    let mut story = Story::fresh(manifest([], 0));
    story.opened().check(&["final 0 with []"]);
}

#[test]
fn a_quorum_queue_hands_out_only_what_is_kept() {
    let mut story = Story::fresh(samples::manifest(["a"], 0, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
}

#[test]
fn what_a_predecessor_has_begun_to_end_by_completion_goes_on_for_the_same_reason() {
    let policy = CompletionPolicy { succeeded: Some(1), responded: None, failed_above: None };
    let mut story = Story::taken_over(Manifest { completion: Some(policy), ..manifest(["a", "b", "c"], 0) });
    story.opened().check(&[]);
    story.redelivered("r1", "a", "one").check(&["fence", "mark"]);
    story.missing("r2", "b", EndedBy::Completion).check(&[]);
    story.fence("f1", OWN).check(&["ack f1"]);
    story
        .confirm("mark")
        .check(&["missing c=!not awaited: the fan-out was complete when 1 target had succeeded"]);
}

#[test]
fn a_sentinel_is_acked_when_the_one_that_renews_it_is_kept() {
    let mut story = Story::taken_over(Manifest { sentinel: true, ..manifest(["a"], 0) });
    story.opened().check(&[]);
    story.sentinel("s1", RUN).check(&["fence"]);
    story.sentinel("s2", RUN).check(&["mark"]);
    story.confirm("mark").check(&["ack s1"]);
}

#[test]
fn a_policy_that_an_override_has_unmet_is_met_by_what_comes_after() {
    let policy = CompletionPolicy { succeeded: Some(1), responded: None, failed_above: None };
    let mut story = Story::fresh(Manifest { completion: Some(policy), ..manifest(["a", "b", "c"], 0) });
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    story.checkpoint("c1", &written_by_another(false, &[("a", "!broken")])).check(&["fence"]);
    story.confirm("mark").check(&["mark"]);
    story.result("r2", "b", "two").check(&[]);
    story.confirm("mark").check(&["ack r1", "mark"]);
    // The second mark was behind the checkpoint, and before what meets the policy now.
    story.fence("f1", OWN).check(&["ack f1"]);
    story
        .confirm("mark")
        .check(&["missing c=!not awaited: the fan-out was complete when 1 target had succeeded"]);
}

#[test]
fn a_checkpoint_that_others_are_to_follow_holds_only_what_is_kept() {
    let limits = Limits { results_held: 2, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b", "c", "d"], 0), false, limits);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    story.result("r2", "b", "two").check(&["mark"]);
    // It is behind the mark.
    story.result("r3", "c", "three").check(&[]);
    story.confirm("mark").check(&["checkpoint of called [a=one b=two]"]);
    story.confirm("checkpoint").check(&["ack r1", "ack r2"]);
}

#[test]
fn what_is_held_for_long_and_not_known_to_be_kept_is_written_as_what_others_need_not_follow() {
    let mut story = Story::fresh(manifest(["a", "b"], 0));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&[]);
    let _ = story.wait(Limits::default().renewal).lines();
    assert!(story.open().contains(&"checkpoint of uncalled [a=one]"), "{:?}", story.open());
}

#[test]
fn marks_that_are_read_while_none_is_on_its_way_are_acked() {
    let mut story = Story::fresh(manifest(["a", "b"], 0));
    story.opened().check(&[]);
    let mark =
        Mark { coordinator: samples::id(OTHER), number: 1, is_padded: true }.encode(&manifest(["a", "b"], 0));
    story.message("f1", false, &mark).check(&["ack f1"]);
    story.result("r1", "a", "one").check(&[]);
    story.result("r2", "b", "two").check(&["mark"]);
    story.message("f2", false, &mark).check(&[]);
    story.confirm("mark").check(&["ack f2", "final 0 with [a=one b=two]"]);
}

#[test]
fn where_the_broker_takes_no_mark_of_its_size_a_small_one_does() {
    let mut story = Story::fresh(manifest(["a"], 0));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    story.refuse("mark", 1_000).check(&["small mark"]);
    story.confirm("small mark").check(&["final 0 with [a=one]"]);
}

#[test]
fn a_sentinel_whose_renewal_is_refused_is_acked_when_another_is_kept() {
    let mut story = Story::fresh(Manifest { sentinel: true, ..manifest(["a"], 0) });
    story.opened().check(&[]);
    story.sentinel("s1", RUN).check(&[]);
    let _ = story.wait(Limits::default().renewal + Duration::from_secs(1)).lines();
    story.sentinel("s2", RUN).check(&[]);
    story.refuse("sentinel", 1).check(&["mark"]);
    story.confirm("mark").check(&["ack s1"]);
}

#[test]
fn what_comes_twice_while_final_callbacks_are_under_way_is_acked_when_it_is_kept() {
    let mut story = Story::fresh(Manifest { sentinel: true, ..manifest(["a"], 0) });
    story.opened().check(&[]);
    story.sentinel("s1", RUN).check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    story.confirm("mark").check(&["final 0 with [a=one]"]);
    story.sentinel("s2", RUN).check(&["mark"]);
    story.confirm("mark").check(&["ack s1"]);
}

#[test]
fn a_coordinator_that_stops_has_what_it_has_called_settled_though_that_waits_for_a_mark() {
    let mut story = Story::fresh(manifest(["a", "b"], 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["mark"]);
    story.confirm("mark").check(&["call 0 with a=one"]);
    story.result("r2", "b", "two").check(&["mark"]);
    story.checkpoint("c1", &written_by_another(false, &[("b", "!broken")])).check(&["fence"]);
    story.event(Event::Stop).check(&[]);
    story.fence("f1", OWN).check(&["ack f1"]);
    story.confirm("call").check(&[]);
    story.confirm("mark").check(&["mark"]);
    story.confirm("mark").check(&["ack r2", "checkpoint of called [a=one]"]);
    story.confirm("checkpoint").check(&["ack r1", "abandon [\"m1\"]"]);
}
