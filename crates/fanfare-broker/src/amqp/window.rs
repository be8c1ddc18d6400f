//! What is under way on one publishing channel.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::{Confirmation, PublisherConfirm};
use tokio::sync::watch;
use tokio::time::Instant;

use super::caller::Caller;
use super::failure;
use super::ledger::{Answer, Ledger, Outcome};
use super::publishing::{Job, Look, no_room, returned};
use super::trunk::Line;
use crate::{BrokerError, PublishError};

/// Bytes of bodies under way. lapin keeps a copy of each.
const IN_FLIGHT_BYTES: usize = 64 * 1024 * 1024;
/// How long lapin may take to tell, after a channel is lost, which of its messages were not written.
const LOSS_GRACE: Duration = Duration::from_secs(1);
/// How long the confirm of a message may take before its channel is given up. A queue that lost the majority of its nodes
/// confirms when they are back; this bounds a message that the broker has forgotten.
const LONGEST_CONFIRM: Duration = Duration::from_secs(10 * 60);
/// How old a channel becomes on which the broker has refused a message. Before 3.13, RabbitMQ asks the node that led a quorum
/// queue when the channel first published to it, and refuses everything that the channel publishes to it until that node is
/// back, though others have elected a leader. Another channel learns of that one. An election takes a second or two, and a
/// queue that refuses because it is full is not to cost more than a connection now and then.
const REFUSED_AGE: Duration = Duration::from_secs(5);

/// The messages under way on one channel.
///
/// The channel never returns to the pool: lapin goes on to write what is queued for a channel that the broker has closed, which
/// closes the connection too.
pub(super) struct Window {
    line: Line,
    in_flight: usize,
    /// After which a message that was sent is overdue.
    overdue_after: Duration,
    /// Bytes of the largest body that the broker takes.
    most: usize,
    next: u64,
    ledger: Ledger<Look>,
    /// Messages handed to lapin and not written yet, in order.
    writing: VecDeque<(u64, BoxFuture<'static, lapin::Result<PublisherConfirm>>)>,
    /// Messages written and not answered yet.
    confirming: FuturesUnordered<Confirming>,
    /// Messages that lapin has dropped before they were written.
    unsent: BTreeSet<u64>,
    /// What is under way, as long as it is not decided.
    pending: BTreeMap<u64, Pending>,
    /// Those of them that are not overdue, by when they will be.
    prompt: BTreeSet<(Instant, u64)>,
    /// Messages that look like one under way: each waits until that is decided, so that a return tells which it is.
    twins: HashMap<Look, VecDeque<Job>>,
    bytes: usize,
    confirmed: bool,
    opened: Instant,
    refused: bool,
}

/// A message that waits for its confirm.
struct Confirming {
    message: u64,
    confirm: PublisherConfirm,
}

impl Future for Confirming {
    type Output = (u64, lapin::Result<Confirmation>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.confirm.poll_unpin(context).map(|answer| (self.message, answer))
    }
}

struct Pending {
    look: Look,
    /// The exchange, or the queue where the exchange is the default one.
    destination: String,
    through_exchange: bool,
    /// Who it says publishes it.
    user: Option<String>,
    bytes: usize,
    sent: Instant,
    caller: Caller,
}

/// What lapin told about some messages: all that it has told so far.
pub(super) type Answers = Vec<(u64, lapin::Result<Confirmation>)>;

impl Window {
    pub(super) fn new(line: Line, in_flight: usize, overdue_after: Duration, most: usize) -> Self {
        Self {
            line,
            in_flight,
            overdue_after,
            most,
            next: 0,
            ledger: Ledger::new(),
            writing: VecDeque::new(),
            confirming: FuturesUnordered::new(),
            unsent: BTreeSet::new(),
            pending: BTreeMap::new(),
            prompt: BTreeSet::new(),
            twins: HashMap::new(),
            bytes: 0,
            confirmed: false,
            opened: Instant::now(),
            refused: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.line.is_open()
    }

    /// Whether the broker has refused what it may take on another channel.
    pub(super) fn refuses(&self) -> bool {
        self.refused && self.opened.elapsed() >= REFUSED_AGE
    }

    /// Why the channel has ended: lapin marks it as ended before it tells those who wait for confirms what the broker said.
    pub(super) async fn reason(&mut self, waiting: &mut VecDeque<Job>) -> BrokerError {
        let deadline = Instant::now() + LOSS_GRACE;
        while self.is_waited_for()
            && !(self.writing.is_empty() && self.confirming.is_empty())
            && let Ok(answers) = tokio::time::timeout_at(deadline, self.answers()).await
        {
            if let Err(reason) = self.settle(answers, waiting) {
                return reason;
            }
        }
        self.lost()
    }

    /// What to say of a channel that ended without an error of its own.
    fn lost(&self) -> BrokerError {
        BrokerError::Unreachable(format!("the connection to {} was lost", self.line.link().address()))
    }

    /// Changes when something happened to the connection.
    pub(super) fn events(&self) -> watch::Receiver<()> {
        self.line.link().events()
    }

    /// Whether a message can be sent now.
    pub(super) fn has_room_for(&self, job: &Job) -> bool {
        let fits = self.bytes + job.body.len() <= IN_FLIGHT_BYTES || self.pending.is_empty();
        let twins: usize = self.twins.values().map(VecDeque::len).sum();
        // What is handed to lapin while the broker takes no messages would be sent at some time, and could not be taken back.
        fits && self.ledger.len() + twins < self.in_flight && self.is_open() && !self.line.link().is_blocked()
    }

    /// Hands a message to lapin. Where it is not to be sent any more, this returns the next that looks like it.
    pub(super) async fn send(&mut self, job: Job) -> Option<Job> {
        let (now, bytes) = (Instant::now(), job.body.len());
        if self.ledger.holds(&job.look) {
            self.twins.entry(job.look).or_default().push_back(job);
            return None;
        }
        if job.caller.is_gone() || job.latest <= now || bytes > self.most {
            let next = self.next_twin(job.look);
            let too_large = PublishError::TooLarge { bytes, most: self.most };
            let too_late = PublishError::NotSent(no_room(job.destination()));
            job.refuse(if bytes > self.most { too_large } else { too_late });
            return next;
        }
        let destination = job.destination().to_owned();
        let Job { exchange, routing_key, properties, body, look, caller, .. } = job;
        let through_exchange = !exchange.as_str().is_empty();
        let message = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.ledger.send(message, look);
        self.prompt.insert((now + self.overdue_after, message));
        let user = properties.user_id().as_ref().map(ToString::to_string);
        let caller = caller.sent();
        let pending = Pending { look, destination, through_exchange, user, bytes, sent: now, caller };
        self.pending.insert(message, pending);
        let channel = self.line.channel.clone();
        let mut written = async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            channel.basic_publish(exchange, routing_key, options, &body, properties).await
        }
        .boxed();
        // The first poll queues the frames, so that messages are written in the order in which they came.
        match futures_util::poll!(&mut written) {
            Poll::Pending => self.writing.push_back((message, written)),
            Poll::Ready(Err(_)) => _ = self.unsent.insert(message),
            Poll::Ready(Ok(confirm)) => {
                let ready = std::future::ready(Ok(confirm)).boxed();
                self.writing.push_back((message, ready));
            }
        }
        None
    }

