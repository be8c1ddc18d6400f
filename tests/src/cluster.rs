use tokio::sync::{Mutex, MutexGuard};

use crate::operator::shell;

/// Those who kill nodes share one cluster, so they take turns.
static TURN: Mutex<()> = Mutex::const_new(());

/// A cluster of three nodes, counted from 0, which are killed and started again.
#[derive(Debug)]
pub struct Cluster {
    command: String,
    urls: String,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// The cluster with all its nodes running, for one test at a time. Nothing where this machine can have none, or only the short
    /// tests are run, which is said.
    ///
    /// # Panics
    /// Where there is none and nobody said that there is none.
    pub async fn start() -> Option<Self> {
        if std::env::var_os("FANFARE_TEST_NO_CLUSTER").is_some() {
            #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
            {
                println!("left out: FANFARE_TEST_NO_CLUSTER is set, so there is no cluster to kill nodes of");
            }
            return None;
        }
        let command = std::env::var("FANFARE_TEST_CLUSTER_COMMAND").expect(
            "this test kills nodes of a cluster: run `cargo xtask test`, or set FANFARE_TEST_NO_CLUSTER",
        );
        let turn = TURN.lock().await;
        let urls = shell(&command, &["start"]).await;
        Some(Self { command, urls, _turn: turn })
    }

    /// The URLs of all nodes. Clients connect to the first that is there.
    #[must_use]
    pub fn urls(&self) -> String {
        self.urls.clone()
    }

    /// Ends a node by SIGKILL.
    pub async fn kill(&self, node: usize) {
        shell(&self.command, &["kill", &node.to_string()]).await;
    }

    /// Starts a node that was killed, and returns when it accepts connections.
    pub async fn start_again(&self, node: usize) {
        shell(&self.command, &["start", &node.to_string()]).await;
    }
}
