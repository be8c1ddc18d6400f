use bytes::Bytes;
use fanfare_protocol::{
    Bundle, Checkpoint, CheckpointEntry, EndedBy, Fence, Malformed, Manifest, Mark, Message, RunId,
    TargetResult, TargetResultRef, TraceParent, WireTime, header, limits,
};
use fanfare_protocol::{key_of, place_of};

use crate::places::Places;
use crate::{Answer, Item};

/// Tells what a message of the aggregation queue is to this fan-out. `places` are those of the manifest, and `hold` is what
/// this hold's checkpoints and marks are known by.
///
/// A result that can be told to belong to a target but is not of the protocol's form becomes a failed result which says
/// what is wrong, always the same one for the same message: whichever coordinator reads it, the outcome is the same.
pub(crate) fn read(message: &Message, manifest: &Manifest, places: &Places, hold: RunId) -> Item {
    match message.kind() {
        header::TYPE_RESULT => read_result(message, manifest, places),
        header::TYPE_RESULTS => Item::Garbage(why_no_results(message).0),
        header::TYPE_CHECKPOINT if is_foreign(message, manifest) => Item::Stranger,
        header::TYPE_CHECKPOINT if let Some(number) = Checkpoint::number_of(message, hold) => {
            Item::OwnCheckpoint(number)
        }
        header::TYPE_CHECKPOINT => match Checkpoint::decode(message) {
            Ok(checkpoint) => Item::Checkpoint(with_sound_bodies(checkpoint, manifest, places)),
            Err(Malformed(reason)) => Item::Garbage(reason),
        },
        header::TYPE_FENCE if is_foreign(message, manifest) => Item::Stranger,
        header::TYPE_FENCE => match Fence::decode(message) {
            Ok(fence) if fence.token == manifest.run => Item::Mark(Mark::number_of(message, hold)),
            Ok(fence) => Item::Fence(fence),
            Err(Malformed(reason)) => Item::Garbage(reason),
        },
        header::TYPE_SENTINEL if is_foreign(message, manifest) => Item::Stranger,
        header::TYPE_SENTINEL => match message.run().and(message.cid().map(|_| ())) {
            Ok(()) => Item::Sentinel,
            Err(Malformed(reason)) => Item::Garbage(reason),
        },
        kind if kind.starts_with("fanfare.") => Item::Unknown,
        _ => Item::Garbage(message.mistyped("does not belong into an aggregation queue")),
    }
}

/// What is wrong with several results in one message. One that could be read was taken apart before.
pub(crate) fn why_no_results(message: &Message) -> Malformed {
    Bundle::decode(message).err().unwrap_or_else(|| Malformed("a list of results without any".to_owned()))
}

/// Whether a message names another fan-out than this one.
fn is_foreign(message: &Message, manifest: &Manifest) -> bool {
    message.run().is_ok_and(|run| run != manifest.run)
        || message.properties.correlation_id.as_ref().is_some_and(|cid| *cid != manifest.cid.as_str())
}

fn read_result(message: &Message, manifest: &Manifest, places: &Places) -> Item {
    if is_foreign(message, manifest) {
        return Item::Stranger;
    }
    let place = match key_of(message) {
        Some(key) => places.find(manifest, key),
        None => {
            let id = message.properties.message_id.as_deref().unwrap_or_default();
            match place_of(id, &manifest.cid) {
                None => {
                    return Item::Garbage(
                        "a result with neither fanfare-key nor a place in message_id".to_owned(),
                    );
                }
                Some(place) => Some(place).filter(|place| *place < manifest.targets.len()),
            }
        }
    };
    let Some(place) = place else { return Item::Stranger };
    let sound =
        message.run().and_then(|_| message.cid()).and_then(|_| TargetResultRef::from_body(&message.body));
    let reason = match sound {
        Ok(result) if result.cid != manifest.cid => return Item::Stranger,
        Ok(TargetResultRef { target, .. }) if target != manifest.targets[place].service.as_str() => {
            let service = &manifest.targets[place].service;
            format!("the result is malformed: `target` is `{target}`, and the target is `{service}`")
        }
        Ok(TargetResultRef { ended_by: Some(by), .. })
            if message.text(header::ENDED_BY) != Some(by.as_str()) =>
        {
            // It would end the fan-out for all targets. A coordinator says it in a header too, which no worker copies.
            format!("the result is malformed: `ended_by` is `{by}`, which only coordinators write")
        }
        Ok(result) => {
            let traceparent = TraceParent::of(message).filter(|_| place < limits::LINKS);
            let answer = Answer {
                traceparent: traceparent.map(Box::new),
                ..Answer::new(trimmed(&message.body), &result)
            };
            return Item::Result { place, answer };
        }
        Err(Malformed(reason)) => reason,
    };
    let at = message.properties.timestamp.and_then(WireTime::from_timestamp);
    Item::Result { place, answer: failure(manifest, place, reason, at, None) }
}

/// A failed result that a coordinator puts in a target's place.
pub(crate) fn failure(
    manifest: &Manifest,
    place: usize,
    exception: String,
    at: Option<WireTime>,
    ended_by: Option<EndedBy>,
) -> Answer {
    let result = TargetResult {
        source: manifest.source.to_string(),
        target: manifest.targets[place].service.to_string(),
        response: serde_json::value::RawValue::NULL.to_owned(),
        req_ts_utc: manifest.req_ts_utc,
        resp_ts_utc: at.unwrap_or(manifest.req_ts_utc),
        ok: false,
        exception: Some(exception),
        cid: manifest.cid.clone(),
        ended_by,
    };
    Answer { body: result.to_body(), ok: false, ended_by, at: result.resp_ts_utc, traceparent: None }
}

/// The body without white space around it, which JSON allows and other messages could not carry on.
fn trimmed(body: &Bytes) -> Bytes {
    body.slice_ref(body.trim_ascii())
}

fn with_sound_bodies(checkpoint: Checkpoint, manifest: &Manifest, places: &Places) -> Checkpoint {
    let sound = |entry: CheckpointEntry| match (
        TargetResultRef::from_body(&entry.body),
        places.find(manifest, entry.key.as_str()),
    ) {
        (Err(Malformed(reason)), Some(place)) => {
            CheckpointEntry { body: failure(manifest, place, reason, None, None).body, ..entry }
        }
        _ => entry,
    };
    Checkpoint { entries: checkpoint.entries.into_iter().map(sound).collect(), ..checkpoint }
}
