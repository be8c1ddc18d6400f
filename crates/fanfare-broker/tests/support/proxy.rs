//! A TCP proxy that loses connections when told to.

use std::net::SocketAddr;
use std::sync::Arc;

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
    _running: DropGuard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Bytes pass both ways.
    Pass,
    /// What the broker says is kept back.
    Silent,
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
        let running = CancellationToken::new();
        let stop = running.clone();
        tokio::spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = accept(listener, broker.into(), mode) => {} }
        });
        let url = format!("{scheme}://{credentials}127.0.0.1:{port}{path}");
        Self { url, control, _running: running.drop_guard() }
    }

    /// Cuts all connections, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.control.send_replace(Mode::Cut);
    }

    /// Keeps back what the broker says.
    pub(crate) fn silence(&self) {
        self.control.send_replace(Mode::Silent);
    }

    /// Works as it did at first.
    pub(crate) fn restore(&self) {
        self.control.send_replace(Mode::Pass);
    }
}

async fn accept(listener: TcpListener, broker: Arc<str>, mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _): (TcpStream, SocketAddr) = listener.accept().await.expect("the listener is bound");
        if *mode.borrow() == Mode::Cut {
            continue;
        }
        let (broker, mut mode) = (broker.clone(), mode.clone());
        connections.spawn(async move {
            let server = TcpStream::connect(&*broker).await.expect("the broker is there");
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let mut cut = mode.clone();
            tokio::select! {
                _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
                () = copy(from_client, to_server, None) => {}
                () = copy(from_server, to_client, Some(&mut mode)) => {}
            }
        });
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: Option<&mut watch::Receiver<Mode>>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut mode = mode;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(mode) = &mut mode {
            match mode.wait_for(|mode| *mode != Mode::Silent).await {
                Ok(mode) if *mode == Mode::Pass => {}
                _ => return,
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
