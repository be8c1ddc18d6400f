//! Fan-outs that share a queue.

use std::time::Duration;

use fanfare_fanin::{Limits, Memory, ShardEvent, ShardLimits};
use fanfare_protocol::{Ended, EndedRun, header};

use crate::samples::{body, id, result_of};
use crate::shard_story::{Story, limits, of_run};

#[test]
fn nothing_is_published_beside_the_callbacks_and_the_manifest_is_acked_first() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a", "b"], 1)).check(&[]);
    story.result("r1", 1, "a", "one").check(&["1 call with one"]);
    story.result("r2", 1, "b", "two").check(&["1 call with two"]);
    story.confirm("1 call").check(&[]);
    story.confirm("1 call").check(&["1 final with [a=one b=two]"]);
    story.confirm("1 final").check(&["ack m1", "ack r1", "ack r2", "1 completed"]);
    assert_eq!(story.held(), 0);
}

#[test]
fn results_that_come_before_their_manifest_count_in_their_order() {
    let mut story = Story::new();
    story.result("r1", 1, "a", "first").check(&[]);
    story.result("r2", 1, "a", "second").check(&[]);
    story.result("x1", 2, "a", "of another").check(&[]);
    story.manifest("m1", of_run(1, &["a"], 0)).check(&["1 final with [a=first]", "ack r2"]);
    story.confirm("1 final").check(&["ack m1", "ack r1", "1 completed"]);
    assert_eq!(story.held(), 1, "what is of the other run waits");
}

#[test]
fn fan_outs_of_one_shard_do_not_mix() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    story.manifest("m2", of_run(2, &["a"], 0)).check(&[]);
    story.result("r2", 2, "a", "two").check(&["2 final with [a=two]"]);
    story.result("r1", 1, "a", "one").check(&["1 final with [a=one]"]);
    story.confirm("1 final").check(&["ack m1", "ack r1", "1 completed"]);
    story.confirm("2 final").check(&["ack m2", "ack r2", "2 completed"]);
}

#[test]
fn what_has_ended_lately_is_known_to_the_next_hold_too() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &[], 0)).check(&["1 final with []"]);
    story.confirm("1 final").check(&["ack m1", "1 completed"]);
    story.result("r1", 1, "a", "late").check(&["ack r1", "1 of 1 dropped"]);
    let mut next = Story::with(limits(), story.into_memory());
    next.manifest("m2", of_run(1, &[], 0)).check(&["ack m2"]);
    next.result("r2", 1, "a", "late").check(&["ack r2", "1 of 1 dropped"]);
}

#[test]
fn what_nobody_claims_is_dropped_when_a_fence_proves_that_there_is_no_manifest() {
    let mut story = Story::new();
    story.result("r1", 1, "a", "late").check(&[]);
    story.wait(Duration::from_secs(60)).check(&[]);
    story.result("r2", 2, "a", "early").check(&[]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(60)));
    story.wait(Duration::from_secs(60)).check(&["fence"]);
    story.result("r3", 1, "b", "late").check(&[]);
    story.fence("f1", 0).check(&["ack f1", "ack r1", "ack r3", "2 of 1 dropped"]);
    story.result("r4", 1, "c", "late").check(&["ack r4", "1 of 1 dropped"]);
    story.manifest("m2", of_run(2, &["a"], 0)).check(&["2 final with [a=early]"]);
}

#[test]
fn a_manifest_that_lies_before_the_fence_claims_what_was_held_for_long() {
    let mut story = Story::new();
    story.result("r1", 1, "a", "one").check(&[]);
    story.wait(Duration::from_secs(120)).check(&["fence"]);
    story.manifest("m1", of_run(1, &["a"], 0)).check(&["1 final with [a=one]"]);
    story.fence("f1", 0).check(&["ack f1"]);
}

#[test]
fn a_manifest_that_comes_after_all_still_opens_its_fan_out() {
    let mut story = Story::new();
    story.result("r1", 1, "a", "late").check(&[]);
    story.wait(Duration::from_secs(120)).check(&["fence"]);
    story.fence("f1", 0).check(&["ack f1", "ack r1", "1 of 1 dropped"]);
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    story.result("r2", 1, "a", "again").check(&["1 final with [a=again]"]);
}

#[test]
fn a_fence_that_does_not_come_back_is_sent_again_and_either_will_do() {
    let mut story = Story::new();
    story.manifest_again("m1", of_run(1, &["a"], 0)).check(&["fence"]);
    story.wait(Duration::from_secs(30)).check(&["fence"]);
    story.result("r1", 1, "a", "one").check(&[]);
    story.fence("f1", 0).check(&["ack f1", "1 final with [a=one]"]);
    story.fence("f2", 1).check(&["ack f2"]);
}

