//! A final payload that travels in parts.

use bytes::{BufMut, Bytes, BytesMut};

use crate::message::Message;
use crate::name::{Cid, RunId};
use crate::{Malformed, header};

/// What a callback message says of a final payload that is too large for it. The parts are in a
/// [queue of their own](crate::QueueNames::payload), or, for a caller who waits, in the queue that this message is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargePayload {
    /// Drawn each time that somebody writes the parts, and the same in all of them.
    pub writer: RunId,
    /// How many parts there are.
    pub parts: usize,
    /// Bytes of the payload as one message would have had it.
    pub bytes: usize,
}

/// One part of a final payload: some entries of its `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// See [`LargePayload::writer`].
    pub writer: RunId,
    /// Its number, from 0.
    pub number: usize,
    /// An object of entries, as `data` has them.
    pub body: Bytes,
}

impl LargePayload {
    /// The message that refers to this payload.
    #[must_use]
    pub fn refer(&self, message: Message) -> Message {
        message
            .with_header(header::PAYLOAD, self.writer.to_string())
            .with_header(header::PAYLOAD_PARTS, int(self.parts))
            .with_header(header::PAYLOAD_BYTES, int(self.bytes))
    }

    /// The payload that a message refers to; none where it holds its payload itself.
    ///
    /// # Errors
    /// Where it does not say all that there is to say.
    pub fn of(message: &Message) -> Result<Option<Self>, Malformed> {
        if !message.headers.contains_key(header::PAYLOAD) {
            return Ok(None);
        }
        Ok(Some(Self {
            writer: writer_of(message)?,
            parts: number(message, header::PAYLOAD_PARTS)?,
            bytes: number(message, header::PAYLOAD_BYTES)?,
        }))
    }
}

impl Part {
    /// The message that carries it.
    #[must_use]
    pub fn encode(self, cid: &Cid, run: RunId) -> Message {
        let Self { writer, number, body } = self;
        let id = format!("{cid}/payload/{writer}/{number}");
        Message::of(header::TYPE_PAYLOAD_PART, cid, id, body)
            .with_header(header::RUN, run)
            .with_header(header::PAYLOAD, writer)
            .with_header(header::PAYLOAD_PART, int(number))
    }

    /// Decodes the message of a part.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_PAYLOAD_PART)?;
        let number = number(message, header::PAYLOAD_PART)?;
        let body = message.body.clone();
        if body.first() != Some(&b'{') || body.last() != Some(&b'}') {
            return Err(Malformed::new(format!("part {number} of a payload is no object")));
        }
        Ok(Self { writer: writer_of(message)?, number, body })
    }
}

/// Puts a final payload together from its parts, to the bytes that one message would have had.
#[derive(Debug)]
pub struct Assembly {
    payload: LargePayload,
    body: BytesMut,
    parts: usize,
}

impl Assembly {
    /// Starts with the body of the callback message.
    ///
    /// # Errors
    /// Where that is no object.
    pub fn new(head: &[u8], payload: LargePayload) -> Result<Self, Malformed> {
        let head =
            head.strip_suffix(b"}").ok_or_else(|| Malformed::new("the head of a payload is no object"))?;
        let mut body = BytesMut::from(head);
        body.put_slice(b",\"data\":{");
        Ok(Self { payload, body, parts: 0 })
    }

    /// Adds the next part's body.
    pub fn push(&mut self, body: &[u8]) {
        if self.parts > 0 {
            self.body.put_u8(b',');
        }
        self.parts += 1;
        self.body.put_slice(&body[1..body.len() - 1]);
    }

    /// The payload.
    ///
    /// # Errors
    /// Where it is not what the callback message refers to.
    pub fn finish(mut self) -> Result<Bytes, Malformed> {
        self.body.put_slice(b"}}");
        let LargePayload { parts, bytes, .. } = self.payload;
        if (self.parts, self.body.len()) == (parts, bytes) {
            return Ok(self.body.freeze());
        }
        let (is, has) = (self.parts, self.body.len());
        Err(Malformed::new(format!(
            "the final payload has {has} bytes in {is} parts, and is to have {bytes} in {parts}"
        )))
    }
}

fn writer_of(message: &Message) -> Result<RunId, Malformed> {
    let writer = message.required(header::PAYLOAD)?;
    writer.parse().map_err(|error| Malformed::new(format!("header {}: {error}", header::PAYLOAD)))
}

fn number(message: &Message, name: &str) -> Result<usize, Malformed> {
    let number = message.int(name).and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| Malformed::new(format!("header {name} is missing or is no number")))
}

fn int(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
