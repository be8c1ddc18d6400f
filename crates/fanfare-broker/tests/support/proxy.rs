//! A TCP proxy that loses connections when told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::split;

/// Passes bytes on to a broker.
pub(crate) struct Proxy {
    /// The broker's URL, by way of the proxy.
    pub(crate) url: String,
    control: watch::Sender<Mode>,
    /// Connections that were accepted so far.
    accepted: Arc<AtomicUsize>,
    _running: DropGuard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Bytes pass both ways.
    Pass,
    /// What the broker says is kept back, on so many of the connections, the oldest.
    Silent(usize),
    /// What the broker says is replaced by what is no AMQP.
    Garbled,
    /// Connections are cut, and no more are accepted.
    Cut,
}

impl Proxy {
    /// A proxy in front of the broker at `url`.
    pub(crate) async fn start(url: &str) -> Self {
        let (scheme, credentials, broker, path) = split(url);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("the listener is bound").port();
        let (control, mode) = watch::channel(Mode::Pass);
        let (running, accepted) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
        let (stop, counted) = (running.clone(), Arc::clone(&accepted));
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = accept(listener, broker.into(), mode, &counted) => {}
            }
        });
        let url = format!("{scheme}://{credentials}127.0.0.1:{port}{path}");
        Self { url, control, accepted, _running: running.drop_guard() }
    }

    /// Connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Cuts all connections, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.control.send_replace(Mode::Cut);
    }

    /// Keeps back what the broker says.
    pub(crate) fn silence(&self) {
        self.control.send_replace(Mode::Silent(usize::MAX));
    }

    /// Keeps back what the broker says on the connections that there are by now.
    pub(crate) fn silence_present(&self) {
        self.control.send_replace(Mode::Silent(self.connections()));
    }

    /// Passes on what is no AMQP in place of what the broker says.
    pub(crate) fn garble(&self) {
        self.control.send_replace(Mode::Garbled);
    }

    /// Works as it did at first.
    pub(crate) fn restore(&self) {
        self.control.send_replace(Mode::Pass);
    }
}

async fn accept(
    listener: TcpListener,
    broker: Arc<str>,
    mode: watch::Receiver<Mode>,
    accepted: &AtomicUsize,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _): (TcpStream, SocketAddr) = listener.accept().await.expect("the listener is bound");
        if *mode.borrow() == Mode::Cut {
            continue;
        }
        let number = accepted.fetch_add(1, Ordering::Relaxed);
        let (broker, mut mode) = (broker.clone(), mode.clone());
        connections.spawn(async move {
            let server = TcpStream::connect(&*broker).await.expect("the broker is there");
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let mut cut = mode.clone();
            tokio::select! {
                _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
                () = copy(from_client, to_server, None) => {}
                () = copy(from_server, to_client, Some((number, &mut mode))) => {}
            }
        });
    }
}

/// Copies one way; what the broker says passes as the mode has it for the connection of this number.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: Option<(usize, &mut watch::Receiver<Mode>)>,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut mode = mode;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some((number, mode)) = &mut mode {
            let is_silent = |mode: &Mode| matches!(mode, Mode::Silent(first) if *number < *first);
            match mode.wait_for(|mode| !is_silent(mode)).await.map(|mode| *mode) {
                Ok(Mode::Garbled) => buffer[..length].fill(0xFF),
                Ok(Mode::Pass | Mode::Silent(_)) => {}
                Ok(Mode::Cut) | Err(_) => return,
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
