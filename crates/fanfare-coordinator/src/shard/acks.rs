//! The acks of a shard: when each is given, so that one frame can stand for many.

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_broker::Receipt;
use futures_util::future::join_all;
use tokio::time::Instant;

/// How long the ack of a result waits for those of the deliveries before it. After twice this it is given by itself.
const PATIENCE: Duration = Duration::from_millis(200);

/// With which a delivery of a shard is acked.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    receipt: Receipt,
    /// Its place among the deliveries of its channel.
    place: u64,
    is_manifest: bool,
}

/// The acks of one channel that are to be given.
///
/// The broker is told of many at once where nothing before them is open, so those of results and checkpoints wait a moment until
/// that is so: to find the delivery that an ack is for, RabbitMQ goes through all that is unacked before it. A manifest does not wait: until it is acked, a crash repeats its final callbacks. What is left of a fan-out without its
/// manifest is late, and nothing worse.
#[derive(Debug)]
pub(crate) struct Acks {
    /// As many as may wait.
    most: usize,
    /// Deliveries that nobody has answered.
    open: BTreeSet<u64>,
    next: u64,
    manifests: Vec<Tag>,
    waiting: Vec<Tag>,
    /// Those that had something open before them when others were given.
    put_off: Vec<Tag>,
    /// When those that wait are given.
    due: Option<Instant>,
}

impl Tag {
    async fn ack(&self) {
        self.receipt.ack().await;
    }
}

impl Acks {
    /// For a consumer with this window, of which they may keep a small part occupied.
    pub(crate) fn new(window: u16) -> Self {
        Self {
            most: usize::from(window / 8).max(1),
            open: BTreeSet::new(),
            next: 0,
            manifests: Vec::new(),
            waiting: Vec::new(),
            put_off: Vec::new(),
            due: None,
        }
    }

    /// The next delivery.
    pub(crate) fn tag(&mut self, receipt: Receipt, is_manifest: bool) -> Tag {
        let place = self.next;
        self.next += 1;
        self.open.insert(place);
        Tag { receipt, place, is_manifest }
    }

    pub(crate) fn push(&mut self, tag: Tag) {
        self.open.remove(&tag.place);
        if tag.is_manifest {
            return self.manifests.push(tag);
        }
        self.due.get_or_insert_with(|| Instant::now() + PATIENCE);
        self.waiting.push(tag);
    }

    /// When [`flush`](Self::flush) has something to do if nothing else happens before.
    pub(crate) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Gives those that are due.
    pub(crate) async fn flush(&mut self) {
        let due = self.due.is_some_and(|due| due <= Instant::now());
        let given = self.take(due || self.waiting.len() + self.put_off.len() >= self.most);
        join_all(given.iter().map(Tag::ack)).await;
    }

    /// Gives all of them.
    pub(crate) async fn flush_all(&mut self) {
        self.put_off.append(&mut self.waiting);
        let given = self.take(true);
        join_all(given.iter().map(Tag::ack)).await;
    }

    /// What is to be given, in this order: manifests that have something open before them; all that has not, as one; and what
    /// cannot wait any longer. So a manifest goes before the results of its fan-out, or with them.
    fn take(&mut self, due: bool) -> Vec<Tag> {
        let first_open = self.open.first().copied().unwrap_or(self.next);
        let (mut together, mut given): (Vec<_>, Vec<_>) =
            self.manifests.drain(..).partition(|tag| tag.place < first_open);
        let mut alone = Vec::new();
        if due {
            let (ready, overdue): (Vec<_>, Vec<_>) =
                self.put_off.drain(..).partition(|tag| tag.place < first_open);
            alone = overdue;
            together.extend(ready);
            let (ready, early) = self.waiting.drain(..).partition(|tag| tag.place < first_open);
            together.extend::<Vec<_>>(ready);
            self.put_off = early;
            self.due = (!self.put_off.is_empty()).then(|| Instant::now() + PATIENCE);
        }
        given.append(&mut together);
        given.append(&mut alone);
        given
    }
}

#[cfg(test)]
mod tests {
    use fanfare_broker::Broker;
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_protocol::{Message, QueueNames};

    use super::*;

    /// Acks of a channel that has handed out so many deliveries, manifests among them.
    async fn handed_out(deliveries: u64, manifests: &[u64]) -> (Acks, Vec<Tag>) {
        let (broker, queue) = (MemoryBroker::new(), QueueNames::default().shard(0));
        broker.declare(&queue).await.unwrap();
        broker.publish(&queue.name, Message::default()).await.unwrap();
        let channel = broker.open().await.unwrap();
        let delivery = channel.consume(&queue.name, 1).await.unwrap().next().await.unwrap().unwrap();
        let mut acks = Acks::new(1_600);
        let tags =
            (0..deliveries).map(|place| acks.tag(delivery.receipt.clone(), manifests.contains(&place)));
        let tags = tags.collect();
        (acks, tags)
    }

    fn given(acks: &mut Acks, due: bool) -> Vec<u64> {
        acks.take(due).iter().map(|tag| tag.place).collect()
    }

    fn push(acks: &mut Acks, tags: &[Tag], places: &[usize]) {
        places.iter().for_each(|place| acks.push(tags[*place].clone()));
    }

    #[tokio::test(start_paused = true)]
    async fn manifest_is_acked_at_once_and_its_results_with_what_lies_before_them() {
        let (mut acks, tags) = handed_out(6, &[2, 5]).await;
        push(&mut acks, &tags, &[2, 1, 3]);
        assert_eq!(given(&mut acks, false), [2]);
        push(&mut acks, &tags, &[5, 0, 4]);
        assert_eq!(given(&mut acks, false), [5]);
        assert_eq!(given(&mut acks, true), [1, 3, 0, 4]);
        assert!(given(&mut acks, true).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_behind_an_open_delivery_is_put_off_once() {
        let (mut acks, tags) = handed_out(6, &[]).await;
        push(&mut acks, &tags, &[0, 2, 3]);
        assert_eq!(given(&mut acks, true), [0]);
        assert!(acks.due().is_some());
        push(&mut acks, &tags, &[5]);
        assert_eq!(given(&mut acks, true), [2, 3], "1 is open for long");
        push(&mut acks, &tags, &[1]);
        assert_eq!(given(&mut acks, true), [1, 5], "4 is open for long");
    }

    #[tokio::test(start_paused = true)]
    async fn manifest_goes_before_the_results_of_its_fan_out() {
        // 1 is open. The manifest 3 goes by itself, before 0, which may be a result of its fan-out.
        let (mut acks, tags) = handed_out(4, &[3]).await;
        push(&mut acks, &tags, &[3, 0, 2]);
        assert_eq!(given(&mut acks, true), [3, 0]);
        assert_eq!(given(&mut acks, true), [2]);
    }
}
