//! How much a crash can repeat, and how much is done at once.

use fanfare_fanin::{Event, Limits};
use fanfare_protocol::{Manifest, TargetResult};

use crate::samples::{body, id, manifest, numbered, result_of};
use crate::story::Story;

/// Results of all targets arrive, and nothing is confirmed. Returns how many on-target callbacks are published.
fn published_without_a_confirmation(callbacks: usize) -> usize {
    let mut story = Story::fresh(numbered(150, callbacks, 1));
    story.opened().check(&[]);
    (0..150).map(|n| story.result("r", &n.to_string(), "x").lines().len()).sum()
}

#[test]
fn at_most_100_on_target_callbacks_are_published_without_a_confirmed_checkpoint() {
    for (callbacks, most) in [(1, 100), (3, 99), (40, 80), (60, 60), (100, 100)] {
        assert_eq!(
            published_without_a_confirmation(callbacks),
            most,
            "{callbacks} callbacks for each target"
        );
    }
}

#[test]
fn confirmed_callbacks_stay_at_risk_until_their_checkpoint_is_confirmed() {
    for callbacks in [1, 3, 40, 60, 100] {
        let mut story = Story::fresh(numbered(150, callbacks, 1));
        story.opened().check(&[]);
        for n in 0..150 {
            let _ = story.result("r", &n.to_string(), "x").lines();
        }
        // Every callback is confirmed, and the checkpoint never is.
        let mut published = story.open().len();
        while story.open().iter().any(|line| line.starts_with("call")) {
            let lines = story.confirm("call").lines();
            published += lines.iter().filter(|line| line.starts_with("call")).count();
            assert!(published <= 100, "{published} with {callbacks} callbacks for each target");
        }
        assert_eq!(story.open().len(), 1, "one checkpoint is written at a time");
        let lines = story.confirm("checkpoint").lines();
        assert!(lines.iter().any(|line| line.starts_with("call")), "{lines:?}");
        // And so to the end.
        story.confirm_all();
        let lines = story.event(Event::Deleted).lines();
        assert_eq!(lines.last().unwrap(), "end, completed", "{callbacks} callbacks for each target");
    }
}

