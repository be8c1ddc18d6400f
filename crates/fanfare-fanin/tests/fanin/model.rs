//! A world for the fan-in: one broker with the queues of one fan-out, and coordinators that lose channels and die.
//!
//! The broker keeps what RabbitMQ keeps: order; unacked messages come back first, in order and marked; one consumer at a
//! time is active; a tag is good on its own channel only. Whatever a promise forbids is asserted as it happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fanfare_fanin::{Deadline, Effect, Event, FanIn, Hold, Item, Limits, Publication, PublicationId};
use fanfare_protocol::{EndedBy, Ending, FinalBody, Manifest, Message, Sentinel, TargetResult};

use crate::samples::{id, missing_of, time};

/// Small numbers, so that a few targets reach every limit.
pub(crate) const LIMITS: Limits = Limits {
    calls_at_risk: 6,
    results_held: 4,
    window: 18,
    renewal: Duration::from_secs(60),
    fence_again: Duration::from_secs(5),
    large_payload_bytes: 1_000,
};

/// Steps within which a world without further trouble comes to its end.
const CALM_STEPS: usize = 5_000;

/// Names a delivery: tags are never used twice, so that one of a lost channel is known for it.
type Tag = u64;

/// A message's place in its queue, by which it comes back to where it was.
type Position = u64;

/// One queue, with what is ready and what is handed out.
#[derive(Debug, Clone)]
struct Queue<M> {
    next: Position,
    ready: BTreeMap<Position, (M, bool)>,
    unacked: BTreeMap<Tag, (usize, Position, M)>,
}

impl<M: Clone> Queue<M> {
    const fn new() -> Self {
        Self { next: 0, ready: BTreeMap::new(), unacked: BTreeMap::new() }
    }

    fn push(&mut self, message: M) {
        self.ready.insert(self.next, (message, false));
        self.next += 1;
    }

    /// Hands the first message out to a consumer, with whether it had been handed out before.
    fn deliver(&mut self, to: usize, tag: Tag) -> Option<(M, bool)> {
        let (position, (message, redelivered)) = self.ready.pop_first()?;
        self.unacked.insert(tag, (to, position, message.clone()));
        Some((message, redelivered))
    }

    fn requeue(&mut self, mut which: impl FnMut(Tag, usize) -> bool) {
        let tags = self.unacked.iter().filter(|(tag, (to, ..))| which(**tag, *to)).map(|(tag, _)| *tag);
        for tag in tags.collect::<Vec<_>>() {
            let (_, position, message) = self.unacked.remove(&tag).unwrap();
            self.ready.insert(position, (message, true));
        }
    }

    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.unacked.is_empty()
    }
}

/// A copy of the manifest: whether a coordinator published it to renew another.
type Copy = bool;

/// What one coordinator does about the fan-out.
struct Holder {
    machine: FanIn<Tag>,
    opened: bool,
    /// Publications that are on their way, each with whether the broker has it.
    outbox: VecDeque<(PublicationId, Publication, bool)>,
    deletion: Deletion,
    /// The broker has ended its consumer with the queue.
    cancelled: bool,
    acked: BTreeSet<Tag>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deletion {
    No,
    Asked,
    Done,
}

pub(crate) struct World {
    pub(crate) manifest: Manifest,
    /// When what is missing is to fail.
    deadline: Option<Duration>,
    now: Duration,
    next_tag: Tag,
    next_token: u128,
    coordinators: Vec<Coordinator>,
    manifests: Queue<Copy>,
    /// The aggregation queue, until it is deleted.
    results: Option<Queue<Message>>,
    /// Whether the broker has brought it back after a deletion, empty. Where nobody has the manifest any more by then, it is left to
    /// expire.
    half_deleted: bool,
    /// Who consumes it; the first is active.
    consumers: Vec<usize>,
    /// What the targets are still going to answer.
    work: VecDeque<Message>,
    /// Publications of holds that are no more, and that arrive nevertheless.
    late: Vec<Publication>,
    /// For each place, the body that has to count: that of its first result in the queue.
    first: BTreeMap<usize, Bytes>,
    record: Record,
}

#[derive(Default)]
struct Coordinator {
    holder: Option<Holder>,
    /// It remembers that the fan-out has ended.
    ended: bool,
}

/// What has happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// How often each on-target callback has arrived, by callback and place.
    pub(crate) calls: BTreeMap<(usize, usize), usize>,
    /// How often each final callback has arrived.
    pub(crate) finals: BTreeMap<usize, usize>,
    /// The payload of the first final callback.
    pub(crate) payload: Option<(FinalBody, Ending)>,
    /// A cancel was said to have taken effect.
    pub(crate) cancelled: bool,
    /// Times that a hold ended by a crash or a lost channel.
    pub(crate) losses: usize,
}

