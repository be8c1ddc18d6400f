//! What was parked for a person: looked at, put back, or dropped.

mod look;
mod turn;

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_broker::{PublishError, QueueState};
use fanfare_protocol::{Cid, LargePayload, Message, QueueNames, RunId, ServiceName, WireTime, fnv1a, header};
use serde::Serialize;
use tokio::time::timeout;

use self::look::{Look, Settled};
use crate::Operator;
use crate::error::{LookError, PRESSED};

/// How long a queue may take to confirm what is put back.
const CONFIRM: Duration = Duration::from_secs(15);

/// A parked message, without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// By which it can be chosen: a digest of all that it is. Only exact copies share one.
    pub id: String,
    /// Why it is there.
    pub reason: String,
    /// Since when, where whoever parked it said so.
    pub parked_at: Option<WireTime>,
    /// The queue that it was read from or meant for, to which it can go back.
    pub from: Option<String>,
    /// The service of that queue.
    pub service: Option<ServiceName>,
    /// Its `type`.
    pub kind: String,
    /// Its correlation ID.
    pub cid: Option<Cid>,
    /// The run of its fan-out.
    pub run: Option<RunId>,
    /// Its `message_id`.
    pub message_id: Option<String>,
    /// Bytes of its body.
    pub bytes: usize,
}

/// Which parked messages are meant. What is left out leaves none out.
#[derive(Debug, Clone, Default)]
pub struct ParkedQuery {
    /// Those with these [IDs](Parked::id), each once.
    pub ids: BTreeSet<String>,
    /// Those from the queue of this service.
    pub service: Option<ServiceName>,
    /// Those whose reason has these words in it.
    pub reason: Option<String>,
    /// Those with this correlation ID.
    pub cid: Option<Cid>,
    /// Those of the fan-out of this run.
    pub run: Option<RunId>,
    /// Those that were parked so long ago, or longer. One that does not say when is not meant.
    pub min_age: Option<Duration>,
}

/// What is parked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParkedMessages {
    /// How many match the query.
    pub matching: usize,
    /// How many were not looked at: those behind the first 10,000, and those that another consumer of the queue has taken meanwhile.
    pub unseen: usize,
    /// Other consumers of the queue, none of them an operator's. What these hold was not looked at either, and nobody can count it.
    pub others: u64,
    /// The first of those that match, in the queue's order.
    pub messages: Vec<Parked>,
}

/// A parked message that was to be put back.
#[derive(Debug)]
pub struct Replayed {
    /// It.
    pub parked: Parked,
    /// Whether it is in its queue, and no longer parked. Where it is not, it still is.
    pub outcome: Result<(), ReplayError>,
}

/// A parked message cannot be put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It does not say where it was, or names a queue that is none of this system's for services, manifests or its own results.
    #[error(
        "it comes from {}, where nothing is put back: purge it, or publish it by hand",
        .0.as_deref().map_or_else(|| "nowhere".to_owned(), |queue| format!("`{queue}`"))
    )]
    Origin(Option<String>),
    /// Its body was left out when it was parked.
    #[error("its body was too large to be kept: invoke it anew, and purge it")]
    WithoutBody,
    /// Its queue does not take it.
    #[error("its queue did not take it: {}", .0.with_cause())]
    Publish(#[from] PublishError),
    /// Its queue has not confirmed it in time.
    #[error(
        "its queue has not confirmed it within {waited:?}{}: it may have it, or take it yet, so look there before it is put back again",
        if *.blocked { format!(" ({PRESSED})") } else { String::new() }
    )]
    Unconfirmed {
        /// How long it had.
        waited: Duration,
        /// Whether the broker takes no messages, being short of memory or disk.
        blocked: bool,
    },
    /// One before it was not confirmed.
    #[error("it was not tried, since one before it was not confirmed")]
    Untried,
}

impl Parked {
    fn of(message: &Message, names: &QueueNames) -> Self {
        let from = message.text(header::PARKED_FROM).map(str::to_owned);
        Self {
            id: digest(message),
            reason: message.text(header::REASON).unwrap_or_default().to_owned(),
            parked_at: message.text(header::PARKED_AT).and_then(|at| at.parse().ok()),
            service: from.as_deref().and_then(|queue| names.service_of(queue)),
            from,
            kind: message.kind().to_owned(),
            cid: message.cid().ok(),
            run: message.run().ok(),
            message_id: message.properties.message_id.as_ref().map(ToString::to_string),
            bytes: message.body.len(),
        }
    }
}

