//! What each missing target of a fan-out waits for: what coordinators, workers, queues and parked messages tell, put together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use fanfare_broker::PublishError;
use fanfare_protocol::queue::DELAY_STEPS;
use fanfare_protocol::{
    AtWorker, Cid, Doing, ExplainAnswer, ExplainRequest, Explained, FailedTarget, FanOutState, FanOutStatus,
    MissingTarget, QueueNames, RespondedTarget, RunId, ServiceName, TargetKey, WireTime, WorkerAnswer,
    counted,
};
use serde::Serialize;

use crate::status::is_newer;
use crate::{AskError, Coordinators, Operator, Parked, ParkedMessages, ParkedQuery};

/// Queues of services that are looked at, of one question.
const MOST_QUEUES: usize = 100;
/// Parked messages that are told of.
const MOST_PARKED: usize = 100;

/// All that can be known of the fan-outs with one CID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The correlation ID.
    pub cid: Cid,
    /// The run, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// How many fan-outs coordinators know with it.
    pub matching: usize,
    /// The first of them: those that are open before those that have ended.
    pub fan_outs: Vec<Told>,
    /// The queues of the services whose targets are missing; none for one that could not be looked at.
    pub queues: BTreeMap<ServiceName, Option<ServiceQueue>>,
    /// Why workers could not be asked, where they were to be.
    pub workers_unasked: Option<String>,
    /// Manifests that wait for a coordinator, of whatever fan-outs, where each has a queue of its own.
    pub manifests_waiting: Option<u64>,
    /// The shard that fan-outs with this CID belong to where they are shared; none where it is not known how many there are.
    pub shard: Option<Shard>,
    /// Messages that wait for another attempt, of whatever fan-outs. Looked at where a target's whereabouts are not known; none
    /// where that was not possible, too.
    pub retries_waiting: Option<u64>,
    /// Messages with this CID that are parked.
    pub parked: Vec<Parked>,
    /// Why not all that is parked was looked at, where it was to be.
    pub parked_unseen: Option<String>,
    /// Which coordinators have told.
    pub coordinators: Coordinators,
}

/// One fan-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// How far it has come.
    #[serde(flatten)]
    pub status: FanOutStatus,
    /// The first of the targets that have no result. There are `targets` less `done`.
    #[serde(rename = "missing_targets")]
    pub missing: Vec<MissingFrom>,
    /// The first of the targets that have a result, whoever wrote it. There are `done`.
    #[serde(rename = "responded_targets")]
    pub responded: Vec<RespondedTarget>,
    /// The first of the targets that have failed. There are `failed`.
    #[serde(rename = "failed_targets")]
    pub failures: Vec<FailedTarget>,
}

/// A target without a result, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingFrom {
    /// The target.
    #[serde(flatten)]
    pub target: MissingTarget,
    /// Where it is, as far as anybody tells.
    #[serde(flatten)]
    pub whereabouts: Whereabouts,
}

/// Where a missing target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "where", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Whereabouts {
    /// A worker runs it.
    Running {
        /// Its name, or its ID.
        worker: String,
        /// Since when.
        since_utc: WireTime,
        /// Which attempt it is, from 1.
        attempt: u32,
    },
    /// It failed, and waits for its next attempt.
    Retrying {
        /// Until about when.
        until_utc: WireTime,
        /// Which attempt failed, from 1.
        attempt: u32,
        /// Why.
        exception: String,
    },
    /// Its request is parked.
    Parked {
        /// Under which ID.
        id: String,
        /// Why.
        reason: String,
    },
    /// Its service has no queue any more.
    #[serde(rename = "no-queue")]
    NoQueue,
    /// It is among those that wait in the queue of its service, or was handed to a worker that has not begun with it.
    Queued,
    /// Nothing waits in the queue of its service: it was handed to a worker that has not begun with it or does not tell, waits
    /// for another attempt, or is lost.
    Handed,
    /// Nothing waits in the queue of its service, and nobody consumes it: it waits for another attempt, or is lost.
    Elsewhere,
    /// Nobody tells.
    Unknown,
}

/// A queue, such as that of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ServiceQueue {
    /// Whether it is there.
    pub there: bool,
    /// Messages that wait in it, of whatever fan-outs.
    pub waiting: u64,
    /// Consumers that workers have there.
    pub consumers: u64,
}

