use std::process::Stdio;
use std::sync::Arc;

use fanfare_broker::Broker;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{PATIENCE, Stack};

/// A coordinator or worker in this process, with a connection of its own.
#[derive(Debug)]
pub struct Running {
    broker: Arc<dyn Broker>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start<F>(broker: Arc<dyn Broker>, role: impl FnOnce(BoxedStop) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let stopped: BoxedStop = Box::pin(stop.clone().cancelled_owned());
        Self { broker, task: tokio::spawn(role(stopped)), stop }
    }

    /// Stops it as SIGTERM would, and returns when it has stopped.
    ///
    /// # Panics
    /// Where it does not stop, or has panicked.
    pub async fn stop(self) {
        self.stop.cancel();
        let stopped = tokio::time::timeout(PATIENCE, self.task).await;
        stopped.expect("it stops").expect("it does not panic");
        self.broker.close().await;
    }

    /// Ends it in the middle of whatever it does, as SIGKILL would: its task is gone and its connections close.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.broker.close().await;
    }
}

type BoxedStop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A process of its own: `fanfare-test-node`. Killed when it is dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
}

impl Node {
    /// Starts a node. `program` is `env!("CARGO_BIN_EXE_fanfare-test-node")`, which only a test can name.
    ///
    /// # Panics
    /// Where the process cannot be started.
    #[must_use]
    pub fn start(program: &str, stack: &Stack, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .args(["--broker", stack.url(), "--prefix", stack.names().prefix().as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the test node starts");
        Self { child }
    }

    /// Sends SIGKILL, and returns when the process is gone.
    ///
    /// # Panics
    /// Where it has ended before.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the process was running");
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }
}
