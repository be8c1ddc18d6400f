//! An operator has told the broker to take smaller messages than the protocol allows.

use std::time::Duration;

use fanfare_fanin::{Event, Limits};

use crate::samples::{body, manifest, numbered};
use crate::story::Story;

#[test]
fn a_checkpoint_that_is_too_large_is_written_in_smaller_ones() {
    let limits = Limits { results_held: 4, ..Limits::default() };
    let mut story = Story::with(numbered(5, 0, 1), false, limits);
    story.opened().check(&[]);
    let answer = "x".repeat(1_000);
    for (n, tag) in ["r0", "r1", "r2", "r3"].into_iter().enumerate() {
        let _ = story.result(tag, &n.to_string(), &answer).lines();
    }
    let most = 3 * body(&answer).len();
    let lines = story.refuse("checkpoint", most).lines();
    assert!(
        lines.len() == 1 && lines[0].matches('=').count() == 1,
        "half of what the broker takes: {lines:?}"
    );
    assert!(story.checkpoints().last().unwrap().encode(&numbered(5, 0, 1)).body.len() <= most);
    assert_eq!(story.confirm("checkpoint").lines()[0], "ack r0", "and only what it holds is acked");
}

#[test]
fn a_result_that_fits_into_no_checkpoint_stays_unacked_and_holds_nothing_up() {
    let limits = Limits { calls_at_risk: 1, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b"], 1, 1), false, limits);
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.confirm("call").check(&["checkpoint of called [a=one]"]);
    // Neither acked nor tried again.
    story.refuse("checkpoint", body("one").len()).check(&[]);
    story.wait(Duration::from_secs(9 * 60)).check(&[]);
    story.result("r2", "b", "two").check(&["call 0 with b=two"]);
    story.confirm("call").check(&["final 0 with [a=one b=two] in 2 parts", "checkpoint of called [b=two]"]);
    story.confirm("checkpoint").check(&["ack r2"]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end, completed"]);
}

#[test]
fn a_result_that_is_too_large_for_the_broker_is_left_out_of_the_final_payload() {
    let mut story = Story::fresh(manifest(["a", "b"], 0, 2));
    story.opened().check(&[]);
    story.result("r1", "a", "small").check(&[]);
    let large = "x".repeat(5_000);
    let lines = story.result("r2", "b", &large).lines();
    assert_eq!(lines.len(), 2);
    for callback in [0, 1] {
        let lines = story.refuse(&format!("final {callback}"), 2_000).lines();
        assert!(
            lines[0].starts_with(&format!("final {callback} with [a=small b=!the response was left out"))
                && lines[0].ends_with(']'),
            "it fits into one message then: {lines:?}"
        );
        assert_eq!(lines.len(), 1);
    }
    story.confirm("final").check(&[]);
    story.confirm("final").check(&["delete"]);
}

#[test]
fn a_final_payload_that_is_too_large_for_the_broker_goes_out_in_parts() {
    let mut story = Story::fresh(manifest(["a", "b", "c"], 0, 1));
    story.opened().check(&[]);
    let answers = ["x", "y", "z"].map(|letter| letter.repeat(1_000));
    let all = format!("final 0 with [a={} b={} c={}]", answers[0], answers[1], answers[2]);
    story.result("r1", "a", &answers[0]).check(&[]);
    story.result("r2", "b", &answers[1]).check(&[]);
    story.result("r3", "c", &answers[2]).check(&[&all]);
    story.refuse("final", 3_000).check(&[&format!("{all} in 2 parts")]);
    story.confirm("final").check(&["delete"]);
}

#[test]
fn a_final_payload_that_cannot_be_small_enough_is_left_to_an_operator_with_its_results() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
    story.refuse("final", 100).check(&["manifest, parked"]);
    assert_eq!(story.quiet_for(), None);
    // The result is not acked: closing the channel puts it back, for a replay of the manifest.
    story.confirm("manifest").check(&["ack m1", "abandon []"]);
    assert!(story.is_done());
}

#[test]
fn a_result_that_no_callback_can_be_told_is_told_as_a_failure() {
    let mut story = Story::fresh(manifest(["a"], 1, 0));
    story.opened().check(&[]);
    let answer = "x".repeat(3_000);
    let bytes = body(&answer).len();
    story.result("r1", "a", &answer).check(&[&format!("call 0 with a={answer}")]);
    let told =
        format!("call 0 with a=!the result has {bytes} bytes, and 1000 is the most that this broker takes");
    story.refuse("call", 1_000).check(&[&told]);
    story.confirm("call").check(&["delete"]);
}

#[test]
fn a_manifest_that_cannot_be_renewed_is_held_on() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let renewal = Limits::default().renewal;
    story.wait(renewal).check(&["renewal"]);
    story.refuse("renewal", 100).check(&[]);
    story.wait(renewal).check(&["renewal"]);
    story.manifest("m2").check(&[]);
    // A copy came from elsewhere meanwhile, and takes the first one's place.
    story.refuse("renewal", 100).check(&["ack m1"]);
}
