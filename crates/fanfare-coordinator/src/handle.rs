use fanfare_broker::{BrokerError, Readiness};
use tokio::sync::{mpsc, oneshot};

use crate::view::{Snapshot, View};

/// Looks into a coordinator from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) readiness: Readiness,
    pub(crate) view: View,
    pings: mpsc::Sender<oneshot::Sender<()>>,
}

/// What is not ready before the coordinator has looked for its queues.
const QUEUES: &str = "the coordinator's queues";

/// Those who want to know at the same time whether a coordinator lives; others wait.
const PINGS: usize = 8;

impl Handle {
    /// A handle, and where its pings arrive.
    pub(crate) fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (pings, receiver) = mpsc::channel(PINGS);
        let readiness = Readiness::waiting(QUEUES, "it has not started yet");
        (Self { readiness, view: View::default(), pings }, receiver)
    }

    /// The coordinator waits for its queues.
    pub(crate) fn waits(&self, error: &BrokerError) {
        self.readiness.hinder(QUEUES, error.to_string());
    }

    /// The queues are there.
    pub(crate) fn started(&self) {
        self.readiness.clear(QUEUES);
    }

    /// Whether the coordinator consumes the queues that it lives by.
    #[must_use]
    pub const fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What it holds and has lately seen.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.view.snapshot()
    }

    /// Returns when the coordinator's loop has answered, or has ended. Before it begins, and while it is stuck, this waits.
    pub async fn ping(&self) {
        let (answer, answered) = oneshot::channel();
        if self.pings.send(answer).await.is_ok() {
            answered.await.ok();
        }
    }
}
