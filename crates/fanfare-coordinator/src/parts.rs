//! Publishes a final payload that is too large for one message: its parts, one after the other, and then the message that refers
//! to them.

use fanfare_broker::Backoff;
use fanfare_protocol::{Cid, LargePayload, Part, Parts, RunId};

use crate::addressing::Letter;
use crate::outbox::{Absence, Outbox, Outcome};

/// Returns when a letter is safe, and the parts that it refers to are, or when it cannot be.
///
/// One part is under way at a time, which keeps them in their order and bounds what is held beside the results. Each writing has a
/// queue of its own, so whatever another coordinator has written of the same payload, or still writes, cannot get between.
pub(crate) async fn send(outbox: &Outbox, letter: Letter) -> Outcome {
    let Letter { queue, message, absence, parts } = letter;
    let Some(parts) = parts else { return outbox.publish(&queue, message, absence).await };
    let (Ok(cid), Ok(run)) = (message.cid(), message.run()) else {
        unreachable!("every callback message names its fan-out")
    };
    loop {
        let writer = RunId::from(outbox.environment.unique());
        if absence == Absence::Drops {
            // A caller who waits reads the parts from where it reads the message.
            return match write(outbox, &cid, run, writer, &parts, &queue, absence).await {
                Ok(large) => outbox.publish(&queue, large.refer(message), absence).await,
                Err(outcome) => outcome,
            };
        }
        let own = Unreferred::declare(outbox, &cid, run, writer).await;
        match write(outbox, &cid, run, writer, &parts, &own.name, Absence::Late).await {
            Ok(large) => {
                own.keep();
                return outbox.publish(&queue, large.refer(message), absence).await;
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

async fn write(
    outbox: &Outbox,
    cid: &Cid,
    run: RunId,
    writer: RunId,
    parts: &Parts,
    queue: &str,
    absence: Absence,
) -> Result<LargePayload, Outcome> {
    let mut written = 0;
    for body in parts.bodies() {
        let part = Part { writer, number: written, body }.encode(cid, run);
        match outbox.publish(queue, part, absence).await {
            Outcome::Safe => written += 1,
            outcome => return Err(outcome),
        }
    }
    Ok(LargePayload { writer, parts: written, bytes: parts.bytes() })
}

/// A queue of parts that no message refers to. Dropped as that, it is deleted: nobody will ever read it.
struct Unreferred {
    name: String,
    /// None where it is to be kept.
    outbox: Option<Outbox>,
}

impl Unreferred {
    /// Declares the queue, however long that takes.
    async fn declare(outbox: &Outbox, cid: &Cid, run: RunId, writer: RunId) -> Self {
        let spec = match outbox.replicated_payloads {
            true => outbox.names.replicated_payload(cid, run, writer),
            false => outbox.names.payload(cid, run, writer),
        };
        let mut backoff = Backoff::default();
        let mut told = false;
        while let Err(error) = outbox.broker.declare(&spec).await {
            if !error.is_outage() && !std::mem::replace(&mut told, true) {
                tracing::error!(queue = spec.name, %error, "the queue of a large payload is refused; declaring it again until it is not");
            }
            backoff.wait(&*outbox.environment).await;
        }
        Self { name: spec.name, outbox: Some(outbox.clone()) }
    }

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