    /// The next answers. Cancel safe.
    ///
    /// The ledger relies on it that a batch leaves out no answer that was given before one of the batch. lapin writes messages in
    /// order, and gives answers from one thread; a future that is woken joins the end of the queue that `FuturesUnordered` polls.
    /// So it is enough to go round until nothing new turns up, with at most one future at a time that has not been polled yet:
    /// with more, `FuturesUnordered` may stop early to give way to others.
    pub(super) async fn answers(&mut self) -> Answers {
        poll_fn(|context| {
            let mut answers = Vec::new();
            loop {
                let before = (answers.len(), self.writing.len());
                self.poll_writing(context, &mut answers);
                self.poll_confirming(context, &mut answers);
                if before == (answers.len(), self.writing.len()) {
                    break;
                }
            }
            if answers.is_empty() { Poll::Pending } else { Poll::Ready(answers) }
        })
        .await
    }

    /// Tells the callers what is decided, and puts in front of those that wait what may be sent now.
    ///
    /// # Errors
    /// Where the channel is of no further use.
    pub(super) fn settle(
        &mut self,
        answers: Answers,
        waiting: &mut VecDeque<Job>,
    ) -> Result<(), BrokerError> {
        let mut batch = Vec::new();
        let mut lost = None;
        for (message, answer) in answers {
            match answer {
                Ok(answer) => {
                    let kind = if answer.is_nack() { Answer::Nack } else { Answer::Ack };
                    batch.push((message, kind, returned(answer)));
                }
                Err(error) => lost = Some(failure::plain(&error)),
            }
        }
        self.confirmed |= !batch.is_empty();
        let decided = self.ledger.record(batch).map_err(|_| {
            BrokerError::Unreachable("the broker returned a message that was not sent".to_owned())
        })?;
        for (message, outcome) in decided {
            if let Some(released) = self.decide(message, outcome) {
                waiting.push_front(released);
            }
        }
        lost.map_or(Ok(()), Err)
    }

