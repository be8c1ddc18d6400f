//! Channels, and how they share connections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use deadpool::managed::{Object, Pool, PoolError};
use deadpool_lapin::{PoolConfig, QueueMode, Runtime, TimeoutType, Timeouts};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::connection::{Connector, Link};
use crate::{BrokerError, Environment};

/// Connections of one broker handle at a time. Each costs a thread here and some 100 KB there.
const CONNECTIONS: usize = 16;
/// How long to wait for a connection where all are in use.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);

/// All connections of one broker handle.
#[derive(Debug)]
pub(super) struct Connections {
    pool: Pool<Connector>,
    closed: CancellationToken,
}

/// One role's channels, on connections of its own: whoever publishes must not share one with whoever consumes, since a
/// broker that is short of memory stops reading from connections that publish, acks included.
#[derive(Debug)]
pub(super) struct Trunk {
    connections: Arc<Connections>,
    /// Channels on one connection.
    most: usize,
    opening: Semaphore,
    /// The connections that carry its channels. Each goes back to the pool with the last channel on it.
    carrying: Mutex<Vec<Weak<Object<Connector>>>>,
}

/// A channel, and the connection that carries it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) channel: lapin::Channel,
    connection: Arc<Object<Connector>>,
}

impl Connections {
    pub(super) fn new(config: Config, environment: Arc<dyn Environment>) -> Self {
        let pool = Pool::builder(Connector::new(config, environment))
            .config(PoolConfig {
                max_size: CONNECTIONS,
                timeouts: Timeouts { wait: Some(CONNECTION_WAIT), create: None, recycle: None },
                queue_mode: QueueMode::Fifo,
            })
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is given, which is all that could be missing");
        Self { pool, closed: CancellationToken::new() }
    }

    /// Cancelled when the broker handle is closed.
    pub(super) const fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// An error, unless the handle was closed in the meantime, which then is the reason.
    pub(super) fn reason(&self, error: BrokerError) -> BrokerError {
        if self.closed.is_cancelled() { BrokerError::Closed } else { error }
    }

    /// Whether the broker takes no messages on one of them.
    pub(super) fn are_blocked(&self) -> bool {
        self.pool.manager().any_blocked()
    }

    /// Closes all connections.
    pub(super) async fn close(&self) {
        self.pool.close();
        self.pool.manager().close().await;
    }

    async fn connection(&self) -> Result<Object<Connector>, BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let connection = self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Closed => BrokerError::Closed,
            PoolError::Timeout(TimeoutType::Wait) => BrokerError::Unreachable(format!(
                "all {CONNECTIONS} connections of this process are in use; consume fewer queues in one process"
            )),
            error => BrokerError::Unreachable(error.to_string()),
        })?;
        // The handle may have been closed while this one was made, and closed all others.
        if self.closed.is_cancelled() { Err(BrokerError::Closed) } else { Ok(connection) }
    }
}

impl Trunk {
    /// A role that puts at most `most` channels on one connection.
    pub(super) fn new(connections: Arc<Connections>, most: usize) -> Self {
        Self { connections, most, opening: Semaphore::new(1), carrying: Mutex::default() }
    }

    /// Opens a channel, on a connection that has room for it.
    pub(super) async fn open(&self) -> Result<Line, BrokerError> {
        // One at a time, so that many who come at once share a connection.
        let _turn = self.opening.acquire().await.map_err(|_| BrokerError::Closed)?;
        let connection = match self.with_room() {
            Some(connection) => connection,
            None => {
                let connection = Arc::new(self.connections.connection().await?);
                self.carrying().push(Arc::downgrade(&connection));
                connection
            }
        };
        let channel = connection.open_channel().await.map_err(|error| self.connections.reason(error))?;
        Ok(Line { channel, connection })
    }

    /// The first connection that has room: channels gather on few, so that the others become free.
    fn with_room(&self) -> Option<Arc<Object<Connector>>> {
        let mut carrying = self.carrying();
        carrying.retain(|connection| connection.strong_count() > 0);
        carrying.iter().filter_map(Weak::upgrade).find(|connection| {
            // lapin frees a channel's number a moment after the channel is gone: half of them are left for that.
            let most = self.most.min((connection.channel_max() / 2).max(1).into());
            // Each channel holds one reference, and this is another.
            let channels = Arc::strong_count(connection) - 1;
            connection.is_usable() && channels < most
        })
    }

    fn carrying(&self) -> MutexGuard<'_, Vec<Weak<Object<Connector>>>> {
        self.carrying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.connection
    }

    /// Whether the channel is there.
    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected() && self.link().is_connected()
    }

    /// Returns when the channel, or its connection, has ended.
    pub(super) async fn ended(&self) {
        self.link().ended(self.channel.status()).await;
    }
}
