use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fanfare_protocol::{Message, QueueSpec, header};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::arguments::Arguments;
use super::state::{ChannelId, ClientId, ConsumerId};

/// A queue: what waits in it, and who consumes it. What is out for delivery belongs to the channels.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) spec: QueueSpec,
    pub(super) arguments: Arguments,
    /// The client that it is exclusive to.
    pub(super) owner: Option<ClientId>,
    /// When an alarm is set to look at it again.
    pub(super) alarm: Option<Instant>,
    /// By place in the queue, which a message keeps when it is handed out and comes back.
    ready: BTreeMap<u64, Waiting>,
    next_place: u64,
    /// In the order in which they came.
    consumers: BTreeMap<ConsumerId, Subscriber>,
    /// Those that have room for more, in the order of their turns. Empty where only one is active.
    turns: VecDeque<ConsumerId>,
    /// Since when nobody has used it; nothing while it is consumed.
    unused_since: Option<Instant>,
}

/// How a message came into a queue.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// The exchange that it was published to; the default one has no name.
    pub(super) exchange: String,
    /// Its routing key.
    pub(super) key: String,
}

impl Route {
    /// Through the default exchange.
    pub(super) fn to_queue(name: &str) -> Self {
        Self { exchange: String::new(), key: name.to_owned() }
    }
}

/// A message in a queue.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) message: Message,
    pub(super) route: Route,
    /// How often it was handed out and came back.
    pub(super) returns: u64,
    expires: Option<Instant>,
}

/// A consumer, as its queue knows it.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) channel: ChannelId,
    pub(super) tag: String,
    pub(super) prefetch: usize,
    pub(super) unacked: usize,
    /// Never holds more than `prefetch`.
    pub(super) sender: mpsc::UnboundedSender<Handed>,
}

/// A delivery on its way to a consumer.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) tag: u64,
    pub(super) message: Message,
    pub(super) redelivered: bool,
}

impl Queue {
    pub(super) fn new(spec: QueueSpec, arguments: Arguments, owner: Option<ClientId>, now: Instant) -> Self {
        Self {
            spec,
            arguments,
            owner,
            alarm: None,
            ready: BTreeMap::new(),
            next_place: 0,
            consumers: BTreeMap::new(),
            turns: VecDeque::new(),
            unused_since: Some(now),
        }
    }

    /// Messages that wait.
    pub(super) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn consumers(&self) -> &BTreeMap<ConsumerId, Subscriber> {
        &self.consumers
    }

    /// Whether it takes no more messages from publishers.
    pub(super) fn is_full(&self) -> bool {
        self.arguments.max_length.is_some_and(|most| self.ready.len() >= most)
    }

    /// Someone looked at it or declared it again: it is not unused.
    pub(super) fn touch(&mut self, now: Instant) {
        if let Some(since) = &mut self.unused_since {
            *since = now;
        }
    }

    /// Appends a message.
    pub(super) fn push(&mut self, message: Message, route: Route, now: Instant) {
        let own = message.properties.expiration.as_deref().and_then(|ms| ms.parse().ok());
        let ttl = own.map(Duration::from_millis).into_iter().chain(self.arguments.message_ttl).min();
        let expires = ttl.and_then(|ttl| now.checked_add(ttl));
        self.ready.insert(self.next_place, Waiting { message, route, returns: 0, expires });
        self.next_place += 1;
    }

    /// Puts a message back where it was, or gives it out where it came back too often.
    pub(super) fn put_back(&mut self, place: u64, mut waiting: Waiting) -> Option<Waiting> {
        waiting.returns += 1;
        if self.arguments.delivery_limit.is_some_and(|limit| waiting.returns > limit) {
            return Some(waiting);
        }
        self.ready.insert(place, waiting);
        None
    }

    /// Takes out what expired at the head. As on RabbitMQ, a message behind one that still waits expires when it gets to
    /// the head.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<Waiting> {
        let head = self.ready.first_entry()?;
        let is_due = head.get().expires.is_some_and(|at| at <= now);
        is_due.then(|| head.remove())
    }

    /// The place that the next message takes.
    pub(super) const fn next_place(&self) -> u64 {
        self.next_place
    }

    /// Loses what waits and of which this is so.
    pub(super) fn lose(&mut self, is_lost: impl Fn(u64, &Message) -> bool) {
        self.ready.retain(|place, waiting| !is_lost(*place, &waiting.message));
    }

    /// The next message, for who asks for one.
    pub(super) fn take(&mut self) -> Option<(u64, Waiting)> {
        self.ready.pop_first()
    }

    /// The next message and the consumer whose turn it is; nothing where either is missing.
    pub(super) fn take_next(&mut self) -> Option<(u64, Waiting, ConsumerId, &mut Subscriber)> {
        let id = self.turn()?;
        let (place, waiting) = self.ready.pop_first()?;
        let subscriber = self.consumers.get_mut(&id)?;
        subscriber.unacked += 1;
        if !self.arguments.single_active_consumer {
            self.turns.pop_front();
            if subscriber.has_room() {
                self.turns.push_back(id);
            }
        }
        Some((place, waiting, id, subscriber))
    }

    /// One delivery of a consumer is settled. The consumer may be gone by now.
    pub(super) fn settled(&mut self, id: ConsumerId) {
        let Some(subscriber) = self.consumers.get_mut(&id) else { return };
        if !self.arguments.single_active_consumer && !subscriber.has_room() {
            self.turns.push_back(id);
        }
        subscriber.unacked -= 1;
    }

    pub(super) fn subscribe(&mut self, id: ConsumerId, subscriber: Subscriber) {
        self.unused_since = None;
        if !self.arguments.single_active_consumer {
            self.turns.push_back(id);
        }
        self.consumers.insert(id, subscriber);
    }

    pub(super) fn unsubscribe(&mut self, id: ConsumerId, now: Instant) -> Option<Subscriber> {
        let gone = self.consumers.remove(&id)?;
        self.turns.retain(|turn| *turn != id);
        if self.consumers.is_empty() {
            self.unused_since = Some(now);
        }
        Some(gone)
    }

    /// Whether it was unused for so long that it goes.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.expires().is_some_and(|at| at <= now)
    }

    /// When something happens to it by itself.
    pub(super) fn due(&self) -> Option<Instant> {
        let head = self.ready.first_key_value().and_then(|(_, waiting)| waiting.expires);
        head.into_iter().chain(self.expires()).min()
    }

    fn expires(&self) -> Option<Instant> {
        self.unused_since?.checked_add(self.arguments.expires?)
    }

    fn turn(&self) -> Option<ConsumerId> {
        if self.arguments.single_active_consumer {
            let (id, active) = self.consumers.first_key_value()?;
            active.has_room().then_some(*id)
        } else {
            self.turns.front().copied()
        }
    }
}

impl Subscriber {
    fn has_room(&self) -> bool {
        self.unacked < self.prefetch
    }
}

impl Waiting {
    /// The message as a consumer gets it. A quorum queue says how often it handed it out before.
    pub(super) fn handed(&self, tag: u64, quorum: bool) -> Handed {
        let mut message = self.message.clone();
        if quorum && self.returns > 0 {
            let returns = i64::try_from(self.returns).unwrap_or(i64::MAX);
            message.headers.insert(header::DELIVERY_COUNT, returns);
        }
        Handed { tag, message, redelivered: self.returns > 0 }
    }
}
