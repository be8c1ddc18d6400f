use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use fanfare_protocol::{Message, QueueSpec, limits};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::arguments::Arguments;
use super::dead_letter::{Death, died, would_cycle};
use super::exchange::Exchanges;
use super::queue::{Handed, Queue, Route, Subscriber, Waiting};
use crate::{BrokerError, PublishError, QueueState};

macro_rules! id {
    ($($name:ident),*) => {$(
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) struct $name(u64);
    )*};
}
id!(ClientId, ChannelId, QueueId, ConsumerId);

/// Everything that the server knows. Each method is one step, taken under the server's lock; none waits.
#[derive(Debug)]
pub(super) struct State {
    /// Bytes of the largest body that it takes.
    pub(super) most_bytes: usize,
    clients: BTreeMap<ClientId, Client>,
    channels: BTreeMap<ChannelId, Channel>,
    queues: BTreeMap<QueueId, Queue>,
    names: BTreeMap<String, QueueId>,
    /// The fanout exchanges, and what is bound to them.
    exchanges: Exchanges,
    /// Dead letters that wait for their queue to be declared, by its name.
    stranded: BTreeMap<String, Vec<Message>>,
    /// When which queue has to be looked at.
    alarms: BTreeSet<(Instant, QueueId)>,
    last_id: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            most_bytes: limits::MESSAGE_BYTES,
            clients: BTreeMap::new(),
            channels: BTreeMap::new(),
            queues: BTreeMap::new(),
            names: BTreeMap::new(),
            exchanges: Exchanges::default(),
            stranded: BTreeMap::new(),
            alarms: BTreeSet::new(),
            last_id: 0,
        }
    }
}

#[derive(Debug, Default)]
struct Client {
    user: String,
    channels: BTreeSet<ChannelId>,
    exclusive: BTreeSet<QueueId>,
    isolated: bool,
    /// Channels that have ended, which it has not heard of.
    deaf: Vec<Deaf>,
}

#[derive(Debug)]
struct Deaf {
    end: Arc<End>,
    /// Without these, their consumers would hear of it.
    _consumers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Channel {
    client: ClientId,
    end: Arc<End>,
    consumers: BTreeMap<String, (QueueId, ConsumerId)>,
    unacked: BTreeMap<u64, Unacked>,
    last_tag: u64,
}

#[derive(Debug)]
struct Unacked {
    queue: QueueId,
    consumer: ConsumerId,
    place: u64,
    waiting: Waiting,
}

/// How a channel ended, for those who hold it.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) token: CancellationToken,
    reason: OnceLock<BrokerError>,
}

impl End {
    fn tell(&self, reason: &BrokerError) {
        self.reason.set(reason.clone()).ok();
        self.token.cancel();
    }

    pub(super) fn reason(&self) -> BrokerError {
        self.reason.get().cloned().unwrap_or(BrokerError::Closed)
    }
}

impl State {
    pub(super) fn connect(&mut self, user: &str) -> ClientId {
        let id = ClientId(self.next_id());
        self.clients.insert(id, Client { user: user.to_owned(), ..Client::default() });
        id
    }

