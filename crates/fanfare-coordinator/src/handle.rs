use fanfare_broker::{BrokerError, Readiness};
use fanfare_protocol::{Cid, ExplainAnswer, RunId, StatusAnswer, StatusQuery};
use tokio::sync::{mpsc, oneshot};

/// Looks into a coordinator from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) readiness: Readiness,
    inquiries: mpsc::Sender<Inquiry>,
}

/// What a coordinator's loop is asked through its handle, and where the answer goes.
#[derive(Debug)]
pub(crate) enum Inquiry {
    /// Whether it lives.
    Ping(oneshot::Sender<()>),
    /// As operators ask it.
    Status(StatusQuery, oneshot::Sender<StatusAnswer>),
    /// As operators ask it: of which fan-outs, and how many targets.
    Explain(Cid, Option<RunId>, usize, oneshot::Sender<ExplainAnswer>),
}

/// What is not ready before the coordinator has looked for its queues.
const QUEUES: &str = "the coordinator's queues";

/// Those who ask at the same time; others wait.
const INQUIRIES: usize = 8;

impl Handle {
    /// A handle, and where what it asks arrives.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Inquiry>) {
        let (inquiries, receiver) = mpsc::channel(INQUIRIES);
        let readiness = Readiness::waiting(QUEUES, "it has not started yet");
        (Self { readiness, inquiries }, receiver)
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

    /// Returns when the coordinator's loop has answered, or has ended. Before it begins, and while it is stuck, this waits.
    pub async fn ping(&self) {
        self.ask(Inquiry::Ping).await;
    }

    /// What this coordinator answers to operators who ask for the status. None where it has ended; it waits as
    /// [`ping`](Self::ping) does.
    pub async fn status(&self, query: StatusQuery) -> Option<StatusAnswer> {
        self.ask(|answer| Inquiry::Status(query, answer)).await
    }

    /// What this coordinator answers to operators who ask of one fan-out, as [`status`](Self::status).
    pub async fn explain(&self, cid: &Cid, run: Option<RunId>, limit: usize) -> Option<ExplainAnswer> {
        self.ask(|answer| Inquiry::Explain(cid.clone(), run, limit, answer)).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Inquiry) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.inquiries.send(question(answer)).await.ok()?;
        tokio::select! {
            biased;
            answer = answered => answer.ok(),
            // Who got a place before the loop ended may leave there what nobody takes any more.
            () = self.inquiries.closed() => None,
        }
    }
}