/// A shard, where manifests wait among results, of whatever fan-outs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shard {
    /// The name of its queue.
    pub name: String,
    /// The queue; none where it could not be looked at.
    pub queue: Option<ServiceQueue>,
}

/// Which worker told what of a target.
type AtWorkers = BTreeMap<(RunId, TargetKey), (String, AtWorker)>;

impl Operator {
    /// What the fan-outs with this CID wait for, or that of this run: `limit` missing targets of each.
    ///
    /// # Errors
    /// [`AskError`], where no coordinator has told. Where something else could not be looked at, that is left out, or says so.
    pub async fn explain(
        &self,
        cid: &Cid,
        run: Option<RunId>,
        limit: usize,
    ) -> Result<Explanation, AskError> {
        self.look_into(cid, run, limit, true).await
    }

    /// The same for whoever asks again and again. It does not look at what is parked, since a look takes that for a moment: a
    /// target whose request is parked looks like one that was handed to a worker.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub async fn follow(&self, cid: &Cid, run: Option<RunId>, limit: usize) -> Result<Explanation, AskError> {
        self.look_into(cid, run, limit, false).await
    }

    async fn look_into(
        &self,
        cid: &Cid,
        run: Option<RunId>,
        limit: usize,
        at_parked: bool,
    ) -> Result<Explanation, AskError> {
        let names = &self.config.names;
        let question = |reply_to| ExplainRequest { cid: cid.clone(), run, reply_to, limit }.encode();
        let read = |message: &_| ExplainAnswer::decode(message).map(|answer| (answer.coordinator, answer));
        let (answers, known) = self.ask_coordinators(question, read).await?;
        let who = answers.iter().map(|it| (it.coordinator, it.name.as_ref(), it.refused.as_ref()));
        let coordinators = Coordinators::count(who, known)?;
        let (matching, fan_outs) = merged(answers);

        let missing = fan_outs.iter().flat_map(|fan_out| &fan_out.missing);
        let services: BTreeSet<&ServiceName> = missing.map(|target| &target.service).collect();
        let mut queues = BTreeMap::new();
        for service in services.into_iter().take(MOST_QUEUES) {
            queues.insert(service.clone(), self.queue(&names.service_queue(service)).await);
        }
        let at_workers = self.ask_workers(cid, run, limit, &fan_outs, &queues).await;
        let (at_workers, workers_unasked) = match at_workers {
            Ok(at_workers) => (at_workers, None),
            Err(error) => (AtWorkers::new(), Some(with_causes(&error))),
        };
        // After coordinators were asked: what one has let go in between is seen here.
        let (parked, parked_unseen) =
            if at_parked { self.parked_of(cid, run).await } else { (Vec::new(), None) };
        let fan_outs: Vec<Told> =
            fan_outs.into_iter().map(|explained| told(explained, &at_workers, &parked, &queues)).collect();
        let is_open = fan_outs.iter().flat_map(|fan_out| &fan_out.missing);
        let nobody_tells = is_open
            .clone()
            .any(|target| matches!(target.whereabouts, Whereabouts::Handed | Whereabouts::Elsewhere));
        Ok(Explanation {
            cid: cid.clone(),
            run,
            matching,
            queues,
            workers_unasked,
            manifests_waiting: self.queue(&names.fanin_queue()).await.map(|queue| queue.waiting),
            shard: self.shard(cid).await,
            retries_waiting: if nobody_tells { self.retries_waiting().await } else { None },
            parked,
            parked_unseen,
            coordinators,
            fan_outs,
        })
    }

    /// How a queue is. None where it cannot be looked at.
    pub async fn queue(&self, name: &str) -> Option<ServiceQueue> {
        let state = self.broker.inspect(name).await.ok()?;
        Some(match state {
            Some(state) => ServiceQueue { there: true, waiting: state.messages, consumers: state.consumers },
            None => ServiceQueue { there: false, waiting: 0, consumers: 0 },
        })
    }

    async fn shard(&self, cid: &Cid) -> Option<Shard> {
        let number = (self.config.shards > 0).then(|| QueueNames::shard_of(cid, self.config.shards))?;
        let name = self.config.names.shard(number).name;
        Some(Shard { queue: self.queue(&name).await, name })
    }

    /// What is parked of these fan-outs, and why more of it may be that was not looked at.
    async fn parked_of(&self, cid: &Cid, run: Option<RunId>) -> (Vec<Parked>, Option<String>) {
        let query = ParkedQuery { cid: Some(cid.clone()), run, ..ParkedQuery::default() };
        let found = match self.parked(&query, MOST_PARKED).await {
            Ok(found) => found,
            Err(error) => return (Vec::new(), Some(error.to_string())),
        };
        let unseen = match found {
            ParkedMessages { others: 1.., .. } => Some(format!(
                "others consume `{}` ({}), and what they hold cannot be seen: see that they end",
                self.config.names.parked().name,
                counted(found.others, "consumer", "consumers")
            )),
            ParkedMessages { unseen: 1.., .. } => Some(format!(
                "{} parked messages were not looked at: they are too many, or somebody else holds them",
                found.unseen
            )),
            _ => None,
        };
        (found.messages, unseen)
    }

    async fn retries_waiting(&self) -> Option<u64> {
        let mut waiting = 0;
        for seconds in DELAY_STEPS {
            waiting += self.queue(&self.config.names.delay(seconds).name).await?.waiting;
        }
        Some(waiting)
    }

    /// Asks workers, where any of the missing targets may be at one.
    async fn ask_workers(
        &self,
        cid: &Cid,
        run: Option<RunId>,
        limit: usize,
        fan_outs: &[Explained],
        queues: &BTreeMap<ServiceName, Option<ServiceQueue>>,
    ) -> Result<AtWorkers, AskError> {
        let may_be_there = |target: &&MissingTarget| match queues.get(&target.service) {
            Some(Some(queue)) => queue.consumers > 0,
            _ => true,
        };
        let expected = fan_outs.iter().flat_map(|fan_out| {
            let run = fan_out.status.run;
            fan_out.missing.iter().filter(may_be_there).map(move |target| (run, target.key.clone()))
        });
        let expected: BTreeSet<(RunId, TargetKey)> = expected.collect();
        if expected.is_empty() {
            return Ok(AtWorkers::new());
        }
        let question = |reply_to| ExplainRequest { cid: cid.clone(), run, reply_to, limit }.encode();
        let read = |message: &_| WorkerAnswer::decode(message).map(|answer| (answer.worker, answer));
        let enough = |answers: &BTreeMap<RunId, WorkerAnswer>| {
            let targets = answers.values().flat_map(|answer| &answer.targets);
            let found: BTreeSet<_> = targets.map(|target| (target.run, target.key.clone())).collect();
            expected.is_subset(&found)
        };
        match self.gather(&self.config.names.workers(), question, read, enough).await {
            Ok(answers) => Ok(at_workers(answers.into_values())),
            Err(AskError::NotSent(PublishError::Unbound(_) | PublishError::NoExchange(_))) => {
                Ok(AtWorkers::new())
            }
            Err(error) => Err(error),
        }
    }
}

