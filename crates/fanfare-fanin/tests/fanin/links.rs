//! Final callbacks link to the spans of the targets, whoever holds the fan-out in the end.

use std::time::Duration;

use fanfare_fanin::{Effect, Event, FanIn, Hold, Limits, Publication};
use fanfare_protocol::{Checkpoint, TraceParent, limits};

use crate::samples::{body, id, numbered, result_of};

fn machine(token: u128, targets: usize, results_held: usize) -> FanIn<usize> {
    let hold = Hold { token: id(token), take_over: false };
    let limits = Limits { results_held, ..Limits::default() };
    let mut machine = FanIn::new(numbered(targets, 0, 1), 0, hold, limits, Duration::ZERO);
    assert_eq!(machine.handle(Event::Opened, Duration::ZERO), []);
    machine
}

fn span(place: usize) -> TraceParent {
    let span = (place as u64 + 1).to_be_bytes();
    TraceParent { trace: [7; 16], span, flags: 1 }
}

/// Reads the result of a target, with its span, and returns the checkpoint that is written then.
fn respond(machine: &mut FanIn<usize>, place: usize) -> Option<Checkpoint> {
    let result = result_of(id(1), &place.to_string(), body("done")).traced(Some(span(place)));
    let item = machine.read(&result);
    let effects =
        machine.handle(Event::Delivered { tag: place + 1, redelivered: false, item }, Duration::ZERO);
    effects.into_iter().find_map(|effect| match effect {
        Effect::Publish(_, Publication::Checkpoint(checkpoint)) => Some(checkpoint),
        _ => None,
    })
}

#[test]
fn so_many_of_the_first_targets_are_linked_to_and_no_more_in_the_manifests_order() {
    let targets = limits::LINKS + 2;
    let mut machine = machine(42, targets, 1000);
    for place in (0..targets).rev() {
        respond(&mut machine, place);
    }
    assert_eq!(machine.links(), (0..limits::LINKS).map(span).collect::<Vec<_>>());
}

#[test]
fn checkpoint_keeps_the_spans_for_whoever_takes_over() {
    let mut first = machine(42, 3, 2);
    assert_eq!(respond(&mut first, 0), None);
    let checkpoint = respond(&mut first, 1).expect("two results are as many as are held");

    let mut second = machine(43, 3, 2);
    let item = second.read(&checkpoint.encode(second.manifest()));
    let _ = second.handle(Event::Delivered { tag: 1, redelivered: true, item }, Duration::ZERO);
    respond(&mut second, 2);
    assert_eq!(second.links(), [span(0), span(1), span(2)]);
}
