//! A queue without its sentinel is one whose fan-out has ended.

use std::time::Duration;

use fanfare_fanin::{Event, Limits};
use fanfare_protocol::{Manifest, Sentinel, header};

use crate::samples;
use crate::story::{OWN, Story};

const RUN: u128 = 1;

fn manifest<const N: usize>(keys: [&str; N]) -> Manifest {
    Manifest { sentinel: true, ..samples::manifest(keys, 1, 1) }
}

#[test]
fn it_is_held_to_the_end() {
    let mut story = Story::fresh(manifest(["a"]));
    story.opened().check(&[]);
    story.sentinel("s1", RUN).check(&[]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
    story.confirm("call").check(&["final 0 with [a=one]"]);
    story.confirm("final").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack s1", "ack m1", "end, completed"]);
}

#[test]
fn it_makes_a_queue_that_is_taken_over_an_open_one() {
    let mut story = Story::taken_over(manifest(["a", "b"]));
    story.opened().check(&[]);
    story.sentinel("s1", RUN).check(&["fence"]);
    story.result("r1", "a", "one").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one"]);
}

#[test]
fn without_it_a_queue_that_is_taken_over_is_deleted_and_no_callback_published() {
    let mut story = Story::taken_over(manifest(["a"]));
    story.opened().check(&[]);
    // The queue is empty, and whether another consumes it is not known.
    assert_eq!(story.quiet_for(), Some(Limits::default().fence_again));
    story.wait(Limits::default().fence_again).check(&["nobody's fence"]);
    story.fence("p1", RUN).check(&["ack p1", "fence"]);
    // A target that ran twice.
    story.result("r1", "a", "late").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "manifest, parked"]);
    assert_eq!(story.quiet_for(), None);
    story.confirm("manifest").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end"]);
}

#[test]
fn a_manifest_that_promises_one_in_vain_is_parked_as_soon_as_that_is_proven() {
    let mut story = Story::fresh(manifest(["a"]));
    story.opened().check(&[]);
    assert_eq!(story.quiet_for(), Some(Limits::default().fence_again));
    story.wait(Limits::default().fence_again).check(&["nobody's fence"]);
    story.fence("p1", RUN).check(&["ack p1", "fence"]);
    // It could be on its way still, so nothing comes of a result before the fence is back.
    story.result("r1", "a", "one").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "manifest, parked"]);
    story.confirm("manifest").check(&["delete"]);
    story.event(Event::Deleted).check(&["ack r1", "ack m1", "end"]);
}

#[test]
fn one_that_comes_late_is_one() {
    let mut story = Story::fresh(manifest(["a"]));
    story.opened().check(&[]);
    story.wait(Limits::default().fence_again).check(&["nobody's fence"]);
    story.sentinel("s1", RUN).check(&["fence"]);
    story.fence("p1", RUN).check(&["ack p1"]);
    story.result("r1", "a", "one").check(&[]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one"]);
}

#[test]
fn one_that_does_not_say_of_what_is_parked() {
    let mut story = Story::fresh(manifest(["a"]));
    story.opened().check(&[]);
    let sentinel = Sentinel::encode(&manifest(["a"]).cid, samples::id(RUN));
    let mut without_run = sentinel.clone();
    without_run.headers.remove(header::RUN);
    story.message("s1", false, &without_run).check(&["park s1"]);
    let mut without_cid = sentinel;
    without_cid.properties.correlation_id = None;
    story.message("s2", false, &without_cid).check(&["park s2"]);
}

#[test]
fn that_of_another_run_is_none() {
    let mut story = Story::taken_over(manifest(["a"]));
    story.opened().check(&[]);
    story.sentinel("s1", 99).check(&["ack s1", "fence"]);
    story.fence("f1", OWN).check(&["ack f1", "manifest, parked"]);
}

#[test]
fn who_waits_for_its_turn_asks_once() {
    let mut story = Story::taken_over(manifest(["a"]));
    story.opened().check(&[]);
    story.wait(Limits::default().fence_again).check(&["nobody's fence"]);
    // Another has acked it.
    assert_eq!(story.quiet_for(), Some(Limits::default().renewal - Limits::default().fence_again));
    story.sentinel("s1", RUN).check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1"]);
}

#[test]
fn a_probe_does_not_disturb_who_consumes_the_queue() {
    let mut story = Story::fresh(manifest(["a"]));
    story.opened().check(&[]);
    story.sentinel("s1", RUN).check(&[]);
    story.fence("p1", RUN).check(&["ack p1"]);
    story.result("r1", "a", "one").check(&["call 0 with a=one"]);
}

#[test]
fn it_is_renewed_before_the_broker_takes_the_channel_for_dead() {
    let limits = Limits { renewal: Duration::from_secs(60), ..Limits::default() };
    let mut story = Story::with(manifest(["a", "b"]), false, limits);
    story.opened().check(&[]);
    story.wait(Duration::from_secs(10)).check(&[]);
    story.sentinel("s1", RUN).check(&[]);
    story.wait(Duration::from_secs(50)).check(&["renewal"]);
    story.wait(Duration::from_secs(10)).check(&["sentinel"]);
    story.confirm("sentinel").check(&["ack s1"]);
    story.sentinel("s2", RUN).check(&[]);
    // One of a hold before this one, which had died over it.
    story.sentinel("s3", RUN).check(&["ack s2"]);
    story.wait(Duration::from_secs(59)).check(&[]);
    story.wait(Duration::from_secs(1)).check(&["sentinel"]);
}

#[test]
fn a_manifest_that_does_not_promise_one_is_held_without() {
    let mut story = Story::taken_over(Manifest { sentinel: false, ..manifest(["a"]) });
    story.opened().check(&[]);
    story.result("r1", "a", "one").check(&["fence"]);
    story.fence("f1", OWN).check(&["ack f1", "call 0 with a=one"]);
}
