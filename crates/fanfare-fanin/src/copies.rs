//! The deliveries of a message that is renewed: which are held, and which of them a renewal is about to replace.

use std::time::Duration;

use crate::Time;

/// What a hold keeps of its manifest, or of the sentinel. Each delivery is acked once: when a newer one has arrived, when the copy
/// that renews it is confirmed, or at the end.
#[derive(Debug)]
pub(crate) struct Copies<T> {
    /// The newest delivery, and since when it is held; none where the renewed copy is on its way to someone.
    newest: Option<(T, Time)>,
    /// The delivery whose renewed copy is not confirmed yet.
    renewing: Option<T>,
}

impl<T> Copies<T> {
    pub(crate) const fn none() -> Self {
        Self { newest: None, renewing: None }
    }

    pub(crate) const fn one(tag: T, now: Time) -> Self {
        Self { newest: Some((tag, now)), renewing: None }
    }

    /// A further delivery replaces what is held. Returns the one that is not needed by that; one that is being renewed
    /// is left to its renewal.
    pub(crate) fn arrived(&mut self, tag: T, now: Time) -> Option<T> {
        self.newest.replace((tag, now)).map(|(before, _)| before)
    }

    /// Since when the delivery is held that could be renewed now.
    pub(crate) fn since(&self) -> Option<Time> {
        self.newest.as_ref().filter(|_| self.renewing.is_none()).map(|(_, since)| *since)
    }

    /// When the newest delivery has to be renewed, unless another is being renewed: that comes first.
    pub(crate) fn renewal_due(&self, renewal: Duration) -> Option<Time> {
        self.since().map(|since| since + renewal)
    }

    pub(crate) fn begin_renewal(&mut self) {
        self.renewing = self.newest.take().map(|(tag, _)| tag);
    }

    /// The renewed copy is safe. Returns exactly the delivery that it renews.
    pub(crate) const fn renewed(&mut self) -> Option<T> {
        self.renewing.take()
    }

    /// The copy could not be published. The delivery is held on as if it had just come, unless a further one has: then it is
    /// returned, and not needed.
    pub(crate) fn not_renewed(&mut self, now: Time) -> Option<T> {
        let kept = self.renewing.take()?;
        if self.newest.is_some() {
            return Some(kept);
        }
        self.newest = Some((kept, now));
        None
    }

    /// Takes all that is held, in the order in which it arrived.
    pub(crate) fn take(&mut self) -> Vec<T> {
        self.renewing.take().into_iter().chain(self.newest.take().map(|(tag, _)| tag)).collect()
    }
}
