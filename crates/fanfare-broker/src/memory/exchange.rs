use std::collections::{BTreeMap, BTreeSet};

use super::state::QueueId;

/// The fanout exchanges by name, each with the queues that are bound to it.
#[derive(Debug, Default)]
pub(super) struct Exchanges(BTreeMap<String, BTreeSet<QueueId>>);

impl Exchanges {
    /// One that exists keeps its bindings.
    pub(super) fn declare(&mut self, name: &str) {
        self.0.entry(name.to_owned()).or_default();
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// False where there is no such exchange.
    pub(super) fn bind(&mut self, name: &str, queue: QueueId) -> bool {
        let Some(bound) = self.0.get_mut(name) else { return false };
        bound.insert(queue);
        true
    }

    pub(super) fn bound_to(&self, name: &str) -> Option<&BTreeSet<QueueId>> {
        self.0.get(name)
    }

    /// A queue is gone, and its bindings with it.
    pub(super) fn forget(&mut self, queue: QueueId) {
        self.0.values_mut().for_each(|bound| _ = bound.remove(&queue));
    }
}
