use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Passes bytes on to a broker, and drops connections when told to. What was under way on them is lost, in both directions:
/// what one side has sent, and what the other has answered.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    connections: Connections,
    accepted: Arc<AtomicU64>,
    _running: DropGuard,
}

/// The open connections, by the order in which they came.
#[derive(Debug, Clone, Default)]
struct Connections(Arc<Mutex<BTreeMap<u64, CancellationToken>>>);

impl Proxy {
    /// A proxy in front of a broker.
    pub(crate) async fn start(broker: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let connections = Connections::default();
        let running = CancellationToken::new();
        let accepted = Arc::<AtomicU64>::default();
        let accepting = accept(listener, broker, connections.clone(), Arc::clone(&accepted), running.clone());
        tokio::spawn(running.clone().run_until_cancelled_owned(accepting));
        Ok(Self { port, connections, accepted, _running: running.drop_guard() })
    }

    /// The port that it listens on.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.lock().len()
    }

    /// How many connections there were since it was started.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Drops one of the open connections: the `nth` of them, modulo their number.
    pub(crate) fn drop_one(&self, nth: usize) {
        let mut connections = self.connections.lock();
        let nth = nth.checked_rem(connections.len());
        let id = nth.and_then(|nth| connections.keys().nth(nth).copied());
        if let Some(dropped) = id.and_then(|id| connections.remove(&id)) {
            dropped.cancel();
        }
    }

    /// Drops all open connections.
    pub(crate) fn drop_all(&self) {
        std::mem::take(&mut *self.connections.lock()).values().for_each(CancellationToken::cancel);
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(
    listener: TcpListener,
    broker: SocketAddr,
    connections: Connections,
    accepted: Arc<AtomicU64>,
    running: CancellationToken,
) {
    for id in 0.. {
        // Out of file descriptors for a moment, for instance: the client tries again, and so does this.
        let Ok((client, _)) = listener.accept().await else { continue };
        accepted.store(id + 1, Ordering::Relaxed);
        let dropped = running.child_token();
        connections.lock().insert(id, dropped.clone());
        let connections = connections.clone();
        tokio::spawn(async move {
            dropped.run_until_cancelled(pass(client, broker)).await;
            connections.lock().remove(&id);
        });
    }
}

/// Passes bytes until either side ends. A broker that is down ends the client's connection at once.
async fn pass(mut client: TcpStream, broker: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(broker).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
