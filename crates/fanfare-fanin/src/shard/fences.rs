use std::time::Duration;

use fanfare_protocol::{Fence, RunId};

use crate::Time;

/// The fences of one hold on a shard: each has a token of its own, and proves, when it is read, that all was read which lay
/// before it.
#[derive(Debug)]
pub(super) struct Fences {
    token: RunId,
    next: u64,
    /// For the fan-outs that another may have held.
    take_over: TakeOver,
    /// For what waits for a manifest since this time or longer.
    unclaimed: Option<(Sent, Time)>,
}

#[derive(Debug, Clone, Copy)]
enum TakeOver {
    NotNeeded,
    Sent(Sent),
    Passed,
}

/// A fence under way, or several: one that does not come back is sent again. Any of them will do.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The number of the first.
    first: u64,
    /// When the latest was sent.
    at: Time,
}

/// What a fence that was read has proven.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    /// All that a predecessor left has been read.
    pub(super) take_over: bool,
    /// What has waited since then or longer for a manifest will get none.
    pub(super) unclaimed_since: Option<Time>,
}

impl Fences {
    pub(super) const fn new(token: RunId) -> Self {
        Self { token, next: 0, take_over: TakeOver::NotNeeded, unclaimed: None }
    }

    /// Whether all is read that a predecessor may have left.
    pub(super) const fn is_passed(&self) -> bool {
        matches!(self.take_over, TakeOver::Passed)
    }

    /// A fan-out is there that another may have held: that needs a fence, one for all of them.
    pub(super) fn take_over(&mut self, now: Time) -> Option<Fence> {
        if !matches!(self.take_over, TakeOver::NotNeeded) {
            return None;
        }
        let sent = Sent { first: self.next, at: now };
        self.take_over = TakeOver::Sent(sent);
        Some(self.send())
    }

    /// Whether one for what waits for manifests is under way.
    pub(super) const fn looks_for_manifests(&self) -> bool {
        self.unclaimed.is_some()
    }

    /// One for what has waited since then or longer.
    pub(super) fn unclaimed(&mut self, since: Time, now: Time) -> Fence {
        self.unclaimed = Some((Sent { first: self.next, at: now }, since));
        self.send()
    }

    /// Sends those again that have not come back for so long.
    pub(super) fn again(&mut self, after: Duration, now: Time) -> Option<Fence> {
        let mut due = false;
        for sent in self.under_way() {
            if now >= sent.at + after {
                sent.at = now;
                due = true;
            }
        }
        due.then(|| self.send())
    }

    /// When one is to be sent again.
    pub(super) fn due(&mut self, after: Duration) -> Option<Time> {
        self.under_way().map(|sent| sent.at + after).min()
    }

    /// A fence was read. One that was sent later proves the same as an earlier one.
    pub(super) fn read(&mut self, fence: Fence) -> Proof {
        let mut proof = Proof::default();
        let Some(earliest) = self.under_way().map(|sent| sent.first).min() else { return proof };
        let own = (earliest..self.next).find(|number| self.token.after(*number) == fence.token);
        let Some(read) = own else { return proof };
        if let TakeOver::Sent(sent) = self.take_over
            && sent.first <= read
        {
            self.take_over = TakeOver::Passed;
            proof.take_over = true;
        }
        let unclaimed = self.unclaimed.take_if(|(sent, _)| sent.first <= read);
        proof.unclaimed_since = unclaimed.map(|(_, since)| since);
        proof
    }

    fn under_way(&mut self) -> impl Iterator<Item = &mut Sent> {
        let take_over = match &mut self.take_over {
            TakeOver::Sent(sent) => Some(sent),
            TakeOver::NotNeeded | TakeOver::Passed => None,
        };
        take_over.into_iter().chain(self.unclaimed.as_mut().map(|(sent, _)| sent))
    }

    fn send(&mut self) -> Fence {
        let token = self.token.after(self.next);
        self.next += 1;
        Fence { token }
    }
}
