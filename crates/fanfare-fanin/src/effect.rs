use bytes::Bytes;
use fanfare_protocol::{Cancellation, Checkpoint, EndedBy, Ending, Fence, FinalBody, Mark, TraceParent};

/// Something the coordinator has to do, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect<T> {
    /// Publish, as often as it takes, and report [`Event::Confirmed`](crate::Event::Confirmed). Publications given
    /// together may go out at once.
    Publish(PublicationId, Publication),
    /// Ack a delivery: nothing lives only in it any more.
    Ack(T),
    /// Park a copy of a delivery with the reason, and ack it when the copy is confirmed. No report is wanted.
    Park {
        /// The delivery.
        tag: T,
        /// Why nobody can use it.
        reason: String,
    },
    /// Delete the aggregation queue on the channel that consumes it, without cancelling the consumer first, read the
    /// consumer to its end, and report [`Event::Deleted`](crate::Event::Deleted); or, where the channel ends before
    /// that, [`Event::ChannelLost`](crate::Event::ChannelLost). Where this comes again after that, delete it on any channel, as often
    /// as it takes.
    DeleteQueue,
    /// A cancel that was asked for has taken effect: whoever holds the fan-out from now on, it ends without waiting for any
    /// target. It also comes where there was nothing left to cancel.
    Cancelled(Cancellation),
    /// Let go: close the consuming channel without another ack, and put back what is held of the manifest, so that
    /// some coordinator takes the fan-out up. The machine is done.
    Abandon {
        /// The manifest's deliveries: none where a renewed copy is on its way to someone, two where it has arrived and the
        /// first is not acked.
        manifests: Vec<T>,
    },
    /// The fan-out is over for this hold, and all acks are given. The machine is done.
    End(Summary),
}

/// Names one publication of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicationId(pub(crate) u64);

/// What to publish, and by that where to.
#[derive(Debug, Clone, PartialEq)]
pub enum Publication {
    /// To an on-target callback.
    OnTarget {
        /// Its place in the manifest's `on_target`.
        callback: usize,
        /// The target's place in the manifest.
        place: usize,
        /// The target's result.
        body: Bytes,
    },
    /// To a final callback.
    OnFinal {
        /// Its place in the manifest's `on_final`.
        callback: usize,
        /// The final payload.
        body: FinalBody,
        /// How the fan-out came to its end.
        ending: Ending,
        /// The spans of targets that its span links to.
        links: Vec<TraceParent>,
    },
    /// To the caller who waits. If the queue is gone, so is the caller, and that counts as confirmed.
    Waiter {
        /// The final payload.
        body: FinalBody,
        /// How the fan-out came to its end.
        ending: Ending,
    },
    /// To the aggregation queue.
    Checkpoint(Checkpoint),
    /// To the aggregation queue.
    Fence(Fence),
    /// To the aggregation queue.
    Mark(Mark),
    /// To the aggregation queue, for one that is held for too long.
    Sentinel,
    /// A failed result in the place of a target that is not awaited any longer, to the aggregation queue.
    Missing {
        /// The target's place in the manifest.
        place: usize,
        /// The result's body.
        body: Bytes,
        /// Why it is not, as the body says: the message says it in header `fanfare-ended-by` too.
        by: EndedBy,
    },
    /// A copy of the manifest, marked renewed, to where manifests go.
    Renewal,
    /// A copy of the manifest, parked for a person to look at.
    ParkedManifest {
        /// Why it was given up.
        reason: String,
    },
}

/// How a fan-out ended, for logs and counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Whether this hold published the final callbacks (or, without any, saw all on-target callbacks confirmed).
    pub completed: bool,
    /// How the fan-out came to its end, where this hold has seen all of it.
    pub ending: Ending,
    /// Results of targets that were not awaited any longer by then.
    pub late: usize,
    /// Results that repeated one which had counted.
    pub duplicates: usize,
    /// Results of other fan-outs, or of targets that the manifest does not list.
    pub strangers: usize,
    /// Checkpoints written.
    pub checkpoints: u64,
}
