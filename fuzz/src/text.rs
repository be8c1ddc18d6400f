//! Messages as text, so that a corpus of them can be read and written by a person.

use fanfare_protocol::message::{HeaderValue, Headers, Message};

/// A message of lines such as `type fanfare.request`, of which the last is empty, and a body. Names of properties are
/// theirs, any other is a header's. A value is a string, or `#` and a number, `!` and a truth value, `{` and entries
/// of a table, or `[` and those of a list, divided by commas.
pub(crate) fn message(data: &[u8]) -> Message {
    let end = data.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = end.map_or((data, &[][..]), |end| (&data[..end], &data[end + 2..]));
    let mut message = Message { body: bytes::Bytes::copy_from_slice(body), ..Message::default() };
    for line in String::from_utf8_lossy(head).lines() {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        let properties = &mut message.properties;
        let property = match name {
            "type" => &mut properties.kind,
            "correlation_id" => &mut properties.correlation_id,
            "reply_to" => &mut properties.reply_to,
            "message_id" => &mut properties.message_id,
            "app_id" => &mut properties.app_id,
            "timestamp" => {
                properties.timestamp = value.parse().ok();
                continue;
            }
            _ => {
                message.headers.insert(name, header(value));
                continue;
            }
        };
        *property = Some(value.into());
    }
    message
}

fn header(value: &str) -> HeaderValue {
    let entries = || value[1..].split(',').map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    match value.as_bytes().first() {
        Some(b'#') => HeaderValue::Int(value[1..].parse().unwrap_or(i64::MIN)),
        Some(b'!') => HeaderValue::Bool(&value[1..] == "true"),
        Some(b'{') => {
            let table = entries().map(|(name, value)| (name, flat(value)));
            HeaderValue::Table(table.collect::<Headers>())
        }
        Some(b'[') => HeaderValue::List(entries().map(|(value, _)| flat(value)).collect()),
        _ => HeaderValue::from(value),
    }
}

fn flat(value: &str) -> HeaderValue {
    match value.strip_prefix('#') {
        Some(number) => HeaderValue::Int(number.parse().unwrap_or(i64::MIN)),
        None => HeaderValue::from(value),
    }
}
