//! Publishes a final payload that is too large for one message: its parts, one after the other, and then the message that refers
//! to them.

use fanfare_broker::Backoff;
use fanfare_protocol::{Cid, LargePayload, Message, Part, Parts, RunId};

use crate::addressing::Letter;
use crate::outbox::{Absence, Outbox, Outcome};

/// Returns when a letter is safe, and the parts that it refers to are, or when it cannot be.
pub(crate) async fn send(outbox: &Outbox, letter: Letter) -> Outcome {
    let Letter { queue, message, absence, parts } = letter;
    match parts {
        None => outbox.publish(&queue, message, absence).await,
        // In a box: it is rare, and thousands of letters may be under way.
        Some(parts) => Box::pin(send_in_parts(outbox, &queue, message, absence, &parts)).await,
    }
}

async fn send_in_parts(
    outbox: &Outbox,
    queue: &str,
    message: Message,
    absence: Absence,
    parts: &Parts,
) -> Outcome {
    let (Ok(cid), Ok(run)) = (message.cid(), message.run()) else {
        unreachable!("every callback message names its fan-out")
    };
    loop {
        let writer = RunId::from(outbox.environment.unique());
        let writing = Writing { outbox, parts, cid: &cid, run, writer };
        if absence == Absence::Drops {
            // A caller who waits reads the parts from where it reads the message.
            return match writing.write(queue, absence).await {
                Ok(large) => outbox.publish(queue, large.refer(message), absence).await,
                Err(outcome) => outcome,
            };
        }
        let own = writing.declare_queue().await;
        match writing.write(&own.name, Absence::Late).await {
            Ok(large) => {
                own.keep();
                return outbox.publish(queue, large.refer(message), absence).await;
            }
            Err(Outcome::Gone) => {
                tracing::warn!(
                    queue = own.name,
                    "the parts of a payload were deleted while they were written; writing them anew"
                );
            }
            Err(outcome) => return outcome,
        }
    }
}

/// One try to write the parts of a payload. Each has a queue of its own, so whatever another coordinator has written of the same
/// payload, or still writes, cannot get between.
struct Writing<'a> {
    outbox: &'a Outbox,
    parts: &'a Parts,
    cid: &'a Cid,
    run: RunId,
    writer: RunId,
}

impl Writing<'_> {
    /// Declares the queue, however long that takes, and another one after it where that is needed for it to outlive the broker's being killed.
    async fn declare_queue(&self) -> Unreferred {
        let queue = self.declare(self.writer).await;
        let server = self.outbox.broker.server().await;
        if self.outbox.replicated_payloads || !server.is_ok_and(|server| server.has_written_declarations()) {
            drop(self.declare(RunId::from(self.outbox.environment.unique())).await);
        }
        queue
    }

    async fn declare(&self, writer: RunId) -> Unreferred {
        let Self { outbox, cid, run, .. } = *self;
        let spec = match outbox.replicated_payloads {
            true => outbox.names.replicated_payload(cid, run, writer),
            false => outbox.names.payload(cid, run, writer),
        };
        let mut backoff = Backoff::default();
        let mut told = false;
        while let Err(error) = outbox.broker.declare(&spec).await {
            let queue = &spec.name;
            if !error.is_outage() && !std::mem::replace(&mut told, true) {
                tracing::error!(queue, %error, "the queue of a large payload is refused; declaring it again until it is not");
            }
            backoff.wait(&*outbox.environment).await;
        }
        Unreferred { name: spec.name, outbox: Some(outbox.clone()) }
    }

    /// Publishes the parts. One is under way at a time, which keeps them in their order and bounds what is held beside the results.
    async fn write(&self, queue: &str, absence: Absence) -> Result<LargePayload, Outcome> {
        let mut parts = 0;
        for body in self.parts.bodies() {
            let part = Part { writer: self.writer, number: parts, body };
            match self.outbox.publish(queue, part.encode(self.cid, self.run), absence).await {
                Outcome::Safe { .. } => parts += 1,
                outcome => return Err(outcome),
            }
        }
        Ok(LargePayload { writer: self.writer, parts, bytes: self.parts.bytes() })
    }
}

/// A queue of parts that no message refers to. Dropped as that, it is deleted: nobody will ever read it.
struct Unreferred {
    name: String,
    /// None where it is to be kept.
    outbox: Option<Outbox>,
}

impl Unreferred {
    /// A message refers to it from now on, or may.
    fn keep(mut self) {
        self.outbox = None;
    }
}

impl Drop for Unreferred {
    fn drop(&mut self) {
        if let Some(outbox) = self.outbox.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let name = std::mem::take(&mut self.name);
            // One try: what stays goes by itself, since nobody uses it.
            runtime.spawn(async move { drop(outbox.broker.delete(&name).await) });
        }
    }
}