#[test]
fn one_fence_serves_all_that_a_predecessor_may_have_held_and_hinders_nobody_else() {
    let mut story = Story::new();
    let first = of_run(1, &["a"], 1);
    story.manifest_again("m1", first.clone()).check(&["fence"]);
    story.manifest_again("m2", of_run(2, &["a"], 0)).check(&[]);
    story.result("r1", 1, "a", "other").check(&[]);
    story.result("r2", 2, "a", "two").check(&[]);
    story.manifest("m3", of_run(3, &[], 0)).check(&["3 final with []"]);
    story.confirm("3 final").check(&["ack m3", "3 completed"]);
    story.checkpoint("c1", &first, &[("a", "decided")]).check(&["ack r1"]);
    story.fence("f1", 0).check(&["ack f1", "1 final with [a=decided]", "2 final with [a=two]"]);
    story.manifest_again("m4", of_run(4, &[], 0)).check(&["4 final with []"]);
}

#[test]
fn the_end_of_what_was_taken_over_is_recorded_before_its_manifest_is_acked() {
    let mut story = Story::new();
    for (tag, run) in [("m1", 1), ("m2", 2), ("m3", 3)] {
        let _ = story.manifest_again(tag, of_run(run, &[], 0)).lines();
    }
    let _ = story.fence("f1", 0).lines();
    story.confirm("1 final").check(&["record [1]"]);
    // One is written at a time, for all that have ended meanwhile.
    story.confirm("2 final").check(&[]);
    story.confirm("3 final").check(&[]);
    story.confirm("record [1]").check(&["ack m1", "1 completed", "record [2 3]"]);
    let first = story.records[0].clone();
    story.record("e1", &first).check(&[]);
    story.confirm("record [2 3]").check(&["ack m2", "2 completed", "ack m3", "3 completed"]);
    assert_eq!(story.held(), 1, "the record is kept");
}

#[test]
fn a_renewed_fan_out_is_recorded_too() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    story.wait(Duration::from_secs(600)).check(&["1 renewed"]);
    story.confirm("1 renewed").check(&["ack m1"]);
    // The copy is on its way, and the fan-out ends before it arrives.
    story.result("r1", 1, "a", "one").check(&["1 final with [a=one]"]);
    story.confirm("1 final").check(&["record [1]"]);
    story.confirm("record").check(&["ack r1", "1 completed"]);
    story.manifest_again("m2", of_run(1, &["a"], 0)).check(&["record [1]"]);
    story.confirm("record").check(&["ack m2"]);
}

#[test]
fn an_end_that_only_this_coordinator_knows_is_recorded_before_a_copy_that_another_held_is_acked() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    story.result("r1", 1, "a", "one").check(&["1 final with [a=one]"]);
    story.confirm("1 final").check(&["ack m1", "ack r1", "1 completed"]);
    story.manifest("m2", of_run(1, &["a"], 0)).check(&["ack m2"]);
    // Nobody waits for a fence to be told so, and the other may publish a copy of it still.
    story.manifest_again("m3", of_run(1, &["a"], 0)).check(&["record [1]"]);
    story.confirm("record").check(&["ack m3"]);
}

#[test]
fn a_stray_manifest_is_recognised_by_the_record_that_a_predecessor_left() {
    let mut story = Story::new();
    story.manifest_again("m1", of_run(1, &["a"], 0)).check(&["fence"]);
    story.result("r1", 1, "a", "one").check(&[]);
    let ended = vec![EndedRun { run: id(1), age_ms: 0 }];
    let record = Ended { coordinator: id(7), number: 0, ended };
    story.record("e1", &record).check(&["ack m1", "ack r1", "1 let go"]);
    story.fence("f1", 0).check(&["ack f1"]);
    assert_eq!(story.held(), 1, "the record is held");
}

#[test]
fn a_record_is_renewed_and_forgotten_after_an_hour() {
    let mut story = Story::new();
    let ended = vec![EndedRun { run: id(1), age_ms: 0 }];
    let record = Ended { coordinator: id(7), number: 0, ended };
    story.record("e0", &record).check(&[]);
    let names = ["e1", "e2", "e3", "e4", "e5"];
    let before = ["e0", "e1", "e2", "e3", "e4"];
    for (n, tag) in names.into_iter().enumerate() {
        story.wait(Duration::from_secs(600)).check(&["record [1]"]);
        assert_eq!(story.records[n].ended[0].age_ms, 600_000 * (n as u64 + 1));
        let renewed = story.records[n].clone();
        story.record(tag, &renewed).check(&[]);
        story.confirm("record").check(&[&*format!("ack {}", before[n])]);
    }
    story.wait(Duration::from_secs(600)).check(&["ack e5"]);
    assert_eq!(story.quiet_for(), None);
}

