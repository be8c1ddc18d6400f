use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{
    Backoff, Broker, BrokerError, Environment, Hold, PublishError, Reminder, absence, trace,
};
use fanfare_protocol::{Message, QueueNames, QueueSpec, ReplyAddress, RunId, TargetResult, WireTime, limits};
use serde_json::value::RawValue;

use crate::bundler::Bundler;
use crate::gone::GoneRuns;
use crate::telemetry::Telemetry;

/// How long it is tried to delete a queue.
const DELETION_LIMIT: Duration = Duration::from_secs(10);

/// Brings into queues what a worker has to say: results, retries, and messages to park. It does not give up: the delivery that a
/// message answers stays unacked meanwhile, and whoever stops the worker drops the attempt.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) results: Bundler,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) names: QueueNames,
    pub(crate) telemetry: Telemetry,
    /// Bytes of one result.
    pub(crate) most_bytes: usize,
    pub(crate) gone: GoneRuns,
}

impl Answers {
    /// Publishes a result, and returns when it is confirmed or when nobody wants it any more: its queue is gone, because
    /// the fan-out ended without it. One that is larger than it may be, or than the broker takes, becomes a failed result that says so.
    ///
    /// Where it is its queue that does not take it, `hold` is asked to hold the delivery that it answers meanwhile: fan-outs that have
    /// other queues are not to wait for that one.
    pub(crate) async fn publish_result(
        &self,
        result: &TargetResult,
        to: &ReplyAddress,
        hold: &(dyn Fn() -> Option<Hold> + Sync),
    ) {
        let mut held = None;
        let mut body = result.to_body();
        if body.len() > self.most_bytes {
            body = too_large(result, body.len(), self.most_bytes, "this worker sends").to_body();
        }
        let traceparent = trace::current();
        let mut backoff = Backoff::default();
        let mut reminder = Reminder::default();
        loop {
            let message = TargetResult::message(body.clone(), to, result.resp_ts_utc).traced(traceparent);
            let error = match self.results.publish(&to.queue, message).await {
                Ok(()) => return,
                Err(error) => error,
            };
            if matches!(error, PublishError::Unroutable(_))
                && (self.gone.contains(to.run) || self.is_gone(&to.queue, &mut reminder).await)
            {
                self.gone.insert(to.run);
                self.telemetry.late();
                tracing::debug!(cid = %to.cid, run = %to.run, message_id = to.message_id.as_str(), "the result is late: its fan-out has ended");
                return;
            }
            if matches!(error, PublishError::Unroutable(_) | PublishError::Refused(_))
                && held.is_none()
                && body.len() <= limits::HELD_BYTES
            {
                held = hold();
            }
            if let PublishError::TooLarge { bytes, most } = error {
                body = too_large(result, bytes, most, "this broker takes").to_body();
            }
            if error.refusal().is_none() {
                let error = error.with_cause();
                tracing::warn!(cid = %to.cid, message_id = to.message_id.as_str(), error, "publishing a result again");
            } else if reminder.is_due() {
                let error = error.with_cause();
                tracing::error!(cid = %to.cid, message_id = to.message_id.as_str(), error, "the broker refuses a result; trying on");
            }
            backoff.wait(&*self.environment).await;
        }
    }

    /// Lets a message wait so long and come back to its queue then, for another attempt. False where the broker will not
    /// have that, which no waiting changes: this attempt was the last then.
    pub(crate) async fn retry(&self, message: Message, queue: &str, seconds: u32) -> bool {
        let exchange = self.names.delay_exchange(seconds).name;
        let mut backoff = Backoff::default();
        let mut declared = false;
        loop {
            let error = match self.broker.publish_through(&exchange, queue, message.clone()).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            match &error {
                PublishError::NoExchange(_) | PublishError::Unbound(_) => {
                    match self.declare_delay(seconds).await {
                        Ok(()) if !std::mem::replace(&mut declared, true) => continue,
                        Err(error) if !error.is_outage() => {
                            tracing::error!(queue, exchange, %error, "a failed invocation cannot be retried");
                            return false;
                        }
                        _ => {}
                    }
                }
                PublishError::TooLarge { .. } => {
                    tracing::error!(queue, exchange, %error, "a failed invocation cannot be retried");
                    return false;
                }
                _ => {}
            }
            tracing::warn!(queue, exchange, %error, "publishing a retry again");
            backoff.wait(&*self.environment).await;
        }
    }

