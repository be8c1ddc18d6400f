//! Manifests and messages for the tests.

use bytes::Bytes;
use fanfare_protocol::{
    Channel, Checkpoint, CheckpointEntry, Cid, EndedBy, Fence, Manifest, ManifestTarget, Message, Metadata,
    QueueNames, ReplyAddress, RunId, ServiceName, Source, TargetKey, TargetResult, WireTime, header,
};
use uuid::Uuid;

/// An id that a number stands for.
pub(crate) fn id(number: u128) -> RunId {
    RunId::from(Uuid::from_u128(number))
}

pub(crate) fn time() -> WireTime {
    "2025-01-19 19:55:45".parse().unwrap()
}

fn services(kind: &str, count: usize) -> Vec<ServiceName> {
    (0..count).map(|n| ServiceName::new(format!("{kind}.{n}")).unwrap()).collect()
}

/// A fan-out over these keys with so many callbacks of each kind.
pub(crate) fn manifest<'a>(
    keys: impl IntoIterator<Item = &'a str>,
    on_target: usize,
    on_final: usize,
) -> Manifest {
    let (cid, run) = (Cid::new("c1").unwrap(), id(1));
    let target = |key| ManifestTarget {
        key: TargetKey::new(key).unwrap(),
        service: ServiceName::new("price.quote").unwrap(),
    };
    Manifest {
        reply_to: QueueNames::default().aggregation(&cid, run).name,
        cid,
        run,
        source: Source::new("shop").unwrap(),
        req_ts_utc: time(),
        channel: Channel::FanoutCall,
        targets: keys.into_iter().map(target).collect(),
        on_target: services("call", on_target),
        on_final: services("final", on_final),
        deadline_ms: None,
        deadline_utc: None,
        waiter: None,
        progress: false,
        sentinel: false,
        replicated: true,
        completion: None,
        metadata: Metadata::default(),
        traceparent: None,
    }
}

/// A fan-out over targets named by their numbers.
pub(crate) fn numbered(targets: usize, on_target: usize, on_final: usize) -> Manifest {
    let keys: Vec<String> = (0..targets).map(|n| n.to_string()).collect();
    manifest(keys.iter().map(String::as_str), on_target, on_final)
}

/// The body of a result that answers with a text; one that starts with `!` has failed with the rest.
pub(crate) fn body(answer: &str) -> Bytes {
    let exception = answer.strip_prefix('!').map(str::to_owned);
    let response = if exception.is_some() { "null".to_owned() } else { format!("{answer:?}") };
    TargetResult {
        source: "shop".to_owned(),
        target: "price.quote".to_owned(),
        response: serde_json::value::RawValue::from_string(response).unwrap(),
        req_ts_utc: time(),
        resp_ts_utc: time(),
        ok: exception.is_none(),
        exception,
        cid: Cid::new("c1").unwrap(),
        ended_by: None,
    }
    .to_body()
}

/// The body of the failure that a coordinator writes in the place of a target that is not awaited any longer.
pub(crate) fn missing(by: EndedBy, exception: &str) -> Bytes {
    let failed = TargetResult::from_body(&body(&format!("!{exception}"))).unwrap();
    TargetResult { ended_by: Some(by), ..failed }.to_body()
}

/// What a result's body answers, in the words that [`body`] takes.
pub(crate) fn answer(body: &[u8]) -> String {
    let result = TargetResult::from_body(body).expect("what counts is a result");
    match result.exception {
        Some(exception) => format!("!{exception}"),
        None => serde_json::from_str(result.response.get()).unwrap(),
    }
}

/// A result as a worker of a run sends it.
pub(crate) fn result_of(run: RunId, key: &str, body: Bytes) -> Message {
    let cid = Cid::new("c1").unwrap();
    let to = ReplyAddress {
        queue: QueueNames::default().aggregation(&cid, run).name.into(),
        cid,
        run,
        key: Some(TargetKey::new(key).unwrap()),
        message_id: "c1/0".into(),
    };
    TargetResult::message(body, &to, time())
}

/// The failure that a coordinator wrote, as it appends it.
pub(crate) fn missing_of(run: RunId, key: &str, body: Bytes) -> Message {
    let by = TargetResult::from_body(&body).unwrap().ended_by.unwrap();
    result_of(run, key, body).with_header(header::ENDED_BY, by.as_str())
}

/// A checkpoint that a hold with this token wrote.
pub(crate) fn checkpoint(token: u128, number: u64, called: bool, entries: &[(&str, &str)]) -> Checkpoint {
    let entry = |(key, answer): &(&str, &str)| CheckpointEntry {
        key: TargetKey::new(*key).unwrap(),
        body: body(answer),
        traceparent: None,
    };
    Checkpoint { coordinator: id(token), number, called, entries: entries.iter().map(entry).collect() }
}

/// A fence with this token.
pub(crate) fn fence(token: u128) -> Fence {
    Fence { token: id(token) }
}
