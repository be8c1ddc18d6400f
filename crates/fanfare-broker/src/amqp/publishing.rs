//! Publishing: one task owns the channel, and everyone hands their messages to it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfare_protocol::{Message, Properties, header, limits};
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::caller::Caller;
use super::trunk::{Connections, Line, Trunk};
use super::window::Window;
use super::{failure, wire};
use crate::{BrokerError, PublishError, telemetry};

/// Messages on their way to the task. Others wait where they are published.
const INBOX: usize = 64;
/// How long the confirms of what is under way are waited for when the broker handle is closed.
const CLOSING_GRACE: Duration = Duration::from_secs(5);
/// How long the answer to opening a channel for confirms may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Hands messages to the task.
#[derive(Debug, Clone)]
pub(super) struct Publishing {
    jobs: mpsc::Sender<Job>,
    send_timeout: Duration,
    /// Cancelled when the task has ended.
    ended: CancellationToken,
}

/// A message to publish, and whom to tell.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) exchange: ShortString,
    /// A queue's name, where the exchange is the default one.
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
    pub(super) look: Look,
    /// After which it must not be sent any more.
    pub(super) latest: Instant,
    pub(super) caller: Caller,
}

/// What tells a message from all others under way, and is still there when it comes back: a hash of that. Should two share
/// one, they are sent one after the other, as two are that look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Look(u64);

/// Owns the channel, and a new one when that is lost or refuses messages.
struct Publisher {
    tasks: TaskTracker,
    /// Waits for the confirms on a channel that was left for refusing messages.
    draining: Option<JoinHandle<()>>,
    connections: Arc<Connections>,
    trunk: Trunk,
    jobs: mpsc::Receiver<Job>,
    in_flight: usize,
    overdue_after: Duration,
    /// Bytes of the largest body to send. A broker may be configured to take less.
    most: usize,
    _ends: DropGuard,
}

/// Why a channel was left.
enum Left {
    /// It is of no further use.
    Lost(BrokerError),
    /// The broker refuses messages on it.
    Refuses,
    /// Nobody publishes any more.
    Done,
}

impl Publishing {
    /// Starts the task. It ends when the connections are closed or the last handle is dropped.
    pub(super) fn start(
        connections: Arc<Connections>,
        send_timeout: Duration,
        in_flight: usize,
        tasks: &TaskTracker,
    ) -> Self {
        let (jobs, inbox) = mpsc::channel(INBOX);
        let ended = CancellationToken::new();
        let publisher = Publisher {
            tasks: tasks.clone(),
            draining: None,
            trunk: Trunk::new(connections.clone(), 1),
            connections,
            jobs: inbox,
            in_flight: in_flight.max(1),
            overdue_after: send_timeout,
            most: limits::MESSAGE_BYTES,
            _ends: ended.clone().drop_guard(),
        };
        tasks.spawn(publisher.run());
        Self { jobs, send_timeout, ended }
    }

    /// Publishes to an exchange; the default one has no name, and its routing keys are the names of queues.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        let publishing = telemetry::Publishing::begin();
        let outcome = self.hand_over(exchange, routing_key, message, latest).await;
        publishing.ended(&outcome);
        outcome
    }

    async fn hand_over(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Message,
        latest: Option<Instant>,
    ) -> Result<(), PublishError> {
        let bytes = message.body.len();
        if bytes > limits::MESSAGE_BYTES {
            return Err(PublishError::TooLarge { bytes, most: limits::MESSAGE_BYTES });
        }
        let patience = Instant::now() + self.send_timeout;
        let latest = latest.map_or(patience, |latest| latest.min(patience));
        let place = match tokio::time::timeout_at(latest, self.jobs.reserve()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(PublishError::NotSent(BrokerError::Closed)),
            Err(_) => return Err(PublishError::NotSent(no_room(routing_key))),
        };
        let (caller, outcome) = Caller::new();
        // Made now, so that what waits for a place takes no more memory than its message.
        place.send(Job {
            exchange: wire::short("exchange", exchange).map_err(PublishError::NotSent)?,
            routing_key: wire::short("queue", routing_key).map_err(PublishError::NotSent)?,
            properties: wire::properties(&message).map_err(PublishError::NotSent)?,
            look: Look::of(exchange, routing_key, &message),
            body: message.body,
            latest,
            caller,
        });
        tokio::select! {
            biased;
            outcome = outcome => outcome.unwrap_or(Err(PublishError::Unknown(BrokerError::Closed))),
            // Who got a place before the task closed its inbox may hand over what the task takes no more.
            () = self.ended.cancelled(), if self.jobs.is_closed() => {
                Err(PublishError::NotSent(BrokerError::Closed))
            }
        }
    }
}

impl Look {
    pub(super) fn of(exchange: &str, routing_key: &str, message: &Message) -> Self {
        let Properties { message_id, correlation_id, kind, .. } = &message.properties;
        let (run, key) = (message.text(header::RUN), message.text(header::KEY));
        let look = (exchange, routing_key, message_id, correlation_id, kind, run, key, message.body.len());
        Self(BuildHasherDefault::<DefaultHasher>::default().hash_one(look))
    }
}

impl Job {
    /// What is said to hold the message.
    pub(super) fn destination(&self) -> &str {
        let exchange = self.exchange.as_str();
        if exchange.is_empty() { self.routing_key.as_str() } else { exchange }
    }

    /// Takes out those that must not be sent any more.
    pub(super) fn take_late(jobs: &mut VecDeque<Self>) -> VecDeque<Self> {
        let now = Instant::now();
        let (late, timely) = jobs.drain(..).partition(|job| job.latest <= now);
        *jobs = timely;
        late
    }