/// Something that happens in the world; what is not possible at the moment does not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Work,
    TakeManifest(usize),
    Open(usize),
    Deliver(usize),
    /// One publication reaches the broker.
    Land(usize, usize),
    /// One publication is confirmed.
    Confirm(usize, usize),
    /// The broker deletes the queue as asked.
    Delete(usize),
    /// The broker is killed while it deletes the queue as asked, which is back after that, and empty.
    DeleteHalf(usize),
    /// The coordinator learns of what has become of its consumer.
    Learn(usize),
    LoseChannel(usize),
    LoseManifestChannel(usize),
    /// The process dies, and begins anew. What it was publishing vanishes or arrives late.
    Crash(usize, bool),
    Stop(usize),
    Cancel(usize),
    Late(usize),
    Time(u64),
    /// Nothing changes: a restart of everything from the queues alone must lead to the same end.
    Restart,
}

impl World {
    pub(crate) fn new(
        manifest: Manifest,
        deadline: Option<Duration>,
        coordinators: usize,
        work: Vec<Message>,
    ) -> Self {
        let (mut manifests, mut results) = (Queue::new(), Queue::new());
        manifests.push(false);
        results.push(Sentinel::encode(&manifest.cid, manifest.run));
        Self {
            manifest: Manifest { sentinel: true, replicated: false, ..manifest },
            deadline,
            now: Duration::ZERO,
            next_tag: 0,
            next_token: 1_000,
            coordinators: std::iter::repeat_with(Coordinator::default).take(coordinators).collect(),
            manifests,
            results: Some(results),
            half_deleted: false,
            consumers: Vec::new(),
            work: work.into(),
            late: Vec::new(),
            first: BTreeMap::new(),
            record: Record::default(),
        }
    }

    /// Goes on without trouble until nothing is left to do. After a cancel that has taken effect, no target needs to answer.
    pub(crate) fn calm_down(mut self) -> Record {
        if self.record.cancelled {
            self.work.clear();
        }
        for _ in 0..CALM_STEPS {
            if self.is_over() {
                return self.record;
            }
            if !self.go_on() {
                let next = self.holders().filter_map(|holder| holder.machine.next_timeout()).min();
                let next = next.expect("a fan-out that is open waits for something");
                assert!(next > self.now, "time passing leads nowhere: {:?}", self.stuck());
                self.now = next;
                self.pass_time();
            }
        }
        panic!("the fan-out does not end: {:?}", self.stuck())
    }

    /// Takes whatever step is possible. Returns whether there was one.
    fn go_on(&mut self) -> bool {
        let common = [Step::Work, Step::Late(0)];
        let each = (0..self.coordinators.len()).flat_map(|c| {
            [
                Step::TakeManifest(c),
                Step::Open(c),
                Step::Deliver(c),
                Step::Confirm(c, 0),
                Step::Delete(c),
                Step::Learn(c),
            ]
        });
        let steps: Vec<Step> = common.into_iter().chain(each).collect();
        steps.into_iter().filter(|step| self.step(*step)).count() > 0
    }