#[test]
fn a_message_of_an_unknown_type_is_parked_once_no_newer_version_has_read_it_for_long() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    let mut novelty = result_of(id(1), "a", body("one"));
    novelty.properties.kind = Some("fanfare.novelty".into());
    story.message("u1", novelty.clone()).check(&[]);
    story.result("r1", 1, "a", "one").check(&["1 final with [a=one]"]);
    story.confirm("1 final").check(&["ack m1", "ack r1", "1 completed"]);
    story.wait(Duration::from_secs(60)).check(&[]);
    novelty.headers.remove(header::RUN);
    story.message("u2", novelty).check(&[]);
    story.wait(Duration::from_secs(540)).check(&["park u1"]);
    assert_eq!(story.quiet_for(), Some(Duration::from_secs(60)));
    story.wait(Duration::from_secs(60)).check(&["park u2"]);
    assert_eq!((story.held(), story.quiet_for()), (0, None));
}

#[test]
fn several_results_that_cannot_be_told_apart_are_parked_at_once() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    for (tag, body) in [("b1", "[]"), ("b2", "[1]"), ("b3", "{}")] {
        let mut bundle = result_of(id(1), "a", body.into());
        bundle.properties.kind = Some(header::TYPE_RESULTS.into());
        story.message(tag, bundle).check(&[format!("park {tag}").as_str()]);
    }
}

#[test]
fn a_cancel_finds_its_fan_out() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a"], 0)).check(&[]);
    story.cancel(2).check(&[]);
    story.cancel(1).check(&["1 missing"]);
    story.confirm("1 missing").check(&["1 cancelled"]);
}

#[test]
fn a_shard_that_is_left_repeats_nothing() {
    let mut story = Story::new();
    story.manifest("m1", of_run(1, &["a", "b"], 1)).check(&[]);
    story.manifest("m2", of_run(2, &["a"], 0)).check(&[]);
    story.manifest("m3", of_run(3, &[], 0)).check(&["3 final with []"]);
    story.result("r1", 1, "a", "one").check(&["1 call with one"]);
    story.event(ShardEvent::Stop).check(&["2 left"]);
    // What comes now is the next one's.
    story.manifest("m4", of_run(4, &[], 0)).check(&[]);
    story.result("r2", 1, "b", "two").check(&[]);
    story.confirm("1 call").check(&["1 checkpoint of 1"]);
    assert!(!story.is_done());
    story.confirm("1 checkpoint").check(&["ack r1", "1 left"]);
    story.confirm("3 final").check(&["ack m3", "3 completed"]);
    assert!(story.is_done());
}

fn narrow() -> Story {
    let fan_out = Limits { window: 16, results_held: 8, ..Limits::default() };
    Story::with(ShardLimits { window: 16, fan_out, ..limits() }, Memory::default())
}

const TAGS: [&str; 16] =
    ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "t10", "t11", "t12", "t13", "t14", "t15"];
const KEYS: [&str; 16] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];

#[test]
fn results_are_written_together_when_the_window_fills() {
    let mut story = narrow();
    for run in 1..=4 {
        story.manifest("m", of_run(run, &["a", "b", "c"], 0)).check(&[]);
    }
    for run in 1..=3 {
        for key in ["a", "b"] {
            story.result("r", run, key, "x").check(&[]);
        }
    }
    story.result("r", 4, "a", "x").check(&[]);
    story.result("r", 4, "b", "x").check(&[
        "4 checkpoint of 2",
        "3 checkpoint of 2",
        "2 checkpoint of 2",
        "1 checkpoint of 2",
    ]);
    story.confirm("4 checkpoint").check(&["ack r", "ack r"]);
}

#[test]
fn early_results_wider_than_the_window_make_way_for_their_manifest() {
    let mut story = narrow();
    for n in 0..11 {
        story.result(TAGS[n], 1, KEYS[n], "x").check(&[]);
    }
    let moved = ["again fanfare.result"; 2];
    story.result(TAGS[11], 1, KEYS[11], "x").check(&moved);
    story.wait(Duration::from_secs(1)).check(&[]);
    story.confirm("again").check(&["ack t0"]);
    let _ = story.manifest("m1", of_run(1, &KEYS[..12], 0)).lines();
    story.confirm("again").check(&["ack t1"]);
    story.result("u0", 1, KEYS[0], "x").check(&[]);
}

#[test]
fn manifests_make_way_for_one_another_when_nothing_else_can() {
    let mut story = narrow();
    for run in 1..12 {
        story.manifest("m", of_run(run, &["a"], 0)).check(&[]);
    }
    story.manifest("m", of_run(12, &["a"], 0)).check(&["1 renewed"]);
    story.confirm("1 renewed").check(&["ack m"]);
    story.manifest_again("m1", of_run(1, &["a"], 0)).check(&[]);
    assert_eq!(story.quiet_for(), Some(Duration::from_millis(250)), "not all the time");
}
