//! What is too large is replaced, and never in two ways.

use bytes::Bytes;
use fanfare_protocol::{
    Assembly, FinalBody, FinalPayload, FinalPayloadBuilder, LargePayload, Manifest, ManifestTarget, Message,
    Part, Results, RunId, TargetResult, limits, nesting,
};

use crate::samples::{key, manifest, result, service};

fn text_of(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes))
}

#[test]
fn a_result_at_the_limit_goes_through_and_one_above_it_fails_saying_so() {
    let around = result("\"\"", None).to_body().len();
    let fits = result(&text_of(limits::RESULT_BYTES - around), None).to_body();
    assert_eq!(fits.len(), limits::RESULT_BYTES);
    assert!(TargetResult::from_body(&fits).unwrap().ok);
    let large = result(&text_of(limits::RESULT_BYTES - around + 1), None).to_body();
    let failed = TargetResult::from_body(&large).unwrap();
    assert!(!failed.ok && failed.response.get() == "null");
    assert_eq!(
        failed.exception.unwrap(),
        format!(
            "the response is too large: the result has {} bytes, and {} is the most; store the data elsewhere \
             and return a reference to it",
            limits::RESULT_BYTES + 1,
            limits::RESULT_BYTES
        )
    );
}

#[test]
fn a_response_nested_too_deeply_fails_saying_so_and_a_final_payload_with_the_deepest_can_be_parsed_whole() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let failed = TargetResult::from_body(&result(&nested(10_000), None).to_body()).unwrap();
    assert_eq!(
        failed.exception.unwrap(),
        "the response is nested too deeply: it has 10000 levels of arrays and objects, and 96 is the most; flatten it, or \
         return it as a string"
    );
    let deepest = result(&nested(limits::NESTING), None).to_body();
    assert!(TargetResult::from_body(&deepest).unwrap().ok);
    let manifest = targets(1);
    let mut builder = FinalPayloadBuilder::new(&manifest);
    builder.push(&deepest);
    let payload = builder.finish(limits::MESSAGE_BYTES, limits::MESSAGE_BYTES).joined();
    assert_eq!(nesting(&payload), limits::NESTING + limits::PAYLOAD_LEVELS);
    serde_json::from_slice::<serde_json::Value>(&payload).unwrap();
}

#[test]
fn a_body_above_the_limit_is_refused() {
    let error = TargetResult::from_body(&vec![b' '; limits::RESULT_BYTES + 1]).unwrap_err();
    assert!(error.to_string().contains("is the most"), "{error}");
}

fn targets(count: usize) -> Manifest {
    let target = |n: usize| ManifestTarget { key: key(&n.to_string()), service: service("my.service1") };
    Manifest { targets: (0..count).map(target).collect(), ..manifest() }
}

const MB: usize = 1024 * 1024;

/// The payload as it is sent where a message holds `most` bytes, and as it is put together again from what is sent.
fn sent(manifest: &Manifest, bodies: &[Bytes], large: usize, most: usize) -> (Vec<Message>, FinalPayload) {
    let mut builder = FinalPayloadBuilder::new(manifest);
    bodies.iter().for_each(|body| builder.push(body));
    let body = builder.finish(large, most);
    assert_eq!(body, builder.finish(large, most), "it is the same every time");
    let FinalBody::Parts(parts) = &body else { panic!("it is whole") };
    let writer = RunId::from(uuid::Uuid::from_u128(7));
    let encoded = parts.bodies().enumerate().map(|(number, body)| {
        let part = Part { writer, number, body };
        let message = part.clone().encode(&manifest.cid, manifest.run);
        assert_eq!(Part::decode(&message).unwrap(), part);
        message
    });
    let messages: Vec<Message> = encoded.collect();
    let largest = messages.iter().map(|message| message.body.len()).fold(parts.head().len(), usize::max);
    assert_eq!(largest, body.largest());
    let large = LargePayload { writer, parts: messages.len(), bytes: parts.bytes() };
    let mut assembly = Assembly::new(parts.head(), large).unwrap();
    messages.iter().for_each(|message| assembly.push(&message.body));
    let whole = assembly.finish().unwrap();
    assert_eq!(whole, body.joined());
    // What one message would have had, had it fitted.
    let FinalBody::Whole(one) = builder.finish(usize::MAX, usize::MAX) else { panic!("it has no limit") };
    let payload: FinalPayload = serde_json::from_slice(&whole).unwrap();
    let have_room = bodies.iter().all(|body| body.len() + 32 <= most);
    assert!(!have_room || whole == one);
    (messages, payload)
}