    fn is_over(&self) -> bool {
        self.work.is_empty()
            && self.late.is_empty()
            && self.manifests.is_empty()
            && self.results.as_ref().is_none_or(|results| self.half_deleted && results.is_empty())
            && self.holders().next().is_none()
    }

    fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.coordinators.iter().filter_map(|coordinator| coordinator.holder.as_ref())
    }

    fn stuck(&self) -> Vec<String> {
        self.holders().map(|holder| format!("{:#?}", holder.machine)).collect()
    }

    /// Everyone dies at this moment. What is left is in the queues.
    pub(crate) fn restarted(&self) -> Self {
        let mut manifests = self.manifests.clone();
        manifests.requeue(|_, _| true);
        let mut results = self.results.clone();
        results.iter_mut().for_each(|results| results.requeue(|_, _| true));
        Self {
            manifest: self.manifest.clone(),
            deadline: self.deadline,
            now: self.now,
            next_tag: self.next_tag,
            next_token: self.next_token + 1_000_000,
            coordinators: vec![Coordinator::default()],
            manifests,
            results,
            half_deleted: self.half_deleted,
            consumers: Vec::new(),
            work: self.work.clone(),
            late: Vec::new(),
            first: self.first.clone(),
            record: self.record.clone(),
        }
    }

    /// Lets a step happen if it is possible. Returns whether it was.
    pub(crate) fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Work => self.work(),
            Step::TakeManifest(c) => self.take_manifest(c),
            Step::Open(c) => self.open(c),
            Step::Deliver(c) => self.deliver(c),
            Step::Land(c, pick) => self.land(c, pick).is_some(),
            Step::Confirm(c, pick) => self.confirm(c, pick),
            Step::Delete(c) => self.delete(c),
            Step::DeleteHalf(c) => self.delete_half(c),
            Step::Learn(c) => self.learn(c),
            Step::LoseChannel(c) => self.lose_channel(c),
            Step::LoseManifestChannel(c) => {
                self.manifests.requeue(|_, to| to == c);
                true
            }
            Step::Crash(c, late) => self.crash(c, late),
            Step::Stop(c) => self.coordinators[c].holder.is_some() && self.event(c, Event::Stop),
            Step::Cancel(c) => {
                self.coordinators[c].holder.is_some() && self.event(c, Event::Cancel { at: time() })
            }
            Step::Late(pick) => self.land_late(pick),
            Step::Time(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.pass_time();
                true
            }
            Step::Restart => {
                let before = self.record.payload.clone();
                let record = self.restarted().calm_down();
                assert!(before.is_none_or(|payload| Some(payload) == record.payload));
                true
            }
        }
    }

    fn work(&mut self) -> bool {
        let Some(message) = self.work.pop_front() else { return false };
        let reader: FanIn<Tag> = self.machine(0, false);
        if let Item::Result { place, answer } = reader.read(&message) {
            self.first.entry(place).or_insert(answer.body);
        }
        self.results.iter_mut().for_each(|results| results.push(message.clone()));
        true
    }

    fn machine(&self, tag: Tag, take_over: bool) -> FanIn<Tag> {
        let hold = Hold { token: id(self.next_token), take_over };
        let written_at =
            |at: Duration| self.now + at.saturating_sub(self.now) / if take_over { 100 } else { 10 };
        let deadline = self.deadline.map(|at| Deadline { at, written_at: Some(written_at(at)) });
        FanIn::new(self.manifest.clone(), tag, hold, LIMITS, self.now).with_deadline(deadline, self.now)
    }

    fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        self.next_tag
    }

    fn take_manifest(&mut self, c: usize) -> bool {
        let tag = self.tag();
        let Some((renewed, redelivered)) = self.manifests.deliver(c, tag) else { return false };
        if self.coordinators[c].ended {
            self.manifests.unacked.remove(&tag);
        } else if self.coordinators[c].holder.is_some() {
            self.event(c, Event::ManifestArrived { tag });
        } else {
            self.next_token += 1;
            let machine = self.machine(tag, renewed || redelivered);
            self.coordinators[c].holder = Some(Holder {
                machine,
                opened: false,
                outbox: VecDeque::new(),
                deletion: Deletion::No,
                cancelled: false,
                acked: BTreeSet::new(),
            });
        }
        true
    }

    fn open(&mut self, c: usize) -> bool {
        let exists = self.results.is_some();
        let Some(holder) = self.coordinators[c].holder.as_mut().filter(|holder| !holder.opened) else {
            return false;
        };
        holder.opened = true;
        if exists {
            self.consumers.push(c);
        }
        self.event(c, if exists { Event::Opened } else { Event::NeverOpened })
    }

    fn deliver(&mut self, c: usize) -> bool {
        if self.consumers.first() != Some(&c) {
            return false;
        }
        let tag = self.tag();
        let results = self.results.as_mut().expect("it is consumed");
        if results.unacked.len() >= usize::from(LIMITS.window) {
            return false;
        }
        let Some((message, redelivered)) = results.deliver(c, tag) else { return false };
        let item = self.coordinators[c].holder.as_ref().expect("it consumes").machine.read(&message);
        self.event(c, Event::Delivered { tag, redelivered, item })
    }

    /// A publication reaches the broker. Returns its place in the outbox if the broker has it then.
    fn land(&mut self, c: usize, pick: usize) -> Option<usize> {
        let exists = self.results.is_some();
        let outbox = &mut self.coordinators[c].holder.as_mut()?.outbox;
        let at = pick.checked_rem(outbox.len())?;
        let (_, publication, landed) = &mut outbox[at];
        let goes_back =
            matches!(publication, Publication::Checkpoint(_) | Publication::Fence(_) | Publication::Mark(_));
        if *landed || (goes_back && !exists) {
            return landed.then_some(at);
        }
        *landed = true;
        let publication = publication.clone();
        self.arrive(publication);
        Some(at)
    }

    fn confirm(&mut self, c: usize, pick: usize) -> bool {
        let count = self.coordinators[c].holder.as_ref().map_or(0, |holder| holder.outbox.len());
        let Some(at) = (0..count).find_map(|n| self.land(c, pick + n)) else { return false };
        let holder = self.coordinators[c].holder.as_mut().expect("it has an outbox");
        let (id, ..) = holder.outbox.remove(at).unwrap();
        self.event(c, Event::Confirmed(id))
    }

    fn land_late(&mut self, pick: usize) -> bool {
        let Some(at) = pick.checked_rem(self.late.len()) else { return false };
        let publication = self.late.swap_remove(at);
        self.arrive(publication);
        true
    }

    /// A publication is in its queue.
    fn arrive(&mut self, publication: Publication) {
        let record = &mut self.record;
        match publication {
            Publication::OnTarget { callback, place, .. } => {
                *record.calls.entry((callback, place)).or_default() += 1;
            }
            Publication::OnFinal { callback, .. } => *record.finals.entry(callback).or_default() += 1,
            Publication::Checkpoint(checkpoint) => {
                let message = checkpoint.encode(&self.manifest);
                self.results.iter_mut().for_each(|results| results.push(message.clone()));
            }
            Publication::Fence(fence) => {
                let message = fence.encode(&self.manifest);
                self.results.iter_mut().for_each(|results| results.push(message.clone()));
            }
            Publication::Mark(mark) => {
                let message = mark.encode(&self.manifest);
                self.results.iter_mut().for_each(|results| results.push(message.clone()));
            }
            Publication::Sentinel => {
                let sentinel = Sentinel::encode(&self.manifest.cid, self.manifest.run);
                self.results.iter_mut().for_each(|results| results.push(sentinel.clone()));
            }
            Publication::Renewal => self.manifests.push(true),
            Publication::Missing { place, body, .. } => {
                let key = self.manifest.key_at(place).unwrap().as_str();
                self.work.push_front(missing_of(self.manifest.run, key, body));
                self.work();
            }
            Publication::Waiter { .. } | Publication::ParkedManifest { .. } => {}
        }
    }

    /// The broker deletes the queue: its consumers are cancelled, its messages gone.
    fn delete(&mut self, c: usize) -> bool {
        match self.coordinators[c].holder.as_mut() {
            Some(holder) if holder.deletion == Deletion::Asked => holder.deletion = Deletion::Done,
            _ => return false,
        }
        for callback in 0..self.manifest.on_final.len() {
            assert!(self.record.finals.contains_key(&callback), "the queue goes before a final callback");
        }
        self.results = None;
        // It may have lost the channel on which it had asked for that before.
        self.coordinators[c].holder.as_mut().expect("it has just spoken").cancelled = true;
        for consumer in std::mem::take(&mut self.consumers) {
            self.coordinators[consumer].holder.as_mut().expect("it consumes").cancelled = true;
        }
        true
    }

    fn delete_half(&mut self, c: usize) -> bool {
        if self.coordinators[c].holder.as_ref().is_none_or(|holder| holder.deletion != Deletion::Asked) {
            return false;
        }
        self.results = Some(Queue::new());
        self.half_deleted = true;
        for c in 0..self.coordinators.len() {
            self.lose_channel(c);
        }
        self.manifests.requeue(|_, _| true);
        true
    }

    fn learn(&mut self, c: usize) -> bool {
        let Some(holder) = self.coordinators[c].holder.as_mut().filter(|holder| holder.cancelled) else {
            return false;
        };
        holder.cancelled = false;
        let event = if holder.deletion == Deletion::Done { Event::Deleted } else { Event::QueueGone };
        self.event(c, event)
    }

    fn lose_channel(&mut self, c: usize) -> bool {
        let Some(holder) = self.coordinators[c].holder.as_ref().filter(|holder| holder.opened) else {
            return false;
        };
        if !self.consumers.contains(&c) && !holder.cancelled {
            return false;
        }
        self.record.losses += 1;
        self.close_channel(c);
        self.coordinators[c].holder.as_mut().expect("it consumes").cancelled = false;
        self.event(c, Event::ChannelLost)
    }

    /// What the channel held goes back.
    fn close_channel(&mut self, c: usize) {
        self.consumers.retain(|consumer| *consumer != c);
        self.results.iter_mut().for_each(|results| results.requeue(|_, to| to == c));
    }

    fn crash(&mut self, c: usize, late: bool) -> bool {
        self.coordinators[c].ended = false;
        if self.coordinators[c].holder.is_none() {
            return false;
        }
        self.record.losses += 1;
        self.close_channel(c);
        self.drop_holder(c, late);
        self.manifests.requeue(|_, to| to == c);
        true
    }

    fn drop_holder(&mut self, c: usize, late: bool) {
        let holder = self.coordinators[c].holder.take().expect("it is there");
        if late {
            let unlanded = holder.outbox.into_iter().filter(|(_, _, landed)| !landed);
            self.late.extend(unlanded.map(|(_, publication, _)| publication));
        }
    }

    fn pass_time(&mut self) {
        for c in 0..self.coordinators.len() {
            let holder = self.coordinators[c].holder.as_ref();
            let due = holder.and_then(|holder| holder.machine.next_timeout());
            if due.is_some_and(|due| due <= self.now) {
                self.event(c, Event::TimePassed);
                let holder = self.coordinators[c].holder.as_ref();
                let next = holder.and_then(|holder| holder.machine.next_timeout());
                assert!(next.is_none_or(|next| next > self.now), "a timeout is asked for in vain");
            }
        }
    }

    fn event(&mut self, c: usize, event: Event<Tag>) -> bool {
        let holder = self.coordinators[c].holder.as_mut().expect("it is told only what it waits for");
        for effect in holder.machine.handle(event, self.now) {
            self.apply(c, effect);
        }
        true
    }

    fn apply(&mut self, c: usize, effect: Effect<Tag>) {
        match effect {
            Effect::Publish(id, publication) => {
                self.inspect(&publication);
                let holder = self.coordinators[c].holder.as_mut().expect("it has just spoken");
                holder.outbox.push_back((id, publication, false));
            }
            Effect::Ack(tag) | Effect::Park { tag, .. } => {
                let holder = self.coordinators[c].holder.as_mut().expect("it has just spoken");
                assert!(holder.acked.insert(tag), "a delivery is acked twice");
                self.manifests.unacked.remove(&tag);
                self.results.iter_mut().for_each(|results| drop(results.unacked.remove(&tag)));
            }
            Effect::Cancelled(_) => self.record.cancelled = true,
            Effect::DeleteQueue => {
                let holder = self.coordinators[c].holder.as_mut().expect("it has just spoken");
                holder.deletion = Deletion::Asked;
            }
            Effect::Abandon { manifests } => {
                self.close_channel(c);
                self.manifests.requeue(|tag, _| manifests.contains(&tag));
                self.drop_holder(c, true);
                self.nothing_left_with(c);
            }
            Effect::End(_) => {
                self.close_channel(c);
                self.drop_holder(c, true);
                self.coordinators[c].ended = true;
                self.nothing_left_with(c);
            }
        }
    }

    /// A hold that is over has acked or handed back each copy of the manifest.
    fn nothing_left_with(&self, c: usize) {
        assert!(self.manifests.unacked.values().all(|(to, ..)| *to != c), "a manifest is held by nobody");
    }

    /// How many targets have answered by themselves, with a result that counts: successes and failures.
    fn answered(&self) -> (usize, usize) {
        let own = self.first.values().map(|body| result_in(body)).filter(|result| result.ended_by.is_none());
        let (succeeded, failed): (Vec<_>, Vec<_>) = own.partition(|result| result.ok);
        (succeeded.len(), failed.len())
    }

    /// What is published keeps the promises.
    fn inspect(&mut self, publication: &Publication) {
        match publication {
            Publication::OnTarget { place, body, .. } => {
                assert_eq!(Some(body), self.first.get(place), "the first result of a key stands");
            }
            Publication::Missing { body, .. } if result_in(body).ended_by == Some(EndedBy::Completion) => {
                let (succeeded, failed) = self.answered();
                let policy = self.manifest.completion.as_ref();
                let met = policy.and_then(|policy| policy.met(succeeded, failed));
                assert!(met.is_some(), "{succeeded} and {failed} meet no policy");
            }
            Publication::OnFinal { body, ending, .. } | Publication::Waiter { body, ending } => {
                let callbacks = self.manifest.on_target.len();
                for place in 0..self.manifest.targets.len() {
                    for callback in 0..callbacks {
                        let called = self.record.calls.contains_key(&(callback, place));
                        assert!(called, "a final callback before an on-target callback is safe");
                    }
                }
                let payload = self.record.payload.get_or_insert_with(|| (body.clone(), *ending));
                assert_eq!(*payload, (body.clone(), *ending), "all final callbacks are given the same");
                let mut expected = fanfare_protocol::FinalPayloadBuilder::new(&self.manifest);
                self.first.values().for_each(|body| expected.push(body));
                assert_eq!(
                    *body,
                    expected.finish(LIMITS.large_payload_bytes, fanfare_protocol::limits::MESSAGE_BYTES),
                    "the first result of each key stands"
                );
            }
            _ => {}
        }
    }
}

fn result_in(body: &[u8]) -> TargetResult {
    TargetResult::from_body(body).expect("what counts is a result")
}
