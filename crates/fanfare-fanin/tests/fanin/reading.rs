//! What a message of an aggregation queue is to a fan-out.

use bytes::Bytes;
use fanfare_fanin::{Answer, Event, FanIn, Hold, Item, Limits};
use fanfare_protocol::{Checkpoint, CheckpointEntry, Cid, EndedBy, Message, TargetKey, TargetResult, header};
use proptest::prelude::*;

use crate::samples::{body, checkpoint, id, manifest, missing, missing_of, result_of, time};
use crate::story::Story;

fn machine() -> FanIn<u32> {
    let hold = Hold { token: id(42), take_over: false };
    FanIn::new(manifest(["a", "b"], 0, 1), 0, hold, Limits::default(), std::time::Duration::ZERO)
}

fn without_key(mut message: Message, message_id: &str) -> Message {
    message.headers.remove(header::KEY);
    message.properties.message_id = Some(message_id.into());
    message
}

/// Reads a message as a failed result of target a, and tells why it failed.
fn failure(message: &Message) -> (Bytes, String) {
    let Item::Result { place: 0, answer: Answer { body, ok: false, .. } } = machine().read(message) else {
        panic!("{:?}", machine().read(message))
    };
    let exception = TargetResult::from_body(&body).unwrap().exception.unwrap();
    (body, exception)
}

#[test]
fn a_result_goes_on_byte_for_byte_without_the_white_space_around_it() {
    let mut padded = b" \r\n".to_vec();
    padded.extend_from_slice(&body("one"));
    padded.extend_from_slice(b"\t\n");
    let item = machine().read(&result_of(id(1), "a", padded.into()));
    let answer = Answer { body: body("one"), ok: true, ended_by: None, at: time(), traceparent: None };
    assert_eq!(item, Item::Result { place: 0, answer });
}

