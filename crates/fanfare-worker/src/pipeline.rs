use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanfare_broker::{Delivery, Receipt, trace};
use fanfare_protocol::{
    Invocation, LargePayload, MalformedInvocation, Message, ReplyAddress, TargetResult, WireTime, header,
    limits,
};
use fanfare_publisher::Publisher;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::answer::Answers;
use crate::cancelled::{CancelledRuns, RunningTarget};
use crate::execution::{Exception, Failure, execute};
use crate::history::{History, Turn, Work};
use crate::parts::{self, PartReader};
use crate::registration::Registered;
use crate::slot::Slot;
use crate::telemetry::Run;
use crate::whereabouts::Whereabouts;
use crate::worker::CANCELLATION_GRACE;
use crate::{Context, ServiceError};

/// Takes each delivery of one service from its queue to its ack: decode, run, answer or retry, ack.
pub(crate) struct Pipeline {
    pub(crate) registered: Registered,
    /// The service's queue.
    pub(crate) queue: String,
    pub(crate) answers: Answers,
    pub(crate) publisher: Publisher,
    /// Bytes of the largest final payload that is put together.
    pub(crate) most_payload_bytes: usize,
    pub(crate) stop: Stop,
    pub(crate) history: History,
    pub(crate) cancelled: CancelledRuns,
    pub(crate) whereabouts: Whereabouts,
}

/// How a worker that stops presses its invocations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// Invocations are to end early.
    pub(crate) cancel: CancellationToken,
    /// What still runs is dropped.
    pub(crate) abort: CancellationToken,
}

/// What becomes of a delivery.
enum Fate {
    /// All that follows from it is safe: the broker may forget it, and the parts of its payload, where nobody needs them any more,
    /// which are in this queue.
    Done(Option<String>),
    /// It has not run to its end: another worker will be handed it.
    Requeued,
}

impl Pipeline {
    /// Handles one delivery. The outcome is in a queue before the delivery is acked, so a worker that dies at any point
    /// loses nothing: the delivery is handed out again.
    pub(crate) async fn process(&self, delivery: Delivery, slot: Slot) {
        let Delivery { message, receipt, redelivered } = delivery;
        if redelivered {
            self.answers.telemetry.redelivered();
        }
        let fate = tokio::select! {
            biased;
            () = self.stop.abort.cancelled() => Fate::Requeued,
            fate = self.handle_once(&message, redelivered, &slot) => fate,
        };
        slot.finish();
        // What the broker has taken back, another may be reading.
        let is_ours = receipt.is_live();
        let parts = answer(&receipt, fate).await;
        slot.answered();
        if let Some(queue) = parts.filter(|_| is_ours) {
            self.answers.delete(&queue).await;
        }
    }

    /// Gives up a message that was delivered too often and never answered: whoever waits is told, a copy is kept, and then it is
    /// acked.
    pub(crate) async fn give_up(&self, delivery: Delivery, redeliveries: u64) {
        let Delivery { message, receipt, .. } = delivery;
        let giving_up = async {
            let reason = format!(
                "it was delivered {} times and never ended: its worker dies of it, or loses its connection each time",
                redeliveries + 1
            );
            self.answers.telemetry.ended(Run::GivenUp);
            tracing::error!(
                service = %self.registered.name,
                message_id = message.properties.message_id.as_deref(),
                correlation_id = message.properties.correlation_id.as_deref(),
                %reason,
                "a message is given up and parked"
            );
            let reply = match Invocation::decode(&message, &self.answers.names) {
                Ok(invocation) => invocation.reply.map(Box::new),
                Err(malformed) => malformed.reply,
            };
            if let Some(to) = reply {
                let exception =
                    format!("the request is given up: {reason}; it is kept among the parked messages");
                let now = self.answers.now();
                let service = self.registered.name.as_str();
                let result = TargetResult::unanswered(&message, service, &to, exception, now);
                let hold = || (message.body.len() <= limits::HELD_BYTES).then(|| receipt.hold());
                self.answers.publish_result(&result, &to, &hold).await;
            }
            self.answers.park(&message, &self.queue, &reason).await;
        };
        let fate = tokio::select! {
            biased;
            () = self.stop.abort.cancelled() => Fate::Requeued,
            () = giving_up => Fate::Done(None),
        };
        answer(&receipt, fate).await;
    }

    /// Handles a message, unless it is a redelivery of one that runs or was run here: that is answered with the run.
    async fn handle_once(&self, message: &Message, redelivered: bool, slot: &Slot) -> Fate {
        let Some(work) = Work::of(message) else { return self.handle(message, redelivered, slot).await };
        match self.history.turn(work.clone(), redelivered) {
            Turn::Run(running) => {
                let fate = self.handle(message, redelivered, slot).await;
                if let Fate::Done(parts) = &fate {
                    running.finish(parts.clone());
                }
                fate
            }
            Turn::Wait(ended) => {
                slot.finish();
                // Its run answers, which may be waiting for a slot.
                slot.answered();
                tracing::warn!(
                    queue = self.queue,
                    message_id = message.properties.message_id.as_deref(),
                    "the broker took back a message that is still being run here, as it does at its consumer time-out"
                );
                ended.cancelled().await;
                self.history.finished(&work).map_or(Fate::Requeued, Fate::Done)
            }
            Turn::Finished(parts) => Fate::Done(parts),
        }
    }

