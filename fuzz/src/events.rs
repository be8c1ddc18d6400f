//! The fan-in under events in any order, among them such as no coordinator would report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use fanfare_fanin::{Deadline, Effect, Event, FanIn, Hold, Publication, PublicationId};
use fanfare_protocol::{FinalBody, Manifest, Message};

use crate::model::LIMITS;
use crate::reader::Reader;
use crate::samples::{body, checkpoint, fence, id, numbered, result_of};

/// The machine's own mark.
const OWN: u128 = 5;

/// Reports what the bytes say.
pub fn report(data: &[u8]) {
    let _ = reported(&mut Reader::new(data));
}

fn reported(reader: &mut Reader<'_>) -> Option<()> {
    let mut manifest = numbered(reader.below(20)?, reader.below(4)?, reader.below(3)?);
    let start = reader.below(4)?;
    manifest.sentinel = start / 2 == 1;
    let hold = Hold { token: id(OWN), take_over: start % 2 == 1 };
    let deadline =
        (reader.below(2)? == 1).then(|| Deadline { at: Duration::from_secs(30), written_at: None });
    let mut witness = Witness::new(manifest.clone());
    let tag = witness.tag();
    let mut machine =
        FanIn::new(manifest, tag, hold, LIMITS, Duration::ZERO).with_deadline(deadline, Duration::ZERO);
    let mut now = Duration::ZERO;
    while let Some(choice) = reader.byte() {
        let event = match choice % 16 {
            0 => Event::Opened,
            1..6 => {
                let item = machine.read(&message(reader, machine.manifest())?);
                Event::Delivered { tag: witness.tag(), redelivered: choice > 200, item }
            }
            6..10 => Event::Confirmed(witness.published_at(usize::from(choice / 16))?),
            10 => Event::ManifestArrived { tag: witness.tag() },
            11 => {
                now += Duration::from_secs(u64::from(reader.byte()?));
                Event::TimePassed
            }
            12 => match choice / 16 {
                0..8 => Event::Stop,
                8 => Event::ChannelLost,
                9 => Event::NeverOpened,
                _ => Event::TimePassed,
            },
            13 => Event::QueueGone,
            14 => Event::Deleted,
            _ => Event::Opened,
        };
        if let Event::Confirmed(id) = event {
            witness.confirmed.insert(id);
        }
        witness.deletes &= event != Event::ChannelLost;
        let was_done = machine.is_done();
        let effects = machine.handle(event, now);
        assert!(!was_done || effects.is_empty(), "it is done, and does more: {effects:?}");
        witness.see(effects);
        assert_eq!(machine.is_done(), witness.over);
        if let Some(next) = machine.next_timeout() {
            assert!(!machine.is_done() && next < now + Duration::from_secs(3600));
        }
    }
    Some(())
}

/// A message of the aggregation queue, whoever may have sent it.
fn message(reader: &mut Reader<'_>, manifest: &Manifest) -> Option<Message> {
    let (kind, number) = (reader.below(8)?, reader.byte()?);
    let key = (usize::from(number) % (manifest.targets.len() + 2)).to_string();
    let token = if number > 127 { OWN } else { 6 };
    let answer = format!("{}{number}", if number % 3 == 0 { "!" } else { "" });
    Some(match kind {
        0..3 => result_of(id(1), &key, body(&answer)),
        3 => result_of(id(u128::from(number % 2)), &key, Bytes::from("malformed")),
        4 => {
            let keys: Vec<String> =
                (0..reader.below(8)?).map(|n| (n + usize::from(number % 4)).to_string()).collect();
            let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), answer.as_str())).collect();
            checkpoint(token, u64::from(number % 8), number % 2 == 0, &entries).encode(manifest)
        }
        5 => fence(token).encode(manifest),
        6 => {
            let mut message = result_of(id(1), &key, Bytes::from("{}"));
            let kinds =
                ["fanfare.checkpoint", "fanfare.fence", "fanfare.novelty", "garbage", "fanfare.sentinel"];
            message.properties.kind = Some(kinds[usize::from(number) % kinds.len()].into());
            message
        }
        _ => {
            let mut message = result_of(id(1), &key, body(&answer));
            message.headers.remove("fanfare-key");
            message.properties.message_id = Some(format!("c1/{number}/result").into());
            message
        }
    })
}

/// Sees what the machine does, and knows what it must never do.
struct Witness {
    manifest: Manifest,
    tags: u64,
    answered: BTreeSet<u64>,
    published: Vec<PublicationId>,
    confirmed: BTreeSet<PublicationId>,
    calls: BTreeMap<(usize, usize), PublicationId>,
    finals: BTreeSet<usize>,
    payload: Option<FinalBody>,
    parked: bool,
    deletes: bool,
    over: bool,
}

impl Witness {
    fn new(manifest: Manifest) -> Self {
        Self {
            manifest,
            tags: 0,
            answered: BTreeSet::new(),
            published: Vec::new(),
            confirmed: BTreeSet::new(),
            calls: BTreeMap::new(),
            finals: BTreeSet::new(),
            payload: None,
            parked: false,
            deletes: false,
            over: false,
        }
    }

    fn tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// Any publication, confirmed before or not.
    fn published_at(&self, pick: usize) -> Option<PublicationId> {
        let last = self.published.len().checked_sub(1)?;
        self.published.get(last - pick.min(last)).copied()
    }

    fn see(&mut self, effects: Vec<Effect<u64>>) {
        for effect in effects {
            assert!(!self.over, "its end is the last that it does, and then comes {effect:?}");
            match effect {
                Effect::Publish(id, publication) => {
                    assert!(!self.published.contains(&id), "a publication has a name of its own");
                    self.published.push(id);
                    self.see_publication(id, publication);
                }
                Effect::Ack(tag) | Effect::Park { tag, .. } => self.answer(tag),
                Effect::Cancelled(_) => {}
                Effect::DeleteQueue => {
                    assert!(!std::mem::replace(&mut self.deletes, true), "the queue is deleted twice");
                    let ended = self.finals.len() == self.manifest.on_final.len();
                    assert!(ended || self.parked, "deleted before the end");
                }
                Effect::Abandon { manifests, .. } => {
                    manifests.into_iter().for_each(|tag| self.answer(tag));
                    self.over = true;
                }
                Effect::End(_) => {
                    let held = (1..=self.tags).filter(|tag| !self.answered.contains(tag)).count();
                    assert_eq!(held, 0, "a delivery is left without an answer");
                    self.over = true;
                }
            }
        }
    }

    fn answer(&mut self, tag: u64) {
        assert!((1..=self.tags).contains(&tag), "it answers what it was not given");
        assert!(self.answered.insert(tag), "a delivery is answered twice");
    }

    fn see_publication(&mut self, id: PublicationId, publication: Publication) {
        match publication {
            Publication::OnTarget { .. } | Publication::OnFinal { .. } if self.parked => {
                panic!("a callback of a fan-out that was given up")
            }
            Publication::OnTarget { callback, place, .. } => {
                assert!(self.finals.is_empty(), "an on-target callback after a final one");
                assert!(self.calls.insert((callback, place), id).is_none(), "a callback twice in one hold");
            }
            Publication::OnFinal { callback, body, .. } => {
                assert!(self.finals.insert(callback), "a final callback twice in one hold");
                assert!(
                    self.calls.values().all(|call| self.confirmed.contains(call)),
                    "a final callback too early"
                );
                let payload = self.payload.get_or_insert_with(|| body.clone());
                assert_eq!(*payload, body, "two final callbacks are given different payloads");
            }
            Publication::ParkedManifest { .. } => self.parked = true,
            _ => {}
        }
    }
}
