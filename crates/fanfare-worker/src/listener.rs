use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Broker, Environment, Subscription};
use fanfare_protocol::{
    Cancelled, ExplainRequest, Malformed, Message, QueueNames, RunId, WorkerAnswer, header,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cancelled::CancelledRuns;
use crate::whereabouts::Whereabouts;

/// How long an answer may take to get out. Whoever asked has gone by then.
const LIMIT: Duration = Duration::from_secs(10);
/// Answers under way beyond which no more are given: whoever asks does so again.
const MOST_UNDER_WAY: usize = 16;

/// Listens to what all workers are told and asked.
pub(crate) struct Listener {
    /// What tells this worker from others.
    pub(crate) worker: RunId,
    /// What whoever runs it calls it.
    pub(crate) name: Option<String>,
    pub(crate) cancelled: CancelledRuns,
    pub(crate) whereabouts: Whereabouts,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) names: QueueNames,
}

impl Listener {
    /// Listens for as long as it is polled.
    pub(crate) async fn run(self) {
        let (broker, environment) = (Arc::clone(&self.broker), Arc::clone(&self.environment));
        let ears = self.names.clone();
        let mut heard =
            Subscription::to_exchange(broker, environment, self.names.workers(), move |id| ears.worker(id));
        let mut answering = JoinSet::new();
        while let Some(delivery) = heard.next().await {
            let message = &delivery.message;
            let taken = match message.kind() {
                header::TYPE_CANCELLED => self.cancelled(message),
                header::TYPE_EXPLAIN => self.asked(message, &mut answering),
                kind => {
                    tracing::debug!(kind, "workers are told what this one does not know");
                    Ok(())
                }
            };
            if let Err(reason) = taken {
                tracing::debug!(kind = message.kind(), %reason, "workers are told something malformed");
            }
            delivery.receipt.ack().await;
        }
    }

    fn cancelled(&self, message: &Message) -> Result<(), Malformed> {
        let Cancelled { cid, run } = Cancelled::decode(message)?;
        tracing::debug!(%cid, %run, "a fan-out was cancelled");
        self.cancelled.cancel(run);
        Ok(())
    }

    /// An operator asks about a fan-out. Whoever has nothing of it says nothing.
    fn asked(&self, message: &Message, answering: &mut JoinSet<()>) -> Result<(), Malformed> {
        let request = ExplainRequest::decode(message, &self.names)?;
        let (matching, targets) = self.whereabouts.tell(&request, self.environment.now().into());
        while answering.try_join_next().is_some() {}
        if matching == 0 || answering.len() >= MOST_UNDER_WAY {
            return Ok(());
        }
        let answer = WorkerAnswer { worker: self.worker, name: self.name.clone(), matching, targets };
        let (broker, answer) = (Arc::clone(&self.broker), answer.encode(&request.cid));
        answering.spawn(async move {
            let sent = timeout(LIMIT, broker.publish(&request.reply_to, answer)).await;
            if let Ok(Err(error)) = sent {
                tracing::debug!(error = error.with_cause(), "an answer to an operator is not sent");
            }
        });
        Ok(())
    }
}
