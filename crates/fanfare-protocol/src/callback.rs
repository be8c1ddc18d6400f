use bytes::Bytes;

use crate::message::{HeaderValue, Message};
use crate::name::{ServiceName, TargetKey};
use crate::{Channel, Ending, Manifest, header};

/// A callback message, as a coordinator publishes it to the callback's service queue or to a waiting caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Callback<'a> {
    /// The fan-out.
    pub manifest: &'a Manifest,
    /// Which callback, and what for.
    pub kind: CallbackKind<'a>,
    /// The result of one target, byte for byte, or the final payload.
    pub body: Bytes,
}

/// Which callback a message invokes, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackKind<'a> {
    /// A target completed.
    OnTarget {
        /// The callback.
        callback: &'a ServiceName,
        /// The target's place in the manifest.
        place: usize,
    },
    /// All targets completed.
    OnFinal {
        /// The callback; none for the caller who waits.
        callback: Option<&'a ServiceName>,
        /// How the fan-out came to its end.
        ending: Ending,
    },
}

impl Callback<'_> {
    /// The message as the callback's queue takes it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let manifest = self.manifest;
        let cid = &manifest.cid;
        let (channel, message_id) = match self.kind {
            CallbackKind::OnTarget { callback, place } => {
                let parallel = manifest.channel == Channel::ParallelExecCall;
                let channel = if parallel { Channel::ParallelExecOnTarget } else { Channel::FanoutOnTarget };
                (channel, format!("{cid}/{place}/on-target/{callback}"))
            }
            CallbackKind::OnFinal { callback: Some(callback), .. } => {
                (Channel::FanoutOnFinal, format!("{cid}/on-final/{callback}"))
            }
            CallbackKind::OnFinal { callback: None, .. } => {
                (Channel::FanoutOnFinal, format!("{cid}/on-final"))
            }
        };
        let mut message = Message::of(header::TYPE_CALLBACK, cid, message_id, self.body.clone())
            .with_header(header::CHANNEL, channel.as_header())
            .with_header(header::RUN, manifest.run)
            .with_header(header::SOURCE, HeaderValue::Text((&manifest.source).into()))
            .with_header(header::REQUESTED_AT, HeaderValue::Text(manifest.req_ts_utc.into()));
        message.properties.app_id = Some((&manifest.source).into());
        match self.kind {
            CallbackKind::OnTarget { place, .. } => {
                let target = &manifest.targets[place];
                message.headers.insert(header::KEY, target.key.as_str());
                message.headers.insert(header::TARGET, target.service.as_str());
            }
            CallbackKind::OnFinal { ending: Ending { failed, missing, by }, .. } => {
                let number = |n: usize| HeaderValue::Int(i64::try_from(n).unwrap_or(i64::MAX));
                message.headers.insert(header::TARGETS, number(manifest.targets.len()));
                message.headers.insert(header::FAILED, number(failed));
                if let Some(by) = by {
                    message.headers.insert(header::ENDED_BY, by.as_str());
                    message.headers.insert(header::MISSING, number(missing));
                }
            }
        }
        manifest.metadata.write(&mut message.headers);
        message.traced(manifest.traceparent)
    }
}

impl Manifest {
    /// The key of the target at a place.
    #[must_use]
    pub fn key_at(&self, place: usize) -> Option<&TargetKey> {
        self.targets.get(place).map(|target| &target.key)
    }
}
