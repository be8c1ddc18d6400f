use bytes::Bytes;
use fanfare_protocol::{Checkpoint, EndedBy, Fence, TargetResultRef, TraceParent, WireTime};

use crate::PublicationId;

/// Something happened that the fan-in has to know of. `T` is what a delivery is acked with; the machine never looks
/// into it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<T> {
    /// The aggregation queue is being consumed, for the first time in this hold.
    Opened,
    /// There was no aggregation queue to consume: proven, and nothing of it was ever read in this hold.
    NeverOpened,
    /// A delivery from the aggregation queue.
    Delivered {
        /// With which it is acked.
        tag: T,
        /// Whether the broker may have handed it out before.
        redelivered: bool,
        /// What it is.
        item: Item,
    },
    /// The manifest of this run arrived once more: redelivered, repeated, or a renewed copy.
    ManifestArrived {
        /// With which it is acked.
        tag: T,
    },
    /// A publication is safe in its queue, or where its queue is gone, safe among the parked messages. Of a mark, and of a called checkpoint
    /// where there are on-target callbacks, it also says that the broker had given this hold's deliveries to nobody else before that was there:
    /// the confirm alone, which comes over another connection than they do, does not.
    Confirmed(PublicationId),
    /// A publication is in no queue, and never will be: its operator has told the broker to take smaller messages only.
    TooLarge {
        /// The publication.
        id: PublicationId,
        /// Bytes that a body may have.
        most: usize,
    },
    /// The broker cancelled the consumer, and the aggregation queue is proven to be gone.
    QueueGone,
    /// The queue was deleted as asked, and the consumer has ended by it.
    Deleted,
    /// The channel that consumes the aggregation queue has ended, or the queue cannot be had at the moment.
    ChannelLost,
    /// The fan-out is to be cancelled, by someone who asked for it at this time. Once that cannot be undone any more,
    /// [`Effect::Cancelled`](crate::Effect::Cancelled) tells.
    Cancel {
        /// The time of day.
        at: WireTime,
    },
    /// The coordinator is asked to stop: what has begun is brought to a point from which another goes on without
    /// repeating anything, and then let go.
    Stop,
    /// Nothing but time has passed: see [`FanIn::next_timeout`](crate::FanIn::next_timeout).
    TimePassed,
}

/// What a message of an aggregation queue is to one fan-out: see [`FanIn::read`](crate::FanIn::read).
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A result of a target of this run.
    Result {
        /// The target's place in the manifest.
        place: usize,
        /// What it says.
        answer: Answer,
    },
    /// Results that another hold wrote back, each with whether its target succeeded.
    Checkpoint(Checkpoint),
    /// Results that this hold wrote back, by the number of their checkpoint: it has them.
    OwnCheckpoint(u64),
    /// What a coordinator wrote to read it back.
    Fence(Fence),
    /// A fence that nobody waits for: its number where it is a mark of this hold.
    Mark(Option<u64>),
    /// What lies in the queue from before the manifest to its deletion.
    Sentinel,
    /// A result of another run, CID or service, or of a target that the manifest does not list: an ordinary event, ignored.
    Stranger,
    /// Of a type that this version does not know and another may need: held, and never acked while the fan-out lives.
    Unknown,
    /// Nothing that anyone could use; says why.
    Garbage(String),
}

/// A sound result, with what of it the fan-in needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The result's body.
    pub body: Bytes,
    /// Whether the target succeeded.
    pub ok: bool,
    /// Where a coordinator wrote it in the target's place: why.
    pub ended_by: Option<EndedBy>,
    /// When the target completed, by its worker's clock.
    pub at: WireTime,
    /// The target's span, where it is one of those that final callbacks link to: in a box, since of most targets it is not.
    pub traceparent: Option<Box<TraceParent>>,
}

impl Answer {
    pub(crate) fn new(body: Bytes, result: &TargetResultRef<'_>) -> Self {
        Self { body, ok: result.ok, ended_by: result.ended_by, at: result.resp_ts_utc, traceparent: None }
    }
}
