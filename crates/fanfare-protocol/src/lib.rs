//! What Fanfare puts on the wire: names, queues, messages, limits. Nothing here does I/O.
//!
//! A message that any part of Fanfare publishes is built by a type of this crate, and one that it reads is
//! decoded by the same type, so that the bytes are decided in one place. The format itself is described in
//! `docs/protocol.md`; workers and publishers in other languages are written from that page.
//!
//! - [`name`]: services, sources, CIDs, keys, runs. Parsed once, at the edge.
//! - [`queue`]: the queues and exchanges, their names and their arguments.
//! - [`message`]: a broker-neutral message: properties, headers, body.
//! - [`Request`], [`Callback`]: what a service queue holds; [`Invocation`] is either of them, decoded.
//! - [`TargetResult`]: what a target answered, of which a [`Bundle`] carries several; [`FinalPayload`]: what a final callback receives, and [`FinalBody`] how it gets
//!   there: whole, or where it is too large for a message, as a [`LargePayload`] of [`Part`]s.
//! - [`Manifest`]: the message that commits a fan-out, with the [`CompletionPolicy`] that it may have.
//! - [`Checkpoint`], [`Fence`], [`Mark`], [`Ended`], [`Sentinel`]: what lies among the results for coordinators.
//! - [`TraceParent`]: where a message belongs in a distributed trace.
//! - [`Presence`]: what a coordinator tells the others of itself.
//! - [`CancelRequest`], [`CancelAnswer`], [`Cancelled`]: how a fan-out is cancelled.
//! - [`StatusRequest`], [`ExplainRequest`] and their answers: what an operator is told of fan-outs.
#![doc(test(attr(deny(warnings))))]

mod bundle;
mod callback;
mod cancel;
mod channel;
mod completion;
mod coordination;
mod counted;
mod explain;
mod final_body;
mod hash;
pub mod header;
mod headers;
mod invocation;
mod large_payload;
mod lately;
pub mod limits;
mod manifest;
pub mod message;
mod metadata;
pub mod name;
mod nesting;
mod object;
mod payload;
mod presence;
mod progress;
pub mod queue;
mod quoted;
mod request;
mod result;
mod status;
mod time;
mod trace;

pub use bundle::Bundle;
pub use callback::{Callback, CallbackKind};
pub use cancel::{CancelAnswer, CancelRequest, CancelState, Cancelled};
pub use channel::{Channel, UnknownChannel};
pub use completion::{Cancellation, CompletionPolicy, EndedBy, Ending, InvalidPolicy};
pub use coordination::{Checkpoint, CheckpointEntry, Ended, EndedRun, Fence, Mark, Sentinel};
pub use counted::counted;
pub use explain::{
    AtWorker, Doing, ExplainAnswer, ExplainRequest, Explained, FailedTarget, MissingTarget, RespondedTarget,
    WorkerAnswer,
};
pub use final_body::{FinalBody, FinalPayloadBuilder, Parts};
pub use hash::fnv1a;
pub use invocation::{Invocation, MalformedInvocation, ReplyAddress};
pub use large_payload::{Assembly, LargePayload, Part};
pub use lately::{Lately, RecentFailure, Totals};
pub use manifest::{Manifest, ManifestTarget};
pub use message::{HeaderValue, Headers, Message, Properties};
pub use metadata::{InvalidMetadata, Metadata};
pub use name::{Cid, InvalidName, Prefix, RunId, ServiceName, Source, TargetKey};
pub use nesting::nesting;
pub use payload::{FinalPayload, PayloadError, Results, TargetFailure};
pub use presence::Presence;
pub use progress::Progress;
pub use queue::{ExchangeSpec, QueueNames, QueueSpec};
pub use quoted::{quoted, shortened};
pub use request::{Request, TargetOf};
pub use result::{TargetResult, TargetResultRef, key_of, place_of};
pub use status::{FanOutState, FanOutStatus, Sort, StatusAnswer, StatusQuery, StatusRequest};
pub use time::WireTime;
pub use trace::{InvalidTraceParent, TraceParent};

/// The message does not have the form that the protocol gives it; says what is wrong with it, in 1,000 characters at most,
/// whatever the message was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    const LONGEST_CHARS: usize = 1000;

    pub(crate) fn new(reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        if let Some((end, _)) = reason.char_indices().nth(Self::LONGEST_CHARS) {
            reason.truncate(end);
        }
        Self(reason)
    }
}
