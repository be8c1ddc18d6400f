use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanfare_broker::{Aftercare, Backoff, BrokerError, PublishError, absence, trace};
use fanfare_protocol::{Cid, Manifest, Message, Metadata, Request, RunId, Sentinel, Source, WireTime};
use futures_util::future::{self, join_all};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::error::pressed;
use crate::known_queues::Unprepared;
use crate::plan::Plan;
use crate::publisher::Shared;
use crate::schedule::Schedule;
use crate::spares::Declared;
use crate::{Aggregation, Failure, InvokeError, Target, telemetry};

/// Requests of one fan-out that are under way to the broker at the same time.
const REQUESTS_IN_FLIGHT: usize = 256;
/// How long deleting the queue of a given-up fan-out may take: longer than it takes the broker where a node is away. It expires
/// by itself otherwise. The caller may be told before.
const CLEAN_UP_LIMIT: Duration = Aftercare::MEMBER_TIMEOUT.saturating_mul(2);

/// The broker has taken an invocation: what follows happens in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The correlation ID, as it was given or drawn.
    pub cid: Cid,
    /// The run, which tells this invocation from another with the same CID.
    pub run: RunId,
}

/// Invokes a fan-out: looks at queues, sends the requests, and commits the whole with the manifest.
pub(crate) async fn invoke(
    shared: Arc<Shared>,
    plan: Plan,
    schedule: Schedule,
) -> Result<Accepted, InvokeError> {
    let outcome = commit(shared, plan, schedule).await;
    telemetry::invoked(&outcome);
    outcome
}

async fn commit(shared: Arc<Shared>, plan: Plan, schedule: Schedule) -> Result<Accepted, InvokeError> {
    let accepted = Accepted::of(&plan);
    shared
        .ensure_user_id(schedule.prepared)
        .await
        .map_err(|failure| accepted.not_accepted(failure, false))?;
    shared
        .ensure_room(&plan.manifest, plan.nested, schedule.prepared)
        .await
        .map_err(|failure| accepted.not_accepted(failure, false))?;
    shared
        .ensure_served(plan.services(), plan.declare_missing, schedule.prepared)
        .await
        .map_err(|unprepared| accepted.refusal(unprepared))?;

    // From here on there is something to clean up, so it runs in a task of its own, which sees when the caller goes.
    let caller_gone = CancellationToken::new();
    let caller = caller_gone.clone().drop_guard();
    let commitment = Commitment {
        shared,
        plan,
        schedule,
        accepted: accepted.clone(),
        confirmed: AtomicUsize::new(0),
        refused: false,
    };
    let task = tokio::spawn(commitment.run(caller_gone).in_current_span());
    let outcome = task.await;
    caller.disarm();
    match outcome {
        Ok(outcome) => outcome.expect("only a caller who is gone lets a fan-out be given up"),
        Err(panicked) if panicked.is_panic() => std::panic::resume_unwind(panicked.into_panic()),
        Err(_runtime_ended) => Err(accepted.unknown(PublishError::Unknown(BrokerError::Closed))),
    }
}

/// Invokes one service, whose answer nobody waits for.
pub(crate) async fn send(
    shared: Arc<Shared>,
    source: String,
    target: Target,
) -> Result<Accepted, InvokeError> {
    let source = Source::new(source).map_err(|mistake| InvokeError::Invalid(mistake.into()))?;
    let target = target.check()?;
    let schedule = Schedule::begin(&shared.config);
    let environment = &shared.environment;
    let run = RunId::from(environment.unique());
    let accepted = Accepted { cid: Cid::from(environment.sequential()), run };
    let request = Request {
        cid: accepted.cid.clone(),
        run,
        source,
        service: target.service.clone(),
        requested_at: WireTime::from(environment.now()),
        metadata: Metadata::default(),
        traceparent: trace::current(),
        body: target.body,
        target: None,
    };
    shared
        .ensure_served(BTreeSet::from([target.service]), shared.config.declare_missing, schedule.prepared)
        .await
        .map_err(|unprepared| accepted.refusal(unprepared))?;
    let (limit, until) = (shared.config.time_limit, schedule.told);
    let queue = shared.config.names.service_queue(&request.service);
    let delivered = tokio::time::timeout_at(until, shared.deliver(&queue, || request.encode(), until)).await;
    match delivered.unwrap_or_else(|_| Err(shared.unconfirmed(&queue, limit))) {
        Ok(()) => Ok(accepted),
        Err(error @ PublishError::Unknown(_)) => Err(accepted.unknown(error)),
        Err(source) => {
            Err(accepted.not_accepted(Failure::Request { service: request.service, source }, false))
        }
    }
}

impl Accepted {
    pub(crate) fn of(plan: &Plan) -> Self {
        Self { cid: plan.manifest.cid.clone(), run: plan.manifest.run }
    }

    fn refusal(&self, unprepared: Unprepared) -> InvokeError {
        match unprepared {
            Unprepared::Invalid(invalid) => invalid.into(),
            Unprepared::Failure(failure) => self.not_accepted(failure, false),
        }
    }