impl ParkedQuery {
    fn matches(&self, parked: &Parked, now: WireTime) -> bool {
        let is_old = |age: Duration| {
            parked.parked_at.is_some_and(|at| (now.to_utc() - at.to_utc()).to_std().is_ok_and(|is| is >= age))
        };
        (self.ids.is_empty() || self.ids.contains(&parked.id))
            && self.service.as_ref().is_none_or(|service| parked.service.as_ref() == Some(service))
            && self.reason.as_ref().is_none_or(|words| parked.reason.contains(words.as_str()))
            && self.cid.as_ref().is_none_or(|cid| parked.cid.as_ref() == Some(cid))
            && self.run.is_none_or(|run| parked.run == Some(run))
            && self.min_age.is_none_or(is_old)
    }
}

impl Operator {
    /// What is parked: the first so many of those that match, and how many there are.
    ///
    /// All that is looked at is held, and nothing of it answered; then the channel is closed, and the broker puts everything
    /// back where it was. One operator looks at a time, also of several processes: who comes second waits.
    ///
    /// # Errors
    /// Where another looks for long, or the queue cannot be consumed.
    pub async fn parked(&self, query: &ParkedQuery, limit: usize) -> Result<ParkedMessages, LookError> {
        let (mut matching, mut messages) = (0, Vec::new());
        let mut look = Look::begin(self, query).await?;
        while let Some((parked, _)) = look.next().await? {
            matching += 1;
            if messages.len() < limit {
                messages.push(parked);
            }
        }
        let others = look.others();
        Ok(ParkedMessages { matching, unseen: look.end().await?, others, messages })
    }

    /// The whole of a parked message.
    ///
    /// # Errors
    /// As [`parked`](Self::parked).
    pub async fn parked_message(&self, id: &str) -> Result<Option<(Parked, Message)>, LookError> {
        let query = ParkedQuery { ids: [id.to_owned()].into(), ..ParkedQuery::default() };
        let mut look = Look::begin(self, &query).await?;
        let found = look.next().await?;
        look.end().await?;
        Ok(found.map(|(parked, delivery)| (parked, delivery.message)))
    }

    /// Puts parked messages back where they came from, as they were before their first attempt.
    ///
    /// Where a queue does not confirm in time, those that follow are not tried. Each is published once, and acked among the
    /// parked ones when its queue has confirmed it. If this process dies in between, it is in both places: `message_id` and run
    /// tell that it is the same. A manifest is published in the name of [`Config::user_id`](crate::Config::user_id), who answers
    /// for it where coordinators accept certain users only.
    ///
    /// # Errors
    /// Where the queue cannot be consumed to its end: what was put back by then is in the log.
    pub async fn replay(&self, query: &ParkedQuery) -> Result<Vec<Replayed>, LookError> {
        let mut replayed: Vec<Replayed> = Vec::new();
        let mut look = Look::begin(self, query).await?;
        while let Some((parked, delivery)) = look.next().await? {
            let outcome = match replayed.last().map(|last| &last.outcome) {
                Some(Err(ReplayError::Unconfirmed { .. } | ReplayError::Untried)) => {
                    Err(ReplayError::Untried)
                }
                _ => self.put_back(&parked, delivery.message.clone()).await,
            };
            if outcome.is_ok() {
                look.settle(&parked, &delivery, Settled::PutBack).await;
                let (id, from) = (&parked.id, parked.from.as_deref());
                tracing::info!(id, from, message_id = parked.message_id, "a parked message is put back");
            }
            replayed.push(Replayed { parked, outcome });
        }
        look.end().await?;
        Ok(replayed)
    }

    /// Drops parked messages for good, with the parts of their payloads, and returns which.
    ///
    /// # Errors
    /// Where the queue cannot be consumed to its end: what was dropped by then is in the log.
    pub async fn purge(&self, query: &ParkedQuery) -> Result<Vec<Parked>, LookError> {
        let mut purged = Vec::new();
        let mut look = Look::begin(self, query).await?;
        while let Some((parked, delivery)) = look.next().await? {
            look.settle(&parked, &delivery, Settled::Dropped).await;
            self.drop_parts(&delivery.message).await;
            tracing::info!(id = parked.id, reason = parked.reason, "a parked message is dropped");
            purged.push(parked);
        }
        look.end().await?;
        Ok(purged)
    }

