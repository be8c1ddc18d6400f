//! The fan-in in a world where anything may be lost at any time: see `model.rs`, which asserts the promises.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fanfare_protocol::Message;

use crate::model::{LIMITS, Step, World};
use crate::reader::Reader;
use crate::samples::{body, id, numbered, result_of};

/// Steps of one input. A world that goes on for longer shows nothing that a shorter one does not.
const MOST_STEPS: usize = 400;

/// Plays what the bytes say, and then calms the world down until the fan-out has ended.
pub fn play(data: &[u8]) {
    let _ = played(&mut Reader::new(data));
}

fn played(reader: &mut Reader<'_>) -> Option<()> {
    let (targets, on_target, on_final) = (reader.below(15)?, reader.below(4)?, 1 + reader.below(2)?);
    let coordinators = 2 + reader.below(2)?;
    let deadline = match reader.byte()? {
        0..128 => None,
        seconds => Some(Duration::from_secs(u64::from(seconds) - 128)),
    };
    let answers = reader.below(3 * targets + 2)?;
    let mut answered = BTreeSet::new();
    let mut work = Vec::new();
    for _ in 0..answers {
        let (target, answer) = (reader.below(targets + 2)?, reader.below(3)?);
        answered.insert(target);
        work.push(answer_of(target, answer));
    }
    work.extend((0..targets).filter(|target| !answered.contains(target)).map(|target| answer_of(target, 0)));
    let mut world = World::new(numbered(targets, on_target, on_final), deadline, coordinators, work);
    for _ in 0..MOST_STEPS {
        let Some(step) = step(reader, coordinators) else { break };
        world.step(step);
    }
    let record = world.calm_down();
    assert_eq!(record.finals.len(), on_final, "each final callback is invoked");
    assert_eq!(record.calls.len(), targets * on_target, "each on-target callback is invoked");
    let repeats: usize = record.calls.values().map(|times| times - 1).sum();
    let most = record.losses * LIMITS.calls_at_risk.max(on_target);
    assert!(repeats <= most, "{repeats} repeats after {} losses", record.losses);
    Some(())
}

/// Targets beyond the manifest's are strangers; the third answer of a target is malformed.
fn answer_of(target: usize, answer: usize) -> Message {
    let body = match answer {
        2 => Bytes::from(format!("malformed {target}")),
        answer => body(&format!("{target}.{answer}")),
    };
    result_of(id(1), &target.to_string(), body)
}

fn step(reader: &mut Reader<'_>, coordinators: usize) -> Option<Step> {
    let step = reader.below(16)?;
    let about = reader.byte()?;
    let (c, rest) = (usize::from(about) % coordinators, usize::from(about) / coordinators);
    Some(match step {
        0 => Step::Work,
        1 => Step::TakeManifest(c),
        2 => Step::Open(c),
        3 | 4 => Step::Deliver(c),
        5 => Step::Land(c, rest),
        6 | 7 => Step::Confirm(c, rest),
        8 => Step::Delete(c),
        9 => Step::Learn(c),
        10 => Step::Time(1 + u64::from(about) / 4),
        11 => Step::Late(usize::from(about)),
        12 => Step::LoseChannel(c),
        13 if rest == 0 => Step::Restart,
        13 => Step::LoseManifestChannel(c),
        14 => Step::Crash(c, rest % 2 == 1),
        _ => Step::Stop(c),
    })
}