    pub(crate) fn not_accepted(&self, source: Failure, requests_sent: bool) -> InvokeError {
        InvokeError::NotAccepted { cid: self.cid.clone(), run: self.run, requests_sent, source }
    }

    fn unknown(&self, source: PublishError) -> InvokeError {
        InvokeError::Unknown { cid: self.cid.clone(), run: self.run, source }
    }
}

/// A fan-out on its way from its aggregation queue to its manifest.
struct Commitment {
    shared: Arc<Shared>,
    plan: Plan,
    schedule: Schedule,
    accepted: Accepted,
    /// Requests that are in their queues.
    confirmed: AtomicUsize,
    /// Whether the broker has refused to declare a queue, and there is none to be deleted.
    refused: bool,
}

impl Commitment {
    /// None where the caller went away before the manifest was written.
    async fn run(mut self, caller_gone: CancellationToken) -> Option<Result<Accepted, InvokeError>> {
        let requested = tokio::select! {
            biased;
            () = caller_gone.cancelled() => None,
            requested = self.prepare_and_request() => Some(requested),
        };
        let outcome = match requested {
            Some(Ok(())) => Some(self.publish_manifest().await),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        let given_up = matches!(outcome, None | Some(Err(InvokeError::NotAccepted { .. })));
        if given_up && !self.is_shared() && !self.refused {
            let (shared, queue) = (Arc::clone(&self.shared), self.plan.queue.name);
            let deleting = tokio::spawn(async move { shared.delete(&queue).await });
            // Where it takes longer, it goes on.
            let _ = tokio::time::timeout_at(self.schedule.told, deleting).await;
        }
        outcome
    }

    /// Brings all requests into their queues.
    async fn prepare_and_request(&mut self) -> Result<(), InvokeError> {
        let declared = self.declare_queues().await.map_err(|failure| {
            self.refused = matches!(failure, Failure::Broker(BrokerError::Denied(_)));
            self.accepted.not_accepted(failure, false)
        })?;
        self.publish_requests(declared).await.map_err(|failure| self.accepted.not_accepted(failure, true))
    }

    /// Returns what is to be settled before the manifest may follow, and whether it is the first of all.
    async fn declare_queues(&mut self) -> Result<Option<(Declared, bool)>, Failure> {
        let until = self.schedule.prepared;
        let shared = Arc::clone(&self.shared);
        if let Aggregation::Shared { shards } = shared.config.aggregation {
            return shared.ensure_shard(&self.plan.queue.name, shards, until).await.map(|()| None);
        }
        shared.ensure_declared(&shared.config.names.fanin(), until).await?;
        let is_first = shared.spares.is_first();
        let spare = if self.plan.is_drawn { shared.take_spare(until).await } else { None };
        let was_ready = spare.is_some();
        let declared = match spare {
            Some((spare, declared)) => {
                self.plan.take(spare, &shared);
                self.accepted = Accepted::of(&self.plan);
                declared
            }
            None => self.declare_aggregation(until).await?,
        };
        if self.plan.is_drawn && !is_first {
            shared.declare_next(was_ready);
        }
        Ok(Some((declared, is_first)))
    }

    /// Each try is a run of its own. One that was cut off may have left a queue which has no leader before a lost node is back (seen on RabbitMQ
    /// 3.10), and to declare that again succeeds.
    async fn declare_aggregation(&mut self, until: Instant) -> Result<Declared, Failure> {
        let shared = Arc::clone(&self.shared);
        let mut left = Vec::new();
        let declared = shared.through_outages(until, || {
            if !left.is_empty() {
                self.plan.draw_again(&shared);
                self.accepted = Accepted::of(&self.plan);
            }
            let queue = self.plan.queue.clone();
            left.push(queue.name.clone());
            let shared = &shared;
            async move { shared.declare_aggregation(&queue).await }
        });
        let declared = declared.await;
        left.pop();
        if !left.is_empty() {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { join_all(left.iter().map(|queue| shared.delete(queue))).await });
        }
        declared
    }

    fn is_shared(&self) -> bool {
        matches!(self.shared.config.aggregation, Aggregation::Shared { .. })
    }

    /// Brings all that the manifest is to rest on to where it outlives the broker.
    async fn publish_requests(&self, declared: Option<(Declared, bool)>) -> Result<(), Failure> {
        let until = self.schedule.sent;
        let requests = self.plan.bodies.len();
        let publishing = stream::iter(0..requests)
            .map(|place| self.publish_request(place, until))
            .buffer_unordered(REQUESTS_IN_FLIGHT)
            .try_for_each(async |()| Ok(()));
        let settling = async {
            match declared {
                Some((declared, is_first)) => self.shared.settle(&self.plan.queue, declared, is_first).await,
                None => Ok(()),
            }
        };
        let publishing = future::try_join3(self.publish_sentinel(until), publishing, settling);
        let limit = self.shared.config.time_limit;
        let published = tokio::time::timeout_at(until, publishing).await;
        published.map(|published| published.map(|((), (), ())| ())).unwrap_or_else(|_| {
            let confirmed = self.confirmed.load(Ordering::Relaxed);
            Err(Failure::TimeLimit { confirmed, requests, limit, blocked: self.shared.broker.is_blocked() })
        })
    }