    /// Tells the caller that the message was never sent.
    pub(super) fn refuse(self, error: PublishError) {
        self.caller.tell(Err(error));
    }
}

impl Publisher {
    async fn run(mut self) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match self.next().await {
                    Some(job) => waiting.push_back(job),
                    None => break,
                }
            }
            let closed = self.connections.closed().clone();
            let line = match closed.run_until_cancelled(self.connect()).await {
                Some(Ok(line)) => line,
                Some(Err(error)) => {
                    self.refuse(&mut waiting, &error);
                    continue;
                }
                None => break,
            };
            let mut window = Window::new(line, self.in_flight, self.overdue_after, self.most);
            match self.serve(&mut window, &mut waiting).await {
                Left::Lost(reason) => {
                    self.most = window.end(self.connections.reason(reason)).await;
                }
                Left::Refuses => {
                    window.give_back(&mut waiting);
                    self.draining = Some(self.tasks.spawn(self.drain(window)));
                }
                Left::Done => {
                    self.jobs.close();
                    self.refuse(&mut waiting, &BrokerError::Closed);
                    window.finish(CLOSING_GRACE).await;
                    break;
                }
            }
        }
        self.jobs.close();
        self.refuse(&mut waiting, &BrokerError::Closed);
    }

    /// Ends a channel when all that was sent on it is confirmed.
    fn drain(&self, window: Window) -> impl Future<Output = ()> + use<> {
        let closed = self.connections.closed().clone();
        async move {
            closed.run_until_cancelled_owned(window.drain()).await;
        }
    }

    /// Whether the channel should make way for another, which takes one that is not waited for already.
    fn refuses(&self, window: &Window) -> bool {
        window.refuses() && self.draining.as_ref().is_none_or(JoinHandle::is_finished)
    }

    async fn next(&mut self) -> Option<Job> {
        tokio::select! {
            biased;
            () = self.connections.closed().cancelled() => None,
            job = self.jobs.recv() => job,
        }
    }

    async fn connect(&self) -> Result<Line, BrokerError> {
        let line = self.trunk.open().await?;
        let select = line.channel.confirm_select(ConfirmSelectOptions::default());
        match tokio::time::timeout(ANSWER_TIMEOUT, select).await {
            Ok(Ok(())) => Ok(line),
            Ok(Err(error)) => Err(self.connections.reason(failure::plain(&error))),
            Err(_) => Err(BrokerError::Unreachable(format!(
                "the broker has not answered within {ANSWER_TIMEOUT:?}"
            ))),
        }
    }

    /// Publishes on one channel for as long as that is there.
    async fn serve(&mut self, window: &mut Window, waiting: &mut VecDeque<Job>) -> Left {
        let mut events = window.events();
        let mut jobs = Vec::new();
        // When the first of those that wait is too late, or earlier: not all have as long.
        let mut soonest = waiting.iter().map(|job| job.latest).min();
        loop {
            if self.refuses(window) {
                return Left::Refuses;
            }
            while let Some(job) = waiting.pop_front() {
                if !window.has_room_for(&job) {
                    // One that was released by another's end is told of here first.
                    soonest = Some(soonest.map_or(job.latest, |soonest| soonest.min(job.latest)));
                    waiting.push_front(job);
                    break;
                }
                if let Some(twin) = window.send(job).await {
                    waiting.push_front(twin);
                }
            }
            if !window.is_open() {
                return Left::Lost(window.reason(waiting).await);
            }
            soonest = soonest.filter(|_| !waiting.is_empty());
            let deadline = window.deadline(soonest);
            let room = self.in_flight.saturating_sub(waiting.len());
            tokio::select! {
                biased;
                () = self.connections.closed().cancelled() => return Left::Done,
                answers = window.answers() => if let Err(reason) = window.settle(answers, waiting) {
                    return Left::Lost(reason);
                },
                // Whatever it is, the next round sees it.
                _ = events.changed() => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    for job in Job::take_late(waiting) {
                        waiting.extend(window.next_twin(job.look));
                        let error = no_room(job.destination());
                        job.refuse(PublishError::NotSent(error));
                    }
                    soonest = waiting.iter().map(|job| job.latest).min();
                    if let Err(reason) = window.expire() {
                        return Left::Lost(reason);
                    }
                }
                came = self.jobs.recv_many(&mut jobs, room), if room > 0 => {
                    if came == 0 {
                        return Left::Done;
                    }
                    soonest = jobs.iter().map(|job| job.latest).chain(soonest).min();
                    waiting.extend(jobs.drain(..));
                }
            }
        }
    }

    /// Tells everyone who waits that there is no connection.
    fn refuse(&mut self, waiting: &mut VecDeque<Job>, error: &BrokerError) {
        for job in waiting.drain(..).chain(std::iter::from_fn(|| self.jobs.try_recv().ok())) {
            job.refuse(PublishError::NotSent(error.clone()));
        }
    }
}

/// The message could not be sent in time.
pub(super) fn no_room(queue: &str) -> BrokerError {
    BrokerError::Unavailable {
        queue: queue.to_owned(),
        reason: "the broker takes no messages, being short of memory or disk, or confirms them too slowly"
            .to_owned(),
    }
}

/// The message that came back with a confirm.
pub(super) fn returned(confirmation: Confirmation) -> Option<Look> {
    let returned = confirmation.take_message()?;
    let (exchange, routing_key) = (returned.exchange.to_string(), returned.routing_key.to_string());
    let message = wire::message(&returned.delivery.properties, returned.delivery.data);
    Some(Look::of(&exchange, &routing_key, &message))
}
