use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fanfare_fanin::ShardLimits;
use fanfare_protocol::{CancelState, Cid, Presence, QueueNames, RunId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::fan_out::sleep_until;
use crate::members::{HEARTBEAT, Members};
use crate::messenger::Messenger;
use crate::shard::{Known, ShardTask, Word};
use crate::trust::Trust;
use crate::view::View;

/// The shards that this coordinator consumes, each by a task of its own.
#[derive(Debug)]
pub(crate) struct Shards {
    names: QueueNames,
    count: u32,
    limits: ShardLimits,
    /// Fan-outs that may be open in one.
    most_open: usize,
    /// This coordinator stops.
    hurry: CancellationToken,
    /// How long it may take to leave one then.
    leave_within: Duration,
    messenger: Messenger,
    trust: Trust,
    started: Instant,
    members: Members,
    /// When the others are told again that this one is there; none where there are no shards.
    next_heartbeat: Option<Instant>,
    /// Those that this one is to consume.
    wanted: BTreeSet<u32>,
    consumed: BTreeMap<u32, Consumed>,
    tasks: JoinSet<(u32, Known)>,
    /// What is known of shards that were left.
    known: BTreeMap<u32, Known>,
    view: View,
}

#[derive(Debug)]
struct Consumed {
    inbox: mpsc::UnboundedSender<Word>,
    leave: CancellationToken,
}

impl Shards {
    pub(crate) fn new(
        config: &Config,
        messenger: Messenger,
        trust: Trust,
        started: Instant,
        view: View,
    ) -> Self {
        let limits = ShardLimits {
            window: config.shard_limits.window,
            patience: config.shard_limits.patience,
            recorded: config.shard_limits.recorded,
            fan_out: config.limits,
        };
        Self {
            names: config.names.clone(),
            count: config.shards,
            limits,
            most_open: config.shard_limits.most_open,
            hurry: CancellationToken::new(),
            leave_within: config.stop_within,
            members: Members::new(messenger.coordinator, config.shards),
            next_heartbeat: None,
            wanted: BTreeSet::new(),
            messenger,
            trust,
            started,
            consumed: BTreeMap::new(),
            tasks: JoinSet::new(),
            known: BTreeMap::new(),
            view,
        }
    }

    /// Begins to consume, where there are any.
    pub(crate) fn start(&mut self) {
        self.next_heartbeat = (self.count > 0).then(Instant::now);
    }

    /// A coordinator has told of itself.
    pub(crate) fn heard(&mut self, presence: Presence) {
        if self.next_heartbeat.is_none() {
            return;
        }
        if self.members.heard(presence, Instant::now()) {
            // It does not know this one either.
            self.next_heartbeat = Some(Instant::now());
        }
        self.share();
    }

    /// A coordinator has told of itself that is not of an accepted user. That is told of once.
    pub(crate) fn distrust(&mut self, coordinator: RunId, user_id: Option<&str>) {
        if self.next_heartbeat.is_some() && self.members.distrust(coordinator) {
            tracing::warn!(
                %coordinator,
                user_id,
                "no shards are shared with another coordinator, which is of no accepted user: have it set its user_id, and list \
                 that in accept_users here"
            );
        }
    }

    fn beat(&mut self) {
        self.members.expire(Instant::now());
        self.tell(false);
        self.next_heartbeat = Some(Instant::now() + HEARTBEAT);
        self.share();
    }

    fn tell(&self, leaving: bool) {
        self.messenger.tell_coordinators(self.trust.sign(self.members.presence(leaving).encode()));
    }

    /// Consumes the shards that are this one's, and leaves all others.
    fn share(&mut self) {
        self.wanted = self.members.own_shards();
        let unwanted = self.consumed.iter().filter(|(shard, _)| !self.wanted.contains(shard));
        unwanted.for_each(|(_, consumed)| consumed.leave.cancel());
        let missing: Vec<u32> =
            self.wanted.iter().copied().filter(|shard| !self.consumed.contains_key(shard)).collect();
        missing.into_iter().for_each(|shard| self.consume(shard));
    }

    fn consume(&mut self, shard: u32) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let leave = CancellationToken::new();
        let task = ShardTask {
            queue: self.names.shard(shard),
            limits: self.limits,
            most_open: self.most_open,
            messenger: self.messenger.clone(),
            trust: self.trust.clone(),
            inbox,
            started: self.started,
            leave: leave.clone(),
            hurry: self.hurry.clone(),
            leave_within: self.leave_within,
            known: self.known.remove(&shard).unwrap_or_default(),
            view: self.view.clone(),
        };
        self.tasks.spawn(async move { (shard, task.run().await) });
        self.consumed.insert(shard, Consumed { inbox: sender, leave });
    }

    /// Waits until there is something to do, and does it: tells the others of this one, or takes up a shard again that was left.
    pub(crate) async fn run(&mut self) {
        let heartbeat = self.next_heartbeat;
        tokio::select! {
            biased;
            Some(left) = self.tasks.join_next() => self.note(left),
            () = sleep_until(heartbeat) => self.beat(),
        }
    }

    fn note(&mut self, left: Result<(u32, Known), JoinError>) {
        match left {
            Ok((shard, known)) => {
                self.consumed.remove(&shard);
                self.known.insert(shard, known);
            }
            Err(error) => {
                // A defect: its channel closes as it is dropped, and what that held goes back.
                tracing::error!(%error, "a shard's task panicked; it is consumed again");
                self.consumed.retain(|_, consumed| !consumed.inbox.is_closed());
            }
        }
        self.share();
    }

    /// Passes on that somebody asks for a cancel. What has been found is answered; of the rest, each shard tells here what it
    /// knows.
    pub(crate) fn cancel(
        &self,
        cid: &Cid,
        run: Option<RunId>,
        reply_to: &str,
    ) -> Vec<oneshot::Receiver<Vec<CancelState>>> {
        let asked = self.inboxes().map(|inbox| {
            let (known, answer) = oneshot::channel();
            let _ = inbox.send(Word::Cancel { cid: cid.clone(), run, reply_to: reply_to.to_owned(), known });
            answer
        });
        asked.collect()
    }

    /// The ways to the tasks of all shards that are consumed here. A publisher that was told of fewer shards has its fan-outs in
    /// others than their CIDs' among all.
    pub(crate) fn inboxes(&self) -> impl Iterator<Item = &mpsc::UnboundedSender<Word>> {
        self.consumed.values().map(|consumed| &consumed.inbox)
    }

    /// Begins to leave all of them.
    pub(crate) fn leave_all(&mut self) {
        if self.next_heartbeat.take().is_some() {
            self.tell(true);
        }
        self.hurry.cancel();
        self.consumed.values().for_each(|consumed| consumed.leave.cancel());
    }

    /// Returns when all are left.
    pub(crate) async fn left(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
