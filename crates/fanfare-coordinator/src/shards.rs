use std::collections::BTreeMap;
use std::future::pending;

use fanfare_fanin::ShardLimits;
use fanfare_protocol::QueueNames;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::messenger::Messenger;
use crate::shard::{CancelWord, Known, ShardTask};
use crate::trust::Trust;

/// The shards that this coordinator consumes, each by a task of its own.
#[derive(Debug)]
pub(crate) struct Shards {
    names: QueueNames,
    count: u32,
    limits: ShardLimits,
    messenger: Messenger,
    trust: Trust,
    started: Instant,
    consumed: BTreeMap<u32, Consumed>,
    tasks: JoinSet<(u32, Known)>,
    /// What is known of shards that were left.
    known: BTreeMap<u32, Known>,
}

#[derive(Debug)]
struct Consumed {
    inbox: mpsc::UnboundedSender<CancelWord>,
    leave: CancellationToken,
}

impl Shards {
    pub(crate) fn new(config: &Config, messenger: Messenger, trust: Trust, started: Instant) -> Self {
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
            messenger,
            trust,
            started,
            consumed: BTreeMap::new(),
            tasks: JoinSet::new(),
            known: BTreeMap::new(),
        }
    }

    /// Begins to consume.
    pub(crate) fn start(&mut self) {
        (0..self.count).for_each(|shard| self.consume(shard));
    }

    fn consume(&mut self, shard: u32) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let leave = CancellationToken::new();
        let task = ShardTask {
            queue: self.names.shard(shard),
            limits: self.limits,
            messenger: self.messenger.clone(),
            trust: self.trust.clone(),
            inbox,
            started: self.started,
            leave: leave.clone(),
            known: self.known.remove(&shard).unwrap_or_default(),
        };
        self.tasks.spawn(async move { (shard, task.run().await) });
        self.consumed.insert(shard, Consumed { inbox: sender, leave });
    }

    /// Takes note of shards that were left. Does not return while there is nothing to note.
    pub(crate) async fn next(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok((shard, known))) => self.note(shard, known),
            Some(Err(error)) => {
                // A defect: its channel is closed as it is dropped, and what that held goes back.
                tracing::error!(%error, "a shard's task panicked; it is consumed again");
                let panicked = |consumed: &Consumed| consumed.inbox.is_closed();
                let shards: Vec<u32> =
                    self.consumed.iter().filter(|(_, it)| panicked(it)).map(|(shard, _)| *shard).collect();
                shards.into_iter().for_each(|shard| self.consume(shard));
            }
            None => pending().await,
        }
    }

    fn note(&mut self, shard: u32, known: Known) {
        self.consumed.remove(&shard);
        self.known.insert(shard, known);
    }

    /// Passes on what somebody asks. Returns whether it is answered.
    pub(crate) fn ask(&self, word: CancelWord) -> bool {
        if self.count == 0 {
            return false;
        }
        let shard = QueueNames::shard_of(&word.cid, self.count);
        self.consumed.get(&shard).is_some_and(|consumed| consumed.inbox.send(word).is_ok())
    }

    /// Begins to leave all of them.
    pub(crate) fn leave_all(&self) {
        self.consumed.values().for_each(|consumed| consumed.leave.cancel());
    }

    /// Returns when all are left.
    pub(crate) async fn left(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
