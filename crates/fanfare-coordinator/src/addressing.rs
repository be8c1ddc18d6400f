use fanfare_fanin::Publication;
use fanfare_protocol::{
    Callback, CallbackKind, FinalBody, Manifest, Message, Parts, ReplyAddress, Sentinel, TargetResult, header,
};

use crate::outbox::{Absence, Outbox};
use crate::telemetry;
use crate::trust::Trust;

/// A message, and the queue that it goes to.
pub(crate) struct Letter {
    pub(crate) queue: String,
    pub(crate) message: Message,
    pub(crate) absence: Absence,
    /// The parts of the payload that the message is to refer to. They have to be safe before it.
    pub(crate) parts: Option<Parts>,
}

impl Letter {
    pub(crate) const fn new(queue: String, message: Message, absence: Absence) -> Self {
        Self { queue, message, absence, parts: None }
    }

    /// A message with the final payload, or with what it leaves to parts.
    fn of_final(
        queue: String,
        body: FinalBody,
        absence: Absence,
        encode: impl FnOnce(bytes::Bytes) -> Message,
    ) -> Self {
        let (body, parts) = match body {
            FinalBody::Whole(body) => (body, None),
            FinalBody::Parts(parts) => (parts.head().clone(), Some(parts)),
        };
        Self { queue, message: encode(body), absence, parts }
    }
}

/// Turns what a fan-out publishes into a message and the queue that it goes to.
pub(crate) fn addressed(
    manifest: &Manifest,
    publication: Publication,
    outbox: &Outbox,
    trust: &Trust,
) -> Letter {
    let names = &outbox.names;
    match publication {
        Publication::OnTarget { callback, place, body } => {
            let callback = &manifest.on_target[callback];
            let kind = CallbackKind::OnTarget { callback, place };
            let message = Callback { manifest, kind, body }.encode();
            Letter::new(names.service_queue(callback), message, Absence::Parks)
        }
        Publication::OnFinal { callback, body, ending, links } => {
            let callback = &manifest.on_final[callback];
            let kind = CallbackKind::OnFinal { callback: Some(callback), ending };
            let encode = |body| Callback { manifest, kind, body }.encode().linked(&links);
            Letter::of_final(names.service_queue(callback), body, Absence::Parks, encode)
        }
        Publication::Waiter { body, ending } => {
            let waiter =
                manifest.waiter.clone().expect("the machine answers a waiter only where there is one");
            let kind = CallbackKind::OnFinal { callback: None, ending };
            let encode = |body| Callback { manifest, kind, body }.encode();
            Letter::of_final(waiter, body, Absence::Drops, encode)
        }
        Publication::Checkpoint(checkpoint) => {
            Letter::new(manifest.reply_to.clone(), checkpoint.encode(manifest), Absence::Waits)
        }
        Publication::Fence(fence) => {
            Letter::new(manifest.reply_to.clone(), fence.encode(manifest), Absence::Waits)
        }
        Publication::Mark(mark) => {
            Letter::new(manifest.reply_to.clone(), mark.encode(manifest), Absence::Waits)
        }
        Publication::Sentinel => {
            let sentinel = Sentinel::encode(&manifest.cid, manifest.run);
            Letter::new(manifest.reply_to.clone(), sentinel, Absence::Waits)
        }
        Publication::Missing { place, body, by } => {
            let to = ReplyAddress {
                queue: manifest.reply_to.as_str().into(),
                cid: manifest.cid.clone(),
                run: manifest.run,
                key: manifest.key_at(place).cloned(),
                message_id: format!("{}/{place}", manifest.cid).into(),
            };
            let message = TargetResult::message(body, &to, outbox.environment.now().into())
                .with_header(header::ENDED_BY, by.as_str());
            Letter::new(to.queue.into(), message, Absence::Waits)
        }
        Publication::Renewal => {
            let renewed = trust.sign(manifest.encode_renewed(manifest.deadline_utc));
            Letter::new(manifest.queue(names), renewed, Absence::Declares)
        }
        Publication::ParkedManifest { reason } => {
            telemetry::parked();
            tracing::warn!(cid = %manifest.cid, run = %manifest.run, reason, "manifest parked");
            let (at, id) = (outbox.environment.now().into(), outbox.environment.unique());
            let message = manifest.encode().parked(&manifest.queue(names), &reason, at, id);
            Letter::new(names.parked().name, message, Absence::Declares)
        }
    }
}
