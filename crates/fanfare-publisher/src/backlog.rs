use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fanfare_broker::{BrokerError, QueueState};
use fanfare_protocol::Manifest;
use tokio::time::Instant;

use crate::Failure;
use crate::publisher::Shared;

/// How much waits for a coordinator, as far as this publisher knows: by queue, the one for manifests or a shard.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    seen: Mutex<BTreeMap<String, Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    /// Those that waited then, and those that this publisher has let pass since.
    waiting: u64,
}

impl Backlog {
    /// How long a look at the queue is good for. What others add meanwhile is not seen, so the bound is exceeded by what they
    /// can invoke within this.
    const TRUSTED_FOR: Duration = Duration::from_secs(1);

    /// Whether one more stays below the bound, without a look at the queue. It counts then.
    fn takes(&self, queue: &str, most: u64) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(queue) {
            Some(seen) if seen.at.elapsed() < Self::TRUSTED_FOR && seen.waiting < most => {
                seen.waiting += 1;
                true
            }
            _ => false,
        }
    }

    fn saw(&self, queue: String, waiting: u64) {
        let seen = Seen { at: Instant::now(), waiting };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(queue, seen);
    }
}

impl Shared {
    /// Refuses one more fan-out where as many wait already as may. It looks at the queue once a second while there is room, and
    /// each time where there seems to be none.
    pub(crate) async fn ensure_room(
        &self,
        manifest: &Manifest,
        nested: bool,
        until: Instant,
    ) -> Result<(), Failure> {
        /// What a service invokes belongs to a fan-out that has begun: refused like any other, it would keep that one from its
        /// end when there is most to be ended.
        const NESTED_SHARE: u64 = 2;
        /// Messages that wait in a shard count as one fan-out: most of them are results.
        const MESSAGES_IN_SHARD: u64 = 10;
        let most = self.config.most_waiting.saturating_mul(if nested { NESTED_SHARE } else { 1 });
        let messages = if manifest.is_shared(&self.config.names) { MESSAGES_IN_SHARD } else { 1 };
        let queue = manifest.queue(&self.config.names);
        if most == u64::MAX || self.backlog.takes(&queue, most) {
            return Ok(());
        }
        let waiting = self.waiting(&queue, until).await? / messages;
        if manifest.is_shared(&self.config.names) && !nested && self.is_full(until).await? {
            return Err(Failure::Full);
        }
        self.backlog.saw(queue.clone(), waiting);
        if self.backlog.takes(&queue, most) { Ok(()) } else { Err(Failure::Busy { waiting, most }) }
    }

    /// Whether a coordinator says that as many fan-outs are open in a shard as may be. Those of services are not held to it: others
    /// wait for them.
    async fn is_full(&self, until: Instant) -> Result<bool, Failure> {
        let looked = self.look_at(&self.config.names.full().name, until).await?;
        Ok(looked.is_some_and(|state| state.consumers > 0))
    }

    /// Messages that wait in a queue.
    async fn waiting(&self, queue: &str, until: Instant) -> Result<u64, Failure> {
        Ok(self.look_at(queue, until).await?.map_or(0, |state| state.messages))
    }

    /// What can be seen of a queue, if it is there and can be seen.
    async fn look_at(&self, queue: &str, until: Instant) -> Result<Option<QueueState>, Failure> {
        match self.through_outages(until, || self.broker.inspect(queue)).await {
            // RabbitMQ 4.3 lets only those look who have some right to the queue. Who has none is not held to the bounds there.
            Err(Failure::Broker(BrokerError::Denied(_))) => Ok(None),
            looked => looked,
        }
    }
}
