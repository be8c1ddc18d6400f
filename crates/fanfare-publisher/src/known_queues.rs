use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, absence};
use fanfare_protocol::{QueueSpec, RunId, ServiceName};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::publisher::Shared;
use crate::{Failure, Invalid};

/// Queues that were seen lately, so that one invocation after the other does not look at the same queues again.
///
/// It may be wrong: a queue can be deleted at any time. The request for it then comes back, and the queue is forgotten.
#[derive(Debug, Default)]
pub(crate) struct KnownQueues {
    seen: Mutex<BTreeMap<String, Instant>>,
}

impl KnownQueues {
    /// How long a queue counts as seen.
    const TRUSTED_FOR: Duration = Duration::from_secs(30);
    /// Queues remembered. A publisher that uses more starts afresh, and looks at some of them once more.
    const MOST: usize = 10_000;

    pub(crate) fn forget(&self, queue: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }

    fn contains(&self, queue: &str) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(queue).is_some_and(|at| at.elapsed() < Self::TRUSTED_FOR)
    }

    fn insert(&self, queue: String) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= Self::MOST {
            seen.clear();
        }
        seen.insert(queue, Instant::now());
    }
}

/// The queues that an invocation needs cannot be had.
#[derive(Debug)]
pub(crate) enum Unprepared {
    Invalid(Invalid),
    Failure(Failure),
}

impl From<Failure> for Unprepared {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Shared {
    /// Makes sure that every service has a queue: looks for it, or declares it where that is wanted.
    pub(crate) async fn ensure_served(
        &self,
        mut services: BTreeSet<ServiceName>,
        declare_missing: bool,
        until: Instant,
    ) -> Result<(), Unprepared> {
        /// Queues looked at or declared at the same time.
        const AT_ONCE: usize = 16;
        let names = &self.config.names;
        if declare_missing && !self.known.contains(&names.dead_queue()) {
            // What a service queue dead-letters goes here, and would be lost without it.
            self.ensure_declared(&names.dead(), until).await?;
        }
        services.retain(|service| !self.known.contains(&names.service_queue(service)));
        if services.is_empty() {
            return Ok(());
        }
        let missing: Vec<ServiceName> = stream::iter(services)
            .map(|service| self.ensure_service(service, declare_missing, until))
            .buffered(AT_ONCE)
            .try_filter_map(async |missing| Ok(missing))
            .try_collect()
            .await?;
        if missing.is_empty() { Ok(()) } else { Err(Unprepared::Invalid(Invalid::Unserved(missing))) }
    }

    /// Gives the service back where it has no queue.
    async fn ensure_service(
        &self,
        service: ServiceName,
        declare_missing: bool,
        until: Instant,
    ) -> Result<Option<ServiceName>, Failure> {
        let queue = self.config.names.service(&service);
        if declare_missing {
            self.ensure_declared(&queue, until).await?;
            return Ok(None);
        }
        // Another invocation may have looked meanwhile.
        if self.known.contains(&queue.name) {
            return Ok(None);
        }
        if self.through_outages(until, || self.broker.exists(&queue.name)).await? {
            self.known.insert(queue.name);
            Ok(None)
        } else {
            Ok(Some(service))
        }
    }

    /// Sees to it that the broker takes manifests with the login that they are to have. It is asked once.
    pub(crate) async fn ensure_user_id(&self, until: Instant) -> Result<(), Failure> {
        let Some(user_id) = &self.config.user_id else { return Ok(()) };
        let check = || self.through_outages(until, || self.broker.check_user_id(user_id));
        self.user_id_taken.get_or_try_init(check).await.copied()
    }

    /// Sees to it that a queue is there, unless it was seen lately.
    pub(crate) async fn ensure_declared(&self, queue: &QueueSpec, until: Instant) -> Result<(), Failure> {
        if !self.known.contains(&queue.name) {
            let names = &self.config.names;
            let ensure = || {
                let other = names.settling_aggregation(RunId::from(self.environment.unique()));
                async move { self.broker.ensure(queue, &other).await }
            };
            self.through_outages(until, ensure).await?;
            self.known.insert(queue.name.clone());
        }
        Ok(())
    }

    /// Sees to it that a shard is there. Only coordinators declare shards: one that a publisher made up would have nobody to read it.
    pub(crate) async fn ensure_shard(&self, queue: &str, shards: u32, until: Instant) -> Result<(), Failure> {
        if self.known.contains(queue) {
            return Ok(());
        }
        let gone = || absence::is_gone(&*self.broker, queue, absence::PAUSE);
        if self.through_outages(until, gone).await? {
            return Err(Failure::NoShard { shard: queue.to_owned(), shards });
        }
        self.known.insert(queue.to_owned());
        Ok(())
    }

    /// Does something harmless to repeat, again and again while there is an outage, until it succeeds or time is up.
    pub(crate) async fn through_outages<T, F>(
        &self,
        until: Instant,
        mut operation: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        let mut backoff = Backoff::default();
        loop {
            let error = match tokio::time::timeout_at(until, operation()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => return Err(Failure::PreparationLimit(self.config.preparation())),
            };
            let wait = backoff.next(&*self.environment);
            if !error.is_outage() || Instant::now() + wait >= until {
                return Err(error.into());
            }
            tracing::debug!(%error, "waiting for the broker");
            tokio::time::sleep(wait).await;
        }
    }
}
