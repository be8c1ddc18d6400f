//! Tells operators of the fan-outs that are open here, or have ended here lately.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fanfare_fanin::{FanIn, Shard};
use fanfare_protocol::{
    ExplainAnswer, ExplainRequest, Explained, FailedTarget, FanOutState, FanOutStatus, Malformed, Manifest,
    ManifestTarget, Message, MissingTarget, RunId, StatusAnswer, StatusQuery, StatusRequest, TargetResult,
    WireTime, header, limits,
};
use futures_util::future::join_all;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::coordinator::Open;
use crate::delivery::Tag;
use crate::messenger::Messenger;
use crate::records::{Record, Records};
use crate::shard;
use crate::shards::Shards;
use crate::trust::Trust;

/// Questions that are being answered, beyond which no more are: whoever asks does so again.
const MOST_AT_A_TIME: usize = 16;
/// How long a fan-out's task has for its part of an answer. One that is held up by the broker for longer is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers what operators ask.
#[derive(Debug)]
pub(crate) struct Inquiries {
    messenger: Messenger,
    trust: Trust,
    room: Arc<Semaphore>,
}

/// Something that somebody wants to know of a fan-out, or of those in a shard, which its task puts to its machine.
pub(crate) struct Question<M>(Box<dyn FnOnce(&M) + Send>);

impl<M> Question<M> {
    /// Asks something, and hands over what is answered, unless it is nothing.
    fn new<T: Send + 'static>(
        ask: impl FnOnce(&M) -> Option<T> + Send + 'static,
    ) -> (Self, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        let question = move |machine: &M| {
            if let Some(answer) = ask(machine) {
                let _ = sender.send(answer);
            }
        };
        (Self(Box::new(question)), receiver)
    }

    pub(crate) fn put(self, machine: &M) {
        (self.0)(machine);
    }
}

impl<M> fmt::Debug for Question<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

impl Inquiries {
    pub(crate) fn new(messenger: Messenger, trust: Trust) -> Self {
        Self { messenger, trust, room: Arc::new(Semaphore::new(MOST_AT_A_TIME)) }
    }

    /// Takes a question that is put to all coordinators.
    pub(crate) fn take(
        &self,
        message: &Message,
        open: &BTreeMap<RunId, Open>,
        shards: &Shards,
        records: &Records,
    ) {
        let taken = match message.kind() {
            header::TYPE_STATUS => self.status(message, open, shards, records),
            header::TYPE_EXPLAIN => self.explain(message, open, shards, records),
            kind => return tracing::debug!(kind, "not a request that a coordinator knows"),
        };
        if let Err(reason) = taken {
            tracing::debug!(kind = message.kind(), %reason, "a malformed question");
        }
    }

    fn status(
        &self,
        message: &Message,
        open: &BTreeMap<RunId, Open>,
        shards: &Shards,
        records: &Records,
    ) -> Result<(), Malformed> {
        let outbox = &self.messenger.outbox;
        let StatusRequest { id, reply_to, query } = StatusRequest::decode(message, &outbox.names)?;
        let (coordinator, refused) = (self.messenger.coordinator(), self.trust.check(message).err());
        let now = WireTime::from(outbox.environment.now());
        let query = Arc::new(query);
        let asks = refused.is_none() && !query.ended;
        let asked = ask(open.values().filter(|_| asks).map(|open| &open.inbox), || {
            let query = Arc::clone(&query);
            move |machine: &FanIn<Tag>| status_if_wanted(machine, &query, now)
        });
        let asked_shards = ask(shards.inboxes().filter(|_| asks), || {
            let query = Arc::clone(&query);
            move |shard: &Shard<shard::Tag>| {
                let wanted = shard.fan_ins().filter_map(|machine| status_if_wanted(machine, &query, now));
                Some(wanted.collect::<Vec<_>>())
            }
        });
        let ended = records.iter().filter(|_| refused.is_none() && query.ended);
        let wanted = |record: &&Record| {
            let serves = query.service.as_ref().is_none_or(|service| record.invokes(service));
            serves && query.matches(&record.explained.status, now)
        };
        let ended: Vec<_> = ended.filter(wanted).map(|record| record.explained.status.clone()).collect();
        self.answer(reply_to, async move {
            let mut fan_outs = gather_all(asked, asked_shards).await;
            fan_outs.extend(ended);
            let matching = fan_outs.len();
            query.select(&mut fan_outs);
            StatusAnswer { coordinator, refused, matching, fan_outs }.encode(&id)
        });
        Ok(())
    }

