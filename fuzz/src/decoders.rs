//! Messages: what is taken is sound, what is not is refused in few words, and nothing panics.

use bytes::Bytes;
use fanfare_protocol::{
    Bundle, CancelAnswer, CancelRequest, Cancelled, Checkpoint, Fence, FinalPayload, FinalPayloadBuilder,
    Invocation, Malformed, Manifest, Message, QueueNames, ReplyAddress, TargetResult, limits, nesting,
};

use crate::{samples, text};

/// Bytes that AMQP allows in a property.
const SHORT: usize = 255;
/// Characters of a reason, which [`Malformed`] promises.
const REASON_CHARS: usize = 1000;

/// A message that is meant to be a manifest.
pub fn manifest(data: &[u8]) {
    let names = QueueNames::default();
    let message = text::message(data);
    let manifest = match Manifest::decode(&message, &names) {
        Ok(manifest) => manifest,
        Err(reason) => return brief(&reason),
    };
    assert!(names.is_reply_queue(&manifest.reply_to, &manifest.cid, manifest.run));
    assert!(manifest.waiter.as_deref().is_none_or(|waiter| names.is_wait(waiter)));
    assert!(manifest.targets.len() <= limits::TARGETS);
    for encoded in [manifest.encode(), manifest.encode_renewed(manifest.deadline_utc)] {
        fits(&encoded);
        assert_eq!(Manifest::decode(&encoded, &names).as_ref(), Ok(&manifest));
    }
    // Its final payload can be had, and read, in however many parts it goes.
    let failed = samples::body("!x");
    let mut payload = FinalPayloadBuilder::new(&manifest);
    for _ in &manifest.targets {
        payload.push(&failed);
    }
    let whole = payload.finish(usize::MAX, limits::MESSAGE_BYTES).joined();
    assert_eq!(payload.finish(0, limits::MESSAGE_BYTES).joined(), whole);
    let whole: FinalPayload = serde_json::from_slice(&whole).expect("a final payload");
    assert_eq!(whole.data.len(), manifest.targets.len());
}

/// A body that is meant to be a result.
pub fn result(data: &[u8]) {
    let result = match TargetResult::from_body(data) {
        Ok(result) => result,
        Err(reason) => return brief(&reason),
    };
    assert_eq!(result.ok, result.exception.is_none());
    let again = TargetResult::from_body(&result.to_body()).expect("what was taken can be sent");
    assert_eq!((result.ok, &result.exception), (again.ok, &again.exception));
    assert_eq!(result.response.get(), again.response.get());

    // It goes on byte for byte into checkpoints and final payloads, which must be readable with it.
    let manifest = samples::numbered(1, 0, 1);
    let body = Bytes::copy_from_slice(data.trim_ascii());
    let mut payload = FinalPayloadBuilder::new(&manifest);
    payload.push(&body);
    let payload = payload.finish(limits::MESSAGE_BYTES, limits::MESSAGE_BYTES).joined();
    let payload: FinalPayload = serde_json::from_slice(&payload).expect("a final payload");
    assert_eq!(payload.data.get("0").map(|result| result.ok), Some(result.ok));
    // A response may hold what one parser takes and another does not, such as `1e999` or half of a surrogate pair; each is
    // parsed on its own, so that it spoils no other. What it must not do is to exhaust somebody's stack.
    assert!(nesting(result.response.get().as_bytes()) <= limits::NESTING);

    let checkpoint = Checkpoint {
        coordinator: samples::id(7),
        number: 0,
        called: true,
        entries: vec![fanfare_protocol::CheckpointEntry {
            key: manifest.targets[0].key.clone(),
            body,
            traceparent: None,
        }],
    };
    assert_eq!(Checkpoint::decode(&checkpoint.encode(&manifest)), Ok(checkpoint));
}