#[test]
fn without_a_key_the_place_in_the_message_id_counts() {
    let result = result_of(id(1), "a", body("one"));
    let place = |id| match machine().read(&without_key(result.clone(), id)) {
        Item::Result { place, .. } => Some(place),
        Item::Stranger => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(place("c1/1/result"), Some(1));
    assert_eq!(place("c1/0"), Some(0));
    assert_eq!(place("c1/2/result"), None, "the manifest has two targets");
    assert!(matches!(machine().read(&without_key(result.clone(), "other/1")), Item::Garbage(_)));
}

#[test]
fn a_malformed_result_fails_its_target_in_the_same_bytes_for_every_reader() {
    for (malformed, says) in [
        (&b"not json"[..], "expected"),
        (b"{}", "missing field"),
        (b"", "EOF"),
        (b"[\"shop\",\"x\",1,\"2025-01-19 19:55:45\",\"2025-01-19 19:55:45\",true,null,\"c1\"]", "object"),
    ] {
        let message = result_of(id(1), "a", Bytes::copy_from_slice(malformed));
        let (body, exception) = failure(&message);
        assert!(exception.contains(says), "{exception}");
        assert_eq!(failure(&message).0, body);
    }
}

#[test]
fn a_result_that_is_not_utf_8_fails_its_target_and_stops_nobody() {
    let mut bytes = body("one").to_vec();
    bytes.truncate(bytes.len() - 1);
    bytes.extend_from_slice(b",\"more\":\"\xff\"}");
    let message = result_of(id(1), "a", bytes.into());
    let (_, exception) = failure(&message);
    assert!(exception.contains("utf-8"), "{exception}");
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let lines = story.message("r1", false, &message).lines();
    assert!(lines[0].starts_with("final 0 with [a=!"), "{lines:?}");
}

#[test]
fn a_failure_can_be_read_back_whatever_time_its_message_claims() {
    for timestamp in [None, Some(0), Some(1_737_316_546_000), Some(u64::MAX)] {
        let mut message = result_of(id(1), "a", Bytes::from_static(b"?"));
        message.properties.timestamp = timestamp;
        let (body, _) = failure(&message);
        assert!(TargetResult::from_body(&body).is_ok());
    }
}

#[test]
fn a_malformed_result_inside_a_checkpoint_becomes_a_failure_too() {
    let entry = CheckpointEntry {
        key: TargetKey::new("a").unwrap(),
        body: Bytes::from_static(b"[1]"),
        traceparent: None,
    };
    let written = Checkpoint { entries: vec![entry], ..checkpoint(7, 0, true, &[]) };
    let Item::Checkpoint(read) = machine().read(&written.encode(&manifest(["a", "b"], 0, 1))) else {
        panic!("it is a checkpoint")
    };
    assert!(!TargetResult::from_body(&read.entries[0].body).unwrap().ok);
}

#[test]
fn garbage_is_parked_and_nothing_else_comes_of_it() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let mut garbage = result_of(id(1), "a", Bytes::from_static(b"\0\xff"));
    garbage.properties.kind = Some("something.else".into());
    story.message("g1", false, &garbage).check(&["park g1"]);
    garbage.properties.kind = None;
    story.message("g2", false, &garbage).check(&["park g2"]);
    garbage.properties.kind = Some(header::TYPE_CHECKPOINT.into());
    story.message("g3", false, &garbage).check(&["park g3"]);
    garbage.properties.kind = Some(header::TYPE_FENCE.into());
    story.message("g4", false, &garbage).check(&["park g4"]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
}

#[test]
fn a_message_of_an_unknown_type_is_held_until_the_end() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let mut unknown = result_of(id(1), "a", Bytes::from_static(b"{}"));
    unknown.properties.kind = Some("fanfare.novelty".into());
    story.message("u1", false, &unknown).check(&[]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
    story.confirm("final 0").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack u1", "ack m1", "end, completed"]);
}

#[test]
fn a_message_of_an_unknown_type_is_parked_once_no_newer_version_has_read_it_for_long() {
    let mut story = Story::fresh(manifest(["a"], 0, 1));
    story.opened().check(&[]);
    let mut unknown = result_of(id(1), "a", Bytes::from_static(b"{}"));
    unknown.properties.kind = Some("fanfare.novelty".into());
    let renewal = Limits::default().renewal;
    story.message("u1", false, &unknown).check(&[]);
    story.wait(renewal / 2).check(&[]);
    story.message("u2", false, &unknown).check(&[]);
    story.wait(renewal / 2).check(&["park u1", "renewal"]);
    story.wait(renewal / 2).check(&["park u2"]);
    story.result("r1", "a", "one").check(&["final 0 with [a=one]"]);
}

#[test]
fn checkpoints_and_fences_of_another_run_are_strangers() {
    let other = fanfare_protocol::Manifest { run: id(99), ..manifest(["a"], 0, 1) };
    assert_eq!(machine().read(&checkpoint(7, 0, true, &[("a", "x")]).encode(&other)), Item::Stranger);
    assert_eq!(machine().read(&crate::samples::fence(7).encode(&other)), Item::Stranger);
}

#[test]
fn a_result_that_names_another_fan_out_in_any_place_is_a_strangers() {
    let sound = TargetResult::from_body(&body("one")).unwrap();
    let of_cid = TargetResult { cid: Cid::new("c2").unwrap(), ..sound.clone() }.to_body();
    let verdict_of_cid =
        TargetResult { ended_by: Some(EndedBy::Cancel), cid: Cid::new("c2").unwrap(), ..sound }.to_body();
    let mut correlated = result_of(id(1), "a", body("one"));
    correlated.properties.correlation_id = Some("c2".into());
    for message in [
        correlated,
        result_of(id(1), "a", of_cid),
        result_of(id(1), "a", verdict_of_cid),
        result_of(id(1), "c", body("one")),
        result_of(id(2), "a", body("one")),
    ] {
        assert_eq!(machine().read(&message), Item::Stranger, "{message:?}");
    }
}

#[test]
fn a_result_that_names_another_service_fails_its_target() {
    let sound = TargetResult::from_body(&body("one")).unwrap();
    let of_service = TargetResult { target: "stock.check".to_owned(), ..sound }.to_body();
    let (_, exception) = failure(&result_of(id(1), "a", of_service));
    assert!(exception.contains("`target` is `stock.check`"), "{exception}");
}

#[test]
fn a_result_that_does_not_say_of_which_fan_out_it_is_fails_its_target() {
    let mut message = result_of(id(1), "a", body("one"));
    message.properties.correlation_id = None;
    assert!(failure(&message).1.contains("correlation_id is missing"));
    let mut message = result_of(id(1), "a", body("one"));
    message.headers.remove(header::RUN);
    assert!(failure(&message).1.contains("fanfare-run is missing"));
}

#[test]
fn a_worker_that_writes_a_coordinators_verdict_fails_its_own_target_alone() {
    let mut story = Story::fresh(manifest(["a", "b"], 0, 1));
    story.opened().check(&[]);
    let verdict = missing(EndedBy::Cancel, "cancelled");
    let forged = result_of(id(1), "a", verdict.clone());
    assert!(failure(&forged).1.contains("`ended_by` is `cancel`, which only coordinators write"));
    story.message("r1", false, &forged).check(&[]);
    let lines = story.result("r2", "b", "two").lines();
    assert!(
        lines[0].starts_with("final 0 with [a=!the result is malformed") && lines[0].ends_with("b=two]"),
        "{lines:?}"
    );

    let Item::Result { answer, .. } = machine().read(&missing_of(id(1), "a", verdict)) else {
        panic!("it is one")
    };
    assert_eq!(answer.ended_by, Some(EndedBy::Cancel));
}

proptest! {
    /// Whatever a worker sends in a target's name, the fan-out ends.
    #[test]
    fn no_body_of_a_result_stops_the_fan_out(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            (0..400usize, any::<u8>()).prop_map(|(at, byte)| {
                let mut bytes = body("some answer").to_vec();
                let at = at % bytes.len();
                bytes[at] = byte;
                bytes
            }),
        ],
    ) {
        let mut story = Story::fresh(manifest(["a"], 0, 1));
        story.opened().check(&[]);
        let mut lines = story.message("r1", false, &result_of(id(1), "a", bytes.into())).lines();
        // It names another fan-out or service: the target has not answered yet.
        if lines == ["ack r1"] {
            lines = story.result("r2", "a", "one").lines();
        }
        prop_assert!(lines[0].starts_with("final 0 with [a="), "{:?}", lines);
    }
}