    async fn handle(&self, message: &Message, redelivered: bool, slot: &Slot) -> Fate {
        let invocation = match Invocation::decode(message, &self.answers.names) {
            Ok(invocation) => invocation,
            Err(malformed) => {
                slot.finish();
                self.answers.telemetry.ended(Run::Malformed);
                self.refuse(message, malformed, slot).await;
                return Fate::Done(None);
            }
        };
        let span = tracing::info_span!(
            "delivery",
            service = %self.registered.name,
            channel = %invocation.channel,
            cid = %invocation.cid,
            key = invocation.key.as_ref().map(|key| key.as_str()),
            attempt = invocation.attempt,
            message_id = invocation.message_id.as_str(),
        );
        let name = || format!("{} {}", invocation.channel.as_header(), self.registered.name);
        trace::begin(&span, name, invocation.traceparent, &invocation.links);
        self.invoke(message, invocation, redelivered, slot).instrument(span).await
    }

    async fn invoke(
        &self,
        message: &Message,
        invocation: Invocation,
        redelivered: bool,
        slot: &Slot,
    ) -> Fate {
        // Of a cancelled fan-out only the targets are left out: its callbacks run.
        let target = match invocation.reply.as_ref().map(|_| self.cancelled.begin(invocation.run)) {
            None => None,
            Some(Some(target)) => Some(target),
            Some(None) => {
                slot.finish();
                self.answers.telemetry.ended(Run::Cancelled);
                tracing::debug!(message_id = invocation.message_id.as_str(), run = %invocation.run, "not run: its fan-out was cancelled");
                return Fate::Done(None);
            }
        };
        let invocation = Arc::new(invocation);
        let _here = self.whereabouts.begin(&self.registered.name, &invocation, self.answers.now());
        let outcome = self.run(Arc::clone(&invocation), redelivered, slot, target.as_ref()).await;
        if let Err(failure) = &outcome {
            trace::fail(failure.exception.as_str());
        }
        slot.finish();
        let ended = match outcome {
            // A failure stands in the place of its result, and is in the queue: nobody waits for this one any more.
            _ if target.as_ref().is_some_and(RunningTarget::is_cancelled) => {
                tracing::debug!(message_id = invocation.message_id.as_str(), run = %invocation.run, "its fan-out was cancelled while it ran");
                Run::Cancelled
            }
            // It was cut short by this worker and not by anything of its own: it deserves another run.
            Err(_) if self.stop.cancel.is_cancelled() => Run::Requeued,
            Err(failure) if self.retry(message, &invocation, &failure).await => Run::Retried,
            Err(Failure { exception, .. }) => {
                self.fail(message, &invocation, exception, slot).await;
                Run::Failed
            }
            Ok(response) => {
                if let Some(to) = &invocation.reply {
                    let (source, requested_at) = (invocation.source.as_str(), invocation.requested_at);
                    self.publish_result(Ok(response), source, requested_at, to, message, slot).await;
                }
                Run::Ok
            }
        };
        self.answers.telemetry.ended(ended);
        let parts = invocation.large.filter(|_| ended == Run::Ok);
        let parts = parts.map(|large| parts::queue_of(&invocation, &large, &self.answers.names));
        if ended == Run::Requeued { Fate::Requeued } else { Fate::Done(parts) }
    }

    /// Sees to another attempt where one is due. The message that waits for it is confirmed by then.
    async fn retry(&self, message: &Message, invocation: &Invocation, failure: &Failure) -> bool {
        let policy = self.registered.retry(invocation.channel);
        let attempt = invocation.attempt;
        if failure.fatal || policy.is_last(attempt) {
            return false;
        }
        let seconds = policy.delay_seconds(attempt, self.answers.environment.jitter());
        tracing::warn!(
            service = %self.registered.name,
            channel = %invocation.channel,
            cid = %invocation.cid,
            message_id = invocation.message_id.as_str(),
            attempt,
            exception = failure.exception.as_str(),
            "the service failed, and is run again in {seconds} s"
        );
        let retry = message.clone().retried(attempt.saturating_add(1));
        if !self.answers.retry(retry, &self.queue, seconds).await {
            return false;
        }
        let until = self.answers.environment.now() + Duration::from_secs(seconds.into());
        let exception = failure.exception.as_str();
        self.whereabouts.retries(&self.registered.name, invocation, until.into(), exception);
        true
    }

