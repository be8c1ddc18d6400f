//! A message as every broker has it: properties, headers and a body.

use bytes::Bytes;
use smol_str::SmolStr;
use uuid::Uuid;

pub use crate::headers::Headers;
use crate::name::{Cid, RunId};
use crate::{Malformed, QueueNames, WireTime, header, limits};

/// A message, free of any client library's types.
///
/// All messages of Fanfare are persistent and `mandatory`; the broker behind `fanfare-broker` sees to that, so
/// neither is a field here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The properties that Fanfare uses.
    pub properties: Properties,
    /// Application headers, and what the broker adds to them.
    pub headers: Headers,
    /// The body, JSON in every message of Fanfare.
    pub body: Bytes,
}

/// The AMQP properties that Fanfare reads or writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// `content_type`; `application/json` on every message of Fanfare.
    pub content_type: Option<SmolStr>,
    /// `correlation_id`: the CID.
    pub correlation_id: Option<SmolStr>,
    /// `reply_to`: the aggregation queue.
    pub reply_to: Option<SmolStr>,
    /// `message_id`: the same at every repetition of the message.
    pub message_id: Option<SmolStr>,
    /// `type`: which message of the protocol this is.
    pub kind: Option<SmolStr>,
    /// `app_id`: the source.
    pub app_id: Option<SmolStr>,
    /// `timestamp`, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// `user_id`: the login of whoever published the message. The broker refuses one that is not, so a reader may trust it;
    /// for the same reason nobody else can publish the message again as it is: see [`Message::without_user`].
    pub user_id: Option<SmolStr>,
    /// `expiration`: milliseconds after which a queue drops the message. Fanfare sets none.
    pub expiration: Option<SmolStr>,
}

/// The value of a header: the part of AMQP's field types that Fanfare needs.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// A string.
    Text(SmolStr),
    /// Any of AMQP's integers.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// A table of headers.
    Table(Headers),
    /// A list of values.
    List(Vec<HeaderValue>),
    /// A value of a type that Fanfare does not use, as text for a person to read.
    Other(SmolStr),
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<RunId> for HeaderValue {
    fn from(run: RunId) -> Self {
        Self::Text(run.into())
    }
}

impl From<i64> for HeaderValue {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// Bytes of a header's value in a frame, about.
fn size(value: &HeaderValue) -> usize {
    /// Of a type, a length or a number.
    const AROUND: usize = 9;
    AROUND
        + match value {
            HeaderValue::Text(text) | HeaderValue::Other(text) => text.len(),
            HeaderValue::Int(_) | HeaderValue::Bool(_) => 0,
            HeaderValue::Table(table) => table.iter().map(|(name, value)| name.len() + size(value)).sum(),
            HeaderValue::List(list) => list.iter().map(size).sum(),
        }
}

/// Headers that most requests and callbacks have at most.
const HEADERS: usize = 8;

impl Message {
    /// A message of the given type for a CID, with what every message of the protocol carries.
    pub(crate) fn of(kind: &'static str, cid: &Cid, message_id: String, body: impl Into<Bytes>) -> Self {
        let properties = Properties {
            content_type: Some(SmolStr::new_static("application/json")),
            correlation_id: Some(cid.into()),
            message_id: Some(message_id.into()),
            kind: Some(SmolStr::new_static(kind)),
            ..Properties::default()
        };
        let mut headers = Headers::with_capacity(HEADERS);
        headers.insert(SmolStr::new_static(header::VERSION), header::VERSION_1);
        Self { properties, headers, body: body.into() }
    }

    /// Adds or replaces a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The message as someone else may publish it: without `user_id`, which the broker takes from its owner only.
    #[must_use]
    pub fn without_user(mut self) -> Self {
        self.properties.user_id = None;
        self
    }

    /// The message to park in place of this one: the same, with headers that say why, where from and when, tell it from every other that
    /// is parked, and say whose `user_id` it had.
    ///
    /// The reason is cut at 1,000 characters, and the largest headers are left out where all together have more than
    /// [`limits::PARKED_HEADER_BYTES`], so that it can be sent whatever the message was.
    #[must_use]
    pub fn parked(mut self, from: &str, reason: &str, at: WireTime, id: Uuid) -> Self {
        let mut reason: String = reason.chars().take(1000).collect();
        let mut bytes: usize = self.headers.iter().map(|(name, value)| name.len() + size(value)).sum();
        if bytes > limits::PARKED_HEADER_BYTES {
            reason.push_str("; its largest headers are left out");
        }
        while bytes > limits::PARKED_HEADER_BYTES {
            let largest = self.headers.iter().max_by_key(|(name, value)| name.len() + size(value));
            let Some(name) = largest.map(|(name, _)| name.to_owned()) else { break };
            bytes -= name.len() + self.headers.remove(&name).as_ref().map_or(0, size);
        }
        let user = self.properties.user_id.clone();
        let parked = self
            .without_user()
            .with_header(header::REASON, reason)
            .with_header(header::PARKED_FROM, from)
            .with_header(header::PARKED_AT, at.to_string())
            .with_header(header::PARKED_ID, id.to_string());
        match user {
            Some(user) => parked.with_header(header::PARKED_USER, user.as_str()),
            None => parked,
        }
    }

