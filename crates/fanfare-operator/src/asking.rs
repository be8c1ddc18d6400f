//! Puts a question to all coordinators or all workers, and gathers what they answer.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_broker::{BrokerError, Mailbox, PublishError};
use fanfare_protocol::{ExchangeSpec, Malformed, Message, RunId};
use tokio::time::{Instant, timeout_at};

use crate::{AskError, Operator};

/// After which a question is put again: those who have just connected may have missed it, and answers can be lost.
const AGAIN: Duration = Duration::from_secs(1);
/// Answers that are read: far more than there are processes, unless somebody floods the queue.
const MOST_ANSWERS: usize = 10_000;

impl Operator {
    /// Asks, and gathers one answer of each who does, until they are enough or patience is at its end.
    ///
    /// `question` is given the queue for the answers, and `read` tells whose an answer is.
    pub(crate) async fn gather<A>(
        &self,
        exchange: &ExchangeSpec,
        question: impl FnOnce(String) -> Message,
        read: impl Fn(&Message) -> Result<(RunId, A), Malformed>,
        mut enough: impl FnMut(&BTreeMap<RunId, A>) -> bool,
    ) -> Result<BTreeMap<RunId, A>, AskError> {
        let queue = self.config.names.wait(RunId::from(self.environment.unique()));
        let mut mailbox = Mailbox::open(&*self.broker, &queue).await.map_err(AskError::NoMailbox)?;
        let mut question = question(queue.name);
        question.properties.user_id = self.config.user_id.as_deref().map(Into::into);
        let until = Instant::now() + self.config.patience;
        let (mut next, mut answers) = (Instant::now(), BTreeMap::new());
        let mut read_so_far = 0;
        while Instant::now() < until && !enough(&answers) && read_so_far < MOST_ANSWERS {
            if Instant::now() >= next {
                next += AGAIN;
                let asking = self.broker.publish_through(&exchange.name, "", question.clone());
                match timeout_at(until, asking).await {
                    Ok(Err(error)) if answers.is_empty() => return Err(AskError::NotSent(error)),
                    _ => {}
                }
            }
            match timeout_at(next.min(until), mailbox.next()).await {
                Ok(Ok(message)) => {
                    read_so_far += 1;
                    match read(&message) {
                        Ok((whose, answer)) => _ = answers.insert(whose, answer),
                        Err(reason) => tracing::debug!(%reason, "a message that is no answer is dropped"),
                    }
                }
                Ok(Err(lost)) => {
                    let lost = lost.unwrap_or_else(|| BrokerError::NoQueue(mailbox.queue().to_owned()));
                    return Err(AskError::NoMailbox(lost));
                }
                Err(_) => {}
            }
        }
        Ok(answers)
    }

    /// Asks all coordinators, and waits for as many answers as coordinators are known.
    pub(crate) async fn ask_coordinators<A>(
        &self,
        question: impl FnOnce(String) -> Message,
        read: impl Fn(&Message) -> Result<(RunId, A), Malformed>,
    ) -> Result<(Vec<A>, Option<u64>), AskError> {
        let names = &self.config.names;
        let known = self.coordinators().await;
        let enough = |answers: &BTreeMap<RunId, A>| {
            !answers.is_empty() && known.is_some_and(|known| answers.len() as u64 >= known)
        };
        let asked = self.gather(&names.coordinators(), question, read, enough).await;
        let answers = match asked {
            Err(AskError::NotSent(PublishError::Unbound(_) | PublishError::NoExchange(_))) => {
                return Err(AskError::NoCoordinator { prefix: names.prefix().clone() });
            }
            asked => asked?,
        };
        if answers.is_empty() {
            let blocked = self.broker.is_blocked();
            return Err(AskError::NoAnswer { waited: self.config.patience, blocked });
        }
        Ok((answers.into_values().collect(), known))
    }

    /// How many coordinators are connected: each of them has one consumer at the dead letters. None where this user may not
    /// see that.
    async fn coordinators(&self) -> Option<u64> {
        let dead = self.broker.inspect(&self.config.names.dead_queue()).await;
        dead.ok().flatten().map(|dead| dead.consumers)
    }
}