/// A message that is meant to be a request or a callback.
pub fn invocation(data: &[u8]) {
    let names = QueueNames::default();
    let message = text::message(data);
    let reply = match Invocation::decode(&message, &names) {
        Ok(invocation) => {
            assert_eq!(invocation.channel.is_call(), invocation.reply.is_some());
            assert!(invocation.attempt > 0 && invocation.message_id.len() <= SHORT);
            assert_eq!(invocation.body, message.body);
            invocation.reply
        }
        Err(malformed) => {
            brief(&malformed.reason);
            malformed.reply.map(|reply| *reply)
        }
    };
    if let Some(reply) = reply {
        own(&reply, &names);
        let result = TargetResult::message(samples::body("fine"), &reply, samples::time());
        fits(&result);
        // The coordinator of its run finds the target by it.
        assert!(
            reply.key.is_some()
                || result
                    .properties
                    .message_id
                    .as_deref()
                    .is_some_and(|id| { fanfare_protocol::place_of(id, &reply.cid).is_some() })
        );
    }
}

/// A message that is meant to be a checkpoint.
pub fn checkpoint(data: &[u8]) {
    let message = Message { body: Bytes::copy_from_slice(data), ..Message::default() };
    match Checkpoint::decode(&message) {
        Ok(checkpoint) => {
            let encoded = checkpoint.encode(&samples::numbered(1, 0, 1));
            assert_eq!(Checkpoint::decode(&encoded), Ok(checkpoint));
        }
        Err(reason) => brief(&reason),
    }
}

/// A message that is meant to be several results.
pub fn bundle(data: &[u8]) {
    let message = Message { body: Bytes::copy_from_slice(data), ..Message::default() };
    match Bundle::decode(&message) {
        Ok(results) => {
            let again = Bundle::encode(&results);
            assert_eq!(again.is_none(), results.is_empty());
            let again = again.map_or(Ok(Vec::new()), |again| Bundle::decode(&again));
            // One that lacks what the first has is taken to share it; no worker makes such a result.
            let has = |result: &Message| {
                (result.properties.correlation_id.is_some(), result.text("fanfare-run").is_some())
            };
            if results.iter().all(|result| has(result) == has(&results[0])) {
                assert_eq!(again, Ok(results));
            } else {
                assert_eq!(again.map(|again| again.len()), Ok(results.len()));
            }
        }
        Err(reason) => brief(&reason),
    }
}

/// A message that is meant to be a fence.
pub fn fence(data: &[u8]) {
    let message = Message { body: Bytes::copy_from_slice(data), ..Message::default() };
    match Fence::decode(&message) {
        Ok(fence) => assert_eq!(Fence::decode(&fence.encode(&samples::numbered(1, 0, 1))), Ok(fence)),
        Err(reason) => brief(&reason),
    }
}

/// A message that is meant to ask for a cancel, to answer that, or to tell workers of one.
pub fn cancel(data: &[u8]) {
    let names = QueueNames::default();
    let message = text::message(data);
    match CancelRequest::decode(&message, &names) {
        Ok(request) => {
            assert!(names.is_wait(&request.reply_to));
            fits(&request.encode());
            assert_eq!(CancelRequest::decode(&request.encode(), &names), Ok(request));
        }
        Err(reason) => brief(&reason),
    }
    match CancelAnswer::decode(&message) {
        Ok(answer) => {
            let encoded = answer.encode(&samples::numbered(1, 0, 1).cid);
            fits(&encoded);
            assert_eq!(CancelAnswer::decode(&encoded), Ok(answer));
        }
        Err(reason) => brief(&reason),
    }
    match Cancelled::decode(&message) {
        Ok(cancelled) => {
            fits(&cancelled.encode());
            assert_eq!(Cancelled::decode(&cancelled.encode()), Ok(cancelled));
        }
        Err(reason) => brief(&reason),
    }
}

/// A worker answers to the aggregation queue of the message at hand or to a shard, and to nothing else.
fn own(reply: &ReplyAddress, names: &QueueNames) {
    assert!(names.is_reply_queue(&reply.queue, &reply.cid, reply.run), "{}", reply.queue);
}

fn brief(reason: &Malformed) {
    assert!(reason.0.chars().count() <= REASON_CHARS);
}

/// What is published has no property that AMQP cannot carry.
fn fits(message: &Message) {
    let properties = &message.properties;
    for text in [&properties.message_id, &properties.correlation_id, &properties.app_id, &properties.reply_to]
    {
        assert!(text.as_ref().is_none_or(|text| text.len() <= SHORT), "{text:?}");
    }
}