    /// Deletes the parts of a final payload that a message refers to, unless somebody is reading them, who was handed the same
    /// message. What stays goes by itself, since nobody uses it.
    async fn drop_parts(&self, message: &Message) {
        let (Ok(Some(large)), Ok(cid), Ok(run)) = (LargePayload::of(message), message.cid(), message.run())
        else {
            return;
        };
        let queue = self.config.names.payload(&cid, run, large.writer).name;
        let all = |state: &QueueState| state.messages >= large.parts as u64;
        if let Ok(Some(_)) = self.broker.inspect(&queue).await.map(|state| state.filter(all))
            && let Err(error) = self.broker.delete(&queue).await
        {
            tracing::warn!(queue, %error, "the parts of a payload are left to expire");
        }
    }

    async fn put_back(&self, parked: &Parked, message: Message) -> Result<(), ReplayError> {
        let names = &self.config.names;
        let own = parked.cid.as_ref().zip(parked.run).map(|(cid, run)| names.aggregation(cid, run).name);
        let is_of_fan_outs = |from: &String| {
            *from == names.fanin_queue() || own.as_ref() == Some(from) || names.shard_number(from).is_some()
        };
        let from = parked
            .from
            .clone()
            .filter(|from| parked.service.is_some() || is_of_fan_outs(from))
            .ok_or_else(|| ReplayError::Origin(parked.from.clone()))?;
        if message.body.is_empty() {
            return Err(ReplayError::WithoutBody);
        }
        let mut message = message.unparked();
        if message.kind() == header::TYPE_MANIFEST {
            message.properties.user_id = self.config.user_id.as_deref().map(Into::into);
        }
        match timeout(CONFIRM, self.broker.publish(&from, message)).await {
            Ok(taken) => Ok(taken?),
            Err(_) => Err(ReplayError::Unconfirmed { waited: CONFIRM, blocked: self.broker.is_blocked() }),
        }
    }
}

/// FNV-1a over all that a message is, but for what a broker says of the delivery at hand.
fn digest(message: &Message) -> String {
    let headers = message.headers.iter().filter(|(name, _)| !header::is_of_delivery(name));
    let text = format!("{:?}{:?}", message.properties, headers.collect::<Vec<_>>());
    format!("{:016x}", fnv1a(text.bytes().chain(message.body.iter().copied())))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn message(body: &'static str) -> Message {
        let at = WireTime::from_timestamp(1_000).unwrap();
        let message = Message { body: body.into(), ..Message::default() };
        message.parked("fanfare.service.price.quote", "price.quote failed: no price", at, Uuid::from_u128(1))
    }

    #[test]
    fn the_id_of_a_message_is_the_same_however_often_it_was_looked_at() {
        let looked_at = message("1").with_header("x-delivery-count", 7);
        assert_eq!(digest(&message("1")), digest(&looked_at));
        assert_ne!(digest(&message("1")), digest(&message("2")));
        // It is written down, and used with a later version.
        assert_eq!(digest(&Message { body: "1".into(), ..Message::default() }).len(), 16);
    }

    #[test]
    fn each_part_of_a_query_leaves_out_what_does_not_match() {
        let parked = Parked::of(&message("1"), &QueueNames::default());
        assert_eq!(parked.service, ServiceName::new("price.quote").ok());
        let now = WireTime::from_timestamp(1_060).unwrap();
        let matches = |change: &dyn Fn(&mut ParkedQuery)| {
            let mut query = ParkedQuery::default();
            change(&mut query);
            query.matches(&parked, now)
        };
        assert!(matches(&|_| {}));
        assert!(matches(&|query| query.ids = [parked.id.clone()].into()));
        assert!(!matches(&|query| query.ids = ["other".to_owned()].into()));
        assert!(matches(&|query| query.service = ServiceName::new("price.quote").ok()));
        assert!(!matches(&|query| query.service = ServiceName::new("price").ok()));
        assert!(matches(&|query| query.reason = Some("no price".to_owned())));
        assert!(!matches(&|query| query.reason = Some("timed out".to_owned())));
        assert!(!matches(&|query| query.cid = Cid::new("c").ok()));
        assert!(!matches(&|query| query.run = Some(Uuid::from_u128(1).into())));
        assert!(matches(&|query| query.min_age = Some(Duration::from_secs(60))));
        assert!(!matches(&|query| query.min_age = Some(Duration::from_secs(61))));
    }
}