#[test]
fn a_payload_above_the_limit_travels_in_parts_of_whole_entries_and_is_the_same_put_together() {
    let bodies: Vec<Bytes> = [3 * MB, 7 * MB, 1, 100, 7 * MB, MB / 2, MB / 3, MB / 2]
        .map(|size| result(&text_of(size), None).to_body())
        .into();
    let (messages, payload) = sent(&targets(8), &bodies, limits::MESSAGE_BYTES, limits::MESSAGE_BYTES);
    assert_eq!(payload.data.len(), 8);
    let keys = |message: &Message| -> Vec<String> {
        let entries: Results = serde_json::from_slice(&message.body).unwrap();
        entries.into_iter().map(|(key, _)| key).collect()
    };
    let keys: Vec<Vec<String>> = messages.iter().map(keys).collect();
    assert_eq!(keys, [vec!["0"], vec!["1"], vec!["2", "3"], vec!["4"], vec!["5", "6"], vec!["7"]]);
}

#[test]
fn a_payload_is_whole_up_to_the_limit_to_the_byte() {
    let manifest = targets(2);
    let mut builder = FinalPayloadBuilder::new(&manifest);
    (0..2).for_each(|_| builder.push(&result("1", None).to_body()));
    let bytes = builder.finish(MB, MB).joined().len();
    assert!(matches!(builder.finish(bytes, MB), FinalBody::Whole(body) if body.len() == bytes));
    assert!(matches!(builder.finish(bytes - 1, MB), FinalBody::Parts(parts) if parts.bytes() == bytes));
    assert!(matches!(builder.finish(MB, bytes - 1), FinalBody::Parts(_)));
}

#[test]
fn a_result_that_fits_into_no_message_of_the_broker_is_left_out_and_no_other() {
    let bodies: Vec<Bytes> = [3_000, 9_000, 10].map(|size| result(&text_of(size), None).to_body()).into();
    let (messages, payload) = sent(&targets(3), &bodies, 1_000, 5_000);
    assert!(messages.iter().all(|message| message.body.len() <= 5_000));
    let failures: Vec<_> = payload.failures().collect();
    assert_eq!(failures.len(), 1);
    assert!(failures[0].key == "1" && failures[0].exception.contains("was left out"), "{failures:?}");
}

#[test]
fn the_exception_of_a_failed_target_is_cut_where_no_message_has_room_for_it() {
    for piece in ["why ", "\u{1}", "\"\\", "語"] {
        let failed = result("null", Some(&piece.repeat(3_000))).to_body();
        let (messages, payload) = sent(&targets(1), &[failed], 1, 1_000);
        assert_eq!(messages.len(), 1);
        assert!(payload.failures().all(|failure| failure.exception.len() <= 150));
    }
}

#[test]
fn a_payload_that_is_not_all_there_is_not_taken_for_one() {
    let manifest = targets(2);
    let mut builder = FinalPayloadBuilder::new(&manifest);
    (0..2).for_each(|_| builder.push(&result("1", None).to_body()));
    let FinalBody::Parts(parts) = builder.finish(1, MB) else { panic!("it is whole") };
    assert_eq!(parts.bodies().count(), 2);
    let large = LargePayload { writer: manifest.run, parts: 2, bytes: parts.bytes() };
    let assembly = |large| Assembly::new(parts.head(), large).unwrap();
    assert!(assembly(large).finish().is_err());
    let mut twice = assembly(large);
    (0..2).for_each(|_| parts.bodies().for_each(|body| twice.push(&body)));
    assert!(twice.finish().is_err());
    let mut shorter = assembly(LargePayload { bytes: large.bytes + 1, ..large });
    parts.bodies().for_each(|body| shorter.push(&body));
    let error = shorter.finish().unwrap_err().to_string();
    assert!(error.contains("is to have"), "{error}");
}
