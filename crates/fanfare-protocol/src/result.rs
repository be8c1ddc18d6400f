use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::invocation::ReplyAddress;
use crate::message::Message;
use crate::name::Cid;
use crate::{EndedBy, Malformed, WireTime, header, limits, nesting};

/// What a target answered, or why it failed. It is the body of a result, of an on-target callback, and each entry of a
/// final payload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TargetResult {
    /// Who issued the fan-out.
    pub source: String,
    /// The service that answered.
    pub target: String,
    /// The answer, any JSON; `null` where the target failed.
    pub response: Box<RawValue>,
    /// When the fan-out was invoked.
    pub req_ts_utc: WireTime,
    /// When the target completed.
    pub resp_ts_utc: WireTime,
    /// Whether the target succeeded.
    pub ok: bool,
    /// The error and its causes; there if and only if `ok` is false.
    pub exception: Option<String>,
    /// The correlation ID.
    pub cid: Cid,
    /// Where a coordinator wrote this in the target's place: why the target was not awaited any longer.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "EndedBy::read")]
    pub ended_by: Option<EndedBy>,
}

/// A [`TargetResult`] that is read where its body lies, so that nothing is copied which need not be.
#[derive(Debug, Deserialize)]
pub struct TargetResultRef<'a> {
    /// Who issued the fan-out.
    #[serde(borrow)]
    pub source: Cow<'a, str>,
    /// The service that answered.
    #[serde(borrow)]
    pub target: Cow<'a, str>,
    /// The answer, any JSON; `null` where the target failed.
    #[serde(borrow)]
    pub response: &'a RawValue,
    /// When the fan-out was invoked.
    pub req_ts_utc: WireTime,
    /// When the target completed.
    pub resp_ts_utc: WireTime,
    /// Whether the target succeeded.
    pub ok: bool,
    /// The error and its causes; there if and only if `ok` is false.
    pub exception: Option<String>,
    /// The correlation ID.
    pub cid: Cid,
    /// Where a coordinator wrote this in the target's place: why the target was not awaited any longer.
    #[serde(default, deserialize_with = "EndedBy::read")]
    pub ended_by: Option<EndedBy>,
}

impl<'a> TargetResultRef<'a> {
    /// Decodes the body of a result.
    ///
    /// # Errors
    /// Those of [`TargetResult::from_body`].
    pub fn from_body(body: &'a [u8]) -> Result<Self, Malformed> {
        if body.len() > limits::RESULT_BYTES {
            let (is, most) = (body.len(), limits::RESULT_BYTES);
            return Err(Malformed::new(format!("the result has {is} bytes, and {most} is the most")));
        }
        let result: Self = from_json("result", body)?;
        // Of the whole, since a field that is unknown here goes on to callbacks too.
        let (depth, most) = (nesting(body), limits::NESTING + 1);
        if depth > most {
            return Err(Malformed::new(format!(
                "the result is nested too deeply: it has {depth} levels of arrays and objects, and {most} is the most"
            )));
        }
        match (result.ok, &result.exception) {
            (true, Some(_)) => {
                Err(Malformed::new("the result is malformed: `ok` is true, but there is an `exception`"))
            }
            (false, None) => {
                Err(Malformed::new("the result is malformed: `ok` is false, but there is no `exception`"))
            }
            (false, Some(_)) if result.response.get() != "null" => {
                Err(Malformed::new("the result is malformed: `ok` is false, but `response` is not null"))
            }
            _ => Ok(result),
        }
    }
}

impl From<TargetResultRef<'_>> for TargetResult {
    fn from(result: TargetResultRef<'_>) -> Self {
        Self {
            source: result.source.into_owned(),
            target: result.target.into_owned(),
            response: result.response.to_owned(),
            req_ts_utc: result.req_ts_utc,
            resp_ts_utc: result.resp_ts_utc,
            ok: result.ok,
            exception: result.exception,
            cid: result.cid,
            ended_by: result.ended_by,
        }
    }
}

impl TargetResult {
    /// The body of a result: compact JSON, fields in the order of the protocol.
    ///
    /// A body larger than [`limits::RESULT_BYTES`], or a response nested deeper than [`limits::NESTING`], is replaced by that of
    /// a failed result that says so: nothing that a service returns can get stuck on its way, or harm who receives it.
    #[must_use]
    pub fn to_body(&self) -> Bytes {
        let body = to_json(self);
        let depth = nesting(self.response.get().as_bytes());
        let exception = if body.len() > limits::RESULT_BYTES {
            format!(
                "the response is too large: the result has {} bytes, and {} is the most; store the data elsewhere and \
                 return a reference to it",
                body.len(),
                limits::RESULT_BYTES
            )
        } else if depth > limits::NESTING {
            format!(
                "the response is nested too deeply: it has {depth} levels of arrays and objects, and {} is the most; \
                 flatten it, or return it as a string",
                limits::NESTING
            )
        } else {
            return body.into();
        };
        to_json(&Self { response: null(), ok: false, exception: Some(exception), ..self.clone() }).into()
    }

