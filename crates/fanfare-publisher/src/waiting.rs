use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fanfare_broker::{BrokerError, Mailbox};
use fanfare_protocol::{
    Assembly, FinalPayload, LargePayload, Message, Part, Progress, QueueSpec, RunId, header,
};
use serde::de::Error as _;
use tokio::time::Instant;

use crate::fanout::OnProgress;
use crate::publisher::Shared;
use crate::schedule::Schedule;
use crate::{Accepted, Failure, Fanout, InvokeError, WaitError, invocation};

/// What gives way while a caller waits for its fan-out. A service that waits gives its place to others, or the targets
/// that it waits for might never find one.
pub trait WhileWaiting: fmt::Debug + Send + Sync + 'static {
    /// The wait begins. It ends with [`Yielded::end`], or by dropping what this returns.
    fn begin(&self) -> Box<dyn Yielded>;
}

/// A wait that [`WhileWaiting`] knows of.
#[async_trait]
pub trait Yielded: Send {
    /// The wait is over; returns when the caller may go on.
    async fn end(self: Box<Self>);
}

/// Invokes a fan-out and waits for its final payload, which comes to a queue of the caller's own.
pub(crate) async fn invoke_and_wait(fanout: Fanout, timeout: Duration) -> Result<FinalPayload, WaitError> {
    let started = Instant::now();
    let shared = Arc::clone(&fanout.publisher.shared);
    let schedule = Schedule::begin(&shared.config);
    let queue = shared.config.names.wait(RunId::from(shared.environment.unique()));
    let on_progress = fanout.on_progress.clone();
    let plan = fanout.plan(Some(queue.name.clone())).map_err(InvokeError::Invalid)?;
    let mut mailbox = open_mailbox(&shared, &queue, schedule.prepared)
        .await
        .map_err(|failure| Accepted::of(&plan).not_accepted(failure, false))?;
    // It may have come to another run than the one that was planned.
    let expected = invocation::invoke(shared, plan, schedule).await?;

    let Accepted { cid, run } = expected.clone();
    let left = timeout.saturating_sub(started.elapsed());
    match tokio::time::timeout(left, receive(&mut mailbox, &expected, on_progress.as_ref())).await {
        Ok(Ok(answer)) => answer.payload().map_err(|source| WaitError::Malformed { cid, run, source }),
        Ok(Err(source)) => Err(WaitError::Lost { cid, run, source }),
        Err(_) => Err(WaitError::TimedOut { cid, run, timeout }),
    }
}

/// Opens the mailbox that an answer comes to, through outages.
pub(crate) async fn open_mailbox(
    shared: &Shared,
    queue: &QueueSpec,
    until: Instant,
) -> Result<Mailbox, Failure> {
    shared.through_outages(until, || Mailbox::open(&*shared.broker, queue)).await
}

/// Waits for the answer to a fan-out. An error where the queue or its connection is lost.
async fn receive(
    mailbox: &mut Mailbox,
    expected: &Accepted,
    on_progress: Option<&OnProgress>,
) -> Result<Answer, Option<BrokerError>> {
    let mut parts = BTreeMap::new();
    loop {
        let message = mailbox.next().await?;
        if is_of(&message, expected) {
            match (message.kind(), on_progress) {
                (header::TYPE_CALLBACK, _) => return Ok(Answer { message, parts }),
                (header::TYPE_PAYLOAD_PART, _) => {
                    if let Ok(Part { writer, number, body }) = Part::decode(&message) {
                        parts.insert((writer, number), body);
                    }
                    continue;
                }
                (header::TYPE_PROGRESS, Some(OnProgress(told))) => {
                    if let Ok(progress) = Progress::decode(&message) {
                        told(progress.responded);
                    }
                    continue;
                }
                _ => {}
            }
        }
        tracing::debug!(queue = mailbox.queue(), "a message that is no answer to this fan-out is dropped");
    }
}

/// The final payload as it came.
struct Answer {
    message: Message,
    /// Its parts, where it is large, by writer and number: those of others who began to write it, too.
    parts: BTreeMap<(RunId, usize), Bytes>,
}

impl Answer {
    fn payload(self) -> Result<FinalPayload, serde_json::Error> {
        let Self { message, parts } = self;
        let body = match LargePayload::of(&message).map_err(serde_json::Error::custom)? {
            None => message.body,
            Some(large) => {
                let mut assembly = Assembly::new(&message.body, large).map_err(serde_json::Error::custom)?;
                let written = parts.into_iter().filter(|((writer, _), _)| *writer == large.writer);
                written.for_each(|(_, body)| assembly.push(&body));
                assembly.finish().map_err(serde_json::Error::custom)?
            }
        };
        serde_json::from_slice(&body)
    }
}

fn is_of(message: &Message, expected: &Accepted) -> bool {
    message.run().is_ok_and(|run| run == expected.run) && message.cid().is_ok_and(|cid| cid == expected.cid)
}
