use std::collections::{BTreeMap, BTreeSet};

use fanfare_broker::{Delivery, Receipt};
use fanfare_protocol::{Bundle, Message, header};

use super::defects::Defect;
use super::scenario::Draft;

/// What a channel has handed out, and what is answered of it.
pub(super) struct HandedOut {
    defect: Option<Defect>,
    last_tag: u64,
    /// An answer given twice goes to the broker twice, which ends the channel.
    deliveries: BTreeMap<u64, Handed>,
    /// Keys of results.
    keys: BTreeSet<String>,
}

struct Handed {
    receipt: Receipt,
    is_manifest: bool,
    /// Whether it is, or has, the first result of a key.
    counts: bool,
}

impl HandedOut {
    pub(super) const fn new(defect: Option<Defect>) -> Self {
        Self { defect, last_tag: 0, deliveries: BTreeMap::new(), keys: BTreeSet::new() }
    }

    /// Whether nothing ever was.
    pub(super) const fn is_empty(&self) -> bool {
        self.last_tag == 0
    }

    /// Takes a delivery down. Returns the tag that the process knows it by.
    pub(super) fn insert(&mut self, delivery: &mut Delivery) -> u64 {
        self.last_tag += 1;
        let message = &mut delivery.message;
        let is_manifest = message.kind() == header::TYPE_MANIFEST;
        let counts = match message.kind() {
            header::TYPE_RESULT => self.count(message),
            header::TYPE_RESULTS => self.count_bundled(message),
            _ => false,
        };
        let handed = Handed { receipt: delivery.receipt.clone(), is_manifest, counts };
        self.deliveries.insert(self.last_tag, handed);
        self.last_tag
    }

    /// Counts the results of a bundle. Returns whether one is the first of its key.
    fn count_bundled(&mut self, bundle: &mut Message) -> bool {
        let Ok(mut results) = Bundle::decode(bundle) else { return false };
        let mut counts = false;
        for result in &mut results {
            counts |= self.count(result);
        }
        if let Some(counted) = Bundle::encode(&results) {
            bundle.body = counted.body;
        }
        counts
    }

    /// Counts a result. Returns whether it is the first of its key.
    fn count(&mut self, result: &mut Message) -> bool {
        let Some(key) = result.text(header::KEY) else { return false };
        let is_first = self.keys.insert(key.to_owned());
        if !is_first && self.defect == Some(Defect::CountInsteadOfSet) {
            let another = (0..).map(Draft::key).find(|key| self.keys.insert(key.clone()));
            if let Some(key) = another {
                result.headers.insert(header::KEY, key.as_str());
            }
        }
        is_first
    }

    /// What an answer is for: one delivery, unless there is a defect.
    pub(super) fn answered(&mut self, tag: u64, requeue: bool) -> Vec<Receipt> {
        let Some(handed) = self.deliveries.get(&tag) else { return Vec::new() };
        match self.defect {
            Some(Defect::NoCheckpoint) if handed.counts => Vec::new(),
            Some(Defect::MultipleAcrossFanOuts) if handed.is_manifest && !requeue => {
                let later = self.deliveries.split_off(&(tag + 1));
                let earlier = std::mem::replace(&mut self.deliveries, later);
                earlier.into_values().map(|handed| handed.receipt).collect()
            }
            // What has gone back is not acked with others later.
            Some(Defect::MultipleAcrossFanOuts) => self.remove(tag).into_iter().collect(),
            _ => vec![handed.receipt.clone()],
        }
    }

    /// Whether an answer may still reach the broker.
    pub(super) fn is_live(&self, tag: u64) -> bool {
        self.deliveries.get(&tag).is_some_and(|handed| handed.receipt.is_live())
    }

    /// Forgets a delivery: a later answer is for nothing.
    pub(super) fn remove(&mut self, tag: u64) -> Option<Receipt> {
        self.deliveries.remove(&tag).map(|handed| handed.receipt)
    }
}
