//! What of a classic queue would survive the broker's death.
//!
//! Such a queue hands a message out before it is on disk. Where the broker is killed in between, it has never had the message: its
//! sender, who saw no confirm, sends another. So nothing is done on the strength of what was read before that is known to be kept.
//! A mark is appended to the queue, and its confirm says that what was handed out before is kept too. Not that of one which was acked before:
//! what nobody needs any more, RabbitMQ confirms without writing it.

use std::collections::VecDeque;

/// How much of what counts is kept, by how often that has changed.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    /// The change that the mark on its way stands behind, or the last one that was confirmed.
    marked: u64,
    /// The change up to which all is kept.
    kept: u64,
    /// Deliveries in whose place others count, each with the change by which that is kept. Oldest first.
    replaced: VecDeque<(u64, T)>,
    /// Marks that were appended.
    marks: u64,
    /// Those that were read while one was on its way.
    read: Vec<T>,
}

impl<T> Kept<T> {
    /// Of a queue that hands a message out before it is kept.
    pub(crate) const fn nothing() -> Self {
        Self::up_to(0)
    }

    /// Of a queue that hands out only what is kept, or of what is nowhere but here.
    pub(crate) const fn all() -> Self {
        Self::up_to(u64::MAX)
    }

    const fn up_to(change: u64) -> Self {
        Self { marked: change, kept: change, replaced: VecDeque::new(), marks: 0, read: Vec::new() }
    }

    /// Whether all is kept up to a change.
    pub(crate) const fn covers(&self, change: u64) -> bool {
        self.kept >= change
    }

    /// Takes a delivery in whose place others count, as of a change. Returns it where they are kept.
    pub(crate) fn replaced(&mut self, tag: T, change: u64) -> Option<T> {
        if self.covers(change) {
            return Some(tag);
        }
        self.replaced.push_back((change, tag));
        None
    }

    /// Whether deliveries are held only because others are not known to be kept.
    pub(crate) fn holds_any(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// Whether a mark would tell anything about a change. One is on its way at a time.
    pub(crate) const fn can_mark(&self, change: u64) -> bool {
        self.marked == self.kept && change > self.marked
    }

    /// A mark is appended behind a change. Returns its number.
    pub(crate) const fn mark(&mut self, change: u64) -> u64 {
        self.marked = change;
        self.marks += 1;
        self.marks
    }

    /// A mark was read, this hold's or not. Returns it unless the one on its way could be confirmed by its ack.
    pub(crate) fn read_mark(&mut self, tag: T) -> Option<T> {
        if self.marked == self.kept {
            return Some(tag);
        }
        self.read.push(tag);
        None
    }

    /// The mark is confirmed. Returns the deliveries that are not needed any more.
    pub(crate) fn confirmed(&mut self) -> Vec<T> {
        self.kept = self.marked;
        let free = self.replaced.iter().take_while(|(change, _)| *change <= self.kept).count();
        let free = self.replaced.drain(..free).map(|(_, tag)| tag);
        self.read.drain(..).chain(free).collect()
    }

    /// Takes all that is held.
    pub(crate) fn take(&mut self) -> Vec<T> {
        let replaced = self.replaced.drain(..).map(|(_, tag)| tag);
        self.read.drain(..).chain(replaced).collect()
    }
}
