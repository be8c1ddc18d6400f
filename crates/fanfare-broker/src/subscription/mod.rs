//! A consumer of one queue that outlives its channels.

mod binding;
mod source;
mod subscribed;
#[cfg(test)]
mod tests;
mod window;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fanfare_protocol::{ExchangeSpec, QueueSpec, RunId};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use self::source::Source;
use self::subscribed::Subscribed;
use self::window::Window;
use crate::{Backoff, Broker, BrokerError, Delivery, Environment, Readiness, Reminder};

/// How long one attempt to consume may take before it counts as failed.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How long [`Subscription::stop`] waits for the broker at most.
const STOP: Duration = Duration::from_secs(10);
/// A channel that lasted this long ends the growth of the waits between attempts.
const LASTING: Duration = Duration::from_secs(30);

/// Consumes one durable queue, or [what is published to an exchange](Subscription::to_exchange), for as long as its owner lives:
/// through every reconnect, and with as many channels as it takes so that deliveries which are held for long do not keep others
/// from coming.
///
/// The queue is declared first, and again where it was deleted. An outage is waited out; what cannot heal by itself (the
/// queue has other arguments, access is denied) is logged as an error with its remedy, once a minute, and tried again all
/// the same, since an operator can heal it. An outage is logged when it begins and when it ends, not at each attempt.
///
/// What a lost channel had handed out comes again by the broker; answers to the lost deliveries do nothing. An answer
/// given twice counts once.
///
/// Nothing runs in the background: the work is done while [`next`](Subscription::next) or [`tend`](Subscription::tend) is awaited. Dropping it gives
/// back what was not handed out; what was handed out stays answerable for as long as its receipt lives.
///
/// ```
/// use std::sync::Arc;
/// use fanfare_broker::{Broker, Subscription, SubscriptionOptions, System, memory::MemoryBroker};
/// use fanfare_protocol::{Message, QueueNames};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = Arc::new(MemoryBroker::new());
/// let manifests = QueueNames::default().fanin();
/// broker.declare(&manifests).await?;
/// broker.publish(&manifests.name, Message::default()).await?;
///
/// let options = SubscriptionOptions { prefetch: 10, most_channels: 4 };
/// let mut subscription = Subscription::new(broker, Arc::new(System), manifests, options);
/// while let Some(delivery) = subscription.next().await {
///     delivery.receipt.ack().await;
///     subscription.stop().await;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Subscription {
    broker: Arc<dyn Broker>,
    environment: Arc<dyn Environment>,
    source: Source,
    options: SubscriptionOptions,
    channels: Vec<Subscribed>,
    /// Whose turn it is to be asked first, so that none of them starves.
    turn: usize,
    /// The attempt under way to have one more channel.
    opening: Option<BoxFuture<'static, Result<Subscribed, BrokerError>>>,
    backoff: Backoff,
    /// Set between a failure and the attempt after it.
    failed: bool,
    outage: Option<Outage>,
    /// Whom it tells whether it consumes.
    readiness: Readiness,
    /// Woken when the windows change.
    changed: Arc<AtomicWaker>,
    /// Whether a denial ends it: until it has consumed for the first time, where its owner wants that.
    yields: bool,
    denial: Option<BrokerError>,
    stopped: bool,
}

/// How much a [`Subscription`] takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Deliveries that each of its channels hands out before it waits for answers; 0 counts as 1.
    pub prefetch: u16,
    /// Channels that it opens at most, while deliveries are [held](crate::Receipt::hold); 0 counts as 1. Together with
    /// `prefetch` this bounds what is held at any time.
    pub most_channels: usize,
}

impl Default for SubscriptionOptions {
    /// Ten deliveries at a time, on one channel.
    fn default() -> Self {
        Self { prefetch: 10, most_channels: 1 }
    }
}

/// What the log was told of an outage.
struct Outage {
    since: Instant,
    refusal: Reminder,
}

impl Subscription {
    /// A subscription to a queue. Nothing is sent before [`next`](Subscription::next) is awaited.
    #[must_use]
    pub fn new(
        broker: Arc<dyn Broker>,
        environment: Arc<dyn Environment>,
        queue: QueueSpec,
        options: SubscriptionOptions,
    ) -> Self {
        Self::to(broker, environment, Source::Queue(queue), options)
    }

    /// A subscription to what is published to a fanout exchange from now on, but for what is published while it is not connected.
    ///
    /// It takes that through an exclusive queue, `queue` of an id that is drawn afresh each time: one of an earlier connection
    /// may be there still, and would be locked. The exchange is declared where it is missing, within 30 seconds where it is deleted later.
    #[must_use]
    pub fn to_exchange(
        broker: Arc<dyn Broker>,
        environment: Arc<dyn Environment>,
        exchange: ExchangeSpec,
        queue: impl Fn(RunId) -> QueueSpec + Send + Sync + 'static,
    ) -> Self {
        let source = Source::Exchange { exchange, queue: Arc::new(queue) };
        Self::to(broker, environment, source, SubscriptionOptions::default())
    }

