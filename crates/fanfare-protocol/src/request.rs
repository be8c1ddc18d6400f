use bytes::Bytes;

use crate::message::{HeaderValue, Message};
use crate::name::{Cid, RunId, ServiceName, Source, TargetKey};
use crate::{Channel, Metadata, TraceParent, WireTime, header};

/// The message that invokes a service: a target of a fan-out or parallel execution, or a plain invocation.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The correlation ID.
    pub cid: Cid,
    /// The invocation that this request belongs to.
    pub run: RunId,
    /// Who invoked.
    pub source: Source,
    /// The service that is to run.
    pub service: ServiceName,
    /// When the fan-out was invoked.
    pub requested_at: WireTime,
    /// What the caller tells all targets and callbacks.
    pub metadata: Metadata,
    /// The caller's payload, untouched.
    pub body: Bytes,
    /// Where the caller is traced.
    pub traceparent: Option<TraceParent>,
    /// What makes it a target; none for a plain invocation.
    pub target: Option<TargetOf>,
}

/// The part of a request that only a target has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetOf {
    /// Whether it belongs to a parallel execution, and not to a fan-out.
    pub parallel: bool,
    /// Its key in the fan-out.
    pub key: TargetKey,
    /// Its place in the manifest, from 0.
    pub place: usize,
    /// The aggregation queue that the result goes to.
    pub reply_to: String,
}

impl Request {
    /// The message as the service's queue takes it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let (channel, message_id) = match &self.target {
            Some(target) => {
                let channel = if target.parallel { Channel::ParallelExecCall } else { Channel::FanoutCall };
                (channel, format!("{}/{}", self.cid, target.place))
            }
            None => (Channel::Invoke, format!("{}/invoke/{}", self.cid, self.run)),
        };
        let mut message = Message::of(header::TYPE_REQUEST, &self.cid, message_id, self.body.clone());
        message.properties.app_id = Some((&self.source).into());
        message.properties.timestamp = Some(self.requested_at.timestamp());
        let mut set = |name, value| message.headers.insert(name, HeaderValue::Text(value));
        set(header::RUN, self.run.into());
        set(header::CHANNEL, channel.as_header().into());
        set(header::SOURCE, (&self.source).into());
        set(header::TARGET, (&self.service).into());
        set(header::REQUESTED_AT, self.requested_at.into());
        if let Some(target) = &self.target {
            set(header::KEY, (&target.key).into());
            message.properties.reply_to = Some(target.reply_to.as_str().into());
        }
        self.metadata.write(&mut message.headers);
        message.traced(self.traceparent)
    }
}