    /// The queue in which the message died last, and why, where a broker has dead-lettered it.
    #[must_use]
    pub fn latest_death(&self) -> Option<(&str, &str)> {
        if let Some(HeaderValue::List(deaths)) = self.headers.get(header::DEATHS)
            && let Some(HeaderValue::Table(latest)) = deaths.first()
            && let (Some(HeaderValue::Text(queue)), Some(HeaderValue::Text(reason))) =
                (latest.get("queue"), latest.get("reason"))
        {
            return Some((queue, reason));
        }
        Some((self.text(header::FIRST_DEATH_QUEUE)?, self.text(header::FIRST_DEATH_REASON)?))
    }

    /// The message to publish anew in place of this one: the same, but for what a broker has added to it, and without the
    /// `user_id`, which is not that of whoever publishes it now.
    #[must_use]
    pub fn anew(mut self) -> Self {
        self.headers.retain(|name, _| !header::is_of_delivery(name));
        self.properties.expiration = None;
        self.without_user()
    }

    /// The message that brings a failed invocation back, for its second, third, ... attempt.
    #[must_use]
    pub fn retried(self, attempt: u32) -> Self {
        self.anew().with_header(header::ATTEMPT, i64::from(attempt))
    }

    /// The message that was parked, as it is to be published again: without what parking and a broker have added to it, but for
    /// the name that it was parked under. It has all of its attempts before it.
    #[must_use]
    pub fn unparked(mut self) -> Self {
        self.headers.remove(header::REPLAYED);
        if let Some(id) = self.headers.remove(header::PARKED_ID) {
            self.headers.insert(header::REPLAYED, id);
        }
        let added = [header::REASON, header::PARKED_FROM, header::PARKED_AT, header::PARKED_USER];
        self.headers.retain(|name, _| !added.contains(&name) && name != header::ATTEMPT);
        self.anew()
    }

    /// `type`, or the empty string.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.properties.kind.as_deref().unwrap_or_default()
    }

    /// Says of the message's type, or that it has none, which rule it breaks.
    #[must_use]
    pub fn mistyped(&self, rule: &str) -> String {
        match &self.properties.kind {
            Some(kind) => format!("type {kind:?} {rule}"),
            None => format!("it has no type, so it {rule}"),
        }
    }

    /// A header that is a string.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A header that is an integer.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.headers.get(name) {
            Some(HeaderValue::Int(number)) => Some(*number),
            _ => None,
        }
    }

    /// The CID in `correlation_id`.
    ///
    /// # Errors
    /// Where the property is missing or is not a CID.
    pub fn cid(&self) -> Result<Cid, Malformed> {
        let cid = self
            .properties
            .correlation_id
            .as_deref()
            .ok_or_else(|| Malformed::new("correlation_id is missing"))?;
        Cid::new(cid).map_err(|error| Malformed::new(format!("correlation_id: {error}")))
    }

    /// The run in header `fanfare-run`.
    ///
    /// # Errors
    /// Where the header is missing or is not a run.
    pub fn run(&self) -> Result<RunId, Malformed> {
        self.required(header::RUN)?
            .parse()
            .map_err(|error| Malformed::new(format!("header fanfare-run: {error}")))
    }

    /// The run, where the header is there.
    pub(crate) fn run_if_any(&self) -> Result<Option<RunId>, Malformed> {
        self.headers.contains_key(header::RUN).then(|| self.run()).transpose()
    }

    /// The queue of whoever waits for an answer.
    pub(crate) fn waiter(&self, names: &QueueNames) -> Result<String, Malformed> {
        let reply_to = self.properties.reply_to.as_deref().filter(|queue| names.is_wait(queue));
        reply_to.map(str::to_owned).ok_or_else(|| Malformed::new("reply_to is not the queue of a waiter"))
    }

    pub(crate) fn is_of(&self, kind: &str) -> Result<(), Malformed> {
        if self.kind() == kind {
            return Ok(());
        }
        Err(Malformed::new(self.mistyped(&format!("is not {kind}"))))
    }

    pub(crate) fn required(&self, name: &str) -> Result<&str, Malformed> {
        self.text(name).ok_or_else(|| Malformed::new(format!("header {name} is missing or is not a string")))
    }

    pub(crate) fn time(&self, name: &str) -> Result<Option<WireTime>, Malformed> {
        self.text(name)
            .map(|time| time.parse().map_err(|error| Malformed::new(format!("header {name}: {error}"))))
            .transpose()
    }
}