    /// Whether a client may do anything at all.
    pub(super) fn check(&self, client: ClientId) -> Result<(), BrokerError> {
        match self.clients.get(&client) {
            None => Err(BrokerError::Closed),
            Some(client) if client.isolated => {
                Err(BrokerError::Unreachable("this client is isolated".to_owned()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether a message's `user_id`, where it has one, is its publisher's.
    fn check_user(&self, client: ClientId, message: &Message) -> Result<(), BrokerError> {
        let login = self.clients.get(&client).map(|client| client.user.as_str());
        match message.properties.user_id.as_deref() {
            Some(user) if login != Some(user) => Err(BrokerError::WrongUser(format!(
                "it is set to '{user}', and the login is '{}'",
                login.unwrap_or_default()
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn isolate(&mut self, client: ClientId, isolated: bool) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.isolated = isolated;
        }
    }

    /// Ends all that lives as long as a client's connection.
    pub(super) fn cut(&mut self, client: ClientId, reason: &BrokerError, now: Instant) {
        let Some(gone) = self.clients.get_mut(&client) else { return };
        let (channels, exclusive) = (std::mem::take(&mut gone.channels), std::mem::take(&mut gone.exclusive));
        self.end_all(channels, Some(reason), now);
        self.notice(client, reason);
        for queue in exclusive {
            self.remove(queue);
        }
    }

    /// Ends a client's channels without its hearing of it.
    pub(super) fn deafen(&mut self, client: ClientId, now: Instant) {
        let Some(deaf) = self.clients.get_mut(&client) else { return };
        let channels = std::mem::take(&mut deaf.channels);
        self.end_all(channels, None, now);
    }

    /// Lets a client hear of the channels that have ended so.
    pub(super) fn notice(&mut self, client: ClientId, reason: &BrokerError) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        client.deaf.drain(..).for_each(|deaf| deaf.end.tell(reason));
    }

    pub(super) fn close(&mut self, client: ClientId, now: Instant) {
        self.cut(client, &BrokerError::Closed, now);
        self.clients.remove(&client);
    }

    pub(super) fn publish(
        &mut self,
        client: ClientId,
        name: &str,
        message: Message,
        latest: Option<Instant>,
        now: Instant,
    ) -> Result<(), PublishError> {
        self.check_sending(client, &message)?;
        if latest.is_some_and(|latest| latest <= now) {
            let (queue, reason) = (name.to_owned(), "it is too late to send the message".to_owned());
            return Err(PublishError::NotSent(BrokerError::Unavailable { queue, reason }));
        }
        self.check_user(client, &message).map_err(PublishError::NotSent)?;
        let Some((id, queue)) = self.named(name) else {
            return Err(PublishError::Unroutable(name.to_owned()));
        };
        if queue.is_full() {
            return Err(PublishError::Refused(name.to_owned()));
        }
        queue.push(message, Route::to_queue(name), now);
        self.advance(id, now);
        Ok(())
    }

    pub(super) fn publish_through(
        &mut self,
        client: ClientId,
        route: &Route,
        message: &Message,
        now: Instant,
    ) -> Result<(), PublishError> {
        self.check_sending(client, message)?;
        self.check_user(client, message).map_err(PublishError::NotSent)?;
        let name = &route.exchange;
        let Some(bound) = self.exchanges.bound_to(name) else {
            return Err(PublishError::NoExchange(name.clone()));
        };
        let bound = bound.clone();
        if bound.is_empty() {
            return Err(PublishError::Unbound(name.clone()));
        }
        let mut refused = false;
        for id in bound {
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            if queue.is_full() {
                refused = true;
                continue;
            }
            queue.push(message.clone(), route.clone(), now);
            self.advance(id, now);
        }
        if refused { Err(PublishError::Refused(name.clone())) } else { Ok(()) }
    }

    fn check_sending(&self, client: ClientId, message: &Message) -> Result<(), PublishError> {
        let (bytes, most) = (message.body.len(), self.most_bytes);
        if bytes > most {
            return Err(PublishError::TooLarge { bytes, most });
        }
        self.check(client).map_err(PublishError::NotSent)
    }

    pub(super) fn declare_exchange(&mut self, client: ClientId, name: &str) -> Result<(), BrokerError> {
        self.check(client)?;
        self.exchanges.declare(name);
        Ok(())
    }

    pub(super) fn bind(&mut self, client: ClientId, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        self.check(client)?;
        let Some((id, _)) = self.accessible(client, queue)? else {
            return Err(BrokerError::NoQueue(queue.to_owned()));
        };
        if self.exchanges.bind(exchange, id) {
            Ok(())
        } else {
            Err(BrokerError::NoExchange(exchange.to_owned()))
        }
    }

    pub(super) fn delete_exchange(&mut self, client: ClientId, name: &str) -> Result<(), BrokerError> {
        self.check(client)?;
        self.exchanges.delete(name);
        Ok(())
    }

    pub(super) fn declare(
        &mut self,
        client: ClientId,
        spec: &QueueSpec,
        now: Instant,
    ) -> Result<(), BrokerError> {
        self.check(client)?;
        let arguments = Arguments::read(spec)?;
        if let Some((_, queue)) = self.accessible(client, &spec.name)? {
            if queue.spec != *spec {
                let reason = format!("it has {:?}", queue.spec.arguments);
                return Err(BrokerError::QueueDiffers { queue: spec.name.clone(), reason });
            }
            queue.touch(now);
            return Ok(());
        }
        let id = QueueId(self.next_id());
        let owner = spec.exclusive.then_some(client);
        if let (Some(owner), true) = (self.clients.get_mut(&client), spec.exclusive) {
            owner.exclusive.insert(id);
        }
        let mut queue = Queue::new(spec.clone(), arguments, owner, now);
        for letter in self.stranded.remove(&spec.name).unwrap_or_default() {
            queue.push(letter, Route::to_queue(&spec.name), now);
        }
        self.names.insert(spec.name.clone(), id);
        self.queues.insert(id, queue);
        self.advance(id, now);
        Ok(())
    }

    pub(super) fn inspect(
        &mut self,
        client: ClientId,
        name: &str,
        now: Instant,
    ) -> Result<Option<QueueState>, BrokerError> {
        self.check(client)?;
        let Some((id, queue)) = self.accessible(client, name)? else { return Ok(None) };
        queue.touch(now);
        let state = QueueState { messages: queue.len() as u64, consumers: queue.consumers().len() as u64 };
        self.advance(id, now);
        Ok(Some(state))
    }

    pub(super) fn unacked(&self, name: &str) -> usize {
        let Some(id) = self.names.get(name) else { return 0 };
        let held = self.channels.values().flat_map(|channel| channel.unacked.values());
        held.filter(|unacked| unacked.queue == *id).count()
    }

    pub(super) fn next_place(&self, name: &str) -> u64 {
        self.names.get(name).and_then(|id| self.queues.get(id)).map_or(0, Queue::next_place)
    }

    pub(super) fn lose(&mut self, name: &str, is_lost: impl Fn(u64, &Message) -> bool) {
        if let Some(queue) = self.names.get(name).and_then(|id| self.queues.get_mut(id)) {
            queue.lose(is_lost);
        }
    }

    pub(super) fn is_unacked(&self, channel: ChannelId, tag: u64) -> bool {
        self.channels.get(&channel).is_some_and(|channel| channel.unacked.contains_key(&tag))
    }

    pub(super) fn delete(&mut self, client: ClientId, name: &str) -> Result<(), BrokerError> {
        self.check(client)?;
        if let Some((id, _)) = self.accessible(client, name)? {
            self.remove(id);
        }
        Ok(())
    }

    pub(super) fn open(&mut self, client: ClientId) -> Result<(ChannelId, Arc<End>), BrokerError> {
        self.check(client)?;
        let id = ChannelId(self.next_id());
        let end = Arc::new(End::default());
        let channel = Channel {
            client,
            end: Arc::clone(&end),
            consumers: BTreeMap::new(),
            unacked: BTreeMap::new(),
            last_tag: 0,
        };
        self.channels.insert(id, channel);
        if let Some(client) = self.clients.get_mut(&client) {
            client.channels.insert(id);
        }
        Ok((id, end))
    }

    /// The client of a channel that has not ended.
    pub(super) fn client_of(&self, channel: ChannelId) -> Option<ClientId> {
        self.channels.get(&channel).map(|channel| channel.client)
    }

    /// Starts to consume. The channel is one that has not ended, and the queue one that its client may use.
    pub(super) fn consume(
        &mut self,
        id: ChannelId,
        name: &str,
        prefetch: u16,
        now: Instant,
    ) -> Result<(String, mpsc::UnboundedReceiver<Handed>), BrokerError> {
        let consumer = ConsumerId(self.next_id());
        let client = self.client_of(id).ok_or(BrokerError::Closed)?;
        let Some((queue_id, queue)) = self.accessible(client, name)? else {
            return Err(BrokerError::NoQueue(name.to_owned()));
        };
        let tag = format!("memory-{}", consumer.0);
        let (sender, receiver) = mpsc::unbounded_channel();
        let subscriber =
            Subscriber { channel: id, tag: tag.clone(), prefetch: usize::from(prefetch), unacked: 0, sender };
        queue.subscribe(consumer, subscriber);
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.consumers.insert(tag.clone(), (queue_id, consumer));
        }
        self.advance(queue_id, now);
        Ok((tag, receiver))
    }

    /// Takes the next message of a queue, which nobody's prefetch counts.
    pub(super) fn get(
        &mut self,
        id: ChannelId,
        name: &str,
        now: Instant,
    ) -> Result<Option<Handed>, BrokerError> {
        let nobody = ConsumerId(self.next_id());
        let client = self.client_of(id).ok_or(BrokerError::Closed)?;
        let Some((queue_id, queue)) = self.accessible(client, name)? else {
            return Err(BrokerError::NoQueue(name.to_owned()));
        };
        queue.touch(now);
        let quorum = queue.arguments.quorum;
        let Some((place, waiting)) = queue.take() else { return Ok(None) };
        let channel = self.channels.get_mut(&id).ok_or(BrokerError::Closed)?;
        channel.last_tag += 1;
        let handed = waiting.handed(channel.last_tag, quorum);
        channel
            .unacked
            .insert(channel.last_tag, Unacked { queue: queue_id, consumer: nobody, place, waiting });
        self.advance(queue_id, now);
        Ok(Some(handed))
    }

    /// Stops a consumer. One that is gone already is no mistake.
    pub(super) fn cancel(&mut self, channel: ChannelId, tag: &str, now: Instant) {
        let Some(channel) = self.channels.get_mut(&channel) else { return };
        let Some((id, consumer)) = channel.consumers.remove(tag) else { return };
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.unsubscribe(consumer, now);
            self.advance(id, now);
        }
    }

    /// Settles one delivery. As on RabbitMQ, a tag that is not outstanding ends the channel, and one of a channel that has
    /// ended, or of a queue that is gone, does nothing.
    pub(super) fn settle(&mut self, id: ChannelId, tag: u64, requeue: bool, now: Instant) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let Some(unacked) = channel.unacked.remove(&tag) else {
            let reason = BrokerError::Refused(format!("PRECONDITION_FAILED - unknown delivery tag {tag}"));
            self.end(id, reason, now);
            return;
        };
        let queue = unacked.queue;
        self.take_back(unacked, requeue, now);
        self.advance(queue, now);
    }

    /// Ends a channel.
    pub(super) fn end(&mut self, id: ChannelId, reason: BrokerError, now: Instant) {
        self.end_all(BTreeSet::from([id]), Some(&reason), now);
    }

    /// Ends channels: first all their consumers go, so that none of them gets what another one held; then what they held
    /// goes back, in order. Without a reason, their client does not hear of it.
    fn end_all(&mut self, ids: BTreeSet<ChannelId>, reason: Option<&BrokerError>, now: Instant) {
        let mut touched = BTreeSet::new();
        let mut held = Vec::new();
        for id in ids {
            let Some(channel) = self.channels.remove(&id) else { continue };
            if let Some(reason) = reason {
                channel.end.tell(reason);
            }
            let mut consumers = Vec::new();
            for (queue_id, consumer) in channel.consumers.into_values() {
                if let Some(queue) = self.queues.get_mut(&queue_id) {
                    consumers.extend(queue.unsubscribe(consumer, now));
                    touched.insert(queue_id);
                }
            }
            held.extend(channel.unacked.into_values());
            if let Some(client) = self.clients.get_mut(&channel.client) {
                client.channels.remove(&id);
                if reason.is_none() {
                    client.deaf.push(Deaf { end: channel.end, _consumers: consumers });
                }
            }
        }
        for unacked in held {
            touched.insert(unacked.queue);
            self.take_back(unacked, true, now);
        }
        for queue in touched {
            self.advance(queue, now);
        }
    }

    /// When the next alarm rings.
    pub(super) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Does what time brings.
    pub(super) fn ring(&mut self, now: Instant) {
        while let Some((at, id)) = self.alarms.first().copied()
            && at <= now
        {
            self.alarms.remove(&(at, id));
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            queue.alarm = None;
            if queue.is_expired(now) {
                self.remove(id);
            } else {
                self.advance(id, now);
            }
        }
    }

    fn take_back(&mut self, unacked: Unacked, requeue: bool, now: Instant) {
        let Unacked { queue: id, consumer, place, waiting } = unacked;
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.settled(consumer);
        if requeue && let Some(given_up) = queue.put_back(place, waiting) {
            let targets = self.bury(id, given_up, Death::DeliveryLimit, now);
            targets.into_iter().for_each(|target| self.advance(target, now));
        }
    }

    /// Does all that a queue can do now: drops what expired, hands out what it has consumers for, sets its alarm; and the
    /// same for the queues that its dead letters go to.
    fn advance(&mut self, id: QueueId, now: Instant) {
        let mut touched = VecDeque::from([id]);
        while let Some(id) = touched.pop_front() {
            while let Some(expired) = self.queues.get_mut(&id).and_then(|queue| queue.take_expired(now)) {
                touched.extend(self.bury(id, expired, Death::Expired, now));
            }
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            hand_out(id, queue, &mut self.channels);
            let due = queue.due();
            if due != queue.alarm {
                if let Some(at) = std::mem::replace(&mut queue.alarm, due) {
                    self.alarms.remove(&(at, id));
                }
                self.alarms.extend(due.map(|at| (at, id)));
            }
        }
    }

    /// Dead-letters a message, and returns the queue that took it.
    fn bury(&mut self, from: QueueId, given_up: Waiting, death: Death, now: Instant) -> Option<QueueId> {
        let queue = self.queues.get(&from)?;
        let to = queue.arguments.dead_letter.clone()?;
        let letter = died(given_up.message, &queue.spec.name, &given_up.route, death);
        let name = to.queue.unwrap_or(given_up.route.key);
        if would_cycle(&letter, &name) {
            return None;
        }
        if let Some((id, queue)) = self.named(&name) {
            queue.push(letter, Route::to_queue(&name), now);
            return Some(id);
        }
        if to.at_least_once {
            self.stranded.entry(name).or_default().push(letter);
        }
        None
    }

    /// Removes a queue and its consumers. What is out for delivery stays with the channels, where settling it does
    /// nothing any more.
    fn remove(&mut self, id: QueueId) {
        let Some(queue) = self.queues.remove(&id) else { return };
        self.names.remove(&queue.spec.name);
        self.exchanges.forget(id);
        if let Some(at) = queue.alarm {
            self.alarms.remove(&(at, id));
        }
        if let Some(owner) = queue.owner.and_then(|owner| self.clients.get_mut(&owner)) {
            owner.exclusive.remove(&id);
        }
        for subscriber in queue.consumers().values() {
            if let Some(channel) = self.channels.get_mut(&subscriber.channel) {
                channel.consumers.remove(&subscriber.tag);
            }
        }
    }

    fn named(&mut self, name: &str) -> Option<(QueueId, &mut Queue)> {
        let id = *self.names.get(name)?;
        Some((id, self.queues.get_mut(&id)?))
    }

    /// A queue, unless it is exclusive to another client.
    fn accessible(
        &mut self,
        client: ClientId,
        name: &str,
    ) -> Result<Option<(QueueId, &mut Queue)>, BrokerError> {
        match self.named(name) {
            Some((_, queue)) if queue.owner.is_some_and(|owner| owner != client) => {
                Err(BrokerError::Locked(name.to_owned()))
            }
            found => Ok(found),
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// Hands out what a queue has consumers for.
fn hand_out(id: QueueId, queue: &mut Queue, channels: &mut BTreeMap<ChannelId, Channel>) {
    let quorum = queue.arguments.quorum;
    while let Some((place, waiting, consumer, subscriber)) = queue.take_next() {
        let channel = channels.get_mut(&subscriber.channel).expect("a channel that ends unsubscribes first");
        channel.last_tag += 1;
        // Where the receiver was dropped, the delivery is the channel's.
        subscriber.sender.send(waiting.handed(channel.last_tag, quorum)).ok();
        channel.unacked.insert(channel.last_tag, Unacked { queue: id, consumer, place, waiting });
    }
}
