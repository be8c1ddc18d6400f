//! Messages and queue arguments as AMQP has them.

use bytes::Bytes;
use fanfare_protocol::queue::Argument;
use fanfare_protocol::{HeaderValue, Headers, Message, Properties, QueueSpec};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use smol_str::SmolStr;

use crate::BrokerError;

/// AMQP's mark of a message that outlives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A queue's name, or another string that AMQP keeps short.
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| {
        let start: String = text.chars().take(40).collect();
        BrokerError::Refused(format!(
            "{what} `{start}...` has {} bytes, and AMQP allows 255; shorten it",
            text.len()
        ))
    })
}

/// The properties of a message, its headers among them.
///
/// # Errors
/// Where a string is too long for its place. A message that was not built by this project, and is only passed on, can
/// hold such a one.
pub(super) fn properties(message: &Message) -> Result<BasicProperties, BrokerError> {
    type Setter = fn(BasicProperties, ShortString) -> BasicProperties;
    let Properties {
        content_type,
        correlation_id,
        reply_to,
        message_id,
        kind,
        app_id,
        timestamp,
        user_id,
        expiration,
    } = &message.properties;
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let texts: [(&str, &Option<SmolStr>, Setter); 8] = [
        ("content_type", content_type, BasicProperties::with_content_type),
        ("correlation_id", correlation_id, BasicProperties::with_correlation_id),
        ("reply_to", reply_to, BasicProperties::with_reply_to),
        ("message_id", message_id, BasicProperties::with_message_id),
        ("type", kind, BasicProperties::with_type),
        ("app_id", app_id, BasicProperties::with_app_id),
        ("user_id", user_id, BasicProperties::with_user_id),
        ("expiration", expiration, BasicProperties::with_expiration),
    ];
    for (name, text, set) in texts {
        if let Some(text) = text {
            properties = set(properties, short(name, text)?);
        }
    }
    if let Some(timestamp) = timestamp {
        properties = properties.with_timestamp(*timestamp);
    }
    if !message.headers.is_empty() {
        properties = properties.with_headers(table(&message.headers)?);
    }
    Ok(properties)
}

/// A message that the broker delivered, or returned.
pub(super) fn message(properties: &BasicProperties, mut body: Vec<u8>) -> Message {
    // lapin lets it grow frame by frame. What is held may be held for long.
    body.shrink_to_fit();
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| SmolStr::new(text.as_str()));
    Message {
        properties: Properties {
            content_type: text(properties.content_type()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            message_id: text(properties.message_id()),
            kind: text(properties.kind()),
            app_id: text(properties.app_id()),
            timestamp: *properties.timestamp(),
            user_id: text(properties.user_id()),
            expiration: text(properties.expiration()),
        },
        headers: properties.headers().as_ref().map(headers).unwrap_or_default(),
        body: Bytes::from(body),
    }
}

/// The arguments with which a queue is declared.
pub(super) fn arguments(queue: &QueueSpec) -> FieldTable {
    let mut arguments = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Int(number) => AMQPValue::LongLongInt(*number),
            Argument::Bool(value) => AMQPValue::Boolean(*value),
        };
        arguments.insert((*name).into(), value);
    }
    arguments
}

fn table(headers: &Headers) -> Result<FieldTable, BrokerError> {
    let mut table = FieldTable::default();
    for (name, value) in headers.iter() {
        table.insert(short("the name of header", name)?, field(value)?);
    }
    Ok(table)
}

fn field(value: &HeaderValue) -> Result<AMQPValue, BrokerError> {
    Ok(match value {
        HeaderValue::Text(text) | HeaderValue::Other(text) => AMQPValue::LongString(text.as_str().into()),
        HeaderValue::Int(number) => AMQPValue::LongLongInt(*number),
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Table(headers) => AMQPValue::FieldTable(table(headers)?),
        HeaderValue::List(values) => {
            let values: Result<Vec<_>, _> = values.iter().map(field).collect();
            AMQPValue::FieldArray(FieldArray::from(values?))
        }
    })
}

