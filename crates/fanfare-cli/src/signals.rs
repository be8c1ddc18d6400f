//! When the process is to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// What a shell reports for a process that ended at SIGINT.
const EXIT_AT_ONCE: i32 = 130;

/// SIGTERM and SIGINT, which stop gracefully; a second one ends the process at once.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns at the first signal.
    pub(crate) async fn first(mut self) {
        self.next().await;
        tracing::info!("stopping; a second signal ends this at once");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(EXIT_AT_ONCE);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