/// What coordinators say, each fan-out once, and those that are open first.
fn merged(answers: Vec<ExplainAnswer>) -> (usize, Vec<Explained>) {
    let mut matching = answers.iter().map(|answer| answer.matching).sum();
    let mut runs: BTreeMap<RunId, Explained> = BTreeMap::new();
    for explained in answers.into_iter().flat_map(|answer| answer.fan_outs) {
        match runs.entry(explained.status.run) {
            Entry::Vacant(vacant) => _ = vacant.insert(explained),
            Entry::Occupied(mut other) => {
                matching -= 1;
                if is_newer(&explained.status, &other.get().status) {
                    other.insert(explained);
                }
            }
        }
    }
    let mut fan_outs: Vec<Explained> = runs.into_values().collect();
    fan_outs.sort_by_key(|explained| match explained.status.state {
        FanOutState::Ended { ended_utc, .. } => (true, std::cmp::Reverse(ended_utc)),
        _ => (false, std::cmp::Reverse(explained.status.req_ts_utc)),
    });
    (matching, fan_outs)
}

/// Of what several workers say of one target, that it runs counts more than that it waits.
fn at_workers(answers: impl Iterator<Item = WorkerAnswer>) -> AtWorkers {
    let mut all = AtWorkers::new();
    for WorkerAnswer { worker, name, targets, .. } in answers {
        let name = name.unwrap_or_else(|| worker.to_string());
        for target in targets {
            let key = (target.run, target.key.clone());
            let runs = matches!(target.doing, Doing::Running { .. });
            if runs || !all.contains_key(&key) {
                all.insert(key, (name.clone(), target));
            }
        }
    }
    all
}