    /// When [`expire`](Self::expire) has something to do: a message that was sent is overdue, or one that waits is too late.
    pub(super) fn deadline(&self, waiting: Option<Instant>) -> Option<Instant> {
        let twins = self.twins.values().flatten().map(|job| job.latest);
        let overdue = self.prompt.first().map(|(at, _)| *at);
        let oldest = self.pending.first_key_value().map(|(_, pending)| pending.sent + LONGEST_CONFIRM);
        let sent = overdue.into_iter().chain(oldest);
        sent.chain(twins).chain(waiting).min()
    }

    /// Tells the callers of messages that were not sent in time. Those of messages that were sent wait on: only the end of the
    /// channel can leave it open what became of them.
    ///
    /// # Errors
    /// Where so much is overdue that there is hardly room for more, or something for so long that no confirm will come:
    /// another channel is needed.
    pub(super) fn expire(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        while self.prompt.first().is_some_and(|(at, _)| *at <= now) {
            self.prompt.pop_first();
        }
        for twins in self.twins.values_mut() {
            for job in Job::take_late(twins) {
                let error = no_confirm(job.destination());
                job.refuse(PublishError::NotSent(error));
            }
        }
        self.twins.retain(|_, twins| !twins.is_empty());
        let overdue = self.pending.len() - self.prompt.len();
        if overdue > self.in_flight / 2 {
            return Err(BrokerError::Unreachable(format!("{overdue} messages were not confirmed in time")));
        }
        match self.pending.values().next() {
            Some(oldest) if oldest.sent + LONGEST_CONFIRM <= now => Err(no_confirm(&oldest.destination)),
            _ => Ok(()),
        }
    }

    /// Waits for the confirms of what is under way, as long as anybody else does, and closes the connection.
    pub(super) async fn finish(mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut released = VecDeque::new();
        while !self.prompt.is_empty()
            && self.is_waited_for()
            && let Ok(answers) = tokio::time::timeout_at(deadline, self.answers()).await
            && self.settle(answers, &mut released).is_ok()
        {}
        refuse(released, &BrokerError::Closed);
        self.end(BrokerError::Closed).await;
    }

    /// Gives back what was not sent, for another channel, which tells its messages apart by itself.
    pub(super) fn give_back(&mut self, waiting: &mut VecDeque<Job>) {
        waiting.extend(std::mem::take(&mut self.twins).into_values().flatten());
    }

    /// Waits for the confirms of all that is under way, while others publish elsewhere, and closes the connection.
    pub(super) async fn drain(mut self) {
        let deadline = Instant::now() + LONGEST_CONFIRM;
        let mut released = VecDeque::new();
        let mut reason = self.lost();
        while !self.pending.is_empty()
            && let Ok(answers) = tokio::time::timeout_at(deadline, self.answers()).await
        {
            if let Err(error) = self.settle(answers, &mut released) {
                reason = error;
                break;
            }
        }
        debug_assert!(released.is_empty(), "nothing waited on this channel any more");
        self.end(reason).await;
    }

    /// Tells all callers that the channel was lost, closes the connection, and returns the bytes of the largest body that
    /// the broker takes.
    pub(super) async fn end(mut self, reason: BrokerError) -> usize {
        let deadline = Instant::now() + LOSS_GRACE;
        let mut released = VecDeque::new();
        while !(self.writing.is_empty() && self.confirming.is_empty())
            && self.is_waited_for()
            && let Ok(answers) = tokio::time::timeout_at(deadline, self.answers()).await
        {
            // Another error says no more than the first.
            let _ = self.settle(answers, &mut released);
        }
        released.extend(std::mem::take(&mut self.twins).into_values().flatten());
        // A message that names another user than its publisher is the mistake of its own publisher alone.
        let others = match reason {
            BrokerError::WrongUser(_) => self.lost(),
            _ => reason.clone(),
        };
        refuse(released, &others);
        let limit = largest(&reason);
        self.most = self.most.min(limit.unwrap_or(usize::MAX));
        // Permission is asked before anything else, and for each message alike.
        let denied = matches!(reason, BrokerError::Denied(_)) && !self.confirmed;
        for (message, pending) in std::mem::take(&mut self.pending) {
            let error = if limit.is_some() && pending.bytes > self.most {
                PublishError::TooLarge { bytes: pending.bytes, most: self.most }
            } else if pending.is_of_wrong_user(&reason) {
                PublishError::NotSent(reason.clone())
            } else if (denied && pending.is_told_of(&reason)) || self.unsent.contains(&message) {
                PublishError::NotSent(others.clone())
            } else {
                PublishError::Unknown(others.clone())
            };
            pending.caller.tell(Err(error));
        }
        self.line.link().close().await;
        self.most
    }