    /// The first retry that ever waits so long finds neither queue nor exchange. Nothing comes into the queue before it outlives the broker: others
    /// find no way to it until then.
    async fn declare_delay(&self, seconds: u32) -> Result<(), BrokerError> {
        let (queue, exchange) = (self.names.delay(seconds), self.names.delay_exchange(seconds));
        self.broker.declare_for_good(&queue, &self.other()).await?;
        self.broker.declare_exchange(&exchange).await?;
        self.broker.bind(&queue.name, &exchange.name).await
    }

    /// A queue to be declared after another.
    fn other(&self) -> QueueSpec {
        self.names.settling_payload(RunId::from(self.environment.unique()))
    }

    /// Parks a message for a person to look at.
    pub(crate) async fn park(&self, message: &Message, from: &str, reason: &str) {
        self.telemetry.parked();
        let parked = self.names.parked();
        let (at, id) = (self.now(), self.environment.unique());
        let mut copy = message.clone().parked(from, reason, at, id);
        let mut backoff = Backoff::default();
        let mut reminder = Reminder::default();
        loop {
            let error = match self.broker.publish(&parked.name, copy.clone()).await {
                Ok(()) => return,
                Err(error) => error,
            };
            match &error {
                PublishError::TooLarge { bytes, .. } => {
                    // Another client put in more than Fanfare takes out: what is kept is that it was there, and why.
                    let reason = format!("{reason}; its body of {bytes} bytes is too large to be parked");
                    copy = message.clone().parked(from, &reason, at, id);
                    copy.body.clear();
                }
                // Someone deleted the queue.
                PublishError::Unroutable(_) => {
                    if let Err(error) = self.broker.ensure(&parked, &self.other()).await
                        && reminder.is_due()
                    {
                        tracing::error!(queue = parked.name, %error, "the queue of parked messages is missing; trying on");
                    }
                }
                _ => {}
            }
            if error.refusal().is_none() {
                tracing::warn!(
                    queue = parked.name,
                    from,
                    error = error.with_cause(),
                    "parking a message again"
                );
            } else if reminder.is_due() {
                let error = error.with_cause();
                tracing::error!(
                    queue = parked.name,
                    from,
                    error,
                    "the broker refuses a message to park; trying on"
                );
            }
            backoff.wait(&*self.environment).await;
        }
    }

    /// Deletes a queue that nobody needs any more. What cannot be deleted for long is left to expire.
    pub(crate) async fn delete(&self, queue: &str) {
        let deleted = async {
            let mut backoff = Backoff::default();
            while let Err(error) = self.broker.delete(queue).await {
                if !error.is_outage() {
                    tracing::warn!(queue, %error, "a queue that nobody needs any more is left to expire");
                    break;
                }
                backoff.wait(&*self.environment).await;
            }
        };
        if tokio::time::timeout(DELETION_LIMIT, deleted).await.is_err() {
            tracing::warn!(queue, "a queue that nobody needs any more is left to expire");
        }
    }

    /// The time as results have it.
    pub(crate) fn now(&self) -> WireTime {
        WireTime::from(self.environment.now())
    }

    async fn is_gone(&self, queue: &str, reminder: &mut Reminder) -> bool {
        match absence::is_gone(&*self.broker, queue, absence::PAUSE).await {
            Ok(gone) => gone,
            Err(error) => {
                if !error.is_outage() && reminder.is_due() {
                    tracing::error!(queue, %error, "whether this queue is gone cannot be told; trying on");
                }
                false
            }
        }
    }
}

/// What takes the place of a result that an operator's own limit keeps out of the broker.
fn too_large(result: &TargetResult, bytes: usize, most: usize, who: &str) -> TargetResult {
    let exception = format!(
        "the result has {bytes} bytes, and {most} is the most that {who}; store the data elsewhere and return a \
         reference to it"
    );
    let response = RawValue::NULL.to_owned();
    TargetResult { response, ok: false, exception: Some(exception), ..result.clone() }
}
