//! Tells operators of the fan-outs that are open here, or have ended here lately.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fanfare_fanin::{FanIn, Shard};
use fanfare_protocol::{
    Cid, ExplainAnswer, ExplainRequest, Explained, FailedTarget, FanOutState, FanOutStatus, Malformed,
    Manifest, ManifestTarget, Message, MissingTarget, RespondedTarget, RunId, StatusAnswer, StatusQuery,
    StatusRequest, TargetResult, WireTime, header, limits,
};
use futures_util::future::join_all;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::coordinator::Open;
use crate::delivery::Tag;
use crate::handle::Inquiry;
use crate::messenger::Messenger;
use crate::records::Record;
use crate::shard;
use crate::shards::Shards;
use crate::trust::Trust;
use crate::view::View;

/// Questions that are being answered, beyond which no more are: whoever asks does so again.
const MOST_AT_A_TIME: usize = 16;
/// How long a fan-out's task has for its part of an answer. One that is held up by the broker for longer is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers what operators ask.
#[derive(Debug)]
pub(crate) struct Inquiries {
    messenger: Messenger,
    trust: Trust,
    /// What whoever runs this coordinator calls it.
    name: Option<String>,
    room: Arc<Semaphore>,
}

/// What there is to be told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) open: &'a BTreeMap<RunId, Open>,
    pub(crate) shards: &'a Shards,
    pub(crate) view: &'a View,
}

/// Something that somebody wants to know of a fan-out, or of those in a shard, which its task puts to its machine.
pub(crate) struct Question<M> {
    put: Box<dyn FnOnce(&M) + Send>,
    of_open: bool,
}

impl<M> Question<M> {
    /// Asks something, and hands over what is answered, unless it is nothing.
    fn new<T: Send + 'static>(
        of_open: bool,
        ask: impl FnOnce(&M) -> Option<T> + Send + 'static,
    ) -> (Self, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        let question = move |machine: &M| {
            if let Some(answer) = ask(machine) {
                let _ = sender.send(answer);
            }
        };
        (Self { put: Box::new(question), of_open }, receiver)
    }

    /// Whether it is put to open fan-outs: one that may have ended elsewhere is not to be told of as such.
    pub(crate) const fn is_of_open(&self) -> bool {
        self.of_open
    }

    pub(crate) fn put(self, machine: &M) {
        (self.put)(machine);
    }
}

impl<M> fmt::Debug for Question<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

impl Inquiries {
    pub(crate) fn new(messenger: Messenger, trust: Trust, name: Option<String>) -> Self {
        Self { messenger, trust, name, room: Arc::new(Semaphore::new(MOST_AT_A_TIME)) }
    }

    /// Takes a question that is put to all coordinators.
    pub(crate) fn take(&self, message: &Message, known: &Known<'_>) {
        let taken = match message.kind() {
            header::TYPE_STATUS => self.take_status(message, known),
            header::TYPE_EXPLAIN => self.take_explain(message, known),
            kind => return tracing::debug!(kind, "not a request that a coordinator knows"),
        };
        if let Err(reason) = taken {
            tracing::debug!(kind = message.kind(), %reason, "a malformed question");
        }
    }

    /// Answers what is asked in this process.
    pub(crate) fn ask(&self, inquiry: Inquiry, known: &Known<'_>) {
        match inquiry {
            Inquiry::Ping(answer) => drop(answer.send(())),
            Inquiry::Status(query, answer) => {
                let told = self.status(query, None, known);
                tokio::spawn(async move { answer.send(told.await) });
            }
            Inquiry::Explain(cid, run, limit, answer) => {
                let told = self.explain(&cid, run, limit, None, known);
                tokio::spawn(async move { answer.send(told.await) });
            }
        }
    }

    fn take_status(&self, message: &Message, known: &Known<'_>) -> Result<(), Malformed> {
        let names = &self.messenger.outbox.names;
        let StatusRequest { id, reply_to, query } = StatusRequest::decode(message, names)?;
        let told = self.status(query, self.trust.check_request(message).err(), known);
        self.answer(reply_to, async move { told.await.encode(&id) });
        Ok(())
    }

    fn take_explain(&self, message: &Message, known: &Known<'_>) -> Result<(), Malformed> {
        let names = &self.messenger.outbox.names;
        let ExplainRequest { cid, run, reply_to, limit } = ExplainRequest::decode(message, names)?;
        let told = self.explain(&cid, run, limit, self.trust.check_request(message).err(), known);
        self.answer(reply_to, async move { told.await.encode(&cid) });
        Ok(())
    }

