use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether a process consumes the queues that it lives by, and why not. Clones share what they know.
///
/// Each [`Subscription`](crate::Subscription) that [reports](crate::Subscription::reporting_to) to it says when it begins to
/// consume and when it ceases to.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    hindrances: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Readiness {
    /// One that is not ready, for a reason that [`clear`](Self::clear) takes away.
    #[must_use]
    pub fn waiting(what: &str, reason: &str) -> Self {
        let readiness = Self::default();
        readiness.hinder(what, reason);
        readiness
    }

    /// What is not consumed, most often a queue's name, and why; nothing where the process is ready.
    #[must_use]
    pub fn hindrances(&self) -> BTreeMap<String, String> {
        self.lock().clone()
    }

    /// Says that something is not consumed.
    pub fn hinder(&self, what: impl Into<String>, reason: impl Into<String>) {
        self.lock().insert(what.into(), reason.into());
    }

    /// Says that it is.
    pub fn clear(&self, what: &str) {
        self.lock().remove(what);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.hindrances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
