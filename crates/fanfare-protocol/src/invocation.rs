use bytes::Bytes;
use smol_str::SmolStr;

use crate::message::{Message, Properties};
use crate::name::{Cid, RunId, ServiceName, Source, TargetKey};
use crate::queue::QueueNames;
use crate::result::place_of_request;
use crate::{Channel, LargePayload, Malformed, Metadata, TraceParent, WireTime, header};

/// A message of a service queue, decoded: a request or a callback message.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// How the service is invoked.
    pub channel: Channel,
    /// The correlation ID.
    pub cid: Cid,
    /// The run. Every message that Fanfare publishes has one.
    pub run: RunId,
    /// Who issued the fan-out, or the plain invocation.
    pub source: Source,
    /// The target's key: of a request, its own; of an on-target callback, that of the target that completed.
    pub key: Option<TargetKey>,
    /// The same at every repetition of this message; together with the run it identifies the invocation.
    pub message_id: SmolStr,
    /// 1, and more on a retry.
    pub attempt: u32,
    /// When the fan-out was invoked, where the message says so.
    pub requested_at: Option<WireTime>,
    /// What the caller tells all targets and callbacks.
    pub metadata: Metadata,
    /// Where whoever invoked it is traced.
    pub traceparent: Option<TraceParent>,
    /// Of a final callback, the spans of its targets.
    pub links: Vec<TraceParent>,
    /// Where the result goes; none where nobody waits for one.
    pub reply: Option<ReplyAddress>,
    /// Of a final callback whose payload is too large for one message: where it is. The body is the payload without its `data`
    /// then.
    pub large: Option<LargePayload>,
    /// The payload.
    pub body: Bytes,
}

/// Where a target's result goes, and under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyAddress {
    /// The aggregation queue, or the shard.
    pub queue: SmolStr,
    /// The correlation ID.
    pub cid: Cid,
    /// The run.
    pub run: RunId,
    /// The target's key; where the request had none, its place in the manifest tells the coordinator.
    pub key: Option<TargetKey>,
    /// The request's `message_id`; the CID where the request has none that could be used.
    pub message_id: SmolStr,
}

/// A message of a service queue that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MalformedInvocation {
    /// What is wrong with it.
    pub reason: Malformed,
    /// Where a failed result can go nevertheless. Without it the message is parked.
    pub reply: Option<Box<ReplyAddress>>,
}

impl Invocation {
    /// Decodes a message of a service queue.
    ///
    /// A reply address is only ever the aggregation queue of the message's own CID and run under `names`, or a shard: a
    /// worker that answered to any queue which a message names could be made to write anywhere.
    ///
    /// # Errors
    /// [`MalformedInvocation`], with the address of a failed result where there is one.
    pub fn decode(message: &Message, names: &QueueNames) -> Result<Self, MalformedInvocation> {
        let reply = ReplyAddress::of(message, names);
        let known = reply.clone().ok().map(Box::new);
        Self::parse(message, reply).map_err(|reason| MalformedInvocation { reason, reply: known })
    }

    fn parse(message: &Message, reply: Result<ReplyAddress, Malformed>) -> Result<Self, Malformed> {
        let kind = message.kind();
        if kind != header::TYPE_REQUEST && kind != header::TYPE_CALLBACK {
            return Err(Malformed::new(message.mistyped("is not fanfare.request or fanfare.callback")));
        }
        let channel: Channel = message
            .required(header::CHANNEL)?
            .parse()
            .map_err(|error| Malformed::new(format!("header fanfare-channel: {error}")))?;
        if (kind == header::TYPE_REQUEST) != (channel.is_call() || channel == Channel::Invoke) {
            return Err(Malformed::new(format!(
                "a message of type {kind} cannot have channel {}",
                channel.as_header()
            )));
        }
        let key = message
            .text(header::KEY)
            .map(|key| {
                TargetKey::new(key).map_err(|error| Malformed::new(format!("header fanfare-key: {error}")))
            })
            .transpose()?;
        let message_id = message_id_of(&message.properties)?;
        let reply = channel.is_call().then_some(reply).transpose()?;
        let attempt = match message.headers.get(header::ATTEMPT) {
            None => 1,
            Some(_) => message
                .int(header::ATTEMPT)
                .and_then(|attempt| u32::try_from(attempt).ok())
                .filter(|attempt| *attempt > 0)
                .ok_or_else(|| Malformed::new("header fanfare-attempt is not a positive integer"))?,
        };
        Ok(Self {
            channel,
            cid: message.cid()?,
            run: message.run()?,
            source: source_of(message)?,
            key,
            message_id,
            attempt,
            requested_at: message.time(header::REQUESTED_AT)?,
            metadata: Metadata::read(&message.headers)?,
            traceparent: TraceParent::of(message),
            links: TraceParent::links_of(message),
            reply,
            large: LargePayload::of(message)?.filter(|_| channel == Channel::FanoutOnFinal),
            body: message.body.clone(),
        })
    }
}

impl ReplyAddress {
    fn of(message: &Message, names: &QueueNames) -> Result<Self, Malformed> {
        let (cid, run) = (message.cid()?, message.run()?);
        let Some(queue) = message.properties.reply_to.clone() else {
            return Err(Malformed::new("reply_to is missing"));
        };
        if !names.is_reply_queue(&queue, &cid, run) {
            return Err(Malformed::new(format!(
                "reply_to {queue:?} is neither the aggregation queue of this CID and run nor a shard"
            )));
        }
        let key = message.text(header::KEY).and_then(|key| TargetKey::new(key).ok());
        let message_id = match message_id_of(&message.properties) {
            Ok(id) if key.is_some() || place_of_request(&id, &cid).is_some() => id,
            // The key tells the target, and the result needs some id.
            Err(_) if key.is_some() => (&cid).into(),
            Err(malformed) => return Err(malformed),
            Ok(id) => {
                return Err(Malformed::new(format!(
                    "neither a header fanfare-key nor message_id {id:?} tells whose it is: without a key it is <CID>/<n>"
                )));
            }
        };
        Ok(Self { queue, cid, run, key, message_id })
    }
}

fn message_id_of(properties: &Properties) -> Result<SmolStr, Malformed> {
    // "/result" is added to it, and an AMQP short string holds 255 bytes.
    const LONGEST: usize = 255 - "/result".len();
    match &properties.message_id {
        Some(id) if id.len() > LONGEST => {
            Err(Malformed::new(format!("message_id is longer than {LONGEST} bytes")))
        }
        Some(id) if !id.is_empty() => Ok(id.clone()),
        _ => Err(Malformed::new("message_id is missing")),
    }
}

/// The source: a header, else `app_id`, else the field that every callback payload has.
fn source_of(message: &Message) -> Result<Source, Malformed> {
    #[derive(serde::Deserialize)]
    struct Body {
        source: String,
    }
    let source = match message.text(header::SOURCE).or(message.properties.app_id.as_deref()) {
        Some(source) => source.to_owned(),
        None => {
            serde_json::from_slice::<Body>(&message.body)
                .map_err(|_| Malformed::new("header fanfare-source is missing"))?
                .source
        }
    };
    Source::new(source).map_err(|error| Malformed::new(format!("header fanfare-source: {error}")))
}

impl Invocation {
    /// The service's own name, as far as the message says it.
    ///
    /// # Errors
    /// Where header `fanfare-target` is missing or is not a service name.
    pub fn target_of(message: &Message) -> Result<ServiceName, Malformed> {
        ServiceName::new(message.required(header::TARGET)?)
            .map_err(|error| Malformed::new(format!("header fanfare-target: {error}")))
    }
}