    fn explain(
        &self,
        message: &Message,
        open: &BTreeMap<RunId, Open>,
        shards: &Shards,
        records: &Records,
    ) -> Result<(), Malformed> {
        let names = &self.messenger.outbox.names;
        let ExplainRequest { cid, run, reply_to, limit } = ExplainRequest::decode(message, names)?;
        let (coordinator, refused) = (self.messenger.coordinator(), self.trust.check(message).err());
        let trusted = refused.is_none();
        let is_meant = |of: &RunId| trusted && run.is_none_or(|run| run == *of);
        let open = open.iter().filter(|(of, open)| is_meant(of) && open.cid == cid);
        let asked = ask(open.map(|(_, open)| &open.inbox), || {
            move |machine: &FanIn<Tag>| Some(explain(machine, limit))
        });
        let asked_shards = ask(shards.inbox(&cid).into_iter().filter(|_| trusted), || {
            let cid = cid.clone();
            move |shard: &Shard<shard::Tag>| {
                let meant = shard.find(&cid, run).into_iter().filter_map(|run| shard.fan_in(&run));
                Some(meant.map(|machine| explain(machine, limit)).collect::<Vec<_>>())
            }
        });
        let of_cid = |record: &&Record| {
            let status = &record.explained.status;
            is_meant(&status.run) && status.cid == cid
        };
        let ended: Vec<_> = records.iter().filter(of_cid).map(|record| record.explained.clone()).collect();
        self.answer(reply_to, async move {
            let mut fan_outs = gather_all(asked, asked_shards).await;
            fan_outs.extend(ended);
            let matching = fan_outs.len();
            fan_outs.truncate(limits::EXPLAINED);
            ExplainAnswer { coordinator, refused, matching, fan_outs }.encode(&cid)
        });
        Ok(())
    }

    fn answer(&self, reply_to: String, answer: impl Future<Output = Message> + Send + 'static) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            return tracing::debug!("too many questions at a time: one is not answered");
        };
        self.messenger.tell(reply_to, async move {
            let _room = room;
            answer.await
        });
    }
}

/// Puts a question to the tasks with these inboxes.
fn ask<'a, M, W, T, Q>(
    inboxes: impl Iterator<Item = &'a UnboundedSender<W>>,
    question: impl Fn() -> Q,
) -> Vec<oneshot::Receiver<T>>
where
    W: From<Question<M>> + 'a,
    T: Send + 'static,
    Q: FnOnce(&M) -> Option<T> + Send + 'static,
{
    let asked = inboxes.map(|inbox| {
        let (question, answer) = Question::new(question());
        let _ = inbox.send(question.into());
        answer
    });
    asked.collect()
}

/// What the tasks of fan-outs answer, and those of shards.
async fn gather_all<T>(
    asked: Vec<oneshot::Receiver<T>>,
    asked_shards: Vec<oneshot::Receiver<Vec<T>>>,
) -> Vec<T> {
    let (mut answers, of_shards) = tokio::join!(gather(asked), gather(asked_shards));
    answers.extend(of_shards.into_iter().flatten());
    answers
}

/// What the tasks answer. Those that have just ended answer nothing.
async fn gather<T>(asked: Vec<oneshot::Receiver<T>>) -> Vec<T> {
    let answers = join_all(asked.into_iter().map(|answer| timeout(PATIENCE, answer))).await;
    answers.into_iter().filter_map(|answer| answer.ok()?.ok()).collect()
}

fn status_if_wanted<T: Clone>(
    machine: &FanIn<T>,
    query: &StatusQuery,
    now: WireTime,
) -> Option<FanOutStatus> {
    let mut invoked = machine.manifest().targets.iter().map(|target| &target.service);
    let serves = query.service.as_ref().is_none_or(|service| invoked.any(|invoked| invoked == service));
    serves.then(|| status(machine, machine.state())).filter(|status| query.matches(status, now))
}

/// How far a fan-out has come.
pub(crate) fn status<T: Clone>(machine: &FanIn<T>, state: FanOutState) -> FanOutStatus {
    let Manifest { cid, run, source, req_ts_utc, targets, deadline_utc, .. } = &**machine.manifest();
    FanOutStatus {
        cid: cid.clone(),
        run: *run,
        source: source.clone(),
        req_ts_utc: *req_ts_utc,
        targets: targets.len(),
        done: machine.responded(),
        failed: machine.failures().count(),
        deadline_utc: *deadline_utc,
        state,
    }
}

fn explain<T: Clone>(machine: &FanIn<T>, limit: usize) -> Explained {
    let missing = machine.missing().take(limit.min(limits::TOLD)).map(|place| {
        let ManifestTarget { key, service } = machine.manifest().targets[place].clone();
        MissingTarget { place, key, service }
    });
    let missing = missing.collect();
    let failures = failures(machine);
    Explained { status: status(machine, machine.state()), missing, failures }
}

/// The first of the targets that have failed.
pub(crate) fn failures<T: Clone>(machine: &FanIn<T>) -> Vec<FailedTarget> {
    let failures = machine.failures().take(limits::FAILURES_TOLD).map(|(place, answer)| {
        let ManifestTarget { key, service } = machine.manifest().targets[place].clone();
        let result = TargetResult::from_body(&answer.body);
        let exception = result.ok().and_then(|result| result.exception).unwrap_or_default();
        let exception = exception.chars().take(limits::EXCEPTION_TOLD_CHARS).collect();
        FailedTarget { key, service, exception }
    });
    failures.collect()
}