    /// Whether there is anybody left to be told what became of a message.
    fn is_waited_for(&self) -> bool {
        self.pending.values().any(|pending| !pending.caller.is_gone())
    }

    fn poll_writing(&mut self, context: &mut Context<'_>, answers: &mut Answers) {
        while let Some((message, written)) = self.writing.front_mut() {
            let message = *message;
            match written.poll_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(Ok(confirm)) => {
                    self.confirming.push(Confirming { message, confirm });
                    self.poll_confirming(context, answers);
                }
                Poll::Ready(Err(error)) => {
                    self.unsent.insert(message);
                    answers.push((message, Err(error)));
                }
            }
            self.writing.pop_front();
        }
    }

    fn poll_confirming(&mut self, context: &mut Context<'_>, answers: &mut Answers) {
        while let Poll::Ready(Some(answer)) = self.confirming.poll_next_unpin(context) {
            answers.push(answer);
        }
    }

    fn decide(&mut self, message: u64, outcome: Outcome) -> Option<Job> {
        let pending = self.pending.remove(&message)?;
        self.prompt.remove(&(pending.sent + self.overdue_after, message));
        self.bytes -= pending.bytes;
        self.refused |= matches!(outcome, Outcome::Refused);
        let Pending { look, destination, through_exchange, caller, .. } = pending;
        caller.tell(match outcome {
            Outcome::Taken => Ok(()),
            Outcome::Returned if through_exchange => Err(PublishError::Unbound(destination)),
            Outcome::Returned => Err(PublishError::Unroutable(destination)),
            Outcome::Refused => Err(PublishError::Refused(destination)),
        });
        self.next_twin(look)
    }

    /// The message that waits for the end of one that looks like it. Where another is still under way, sending it lets it wait again.
    pub(super) fn next_twin(&mut self, look: Look) -> Option<Job> {
        let twins = self.twins.get_mut(&look)?;
        let next = twins.pop_front();
        if twins.is_empty() {
            self.twins.remove(&look);
        }
        next
    }
}

impl Pending {
    /// Whether a denied right is one that this one needs too. All that go through the default exchange need the same.
    fn is_told_of(&self, reason: &BrokerError) -> bool {
        let named = |reason: &str| reason.contains(&format!("'{}'", self.destination));
        !self.through_exchange || matches!(reason, BrokerError::Denied(reason) if named(reason))
    }

    /// Whether the broker refused messages of the user that this one names. It asks before it looks for the queue.
    fn is_of_wrong_user(&self, reason: &BrokerError) -> bool {
        match (reason, &self.user) {
            (BrokerError::WrongUser(reason), Some(user)) => reason.contains(&format!("set to '{user}' but")),
            _ => false,
        }
    }
}

fn refuse(jobs: VecDeque<Job>, error: &BrokerError) {
    for job in jobs {
        job.refuse(PublishError::NotSent(error.clone()));
    }
}

fn no_confirm(queue: &str) -> BrokerError {
    BrokerError::Unavailable {
        queue: queue.to_owned(),
        reason: "the broker has not confirmed the message in time".to_owned(),
    }
}

/// The size that the broker names where a message was too large for it.
fn largest(reason: &BrokerError) -> Option<usize> {
    let (BrokerError::Unreachable(reason) | BrokerError::Refused(reason)) = reason else { return None };
    let (_, size) = reason.split_once("larger than configured max size ")?;
    size.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_that_the_broker_takes_is_read_from_its_refusal() {
        let reason = "PRECONDITION_FAILED - message size 2048 is larger than configured max size 1024";
        assert_eq!(largest(&BrokerError::Unreachable(reason.to_owned())), Some(1024));
        assert_eq!(largest(&BrokerError::Unreachable("closed".to_owned())), None);
    }
}
