use fanfare_broker::Receipt;

/// With which a delivery of a shard is acked.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    receipt: Receipt,
    is_manifest: bool,
}

impl Tag {
    pub(crate) async fn ack(&self) {
        self.receipt.ack().await;
    }
}

/// The acks of one channel that are to be given.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// They go first: what is left of a fan-out without its manifest is late, and nothing worse.
    manifests: Vec<Tag>,
    others: Vec<Tag>,
}

impl Acks {
    pub(crate) const fn tag(&self, receipt: Receipt, is_manifest: bool) -> Tag {
        Tag { receipt, is_manifest }
    }

    pub(crate) fn push(&mut self, tag: Tag) {
        if tag.is_manifest { self.manifests.push(tag) } else { self.others.push(tag) }
    }

    pub(crate) async fn flush(&mut self) {
        for tag in self.manifests.drain(..).chain(self.others.drain(..)) {
            tag.ack().await;
        }
    }
}
