//! What a shard is told, and what it wants done.

use std::sync::Arc;

use fanfare_protocol::{Cancellation, Ended, Fence, Manifest, Message, RunId, WireTime};

use crate::{Answer, Deadline, FanIn, Publication, PublicationId, Summary};

/// Something happened that a shard has to know of. `T` is what a delivery is acked with.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are deliveries, and a box for each would cost more than it saves"
)]
pub enum ShardEvent<T> {
    /// A manifest, which names this shard.
    Manifest {
        /// With which it is acked.
        tag: T,
        /// The manifest, with its deadline made absolute.
        manifest: Box<Manifest>,
        /// Whether another may have held it before: it was redelivered, or is a renewed copy.
        take_over: bool,
        /// When what is missing is to fail.
        deadline: Option<Deadline>,
    },
    /// Any other message.
    Delivered {
        /// With which it is acked.
        tag: T,
        /// Whether the broker may have handed it out before.
        redelivered: bool,
        /// The message.
        message: Message,
    },
    /// A publication is safe.
    Confirmed(ShardPublicationId),
    /// A publication is in no queue, and never will be: the broker takes smaller messages only.
    TooLarge {
        /// The publication.
        id: ShardPublicationId,
        /// Bytes that a body may have.
        most: usize,
    },
    /// A fan-out that is open is to be cancelled.
    Cancel {
        /// Which.
        run: RunId,
        /// The time of day.
        at: WireTime,
    },
    /// The shard was deleted, and all that this hold has of it is in its hands. It brings that to its end.
    Gone,
    /// The shard is to be left to another: each fan-out is brought to a point from which that repeats nothing.
    Stop,
    /// Nothing but time has passed: see [`Shard::next_timeout`](crate::Shard::next_timeout).
    TimePassed,
}

/// Something to do, in the order given.
#[derive(Debug)]
pub enum ShardEffect<T> {
    /// Publish, as often as it takes, and report [`ShardEvent::Confirmed`].
    Publish(ShardPublicationId, ShardPublication),
    /// Ack a delivery: nothing lives only in it any more.
    Ack(T),
    /// Park a delivery with the reason, and ack it when the copy is confirmed. No report is wanted.
    Park {
        /// The delivery.
        tag: T,
        /// What it is.
        message: Message,
        /// Why nobody can use it.
        reason: String,
    },
    /// A cancel that was asked for has taken effect.
    Cancelled {
        /// Of this fan-out.
        manifest: Arc<Manifest>,
        /// What came of it.
        cancellation: Cancellation,
    },
    /// A fan-out is not open here any more, and all its acks are given.
    Over {
        /// As it was at last.
        fan_in: Box<FanIn<T>>,
        /// How it has ended; none where it was let go, for another to go on.
        summary: Option<Summary>,
    },
    /// A target has failed, and counts. Nothing is to be done.
    Failed {
        /// Of this fan-out.
        manifest: Arc<Manifest>,
        /// The target's place.
        place: usize,
        /// What it has answered.
        answer: Answer,
    },
    /// Messages of a run are acked that has ended, or had long enough for a manifest.
    Dropped {
        /// The run.
        run: RunId,
        /// How many.
        messages: usize,
    },
}

/// What to publish.
#[derive(Debug)]
pub enum ShardPublication {
    /// Something of a fan-out.
    Of(Arc<Manifest>, Publication),
    /// A mark, to the shard.
    Fence(Fence),
    /// The record that fan-outs have ended, to the shard.
    Ended(Ended),
    /// The same message once more, to the shard: it makes way for others.
    Again(Message),
}

/// Names one publication of one hold on a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardPublicationId(pub(super) Of);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Of {
    /// A run may be opened more than once; `opened` tells which time.
    FanOut {
        run: RunId,
        opened: u64,
        id: PublicationId,
    },
    Fence,
    Record(u64),
    Again(u64),
}