#[test]
fn a_limit_below_the_callbacks_of_one_target_still_lets_one_target_through() {
    let limits = Limits { calls_at_risk: 2, ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b"], 3, 1), false, limits);
    story.opened().check(&[]);
    assert_eq!(story.result("r1", "a", "one").lines().len(), 3);
    story.result("r2", "b", "two").check(&[]);
    let _ = story.confirm("call").lines();
    let _ = story.confirm("call").lines();
    story.confirm("call").check(&["checkpoint of called [a=one]"]);
    assert_eq!(story.confirm("checkpoint").lines().len(), 1 + 3, "an ack and the next target's callbacks");
}

#[test]
fn a_window_smaller_than_what_may_be_at_risk_does_not_stop_the_fan_out() {
    let limits = Limits { window: 20, results_held: 10, ..Limits::default() };
    let mut story = Story::with(numbered(20, 1, 1), false, limits);
    story.opened().check(&[]);
    for n in 0..10 {
        let _ = story.result("r", &n.to_string(), "x").lines();
    }
    for _ in 0..9 {
        story.confirm("call").check(&[]);
    }
    let lines = story.confirm("call").lines();
    assert!(lines[0].starts_with("checkpoint of called"), "{lines:?}");
    assert_eq!(story.confirm("checkpoint").lines().len(), 10, "the window is free again");
}

#[test]
fn without_on_target_callbacks_a_checkpoint_is_written_for_each_thousand_results() {
    let mut story = Story::fresh(numbered(2_500, 0, 1));
    story.opened().check(&[]);
    for n in 0..999 {
        story.result("r", &n.to_string(), "x").check(&[]);
    }
    let lines = story.result("r", "999", "x").lines();
    assert!(lines.len() == 1 && lines[0].starts_with("checkpoint of called"), "{lines:?}");
    story.result("r", "1000", "x").check(&[]);
    assert_eq!(story.confirm("checkpoint").lines().len(), 1_000);
}

#[test]
fn few_results_without_on_target_callbacks_need_no_checkpoint() {
    let mut story = Story::fresh(numbered(900, 0, 1));
    story.opened().check(&[]);
    let mut lines = Vec::new();
    for n in 0..900 {
        lines.extend(story.result("r", &n.to_string(), "x").lines());
    }
    assert!(lines.len() == 1 && lines[0].starts_with("final 0"), "{}", lines.len());
}

#[test]
fn a_checkpoint_holds_as_many_results_as_fit_and_the_next_one_the_rest() {
    let limits = Limits { results_held: 5, ..Limits::default() };
    let mut story = Story::with(numbered(6, 0, 1), false, limits);
    story.opened().check(&[]);
    let large = "x".repeat(3 * 1024 * 1024);
    for n in 0..5 {
        let _ = story.result("r", &n.to_string(), &large).lines();
    }
    assert_eq!(story.checkpoints().last().unwrap().entries.len(), 2);
    assert_eq!(story.confirm("checkpoint").lines(), ["ack r", "ack r"]);
    for checkpoint in story.checkpoints() {
        let message = checkpoint.encode(&numbered(6, 0, 1));
        assert!(message.body.len() <= fanfare_protocol::limits::MESSAGE_BYTES);
    }
}

#[test]
fn the_largest_result_under_the_longest_key_fits_into_a_checkpoint() {
    let key = "\"".repeat(fanfare_protocol::limits::KEY_BYTES);
    let envelope = body("").len();
    let answer = "x".repeat(fanfare_protocol::limits::RESULT_BYTES - envelope);
    assert!(TargetResult::from_body(&body(&answer)).unwrap().ok, "it is as large as a result may be");
    let limits = Limits { results_held: 1, ..Limits::default() };
    let two: Manifest = manifest([key.as_str(), "b"], 0, 1);
    let mut story = Story::with(two.clone(), false, limits);
    story.opened().check(&[]);
    let _ = story.message("r1", false, &result_of(id(1), &key, body(&answer))).lines();
    let message = story.checkpoints()[0].encode(&two);
    assert!(message.body.len() <= fanfare_protocol::limits::MESSAGE_BYTES);
}

#[test]
fn a_wide_fan_out_needs_a_checkpoint_for_each_thousand_results_and_little_else() {
    let mut story = Story::fresh(numbered(20_000, 0, 1));
    story.opened().check(&[]);
    let mut told = 0;
    for n in 0..20_000 {
        told += story.result("r", &n.to_string(), "x").lines().len();
        if !story.open().is_empty() && told % 7 == 0 {
            told += story.confirm("").lines().len();
        }
    }
    let events = story.confirm_all();
    let _ = story.event(Event::Deleted).lines();
    assert!(story.is_done());
    assert!(events < 10 && story.checkpoints().len() < 30, "{events}");
}

#[test]
fn without_a_queue_callbacks_still_go_out_a_limited_number_at_a_time() {
    let mut story = Story::fresh(numbered(1_000, 1, 1));
    story.opened().check(&[]);
    for n in 0..30 {
        let _ = story.result("r", &n.to_string(), "x").lines();
    }
    for _ in 0..20 {
        let _ = story.confirm("call").lines();
    }
    let _ = story.event(Event::QueueGone).lines();
    assert_eq!(story.open().len(), 100);
    let events = story.confirm_all();
    assert_eq!(events, 1_000 - 20 + 1, "each callback once, and the final one");
    assert!(story.is_done());
}

#[test]
fn messages_of_unknown_types_leave_room_for_results_in_the_window() {
    let limits = Limits { window: 40, ..Limits::default() };
    let mut story = Story::with(manifest(["a"], 0, 1), false, limits);
    story.opened().check(&[]);
    let mut novelty = result_of(id(1), "a", body("x"));
    novelty.properties.kind = Some("fanfare.novelty".into());
    for _ in 0..10 {
        story.message("held", false, &novelty).check(&[]);
    }
    let lines = story.message("parked", false, &novelty).lines();
    assert!(lines[0].starts_with("park parked"), "{lines:?}");
    assert_eq!(story.result("r", "a", "x").lines().len(), 1, "the final callback");
}
