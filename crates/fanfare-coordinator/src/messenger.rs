//! Answers whoever asks something, and tells workers of cancels.

use std::time::Duration;

use fanfare_broker::Backoff;
use fanfare_protocol::{CancelAnswer, CancelState, Cancellation, Cancelled, Cid, Message, RunId};
use tokio_util::task::TaskTracker;

use crate::outbox::{Absence, Outbox};

/// How long a message may take to get out. Whoever asked has asked again by then.
const LIMIT: Duration = Duration::from_secs(10);
/// Messages under way beyond which no more are sent: while the broker takes none, those who ask must not fill the memory.
const MOST_UNDER_WAY: usize = 1_000;

/// Sends what nobody relies on: whoever misses an answer asks again, and a worker that misses what it is told runs targets
/// whose results are late. So nothing waits for these messages, and nothing is acked because of them.
#[derive(Debug, Clone)]
pub(crate) struct Messenger {
    pub(crate) outbox: Outbox,
    /// What tells this coordinator from others.
    pub(crate) coordinator: RunId,
    under_way: TaskTracker,
}

impl Messenger {
    pub(crate) fn new(outbox: Outbox, under_way: TaskTracker) -> Self {
        let coordinator = RunId::from(outbox.environment.unique());
        Self { outbox, coordinator, under_way }
    }

    /// What tells this coordinator from others.
    pub(crate) const fn coordinator(&self) -> RunId {
        self.coordinator
    }

    /// Answers somebody who asked for a cancel.
    pub(crate) fn answer(&self, cid: &Cid, reply_to: String, state: CancelState) {
        let message = CancelAnswer { coordinator: self.coordinator, state }.encode(cid);
        self.tell(reply_to, async { [message] });
    }

    /// Sends whoever asked something the answers that are still to be put together, if any come of it.
    pub(crate) fn tell<M: IntoIterator<Item = Message, IntoIter: Send>>(
        &self,
        reply_to: String,
        answers: impl Future<Output = M> + Send + 'static,
    ) {
        let outbox = self.outbox.clone();
        self.send(async move {
            for answer in answers.await {
                outbox.publish(&reply_to, answer, Absence::Drops).await;
            }
        });
    }

    /// Tells all workers that nobody wants what is left of fan-outs that had ended before somebody asked to cancel them.
    pub(crate) fn announce_ended(&self, cid: &Cid, ended: &[CancelState]) {
        for state in ended {
            if let CancelState::Ended { run, cancellation } = state {
                self.announce(cid, *run, cancellation);
            }
        }
    }

    /// Tells all workers that nobody wants what is left of a fan-out that somebody has cancelled, whatever had ended it before. Where all
    /// targets had responded, nothing is left.
    pub(crate) fn announce(&self, cid: &Cid, run: RunId, cancellation: &Cancellation) {
        if cancellation.missing == 0 {
            return;
        }
        let message = Cancelled { cid: cid.clone(), run }.encode();
        let outbox = self.outbox.clone();
        self.send(async move {
            let workers = outbox.names.workers().name;
            let mut backoff = Backoff::default();
            // Where it comes back, or there is no exchange, no worker listens.
            while let Err(error) = outbox.broker.publish_through(&workers, "", message.clone()).await {
                tracing::debug!(exchange = workers, %run, error = error.with_cause(), "workers are not told of a cancel");
                if !error.is_outage() {
                    break;
                }
                backoff.wait(&*outbox.environment).await;
            }
        });
    }

    /// Tells all coordinators of this one. There is one try: the next word says the same.
    pub(crate) fn tell_coordinators(&self, message: Message) {
        let outbox = self.outbox.clone();
        self.send(async move {
            let coordinators = outbox.names.coordinators().name;
            if let Err(error) = outbox.broker.publish_through(&coordinators, "", message).await {
                tracing::debug!(
                    exchange = coordinators,
                    error = error.with_cause(),
                    "coordinators are not told of this one"
                );
            }
        });
    }

    fn send(&self, message: impl Future<Output = ()> + Send + 'static) {
        if self.under_way.len() < MOST_UNDER_WAY {
            self.under_way.spawn(tokio::time::timeout(LIMIT, message));
        }
    }
}
