//! Tells stories: an event goes in, and all that comes out must be what the story says.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use fanfare_fanin::{Deadline, Effect, Event, FanIn, Hold, Limits, Publication, PublicationId};
use fanfare_protocol::{
    Cancellation, Checkpoint, EndedBy, Ending, FinalBody, FinalPayload, Manifest, Message, Sentinel,
};

use crate::samples::{answer, body, fence, id, missing, missing_of, result_of, time};

/// The token of the hold that every story is about.
pub(crate) const OWN: u128 = 42;

/// One machine, whose first manifest has the tag `m1`. Deliveries are known by the names that the story gives them.
pub(crate) struct Story {
    machine: FanIn<&'static str>,
    now: Duration,
    /// What is published and not confirmed, each by the line that tells of it.
    open: VecDeque<(String, PublicationId)>,
    /// Checkpoints that were published, for the story to deliver.
    checkpoints: Vec<Checkpoint>,
    /// Failures that were published in the place of missing targets, for the story to deliver.
    missing: Vec<Bytes>,
    effects: Vec<Effect<&'static str>>,
}

/// What an event has led to: look at it.
#[must_use]
pub(crate) struct Outcome<'a>(&'a mut Story);

impl Story {
    /// A fan-out that nobody has held before.
    pub(crate) fn fresh(manifest: Manifest) -> Self {
        Self::with(manifest, false, Limits::default())
    }

    /// A fan-out that another may have held.
    pub(crate) fn taken_over(manifest: Manifest) -> Self {
        Self::with(manifest, true, Limits::default())
    }