    fn status(
        &self,
        query: StatusQuery,
        refused: Option<String>,
        known: &Known<'_>,
    ) -> impl Future<Output = StatusAnswer> + Send + use<> {
        let (coordinator, name) = (self.messenger.coordinator(), self.name.clone());
        let now = WireTime::from(self.messenger.outbox.environment.now());
        let query = Arc::new(query);
        let asks = refused.is_none() && !query.ended;
        let asked = ask(known.open.values().filter(|_| asks).map(|open| &open.inbox), true, || {
            let query = Arc::clone(&query);
            move |machine: &FanIn<Tag>| status_if_wanted(machine, &query, now)
        });
        let asked_shards = ask(known.shards.inboxes().filter(|_| asks), true, || {
            let query = Arc::clone(&query);
            move |shard: &Shard<shard::Tag>| {
                let wanted = shard.fan_ins().filter_map(|machine| status_if_wanted(machine, &query, now));
                Some(wanted.collect::<Vec<_>>())
            }
        });
        let view = known.view.clone();
        async move {
            let mut fan_outs = gather_all(asked, asked_shards).await;
            let wanted = |record: &Record| {
                let serves = query.service.as_ref().is_none_or(|service| record.invokes(service));
                serves && query.matches(&record.explained.status, now)
            };
            if refused.is_none() && query.ended {
                fan_outs.extend(view.ended(wanted).into_iter().map(|ended| ended.status));
            }
            let lately = (refused.is_none() && query.lately).then(|| view.lately());
            let matching = fan_outs.len();
            query.select(&mut fan_outs);
            StatusAnswer { coordinator, name, refused, matching, fan_outs, lately }
        }
    }

    fn explain(
        &self,
        cid: &Cid,
        run: Option<RunId>,
        limit: usize,
        refused: Option<String>,
        known: &Known<'_>,
    ) -> impl Future<Output = ExplainAnswer> + Send + use<> {
        let (coordinator, name) = (self.messenger.coordinator(), self.name.clone());
        let trusted = refused.is_none();
        let is_meant = move |of: &RunId| trusted && run.is_none_or(|run| run == *of);
        let open = known.open.iter().filter(|(of, open)| is_meant(of) && open.manifest.cid == *cid);
        let asked = ask(open.map(|(_, open)| &open.inbox), false, || {
            move |machine: &FanIn<Tag>| Some(explain(machine, limit))
        });
        let asked_shards = ask(known.shards.inboxes().filter(|_| trusted), false, || {
            let cid = cid.clone();
            move |shard: &Shard<shard::Tag>| {
                let meant = shard.find(&cid, run).into_iter().filter_map(|run| shard.fan_in(&run));
                Some(meant.map(|machine| explain(machine, limit)).collect::<Vec<_>>())
            }
        });
        let (view, cid) = (known.view.clone(), cid.clone());
        async move {
            let mut fan_outs = gather_all(asked, asked_shards).await;
            // Only now: what ends meanwhile is told of as open or as ended, and never as neither.
            let ended = view.ended(|record| {
                let status = &record.explained.status;
                is_meant(&status.run) && status.cid == cid
            });
            fan_outs.retain(|open| ended.iter().all(|ended| ended.status.run != open.status.run));
            fan_outs.extend(ended);
            let matching = fan_outs.len();
            fan_outs.truncate(limits::EXPLAINED);
            ExplainAnswer { coordinator, name, refused, matching, fan_outs }
        }
    }

    fn answer(&self, reply_to: String, answer: impl Future<Output = Message> + Send + 'static) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            return tracing::debug!("too many questions at a time: one is not answered");
        };
        self.messenger.tell(reply_to, async move {
            let _room = room;
            [answer.await]
        });
    }
}

/// Puts a question to the tasks with these inboxes, of fan-outs that are open or of any.
fn ask<'a, M, W, T, Q>(
    inboxes: impl Iterator<Item = &'a UnboundedSender<W>>,
    of_open: bool,
    question: impl Fn() -> Q,
) -> Vec<oneshot::Receiver<T>>
where
    W: From<Question<M>> + 'a,
    T: Send + 'static,
    Q: FnOnce(&M) -> Option<T> + Send + 'static,
{
    let asked = inboxes.map(|inbox| {
        let (question, answer) = Question::new(of_open, question());
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
pub(crate) async fn gather<T>(asked: Vec<oneshot::Receiver<T>>) -> Vec<T> {
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
    let limit = limit.min(limits::TOLD);
    let missing = machine.missing().take(limit).map(|place| {
        let ManifestTarget { key, service } = machine.manifest().targets[place].clone();
        MissingTarget { place, key, service }
    });
    Explained {
        status: status(machine, machine.state()),
        missing: missing.collect(),
        responded: responded(machine, limit),
        failures: failures(machine),
    }
}

/// The first of the targets that have a result.
pub(crate) fn responded<T: Clone>(machine: &FanIn<T>, limit: usize) -> Vec<RespondedTarget> {
    let responded = machine.answers().take(limit).map(|(place, answer)| {
        let ManifestTarget { key, service } = machine.manifest().targets[place].clone();
        RespondedTarget { place, key, service, ok: answer.ok, at_utc: answer.at, ended_by: answer.ended_by }
    });
    responded.collect()
}

/// The first of the targets that have failed.
pub(crate) fn failures<T: Clone>(machine: &FanIn<T>) -> Vec<FailedTarget> {
    let failures = machine.failures().take(limits::FAILURES_TOLD);
    failures.map(|(place, answer)| failed_target(machine.manifest(), place, &answer.body)).collect()
}

/// A target that has failed, with the beginning of what its result says.
pub(crate) fn failed_target(manifest: &Manifest, place: usize, result: &[u8]) -> FailedTarget {
    let ManifestTarget { key, service } = manifest.targets[place].clone();
    let exception =
        TargetResult::from_body(result).ok().and_then(|result| result.exception).unwrap_or_default();
    let exception = exception.chars().take(limits::EXCEPTION_TOLD_CHARS).collect();
    FailedTarget { key, service, exception }
}
