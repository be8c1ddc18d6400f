use fanfare_fanin::Publication;
use fanfare_protocol::{Callback, CallbackKind, Manifest, Message, ReplyAddress, Sentinel, TargetResult};

use crate::outbox::{Absence, Outbox};
use crate::telemetry;
use crate::trust::Trust;

/// Turns what a fan-out publishes into a message and the queue that it goes to.
pub(crate) fn addressed(
    manifest: &Manifest,
    publication: Publication,
    outbox: &Outbox,
    trust: &Trust,
) -> (String, Message, Absence) {
    let names = &outbox.names;
    match publication {
        Publication::OnTarget { callback, place, body } => {
            let callback = &manifest.on_target[callback];
            let kind = CallbackKind::OnTarget { callback, place };
            let message = Callback { manifest, kind, body }.encode();
            (names.service(callback).name, message, Absence::Parks)
        }
        Publication::OnFinal { callback, body, ending, links } => {
            let callback = &manifest.on_final[callback];
            let kind = CallbackKind::OnFinal { callback: Some(callback), ending };
            let message = Callback { manifest, kind, body }.encode().linked(&links);
            (names.service(callback).name, message, Absence::Parks)
        }
        Publication::Waiter { body, ending } => {
            let waiter =
                manifest.waiter.clone().expect("the machine answers a waiter only where there is one");
            let kind = CallbackKind::OnFinal { callback: None, ending };
            (waiter, Callback { manifest, kind, body }.encode(), Absence::Drops)
        }
        Publication::Checkpoint(checkpoint) => {
            (manifest.reply_to.clone(), checkpoint.encode(manifest), Absence::Waits)
        }
        Publication::Fence(fence) => (manifest.reply_to.clone(), fence.encode(manifest), Absence::Waits),
        Publication::Sentinel => {
            (manifest.reply_to.clone(), Sentinel::encode(&manifest.cid, manifest.run), Absence::Waits)
        }
        Publication::Missing { place, body } => {
            let to = ReplyAddress {
                queue: manifest.reply_to.clone(),
                cid: manifest.cid.clone(),
                run: manifest.run,
                key: manifest.key_at(place).cloned(),
                message_id: format!("{}/{place}", manifest.cid),
            };
            let message = TargetResult::message(body, &to, outbox.environment.now().into());
            (to.queue, message, Absence::Waits)
        }
        Publication::Renewal => {
            let renewed = trust.sign(manifest.encode_renewed(manifest.deadline_utc));
            (manifest.queue(names), renewed, Absence::Declares)
        }
        Publication::ParkedManifest { reason } => {
            telemetry::parked();
            tracing::warn!(cid = %manifest.cid, run = %manifest.run, reason, "manifest parked");
            let at = outbox.environment.now().into();
            let message = manifest.encode().parked(&manifest.queue(names), &reason, at);
            (names.parked().name, message, Absence::Declares)
        }
    }
}