impl From<Explained> for Told {
    /// As one coordinator tells of it, which does not know where its targets are.
    fn from(explained: Explained) -> Self {
        told(explained, &AtWorkers::new(), &[], &BTreeMap::new())
    }
}

fn told(
    explained: Explained,
    at_workers: &AtWorkers,
    parked: &[Parked],
    queues: &BTreeMap<ServiceName, Option<ServiceQueue>>,
) -> Told {
    let Explained { status, missing, responded, failures } = explained;
    let missing = missing.into_iter().map(|target| {
        let request = format!("{}/{}", status.cid, target.place);
        let at_worker = at_workers.get(&(status.run, target.key.clone()));
        let parked = parked
            .iter()
            .find(|parked| parked.run == Some(status.run) && parked.message_id.as_ref() == Some(&request));
        let queue = queues.get(&target.service).copied().flatten();
        MissingFrom { whereabouts: whereabouts(at_worker, parked, queue), target }
    });
    Told { missing: missing.collect(), status, responded, failures }
}

fn whereabouts(
    at_worker: Option<&(String, AtWorker)>,
    parked: Option<&Parked>,
    queue: Option<ServiceQueue>,
) -> Whereabouts {
    match (at_worker, parked, queue) {
        (Some((worker, AtWorker { attempt, doing: Doing::Running { since_utc }, .. })), _, _) => {
            Whereabouts::Running { worker: worker.clone(), since_utc: *since_utc, attempt: *attempt }
        }
        (Some((_, AtWorker { attempt, doing: Doing::Retrying { until_utc, exception }, .. })), _, _) => {
            let exception = exception.clone();
            Whereabouts::Retrying { until_utc: *until_utc, attempt: *attempt, exception }
        }
        (_, Some(parked), _) => Whereabouts::Parked { id: parked.id.clone(), reason: parked.reason.clone() },
        (_, _, None) => Whereabouts::Unknown,
        (_, _, Some(ServiceQueue { there: false, .. })) => Whereabouts::NoQueue,
        (_, _, Some(ServiceQueue { waiting: 0, consumers: 0, .. })) => Whereabouts::Elsewhere,
        (_, _, Some(ServiceQueue { waiting: 0, .. })) => Whereabouts::Handed,
        (_, _, Some(_)) => Whereabouts::Queued,
    }
}

/// An error with what led to it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fanfare_broker::memory::MemoryBroker;
    use fanfare_broker::{Broker, System};
    use fanfare_protocol::Message;

    use super::*;
    use crate::Config;

    #[tokio::test]
    async fn more_that_is_parked_than_can_be_looked_at_is_told_of() {
        let broker = Arc::new(MemoryBroker::new());
        let parked = QueueNames::default().parked();
        broker.declare(&parked).await.unwrap();
        let operator = Operator::new(broker.clone(), Arc::new(System), Config::default());
        let cid = Cid::new("c").unwrap();
        for unseen in [None, Some("1 parked messages were not looked at")] {
            for _ in broker.inspect(&parked.name).await.unwrap().unwrap().messages..10_000 {
                broker.publish(&parked.name, Message::default()).await.unwrap();
            }
            let (_, why) = operator.parked_of(&cid, None).await;
            assert_eq!(why.as_deref().and_then(|why| why.split(':').next()), unseen);
            broker.publish(&parked.name, Message::default()).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_look_at_what_is_parked_since_another_does_is_told_so() {
        let broker = MemoryBroker::new();
        let lock = QueueNames::default().parked_look();
        let elsewhere = broker.connect();
        let another = elsewhere.open().await.unwrap();
        another.declare_exclusive(&lock).await.unwrap();
        let operator = Operator::new(Arc::new(broker), Arc::new(System), Config::default());
        let cid = Cid::new("c").unwrap();
        let (_, why) = operator.parked_of(&cid, None).await;
        let why = why.unwrap();
        assert!(
            why.contains("somebody else is looking at what is parked") && why.contains(&lock.name),
            "{why}"
        );
        another.delete(&lock.name).await.unwrap();
        assert_eq!(operator.parked_of(&cid, None).await.1, None);
    }
}
