//! One fan-out, and its messages written down for comparison.

use bytes::Bytes;
use fanfare_protocol::{
    Channel, Cid, HeaderValue, Headers, Manifest, ManifestTarget, Message, Metadata, QueueNames,
    ReplyAddress, Request, RunId, ServiceName, Source, TargetKey, TargetOf, TargetResult, WireTime,
};

#[track_caller]
pub(crate) fn check(message: &Message, expected: &str) {
    assert_eq!(written(message), expected);
}

pub(crate) fn source() -> Source {
    Source::new("fanout1.my-service").unwrap()
}

pub(crate) fn cid() -> Cid {
    Cid::new("63e7c3a2ba616badecb125ce").unwrap()
}

pub(crate) fn run() -> RunId {
    "0123456789abcdef0123456789abcdef".parse().unwrap()
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

pub(crate) fn key(key: &str) -> TargetKey {
    TargetKey::new(key).unwrap()
}

pub(crate) fn time(text: &str) -> WireTime {
    text.parse().unwrap()
}

pub(crate) fn aggregation() -> String {
    QueueNames::default().aggregation(&cid(), run()).name
}

pub(crate) fn metadata() -> Metadata {
    let mut metadata = Metadata::default();
    metadata.insert("order", "7").unwrap();
    metadata
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        cid: cid(),
        run: run(),
        source: Source::new("fanout1.my-service").unwrap(),
        req_ts_utc: time("2025-01-19 19:55:45"),
        channel: Channel::FanoutCall,
        targets: vec![
            ManifestTarget { key: key("my.service1"), service: service("my.service1") },
            ManifestTarget { key: key("ключ 2"), service: service("my.service2") },
        ],
        on_target: vec![service("audit.log")],
        on_final: vec![service("my.cb1"), service("helpers.input-logger")],
        reply_to: aggregation(),
        deadline_ms: None,
        deadline_utc: None,
        waiter: None,
        progress: false,
        sentinel: false,
        replicated: false,
        completion: None,
        metadata: Metadata::default(),
        traceparent: None,
    }
}

pub(crate) fn request() -> Request {
    Request {
        cid: cid(),
        run: run(),
        source: Source::new("fanout1.my-service").unwrap(),
        service: service("my.service2"),
        requested_at: time("2025-01-19 19:55:45"),
        metadata: metadata(),
        traceparent: None,
        body: Bytes::from_static(b"{ \"untouched\":  1 }"),
        target: Some(TargetOf { parallel: false, key: key("ключ 2"), place: 1, reply_to: aggregation() }),
    }
}

pub(crate) fn result(response: &str, exception: Option<&str>) -> TargetResult {
    TargetResult {
        source: "fanout1.my-service".to_owned(),
        target: "my.service1".to_owned(),
        response: serde_json::value::RawValue::from_string(response.to_owned()).unwrap(),
        req_ts_utc: time("2025-01-19 19:55:45"),
        resp_ts_utc: time("2025-01-19 19:55:46"),
        ok: exception.is_none(),
        exception: exception.map(str::to_owned),
        cid: cid(),
        ended_by: None,
    }
}

pub(crate) fn reply() -> ReplyAddress {
    ReplyAddress {
        queue: aggregation().into(),
        cid: cid(),
        run: run(),
        key: Some(key("my.service1")),
        message_id: "63e7c3a2ba616badecb125ce/0".into(),
    }
}

/// All that a message has, a line for each property and header, and the body at the end.
pub(crate) fn written(message: &Message) -> String {
    let properties = &message.properties;
    let timestamp = properties.timestamp.map(|seconds| seconds.to_string().into());
    let named = [
        ("content_type", &properties.content_type),
        ("correlation_id", &properties.correlation_id),
        ("reply_to", &properties.reply_to),
        ("message_id", &properties.message_id),
        ("type", &properties.kind),
        ("app_id", &properties.app_id),
        ("timestamp", &timestamp),
        ("expiration", &properties.expiration),
    ];
    let mut lines: Vec<String> = named
        .into_iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}: {value}")))
        .collect();
    lines.extend(message.headers.iter().map(|(name, value)| format!("{name} = {}", shown(value))));
    lines.push(String::from_utf8(message.body.to_vec()).unwrap());
    lines.join("\n")
}

fn shown(value: &HeaderValue) -> String {
    let table = |table: &Headers| {
        let entries: Vec<String> =
            table.iter().map(|(name, value)| format!("{name}: {}", shown(value))).collect();
        format!("{{{}}}", entries.join(", "))
    };
    match value {
        HeaderValue::Text(text) => format!("{text:?}"),
        HeaderValue::Int(number) => number.to_string(),
        HeaderValue::Bool(value) => value.to_string(),
        HeaderValue::Table(headers) => table(headers),
        other => format!("{other:?}"),
    }
}