    /// Decodes the body of a result.
    ///
    /// # Errors
    /// Where it is not a JSON object in UTF-8, lacks a field, has one of another type, is too large or nested too deeply, or
    /// contradicts itself.
    pub fn from_body(body: &[u8]) -> Result<Self, Malformed> {
        TargetResultRef::from_body(body).map(Self::from)
    }

    /// What a request of a service comes to that nobody could answer: what the request itself says, and why.
    #[must_use]
    pub fn unanswered(
        request: &Message,
        service: &str,
        to: &ReplyAddress,
        exception: String,
        at: WireTime,
    ) -> Self {
        let text = |name| request.text(name).unwrap_or_default();
        Self {
            source: text(header::SOURCE).to_owned(),
            target: service.to_owned(),
            response: null(),
            req_ts_utc: text(header::REQUESTED_AT).parse().unwrap_or(at),
            resp_ts_utc: at,
            ok: false,
            exception: Some(exception),
            cid: to.cid.clone(),
            ended_by: None,
        }
    }

    /// The message that carries a result body to its aggregation queue.
    #[must_use]
    pub fn message(body: Bytes, to: &ReplyAddress, at: WireTime) -> Message {
        let mut message =
            Message::of(header::TYPE_RESULT, &to.cid, format!("{}/result", to.message_id), body);
        message.properties.timestamp = Some(at.timestamp());
        message.headers.insert(header::RUN, to.run);
        if let Some(key) = &to.key {
            message.headers.insert(header::KEY, key.as_str());
        }
        message
    }

    /// The answer as a value of the caller's type.
    ///
    /// # Errors
    /// [`PayloadError::Failed`](crate::PayloadError::Failed) where the target failed, and
    /// [`PayloadError::Form`](crate::PayloadError::Form) where the answer is not of that type.
    pub fn response<T: serde::de::DeserializeOwned>(&self) -> Result<T, crate::PayloadError> {
        crate::payload::response_of(&self.target, self)
    }
}

/// Bytes that most bodies keep within: one with a hundred bytes of answer has about 280.
const BODY_ABOUT: usize = 512;

/// JSON `null`, the response of every failed target.
pub(crate) fn null() -> Box<RawValue> {
    RawValue::NULL.to_owned()
}

pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = Vec::with_capacity(BODY_ABOUT);
    serde_json::to_writer(&mut json, value)
        .expect("the protocol's types hold only strings, numbers and JSON");
    // It may have grown by doubling, and is held until it is confirmed.
    json.shrink_to_fit();
    json
}

/// Whether it is one value in JSON, as everything is that was validated.
pub(crate) fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(body).is_ok()
}

/// Reads a field that is of use only where it is a text, and no reason to refuse what has it.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::Text(text) => Some(text),
        Written::Other(_) => None,
    })
}

/// Decodes a body: one JSON object, all of it in UTF-8, since it goes on as it is to readers who rely on that. `serde_json`
/// alone would overlook what else is in an ignored field, and take a list of the fields' values for the object.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(what: &str, body: &'a [u8]) -> Result<T, Malformed> {
    let wrong = |reason: String| Malformed::new(format!("the {what} is malformed: {reason}"));
    let text = std::str::from_utf8(body).map_err(|error| wrong(format!("it is not UTF-8: {error}")))?;
    let is_object = text.trim_ascii_start().starts_with('{');
    match serde_json::from_str(text) {
        Ok(value) if is_object => Ok(value),
        Err(error) if !error.is_data() => Err(wrong(format!("it cannot be read as JSON: {error}"))),
        Err(error) if is_object => Err(wrong(error.to_string())),
        _ => Err(wrong("it is not a JSON object".to_owned())),
    }
}

/// The key that a result names, in header `fanfare-key`.
#[must_use]
pub fn key_of(message: &Message) -> Option<&str> {
    message.text(header::KEY)
}

/// The place n of a request's target, in a `message_id` of the form `<cid>/<n>`.
pub(crate) fn place_of_request(message_id: &str, cid: &Cid) -> Option<usize> {
    let place = message_id.strip_prefix(cid.as_str())?.strip_prefix('/')?;
    // A sign would be taken for a part of the number.
    if place.starts_with(|first: char| first.is_ascii_digit()) { place.parse().ok() } else { None }
}

/// The place n of a result's target, in a `message_id` of the form `<cid>/<n>/result`, or `<cid>/<n>` where its worker
/// repeats the request's.
#[must_use]
pub fn place_of(message_id: &str, cid: &Cid) -> Option<usize> {
    place_of_request(message_id.strip_suffix("/result").unwrap_or(message_id), cid)
}