    fn to(
        broker: Arc<dyn Broker>,
        environment: Arc<dyn Environment>,
        source: Source,
        options: SubscriptionOptions,
    ) -> Self {
        let options = SubscriptionOptions {
            prefetch: options.prefetch.max(1),
            most_channels: options.most_channels.max(1),
        };
        Self {
            broker,
            environment,
            source,
            options,
            channels: Vec::new(),
            turn: 0,
            opening: None,
            backoff: Backoff::default(),
            failed: false,
            outage: None,
            readiness: Readiness::default(),
            changed: Arc::default(),
            yields: false,
            denial: None,
            stopped: false,
        }
    }

    /// Tells others whether it consumes, and why not: from now on, since it does not yet.
    #[must_use]
    pub fn reporting_to(self, readiness: Readiness) -> Self {
        readiness.hinder(self.source.name(), "it is not consumed yet");
        Self { readiness, ..self }
    }

    /// Gives up where the broker denies access before anything was consumed, in place of trying on: [`next`](Self::next) is `None`
    /// then, and [`denial`](Self::denial) says why. What is denied later is tried on, since rights change while programs run.
    #[must_use]
    pub fn unless_denied(self) -> Self {
        Self { yields: true, ..self }
    }

    /// Why it has given up, if it has.
    #[must_use]
    pub const fn denial(&self) -> Option<&BrokerError> {
        self.denial.as_ref()
    }