    /// Tells whoever waits that a target failed for good; parks what nobody waits for.
    async fn fail(&self, message: &Message, invocation: &Invocation, exception: Exception, slot: &Slot) {
        match &invocation.reply {
            Some(to) => {
                tracing::warn!(
                    service = %self.registered.name,
                    cid = %invocation.cid,
                    message_id = invocation.message_id.as_str(),
                    attempt = invocation.attempt,
                    exception = exception.as_str(),
                    "a target failed"
                );
                let (source, requested_at) = (invocation.source.as_str(), invocation.requested_at);
                self.publish_result(Err(exception), source, requested_at, to, message, slot).await;
            }
            None => self.park_failed(message, invocation, &exception).await,
        }
    }

    async fn run(
        &self,
        mut invocation: Arc<Invocation>,
        redelivered: bool,
        slot: &Slot,
        target: Option<&RunningTarget>,
    ) -> Result<Box<RawValue>, Failure> {
        let _running = self.answers.telemetry.run();
        if let Some(large) = invocation.large.filter(|_| !self.registered.streaming) {
            let body = self.assemble(&invocation, large).await?;
            invocation = Arc::new(Invocation { large: None, body, ..Invocation::clone(&invocation) });
        }
        let body = invocation.body.clone();
        let cancellation = self.stop.cancel.child_token();
        let context = Context::new(
            self.registered.name.clone(),
            invocation,
            redelivered,
            cancellation.clone(),
            self.publisher.clone(),
            slot.clone(),
        );
        let running = execute(&self.registered, context, &body);
        let Some(target) = target else { return running.await };
        let cancelled = async {
            target.cancelled().await;
            cancellation.cancel();
            tokio::time::sleep(CANCELLATION_GRACE).await;
        };
        tokio::select! {
            biased;
            outcome = running => outcome,
            () = cancelled => Err(Failure::passing("its fan-out was cancelled")),
        }
    }

    /// Puts a final payload together that came in parts.
    async fn assemble(&self, invocation: &Invocation, large: LargePayload) -> Result<Bytes, Failure> {
        let most = self.most_payload_bytes;
        if large.bytes > most {
            let rule = format!(
                "it has {} bytes, and {most} is the most that this worker puts together: let the service read it as a stream, or \
                 raise the worker's limit",
                large.bytes
            );
            return Err(ServiceError::unusable("the payload is too large", rule).into());
        }
        let reader = PartReader::new(&self.publisher, invocation, large);
        Ok(reader.assemble(&invocation.body).await?)
    }

    /// Answers for a message that cannot be run, where it says to whom, and parks it otherwise.
    async fn refuse(&self, message: &Message, malformed: MalformedInvocation, slot: &Slot) {
        let MalformedInvocation { reason, reply } = malformed;
        tracing::warn!(
            queue = self.queue,
            message_id = message.properties.message_id.as_deref(),
            %reason,
            answered = reply.is_some(),
            "a malformed message"
        );
        match reply {
            Some(to) => {
                let source = message.text(header::SOURCE).unwrap_or_default();
                let exception = Exception::new(format!("the request is malformed: {reason}"));
                self.publish_result(Err(exception), source, None, &to, message, slot).await;
            }
            None => self.answers.park(message, &self.queue, &reason.to_string()).await,
        }
    }

    async fn publish_result(
        &self,
        outcome: Result<Box<RawValue>, Exception>,
        source: &str,
        requested_at: Option<WireTime>,
        to: &ReplyAddress,
        message: &Message,
        slot: &Slot,
    ) {
        let now = self.answers.now();
        let (response, exception) = match outcome {
            Ok(response) => (response, None),
            Err(exception) => (RawValue::NULL.to_owned(), Some(exception.as_str().to_owned())),
        };
        let result = TargetResult {
            source: source.to_owned(),
            target: self.registered.name.to_string(),
            response,
            req_ts_utc: requested_at.unwrap_or(now),
            resp_ts_utc: now,
            ok: exception.is_none(),
            exception,
            cid: to.cid.clone(),
            ended_by: None,
        };
        let hold = || (message.body.len() <= limits::HELD_BYTES).then(|| slot.hold());
        self.answers.publish_result(&result, to, &hold).await;
    }

    /// A callback, or a plain invocation, that failed has nobody to answer to: it is logged and kept for a person.
    async fn park_failed(&self, message: &Message, invocation: &Invocation, exception: &Exception) {
        tracing::error!(
            service = %self.registered.name,
            channel = %invocation.channel,
            cid = %invocation.cid,
            run = %invocation.run,
            message_id = invocation.message_id.as_str(),
            attempt = invocation.attempt,
            exception = exception.as_str(),
            "the service failed, and its message is parked"
        );
        let attempts = match invocation.attempt {
            1 => String::new(),
            attempts => format!(" {attempts} times"),
        };
        let reason = format!("{} failed{attempts}: {}", self.registered.name, exception.as_str());
        self.answers.park(message, &self.queue, &reason).await;
    }
}

/// Answers a delivery, and returns the queue that nobody needs any more then.
async fn answer(receipt: &Receipt, fate: Fate) -> Option<String> {
    match fate {
        Fate::Done(parts) => {
            receipt.ack().await;
            parts
        }
        Fate::Requeued => {
            receipt.requeue().await;
            None
        }
    }
}
