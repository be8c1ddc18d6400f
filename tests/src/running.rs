use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use fanfare_broker::Broker;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Mortal, PATIENCE, Stack, services};

/// A coordinator or worker in this process, with a connection of its own.
#[derive(Debug)]
pub struct Running {
    broker: Arc<Mortal>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start<F>(broker: Arc<Mortal>, role: impl FnOnce(BoxedStop) -> F) -> Self
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

    /// Ends it in the middle of whatever it does, as SIGKILL would: nothing that it does has an effect any more, its
    /// connections close, and its task is gone.
    pub async fn kill(self) {
        self.broker.die();
        self.broker.close().await;
        self.task.abort();
        let _ = self.task.await;
    }

    /// The connection that it lives by.
    #[must_use]
    pub const fn mortal(&self) -> &Arc<Mortal> {
        &self.broker
    }
}

/// A coordinator that a test kills: a process where the broker is a RabbitMQ, which then gets a real SIGKILL.
#[derive(Debug)]
pub enum Doomed {
    /// In this process.
    Task(Running),
    /// In one of its own.
    Process(Node),
}

impl Doomed {
    /// Kills it.
    pub async fn kill(self) {
        match self {
            Self::Task(running) => running.kill().await,
            Self::Process(node) => drop(node.kill().await),
        }
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
        if arguments.contains(&"worker") {
            services::all(1).iter().filter_map(|service| service.name().ok()).for_each(|name| {
                stack.note_service(name.as_str());
            });
        }
        let child = Command::new(program)
            .args(["--broker", stack.url(), "--prefix", stack.names().prefix().as_str()])
            .arg(format!("--shards={}", stack.shards()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the test node starts");
        Self { child }
    }

    /// Sends SIGKILL, and returns how the process ended: by that, or by itself before.
    ///
    /// # Panics
    /// Where its status cannot be read.
    pub async fn kill(mut self) -> ExitStatus {
        self.child.start_kill().expect("its end was not seen before");
        self.ended().await
    }

    /// Returns how the process ended, by itself.
    ///
    /// # Panics
    /// Where its status cannot be read.
    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.expect("its status can be read")
    }

    /// Sends SIGTERM, and returns how the process ended.
    ///
    /// # Panics
    /// Where it does not end, or has ended before.
    pub async fn terminate(mut self) -> ExitStatus {
        let id = self.id().expect("the process is running").to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("`kill` can be run");
        assert!(sent.success(), "`kill -TERM {id}`: {sent}");
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it stops").expect("its status can be read")
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }
}