fn headers(table: &FieldTable) -> Headers {
    table.into_iter().map(|(name, value)| (name.as_str(), header(value))).collect()
}

fn header(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::ShortShortUInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::ShortInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::ShortUInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::LongInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::LongUInt(number) => HeaderValue::Int((*number).into()),
        AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => text.into(),
            Err(_) => HeaderValue::Other(text.to_string().into()),
        },
        AMQPValue::FieldTable(table) => HeaderValue::Table(headers(table)),
        AMQPValue::FieldArray(values) => HeaderValue::List(values.as_slice().iter().map(header).collect()),
        AMQPValue::Float(number) => HeaderValue::Other(number.to_string().into()),
        AMQPValue::Double(number) => HeaderValue::Other(number.to_string().into()),
        AMQPValue::DecimalValue(number) => {
            HeaderValue::Other(format!("{}e-{}", number.value, number.scale).into())
        }
        AMQPValue::Timestamp(seconds) => HeaderValue::Other(format!("{seconds} s since 1970").into()),
        AMQPValue::ByteArray(bytes) => HeaderValue::Other(String::from_utf8_lossy(bytes.as_slice()).into()),
        AMQPValue::Void => HeaderValue::Other(SmolStr::default()),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::{DecimalValue, LongString};

    use super::*;

    #[test]
    fn message_msurvives_the_way_there_and_back() {
        let text = |text: &str| Some(text.into());
        let original = Message {
            properties: Properties {
                content_type: text("application/json"),
                correlation_id: text("cid"),
                reply_to: text("queue"),
                message_id: text("id"),
                kind: text("fanfare.request"),
                app_id: text("source"),
                timestamp: Some(1_700_000_000),
                user_id: text("guest"),
                expiration: text("60000"),
            },
            headers: Headers::from([
                ("text", "äöü".into()),
                ("int", (-5).into()),
                ("bool", HeaderValue::Bool(true)),
                ("list", HeaderValue::List(vec![1.into(), "two".into()])),
                ("table", HeaderValue::Table(Headers::from([("inner", 3.into())]))),
            ]),
            body: Bytes::from_static(b"{}"),
        };
        let sent = properties(&original).unwrap();
        assert_eq!(sent.delivery_mode(), &Some(2));
        assert_eq!(message(&sent, b"{}".to_vec()), original);
    }

    #[test]
    fn every_integer_is_an_integer_and_strange_values_are_readable() {
        let read = |value| header(&value);
        assert_eq!(read(AMQPValue::ShortShortInt(-1)), HeaderValue::Int(-1));
        assert_eq!(read(AMQPValue::ShortShortUInt(200)), HeaderValue::Int(200));
        assert_eq!(read(AMQPValue::ShortInt(-1)), HeaderValue::Int(-1));
        assert_eq!(read(AMQPValue::ShortUInt(65_535)), HeaderValue::Int(65_535));
        assert_eq!(read(AMQPValue::LongInt(-7)), HeaderValue::Int(-7));
        assert_eq!(read(AMQPValue::LongUInt(4_000_000_000)), HeaderValue::Int(4_000_000_000));
        assert_eq!(read(AMQPValue::Timestamp(5)), HeaderValue::Other("5 s since 1970".into()));
        let decimal = AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 });
        assert_eq!(read(decimal), HeaderValue::Other("314e-2".into()));
        let broken = AMQPValue::LongString(LongString::from(vec![0xff]));
        assert_eq!(read(broken), HeaderValue::Other("\u{fffd}".into()));
    }

    #[test]
    fn string_that_amqp_cannot_hold_is_refused_by_name() {
        let long = "x".repeat(256);
        let mut foreign = Message::default();
        foreign.properties.message_id = Some(long.as_str().into());
        let error = properties(&foreign).unwrap_err().to_string();
        assert!(error.contains("message_id") && error.contains("256 bytes"), "{error}");
        let named = Message::default().with_header(&long, "value");
        assert!(properties(&named).unwrap_err().to_string().contains("header"));
        // A header's value may be long.
        assert!(properties(&Message::default().with_header("name", long)).is_ok());
    }
}