    async fn publish_sentinel(&self, until: Instant) -> Result<(), Failure> {
        let Manifest { cid, run, sentinel: true, .. } = &self.plan.manifest else { return Ok(()) };
        self.shared
            .deliver(&self.plan.queue.name, || Sentinel::encode(cid, *run), until)
            .await
            .map_err(Failure::Sentinel)
    }

    async fn publish_request(&self, place: usize, until: Instant) -> Result<(), Failure> {
        let request = self.plan.request(place);
        let queue = self.shared.config.names.service_queue(&request.service);
        match self.shared.deliver(&queue, || request.encode(), until).await {
            Ok(()) => {
                self.confirmed.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(source) => Err(Failure::Request { service: request.service, source }),
        }
    }

    /// Writes the manifest, once, and not later than the time limit allows. Only where it never left is there another try.
    async fn publish_manifest(&self) -> Result<Accepted, InvokeError> {
        let Schedule { sent: until, told, .. } = self.schedule;
        let shared = &self.shared;
        let queue = self.plan.manifest.queue(&shared.config.names);
        let requests_sent = !self.plan.bodies.is_empty();
        let mut backoff = Backoff::default();
        loop {
            let manifest = self.plan.manifest_message.clone();
            let publishing = shared.broker.publish_by(&queue, manifest, Some(until));
            let error = match tokio::time::timeout_at(told, publishing).await {
                Ok(Ok(())) => return Ok(self.accepted.clone()),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(self.accepted.unknown(shared.unconfirmed(&queue, shared.config.time_limit)));
                }
            };
            match error {
                PublishError::NotSent(cause) if cause.is_outage() => {
                    let wait = backoff.next(&*shared.environment);
                    if Instant::now() + wait >= until {
                        let failure = Failure::Manifest(PublishError::NotSent(cause));
                        return Err(self.accepted.not_accepted(failure, requests_sent));
                    }
                    tokio::time::sleep(wait).await;
                }
                PublishError::NotSent(_) | PublishError::TooLarge { .. } => {
                    return Err(self.accepted.not_accepted(Failure::Manifest(error), requests_sent));
                }
                PublishError::Unroutable(_) => {
                    shared.known.forget(&queue);
                    let failure = match shared.config.aggregation {
                        Aggregation::Shared { shards } => Failure::NoShard { shard: queue, shards },
                        Aggregation::PerCid => Failure::Manifest(error),
                    };
                    return Err(self.accepted.not_accepted(failure, requests_sent));
                }
                // A nack is neither the manifest's ack nor its return.
                error => return Err(self.accepted.unknown(error)),
            }
        }
    }
}

impl Shared {
    /// Brings a message into its queue, with as many tries as time allows: it may be there more than once. One try may take any time; the caller cuts it short.
    ///
    /// # Errors
    /// The last failure; `Unknown` where any try may have succeeded.
    async fn deliver(
        &self,
        queue: &str,
        message: impl Fn() -> Message,
        until: Instant,
    ) -> Result<(), PublishError> {
        let mut unknown = None;
        let mut backoff = Backoff::default();
        loop {
            // `publish` does the same, through one future more on the heap for each message.
            let error = match self.broker.publish_by(queue, message(), None).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let again = self.may_succeed_later(queue, &error).await;
            if matches!(error, PublishError::Unknown(_)) {
                unknown = Some(error.clone());
            }
            let wait = backoff.next(&*self.environment);
            if !again || Instant::now() + wait >= until {
                return Err(unknown.unwrap_or(error));
            }
            tracing::debug!(queue, error = error.with_cause(), "sending a message again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Deletes the aggregation queue of a run that has come to nothing.
    pub(crate) async fn delete(&self, queue: &str) {
        let began = Instant::now();
        let deleted = tokio::time::timeout(CLEAN_UP_LIMIT, self.broker.delete(queue)).await;
        if began.elapsed() >= Aftercare::SLOW {
            self.aftercare.watch(queue.to_owned());
        }
        let trouble = match deleted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {CLEAN_UP_LIMIT:?}"),
        };
        tracing::warn!(
            queue,
            trouble,
            "the queue of a fan-out that was given up is left to expire by itself"
        );
    }

    async fn may_succeed_later(&self, queue: &str, error: &PublishError) -> bool {
        match error {
            PublishError::NotSent(cause) | PublishError::Unknown(cause) => cause.is_outage(),
            PublishError::Refused(_) => true,
            PublishError::Unroutable(_) => {
                self.known.forget(queue);
                !matches!(absence::is_gone(&*self.broker, queue, absence::PAUSE).await, Ok(true))
            }
            _ => false,
        }
    }

    fn unconfirmed(&self, queue: &str, limit: Duration) -> PublishError {
        let reason = format!("no confirm within {limit:?}{}", pressed(self.broker.is_blocked()));
        PublishError::Unknown(BrokerError::Unavailable { queue: queue.to_owned(), reason })
    }
}
