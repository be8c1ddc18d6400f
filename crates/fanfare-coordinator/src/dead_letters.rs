//! What the broker dead-lettered: every loss that it can see ends in a result, or in front of a person.

use std::time::Duration;

use fanfare_broker::Delivery;
use fanfare_protocol::{
    Invocation, Manifest, Message, ReplyAddress, ServiceName, TargetResult, WireTime, header,
};

use crate::outbox::{Absence, Outbox, Outcome};
use crate::telemetry;
use crate::trust::Trust;

/// How long a manifest is kept before it goes back: whatever made the broker give it up may do so again at once.
const MANIFEST_PAUSE: Duration = Duration::from_secs(1);

/// Sees to a dead letter, by its type, and acks it when all that follows from it is safe.
///
/// - A request fails its target, and is parked.
/// - A manifest goes back to where manifests go: its requests are safe, and somebody waits for its callbacks.
/// - A callback, and whatever else there is, is parked.
pub(crate) async fn settle(outbox: Outbox, trust: Trust, delivery: Delivery) {
    let Delivery { message, receipt, .. } = delivery;
    let (from, reason) = death(&message, &outbox.names.dead_queue());
    tracing::error!(
        queue = from,
        message_id = message.properties.message_id.as_deref(),
        correlation_id = message.properties.correlation_id.as_deref(),
        kind = message.kind(),
        reason,
        "the broker has given a message up: look for a policy on this queue"
    );
    telemetry::dead_letter(message.kind());
    if message.kind() == header::TYPE_MANIFEST {
        // It comes back with this coordinator's word, so it has to be one that this coordinator would take.
        if let Err(distrust) = trust.check(&message) {
            outbox.park(message, &from, &distrust).await;
            return receipt.ack().await;
        }
        tokio::time::sleep(MANIFEST_PAUSE).await;
        let manifest = Manifest::decode(&message, &outbox.names);
        let manifests =
            manifest.map_or_else(|_| outbox.names.fanin_queue(), |manifest| manifest.queue(&outbox.names));
        let back = outbox.publish(&manifests, trust.sign(message.clone().anew()), Absence::Declares).await;
        if matches!(back, Outcome::TooLarge(_)) {
            outbox.park(message, &from, &reason).await;
        }
        return receipt.ack().await;
    }
    if let Some(to) = reply_address(&message, &outbox) {
        let service = outbox.names.service_of(&from);
        let service =
            service.as_ref().map(ServiceName::as_str).or(message.text(header::TARGET)).unwrap_or_default();
        let failed = failed(&message, service, &to, &reason, WireTime::from(outbox.environment.now()));
        // One that is too large holds nothing but the reason: its fan-out ends at its deadline then.
        outbox.publish(&to.queue, failed, Absence::Late).await;
    }
    outbox.park(message, &from, &reason).await;
    receipt.ack().await;
}

/// Where the result of a request goes. Nothing but a request is answered.
fn reply_address(message: &Message, outbox: &Outbox) -> Option<ReplyAddress> {
    if message.kind() != header::TYPE_REQUEST {
        return None;
    }
    match Invocation::decode(message, &outbox.names) {
        Ok(invocation) => invocation.reply,
        Err(malformed) => malformed.reply.map(|reply| *reply),
    }
}

fn failed(message: &Message, service: &str, to: &ReplyAddress, reason: &str, now: WireTime) -> Message {
    let exception = format!("the request was never answered: {reason}; it is kept among the parked messages");
    TargetResult::message(TargetResult::unanswered(message, service, to, exception, now).to_body(), to, now)
}

/// The queue that gave a message up last, and why; the queue of dead letters where the message does not say.
fn death(message: &Message, dead: &str) -> (String, String) {
    match message.latest_death() {
        Some((queue, reason)) => (queue.to_owned(), format!("queue `{queue}` gave it up ({reason})")),
        None => {
            (dead.to_owned(), "it came among the dead letters, and says nothing about its death".to_owned())
        }
    }
}