    /// The next delivery. `None` only after [`stop`](Subscription::stop), and where it [gave up](Self::unless_denied).
    ///
    /// Cancel safe: nothing is lost when the future is dropped, neither a delivery nor an attempt to reconnect.
    pub async fn next(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Sees to it that the queue is consumed, through reconnects, and hands nothing out: for an owner that has no room for more. Never
    /// returns.
    ///
    /// Cancel safe, as [`next`](Self::next).
    pub async fn tend(&mut self) -> Infallible {
        std::future::poll_fn(|context| self.poll(context, Self::poll_ends)).await;
        // It is stopped.
        std::future::pending().await
    }

    /// Hands out so many deliveries for each channel from now on; 0 counts as 1. On each, a new consumer takes the place of the one that
    /// is there: what that has handed out stays answerable and counts no more, and what it has received is handed out.
    ///
    /// What a quorum queue has on its way to a consumer while that is cancelled comes again, counted as delivered once more (RabbitMQ
    /// 3.10 to 4.3, `handle_delivery` in `rabbit_fifo_client.erl`). Nothing is on its way to one that has handed out its whole prefetch.
    pub fn set_prefetch(&mut self, prefetch: u16) {
        let prefetch = prefetch.max(1);
        if prefetch == self.options.prefetch {
            return;
        }
        self.options.prefetch = prefetch;
        self.channels.iter_mut().for_each(|subscribed| subscribed.set_prefetch(prefetch));
    }

    /// Stops consuming, and gives back what was received but not handed out. What was handed out stays answerable.
    /// Stopping twice is harmless.
    ///
    /// During an outage this ends within ten seconds. When its future is dropped before, the channels close as soon as
    /// nothing handed out depends on them, which gives back the same.
    pub async fn stop(&mut self) {
        self.stopped = true;
        self.readiness.hinder(self.source.name(), "it is not consumed any more");
        self.opening = None;
        let mut channels = std::mem::take(&mut self.channels);
        let stop = async {
            // First all consumers end, so that none of them receives what another one gives back.
            for subscribed in &mut channels {
                subscribed.stop().await;
            }
            for subscribed in &mut channels {
                subscribed.give_back().await;
            }
        };
        if tokio::time::timeout(STOP, stop).await.is_err() {
            tracing::warn!(
                queue = self.source.name(),
                "the broker did not answer while the subscription stopped"
            );
        }
    }

    /// Whether it consumed its queue when [`next`](Subscription::next) was last awaited.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.active().next().is_some()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.poll(context, Self::poll_channels)
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        poll_channels: fn(&mut Self, &mut Context<'_>) -> Option<Delivery>,
    ) -> Poll<Option<Delivery>> {
        // Before anything is looked at, so that no change after the look is missed.
        self.changed.register(context.waker());
        loop {
            if self.stopped {
                return Poll::Ready(None);
            }
            if let Some(delivery) = poll_channels(self, context) {
                return Poll::Ready(Some(delivery));
            }
            if self.resize() {
                continue;
            }
            let Some(opening) = &mut self.opening else { return Poll::Pending };
            let Poll::Ready(opened) = opening.poll_unpin(context) else { return Poll::Pending };
            self.opening = None;
            match opened {
                Ok(subscribed) => self.opened(subscribed),
                Err(error) => self.failed(&error),
            }
        }
    }

    /// What the channels have, each in turn. Those that ended go.
    fn poll_channels(&mut self, context: &mut Context<'_>) -> Option<Delivery> {
        let mut asked = 0;
        while asked < self.channels.len() {
            let at = (self.turn + asked) % self.channels.len();
            let Poll::Ready(next) = self.channels[at].poll_next(context) else {
                asked += 1;
                continue;
            };
            if let Some(Ok(delivery)) = next {
                self.turn = at + 1;
                return Some(delivery);
            }
            let subscribed = self.channels.remove(at);
            asked = 0;
            if !subscribed.is_leaving() {
                self.lost(&subscribed, next.and_then(Result::err));
            }
        }
        None
    }

    /// Those that ended go. One that is on its way out stays for what it may still hand out.
    fn poll_ends(&mut self, context: &mut Context<'_>) -> Option<Delivery> {
        let mut at = 0;
        while at < self.channels.len() {
            if self.channels[at].is_leaving() {
                at += 1;
                continue;
            }
            let Poll::Ready(end) = self.channels[at].poll_end(context) else {
                at += 1;
                continue;
            };
            let subscribed = self.channels.remove(at);
            self.lost(&subscribed, end);
        }
        None
    }

    /// Opens a channel where there is none or where all are crowded with what is held for long, and leaves one that holds
    /// nothing while another has room. Whether there is something new to poll.
    fn resize(&mut self) -> bool {
        let may_open = self.opening.is_none() && self.channels.len() < self.options.most_channels;
        if may_open && self.active().all(|subscribed| subscribed.window.is_crowded()) {
            self.open();
            return false;
        }
        let has_room = |subscribed: &Subscribed| subscribed.window.is_roomy();
        if self.active().filter(|subscribed| has_room(subscribed)).count() < 2 {
            return false;
        }
        let idle = |subscribed: &&mut Subscribed| subscribed.may_leave() && subscribed.window.is_idle();
        let Some(unneeded) = self.channels.iter_mut().find(idle) else { return false };
        unneeded.leave();
        true
    }

    fn open(&mut self) {
        let wait = if self.failed { self.backoff.next(&*self.environment) } else { Duration::ZERO };
        self.failed = false;
        let (broker, source) = (Arc::clone(&self.broker), self.source.clone());
        let environment = Arc::clone(&self.environment);
        let (prefetch, changed) = (self.options.prefetch, Arc::clone(&self.changed));
        let attempt = async move {
            let (channel, queue) = source.open(&*broker, &*environment).await?;
            let consumer = channel.consume(&queue, prefetch).await?;
            let window = Window::new(channel, prefetch, changed);
            Ok(Subscribed::new(consumer, queue, window).bound_to(source.exchange()))
        };
        let opening = async move {
            tokio::time::sleep(wait).await;
            tokio::time::timeout(ATTEMPT, attempt).await.unwrap_or_else(|_| {
                Err(BrokerError::Unreachable(format!("no answer within {} s", ATTEMPT.as_secs())))
            })
        };
        self.opening = Some(opening.boxed());
    }

    fn opened(&mut self, mut subscribed: Subscribed) {
        if subscribed.window.prefetch() != self.options.prefetch {
            subscribed.set_prefetch(self.options.prefetch);
        }
        self.channels.push(subscribed);
        self.yields = false;
        self.readiness.clear(self.source.name());
        if let Some(outage) = self.outage.take() {
            let seconds = outage.since.elapsed().as_secs_f64();
            tracing::info!(queue = self.source.name(), seconds, "subscription is back");
        }
    }

    /// A channel is gone; without an error, the broker cancelled its consumer.
    fn lost(&mut self, subscribed: &Subscribed, error: Option<BrokerError>) {
        if subscribed.since.elapsed() >= LASTING {
            self.backoff = Backoff::default();
        }
        match error {
            Some(error) => self.failed(&error),
            None => {
                let queue = self.source.name();
                tracing::warn!(queue, "the broker cancelled the consumer: declaring the queue again");
                self.failed = true;
                self.hindered("the broker cancelled the consumer");
                self.outage.get_or_insert_with(Outage::begin);
            }
        }
    }

    /// An attempt failed, or a channel was lost. Trouble that passes is logged once an outage, a refusal again and again.
    fn failed(&mut self, error: &BrokerError) {
        let queue = self.source.name();
        self.failed = true;
        self.hindered(&error.to_string());
        if self.yields && matches!(error, BrokerError::Denied(_)) {
            (self.denial, self.stopped) = (Some(error.clone()), true);
            return;
        }
        let is_new = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(Outage::begin);
        if matches!(error, BrokerError::Closed) {
            // Its owner did that, and it never opens again.
            tracing::debug!(queue, "nothing is consumed any more: the broker handle was closed");
        } else if !error.is_outage() && outage.refusal.is_due() {
            tracing::error!(queue, %error, "the subscription is refused; trying on");
        } else if is_new {
            tracing::warn!(queue, %error, "the subscription is interrupted; trying on");
        } else {
            tracing::debug!(queue, %error, "the subscription is still interrupted");
        }
    }

    /// Tells others where nothing is consumed; another channel may be left.
    fn hindered(&self, reason: &str) {
        if !self.is_connected() {
            self.readiness.hinder(self.source.name(), reason);
        }
    }

    fn active(&self) -> impl Iterator<Item = &Subscribed> {
        self.channels.iter().filter(|subscribed| !subscribed.is_leaving())
    }
}

impl Outage {
    fn begin() -> Self {
        Self { since: Instant::now(), refusal: Reminder::default() }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("queue", &self.source.name())
            .field("channels", &self.channels.len())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}