    pub(crate) fn with(manifest: Manifest, take_over: bool, limits: Limits) -> Self {
        let hold = Hold { token: id(OWN), take_over };
        let machine = FanIn::new(manifest, "m1", hold, limits, Duration::ZERO);
        Self {
            machine,
            now: Duration::ZERO,
            open: VecDeque::new(),
            checkpoints: Vec::new(),
            missing: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Sets a deadline, counted from the beginning of the story.
    pub(crate) fn until(self, at: Duration) -> Self {
        self.with_deadline(Deadline { at, written_at: None })
    }

    pub(crate) fn with_deadline(mut self, deadline: Deadline) -> Self {
        self.machine = self.machine.with_deadline(Some(deadline), Duration::ZERO);
        self
    }

    pub(crate) fn event(&mut self, event: Event<&'static str>) -> Outcome<'_> {
        self.effects = self.machine.handle(event, self.now);
        Outcome(self)
    }

    pub(crate) fn opened(&mut self) -> Outcome<'_> {
        self.event(Event::Opened)
    }

    pub(crate) fn message(&mut self, tag: &'static str, redelivered: bool, message: &Message) -> Outcome<'_> {
        let item = self.machine.read(message);
        self.event(Event::Delivered { tag, redelivered, item })
    }

    /// A target's result, as [`body`] writes it.
    pub(crate) fn result(&mut self, tag: &'static str, key: &str, answer: &str) -> Outcome<'_> {
        let message = result_of(self.machine.manifest().run, key, body(answer));
        self.message(tag, false, &message)
    }

    pub(crate) fn redelivered(&mut self, tag: &'static str, key: &str, answer: &str) -> Outcome<'_> {
        let message = result_of(self.machine.manifest().run, key, body(answer));
        self.message(tag, true, &message)
    }

    pub(crate) fn checkpoint(&mut self, tag: &'static str, checkpoint: &Checkpoint) -> Outcome<'_> {
        let message = checkpoint.encode(self.machine.manifest());
        self.message(tag, false, &message)
    }

    /// The checkpoint that this hold published as its n-th comes back.
    pub(crate) fn own_checkpoint(&mut self, tag: &'static str, number: usize) -> Outcome<'_> {
        let checkpoint = self.checkpoints[number].clone();
        self.checkpoint(tag, &checkpoint)
    }

    /// The failure that this hold published as its n-th comes back, in the place of a target.
    pub(crate) fn own_missing(&mut self, tag: &'static str, key: &str, number: usize) -> Outcome<'_> {
        let message = missing_of(self.machine.manifest().run, key, self.missing[number].clone());
        self.message(tag, false, &message)
    }

    /// The failure that another wrote in the place of a target.
    pub(crate) fn missing(&mut self, tag: &'static str, key: &str, by: EndedBy) -> Outcome<'_> {
        let message = missing_of(self.machine.manifest().run, key, missing(by, "missing"));
        self.message(tag, false, &message)
    }

    /// Someone asks for a cancel.
    pub(crate) fn cancel(&mut self) -> Outcome<'_> {
        self.event(Event::Cancel { at: time() })
    }

    /// The sentinel of a run.
    pub(crate) fn sentinel(&mut self, tag: &'static str, run: u128) -> Outcome<'_> {
        let cid = self.machine.manifest().cid.clone();
        self.message(tag, false, &Sentinel::encode(&cid, id(run)))
    }

    pub(crate) fn fence(&mut self, tag: &'static str, token: u128) -> Outcome<'_> {
        let message = fence(token).encode(self.machine.manifest());
        self.message(tag, false, &message)
    }

    pub(crate) fn manifest(&mut self, tag: &'static str) -> Outcome<'_> {
        self.event(Event::ManifestArrived { tag })
    }

    /// The oldest open publication whose line starts so is safe.
    pub(crate) fn confirm(&mut self, line: &str) -> Outcome<'_> {
        let id = self.take_open(line);
        self.event(Event::Confirmed(id))
    }

    /// The broker takes bodies of so many bytes, and the oldest open publication whose line starts so has more.
    pub(crate) fn refuse(&mut self, line: &str, most: usize) -> Outcome<'_> {
        let id = self.take_open(line);
        self.event(Event::TooLarge { id, most })
    }

    fn take_open(&mut self, line: &str) -> PublicationId {
        let at = self.open.iter().position(|(open, _)| open.starts_with(line));
        let at = at.unwrap_or_else(|| panic!("{line:?} is not among {:?}", self.open));
        self.open.remove(at).expect("it was found there").1
    }

    /// Everything published is safe, and so is what is published by that, until nothing is left. Returns how often an
    /// event was needed.
    pub(crate) fn confirm_all(&mut self) -> usize {
        let mut events = 0;
        while !self.open.is_empty() {
            let _ = self.confirm("").lines();
            events += 1;
        }
        events
    }

    /// Time goes on. Unless the story says otherwise, nothing happens by that alone.
    pub(crate) fn wait(&mut self, span: Duration) -> Outcome<'_> {
        self.now += span;
        self.event(Event::TimePassed)
    }

    /// How long nothing happens if nothing is heard.
    pub(crate) fn quiet_for(&self) -> Option<Duration> {
        self.machine.next_timeout().map(|at| at.saturating_sub(self.now))
    }

    pub(crate) fn open(&self) -> Vec<&str> {
        self.open.iter().map(|(line, _)| line.as_str()).collect()
    }

    pub(crate) fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    pub(crate) fn body(&self, place: usize) -> &[u8] {
        let (_, answer) =
            self.machine.answers().find(|(of, _)| *of == place).expect("the target has a result");
        &answer.body
    }

    pub(crate) fn is_done(&self) -> bool {
        self.machine.is_done()
    }

    fn tell(&mut self, effect: Effect<&'static str>) -> String {
        match effect {
            Effect::Publish(id, publication) => {
                let line = self.tell_publication(publication);
                self.open.push_back((line.clone(), id));
                line
            }
            Effect::Ack(tag) => format!("ack {tag}"),
            Effect::Park { tag, .. } => format!("park {tag}"),
            Effect::DeleteQueue => "delete".to_owned(),
            Effect::Abandon { manifests } => format!("abandon {manifests:?}"),
            Effect::Cancelled(Cancellation { responded, missing, ended_by }) => {
                let by = ended_by.map_or("nothing", EndedBy::as_str);
                format!("cancelled: {responded} responded, {missing} missing, by {by}")
            }
            Effect::End(summary) if summary.completed && summary.late > 0 => {
                format!("end, completed, {} late", summary.late)
            }
            Effect::End(summary) if summary.completed => "end, completed".to_owned(),
            Effect::End(_) => "end".to_owned(),
        }
    }

    fn tell_publication(&mut self, publication: Publication) -> String {
        match publication {
            Publication::OnTarget { callback, place, body } => {
                let key = self.machine.manifest().key_at(place).unwrap().as_str().to_owned();
                format!("call {callback} with {key}={}", answer(&body))
            }
            Publication::OnFinal { callback, body, ending, .. } => {
                format!("final {callback} with {}", tell_payload(&body, ending))
            }
            Publication::Waiter { body, ending } => format!("waiter with {}", tell_payload(&body, ending)),
            Publication::Checkpoint(checkpoint) => {
                let entry = |(key, answer)| format!("{key}={answer}");
                let entries: Vec<String> = entries_of(&checkpoint).map(entry).collect();
                let called = if checkpoint.called { "called" } else { "uncalled" };
                let line = format!("checkpoint of {called} [{}]", entries.join(" "));
                self.checkpoints.push(checkpoint);
                line
            }
            Publication::Fence(fence) => {
                if fence.token == self.machine.manifest().run {
                    return "nobody's fence".to_owned();
                }
                assert_eq!(fence.token, id(OWN), "a fence carries the hold's token");
                "fence".to_owned()
            }
            Publication::Mark(mark) => {
                assert_eq!(mark.coordinator, id(OWN), "a mark carries the hold's token");
                if mark.is_padded { "mark" } else { "small mark" }.to_owned()
            }
            Publication::Missing { place, body, .. } => {
                let key = self.machine.manifest().key_at(place).unwrap().as_str().to_owned();
                self.missing.push(body.clone());
                format!("missing {key}={}", answer(&body))
            }
            Publication::Sentinel => "sentinel".to_owned(),
            Publication::Renewal => "renewal".to_owned(),
            Publication::ParkedManifest { .. } => "manifest, parked".to_owned(),
        }
    }
}

impl Outcome<'_> {
    /// Exactly this comes out, in this order, and nothing after it.
    #[track_caller]
    pub(crate) fn check(self, expected: &[&str]) {
        assert_eq!(self.lines(), expected);
    }

    pub(crate) fn lines(self) -> Vec<String> {
        let effects = std::mem::take(&mut self.0.effects);
        effects.into_iter().map(|effect| self.0.tell(effect)).collect()
    }
}

fn entries_of(checkpoint: &Checkpoint) -> impl Iterator<Item = (&str, String)> {
    checkpoint.entries.iter().map(|entry| (entry.key.as_str(), answer(&entry.body)))
}

fn tell_payload(body: &FinalBody, ending: Ending) -> String {
    let payload: FinalPayload = serde_json::from_slice(&body.joined()).expect("a final payload is JSON");
    // Responses that were left out for want of room are no failures of their targets.
    let left_out = payload.failures().filter(|failure| failure.exception.contains("was left out"));
    assert_eq!(payload.failures().count() - left_out.count(), ending.failed);
    assert_eq!(payload.ended_by(), ending.by);
    let missing = payload.data.iter().filter(|(_, result)| result.ended_by.is_some()).count();
    assert_eq!(missing, ending.missing);
    let entry = |(key, result): (&str, &fanfare_protocol::TargetResult)| {
        let answer = match &result.exception {
            Some(exception) => format!("!{exception}"),
            None => serde_json::from_str(result.response.get()).unwrap(),
        };
        format!("{key}={answer}")
    };
    let entries = payload.data.iter().map(entry).collect::<Vec<_>>().join(" ");
    let by = ending.by.map(|by| format!(", ended by {by}")).unwrap_or_default();
    let parts = match body {
        FinalBody::Whole(_) => String::new(),
        FinalBody::Parts(parts) => format!(" in {} parts", parts.bodies().count()),
    };
    format!("[{entries}]{parts}{by}")
}
