//! Whatever arrives, decoding it ends with a value or an error.

use bytes::Bytes;
use fanfare_protocol::{
    Bundle, Checkpoint, Fence, FinalPayload, HeaderValue, Invocation, Manifest, Message, Properties,
    QueueNames, TargetResult, key_of, place_of,
};
use proptest::prelude::*;

use crate::samples::{cid, manifest, request, result};

fn value() -> impl Strategy<Value = HeaderValue> {
    let leaf = prop_oneof![
        any::<String>().prop_map(HeaderValue::from),
        any::<i64>().prop_map(HeaderValue::Int),
        any::<bool>().prop_map(HeaderValue::Bool),
        any::<String>().prop_map(|text| HeaderValue::Other(text.into())),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            proptest::collection::vec((".{0,8}", inner.clone()), 0..4)
                .prop_map(|table| HeaderValue::Table(table.into_iter().collect())),
            proptest::collection::vec(inner, 0..4).prop_map(HeaderValue::List),
        ]
    })
}

/// A good message with a few things replaced by others.
fn message() -> impl Strategy<Value = Message> {
    let good = prop_oneof![
        Just(request().encode()),
        Just(manifest().encode()),
        Just(Message { body: result("1", None).to_body(), ..manifest().encode() }),
        Just(
            Bundle::encode(&[manifest().encode(), Message { body: "{}".into(), ..request().encode() }])
                .unwrap()
        ),
        Just(fanfare_protocol::Fence { token: manifest().run }.encode(&manifest())),
    ];
    let header = prop_oneof![
        Just("fanfare-channel"),
        Just("fanfare-run"),
        Just("fanfare-key"),
        Just("fanfare-metadata"),
        Just("fanfare-attempt"),
        Just("fanfare-req-ts"),
        Just("fanfare-source"),
    ];
    let headers = proptest::collection::vec((header, value()), 0..3);
    let bytes = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4);
    let properties =
        proptest::option::of((any::<Option<String>>(), any::<Option<String>>(), any::<Option<u64>>()));
    (good, headers, bytes, properties, any::<bool>()).prop_map(
        |(mut good, headers, bytes, properties, cut)| {
            for (name, value) in headers {
                good.headers.insert(name, value);
            }
            let mut body = good.body.to_vec();
            for (at, byte) in bytes {
                let at = at % body.len();
                body[at] = byte;
                if cut {
                    body.truncate(at.max(1));
                }
            }
            good.body = body.into();
            if let Some((message_id, reply_to, timestamp)) = properties {
                let (message_id, reply_to) = (message_id.map(Into::into), reply_to.map(Into::into));
                good.properties = Properties { message_id, reply_to, timestamp, ..good.properties };
            }
            good
        },
    )
}

fn decode_all(message: &Message) {
    let names = QueueNames::default();
    let _ = Manifest::decode(message, &names);
    let _ = Checkpoint::decode(message);
    let _ = Fence::decode(message);
    if let Ok(results) = Bundle::decode(message)
        && let Some(again) = Bundle::encode(&results)
    {
        assert_eq!(Bundle::decode(&again).unwrap().len(), results.len());
    }
    let _ = serde_json::from_slice::<FinalPayload>(&message.body);
    let _ = key_of(message);
    let _ = place_of(message.properties.message_id.as_deref().unwrap_or_default(), &cid());
    if let Err(error) = Invocation::decode(message, &names) {
        assert!(!error.to_string().is_empty());
    }
    if TargetResult::from_body(&message.body).is_ok() {
        // What is taken for a result can be carried on.
        let manifest = Manifest { targets: manifest().targets[..1].to_vec(), ..manifest() };
        let mut payload = fanfare_protocol::FinalPayloadBuilder::new(&manifest);
        payload.push(&message.body);
        let most = fanfare_protocol::limits::MESSAGE_BYTES;
        assert!(serde_json::from_slice::<FinalPayload>(&payload.finish(most, most).joined()).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_to_a_message_makes_decoding_panic(message in message()) {
        decode_all(&message);
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        body in proptest::collection::vec(any::<u8>(), 0..100),
        headers in proptest::collection::vec((".{0,12}", value()), 0..4),
        kind in proptest::option::of("fanfare\\.(request|callback|manifest|result|fence)"),
    ) {
        let properties = Properties { kind: kind.map(Into::into), ..Properties::default() };
        decode_all(&Message { properties, headers: headers.into_iter().collect(), body: Bytes::from(body) });
    }

    #[test]
    fn every_time_is_read_as_it_was_written(seconds in -62_000_000_000i64..250_000_000_000) {
        let time = fanfare_protocol::WireTime::from(chrono::DateTime::from_timestamp(seconds, 0).unwrap());
        prop_assert_eq!(time.to_string().parse(), Ok(time));
    }
}
