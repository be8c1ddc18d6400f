//! Where a result can be read again after a crash.

use crate::Time;

/// Where an entry's result can be read again after a crash. Each entry has one for as long as its fan-out is open, so it is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the target's own result, unacked.
    Result,
    /// In a checkpoint.
    Checkpoint(CheckpointId),
    /// Nowhere: the queue is gone.
    Nowhere,
}

/// Names a checkpoint: who wrote it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CheckpointId {
    pub(crate) writer: Writer,
    pub(crate) number: u64,
}

/// Who wrote a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Writer {
    /// This hold.
    Own,
    /// An earlier one, by its place among those of which something was read.
    Earlier(u32),
}

impl CheckpointId {
    /// One of this hold.
    pub(crate) const fn own(number: u64) -> Self {
        Self { writer: Writer::Own, number }
    }
}

/// A checkpoint that this hold wrote and saw confirmed, or read.
#[derive(Debug)]
pub(crate) struct HeldCheckpoint<T> {
    /// The delivery; none before it has arrived.
    pub(crate) tag: Option<T>,
    /// Entries whose home it is.
    pub(crate) live: usize,
    pub(crate) called: bool,
    /// 0 where it was written from results, one more than its parts where it was folded from checkpoints.
    pub(crate) level: u32,
    pub(crate) bytes: usize,
    pub(crate) since: Time,
}
