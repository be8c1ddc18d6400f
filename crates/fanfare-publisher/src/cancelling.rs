//! Cancelling a fan-out: coordinators are asked, again and again, until one says that it has come about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Mailbox, PublishError, absence};
use fanfare_protocol::{CancelAnswer, CancelRequest, CancelState, Cancellation, Cid, Message, RunId};
use tokio::time::{Instant, timeout_at};

use crate::publisher::Shared;
use crate::waiting::open_mailbox;
use crate::{Accepted, Aggregation, CancelError};

/// How long coordinators have for saying whether they know the fan-out.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// After which they are asked again: the fan-out may be on its way from one to another, or the answer be lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Cancels one fan-out.
pub(crate) async fn cancel(
    shared: Arc<Shared>,
    Accepted { cid, run }: Accepted,
) -> Result<Cancellation, CancelError> {
    let ended = cancel_all(shared, cid, Some(run)).await?;
    Ok(*ended.values().next().expect("what has not ended is an error"))
}

/// Cancels the fan-out of this run, or all that are open with this CID. Returns what came of each, of one at least.
pub(crate) async fn cancel_all(
    shared: Arc<Shared>,
    cid: Cid,
    run: Option<RunId>,
) -> Result<BTreeMap<RunId, Cancellation>, CancelError> {
    let queue = shared.config.names.wait(RunId::from(shared.environment.unique()));
    let until = Instant::now() + shared.config.preparation();
    let mut mailbox = open_mailbox(&shared, &queue, until).await.map_err(CancelError::Unprepared)?;
    let mut request = CancelRequest { cid: cid.clone(), run, reply_to: queue.name }.encode();
    request.properties.user_id = shared.config.user_id.as_deref().map(Into::into);
    let mut inquiry = Inquiry { shared, cid, run, request, asked: None, heard: Heard::default() };
    inquiry.pursue(&mut mailbox).await
}

/// What is asked, and what has come of it.
struct Inquiry {
    shared: Arc<Shared>,
    cid: Cid,
    run: Option<RunId>,
    request: Message,
    /// What became of the request, once it was sent.
    asked: Option<Result<(), PublishError>>,
    heard: Heard,
}

/// What coordinators have answered.
#[derive(Default)]
struct Heard {
    /// That none of these knows the fan-out.
    unknown_to: BTreeSet<RunId>,
    refusal: Option<String>,
    found: BTreeSet<RunId>,
    ended: BTreeMap<RunId, Cancellation>,
}

impl Inquiry {
    async fn pursue(&mut self, mailbox: &mut Mailbox) -> Result<BTreeMap<RunId, Cancellation>, CancelError> {
        let started = Instant::now();
        let limit = self.shared.config.cancel_limit;
        let mut next = started;
        loop {
            let waited = started.elapsed();
            // One run is known to one coordinator. Of a CID, another may have more to say.
            if self.heard.is_all() && (self.run.is_some() || waited >= AGAIN) {
                return Ok(std::mem::take(&mut self.heard.ended));
            }
            let patience = if self.heard.found.is_empty() { limit.min(ANSWER_LIMIT) } else { limit };
            if waited >= patience {
                return Err(self.given_up(waited).await);
            }
            let until = started + patience;
            if Instant::now() >= next {
                next += AGAIN;
                self.ask(until).await?;
            }
            match timeout_at(next.min(until), mailbox.next()).await {
                Ok(Ok(message)) => self.hear(&message),
                Ok(Err(source)) => return Err(CancelError::Lost { cid: self.cid.clone(), source }),
                Err(_) => {}
            }
        }
    }

    async fn ask(&mut self, until: Instant) -> Result<(), CancelError> {
        let coordinators = self.shared.config.names.coordinators().name;
        let asking = self.shared.broker.publish_through(&coordinators, "", self.request.clone());
        // Where the broker does not answer, the wait for the coordinators ends as well.
        let Ok(outcome) = timeout_at(until, asking).await else { return Ok(()) };
        match outcome {
            Err(error) if error.refusal().is_some() => return Err(CancelError::NotSent(error)),
            // One request that has reached anybody tells more than any that has not.
            outcome if !matches!(self.asked, Some(Ok(()))) => self.asked = Some(outcome),
            _ => {}
        }
        Ok(())
    }

    fn hear(&mut self, message: &Message) {
        let answer =
            CancelAnswer::decode(message).ok().filter(|_| message.cid().is_ok_and(|cid| cid == self.cid));
        let is_of_another = |run: RunId| self.run.is_some_and(|asked| asked != run);
        let Some(CancelAnswer { coordinator, state }) = answer else {
            return tracing::debug!(
                kind = message.kind(),
                "a message that is no answer to this cancel is dropped"
            );
        };
        match state {
            CancelState::Unknown => _ = self.heard.unknown_to.insert(coordinator),
            CancelState::Refused { reason } => self.heard.refusal = Some(reason),
            CancelState::Found { run } | CancelState::Ended { run, .. } if is_of_another(run) => {}
            CancelState::Found { run } => _ = self.heard.found.insert(run),
            CancelState::Ended { run, cancellation } => _ = self.heard.ended.insert(run, cancellation),
        }
    }

    /// Why the time was not enough.
    async fn given_up(&mut self, waited: Duration) -> CancelError {
        let cid = self.cid.clone();
        let names = &self.shared.config.names;
        let answered = self.heard.unknown_to.len();
        match (self.heard.refusal.take(), self.asked.take()) {
            _ if !self.heard.found.is_empty() => return CancelError::Unconfirmed { cid, waited },
            (Some(reason), _) => return CancelError::Refused { cid, reason },
            (None, Some(Err(PublishError::Unbound(_) | PublishError::NoExchange(_)))) if answered == 0 => {
                return CancelError::NoCoordinator { prefix: names.prefix().clone() };
            }
            (None, Some(Err(error))) if answered == 0 && !matches!(error, PublishError::Unknown(_)) => {
                return CancelError::NotSent(error);
            }
            _ => {}
        }
        if let (Some(run), Aggregation::PerCid) = (self.run, self.shared.config.aggregation) {
            let queue = names.aggregation(&cid, run).name;
            let gone = absence::is_gone(&*self.shared.broker, &queue, absence::PAUSE);
            if let Ok(true) = gone.await {
                return CancelError::Ended { cid, run };
            }
        }
        if answered == 0 {
            return CancelError::Unanswered { cid, waited, blocked: self.shared.broker.is_blocked() };
        }
        // All coordinators consume it.
        let dead = self.shared.broker.inspect(&names.dead_queue()).await;
        let known =
            dead.ok().flatten().map_or(0, |queue| usize::try_from(queue.consumers).unwrap_or(usize::MAX));
        match known.saturating_sub(answered) {
            0 => CancelError::Unknown { cid, answered, waited },
            silent => CancelError::Silent { cid, answered, silent, waited },
        }
    }
}

impl Heard {
    /// Whether something has ended, and everything that was found.
    fn is_all(&self) -> bool {
        !self.ended.is_empty() && self.found.iter().all(|run| self.ended.contains_key(run))
    }
}
