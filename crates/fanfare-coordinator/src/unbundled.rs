use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use fanfare_broker::{BrokerError, Consumer, ConsumerChannel, Delivery, OpenParts};
use fanfare_protocol::{Bundle, header};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse};

/// A consumer that hands out the results of a bundle one by one, and of them as few unacked ones as the broker would if each had come
/// alone. It ends with its channel, and not only when what it has received before that is read: another is handed it by then.
pub(crate) struct Unbundled {
    consumer: Consumer,
    /// The end of its channel.
    ended: Fuse<BoxFuture<'static, ()>>,
    /// Results of the bundle that was delivered last.
    more: VecDeque<Delivery>,
    /// Results of bundles that are not acked.
    open: OpenParts,
    /// The prefetch, which bounds the deliveries that are not acked, and these.
    window: usize,
}

impl Unbundled {
    /// What a consumer of this channel hands out.
    pub(crate) fn new(channel: Arc<dyn ConsumerChannel>, consumer: Consumer, window: u16) -> Self {
        let ended = async move { channel.ended().await }.boxed().fuse();
        Self { consumer, ended, more: VecDeque::new(), open: OpenParts::default(), window: window.into() }
    }

    /// The next delivery, as [`Consumer::next`] has it. Where as many results are unacked as may be there is none, unless the channel
    /// ends: whoever acks some asks again then.
    pub(crate) async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        loop {
            // Those that are still in line were not handed out.
            let is_full = self.open.count().saturating_sub(self.more.len()) >= self.window;
            if !is_full && let Some(result) = self.more.pop_front() {
                return Some(Ok(result));
            }
            let next = tokio::select! {
                biased;
                next = self.consumer.next(), if !is_full => next?,
                () = &mut self.ended => Err(BrokerError::Unreachable("the channel has ended".to_owned())),
            };
            match next {
                Ok(delivery) => self.more = self.unbundle(delivery),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Hands out all that comes, however many are unacked: nothing is acked any more before the consumer has ended.
    pub(crate) const fn lift_limit(&mut self) {
        self.window = usize::MAX;
    }

    /// The results that a delivery brings where it is a bundle; otherwise, and where that is malformed, what it is.
    fn unbundle(&self, delivery: Delivery) -> VecDeque<Delivery> {
        let bundle = Some(&delivery.message).filter(|message| message.kind() == header::TYPE_RESULTS);
        let results =
            bundle.and_then(|bundle| Bundle::decode(bundle).ok()).filter(|results| !results.is_empty());
        let Some(results) = results else { return VecDeque::from([delivery]) };
        let Delivery { receipt, redelivered, .. } = delivery;
        let receipts = receipt.split(results.len(), &self.open);
        let single = |(message, receipt)| Delivery { message, redelivered, receipt };
        results.into_iter().zip(receipts).map(single).collect()
    }
}

impl fmt::Debug for Unbundled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unbundled").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fanfare_broker::Broker;
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_protocol::{Message, QueueNames};
    use futures_util::future::join_all;

    use super::*;

    fn message(kind: &str, id: &str) -> Message {
        let mut message = Message { body: "{}".into(), ..Message::default() };
        message.properties.kind = Some(kind.into());
        message.properties.message_id = Some(id.into());
        message
    }

    /// A shard with so many bundles, of so many results each.
    async fn bundled(bundles: usize, results: usize) -> (MemoryBroker, String) {
        let (broker, queue) = (MemoryBroker::new(), QueueNames::default().shard(0));
        broker.declare(&queue).await.unwrap();
        let results: Vec<Message> =
            (0..results).map(|n| message("fanfare.result", &format!("c/{n}/result"))).collect();
        for _ in 0..bundles {
            broker.publish(&queue.name, Bundle::encode(&results).unwrap()).await.unwrap();
        }
        (broker, queue.name)
    }

    async fn unbundled(channel: &Arc<dyn ConsumerChannel>, queue: &str, window: u16) -> Unbundled {
        let consumer = channel.consume(queue, window).await.unwrap();
        Unbundled::new(Arc::clone(channel), consumer, window)
    }

    #[tokio::test(start_paused = true)]
    async fn results_of_a_bundle_come_one_by_one_and_all_else_as_it_is() {
        let (broker, queue) = (MemoryBroker::new(), QueueNames::default().shard(0));
        broker.declare(&queue).await.unwrap();
        let bundle = Bundle::encode(&[
            message("fanfare.result", "c/0/result"),
            message("fanfare.result", "c/1/result"),
        ]);
        let malformed = Message { body: "[]".into(), ..message("fanfare.results", "empty") };
        for message in [message("fanfare.fence", "fence"), bundle.unwrap(), malformed] {
            broker.publish(&queue.name, message).await.unwrap();
        }
        let channel = broker.open().await.unwrap();
        let mut consumer = unbundled(&channel, &queue.name, 10).await;
        for (kind, id) in [
            ("fanfare.fence", "fence"),
            ("fanfare.result", "c/0/result"),
            ("fanfare.result", "c/1/result"),
            ("fanfare.results", "empty"),
        ] {
            let delivery = consumer.next().await.unwrap().unwrap();
            let message = &delivery.message;
            assert_eq!((message.kind(), message.properties.message_id.as_deref()), (kind, Some(id)));
            delivery.receipt.ack().await;
        }
        channel.close().await;
        assert_eq!(broker.inspect(&queue.name).await.unwrap().unwrap().messages, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_results_are_handed_out_unacked_than_may_be() {
        let (broker, queue) = bundled(1, 5).await;
        let channel = broker.open().await.unwrap();
        let mut consumer = unbundled(&channel, &queue, 2).await;
        let mut held = Vec::new();
        for left in (0..5).rev() {
            held.push(consumer.next().await.unwrap().unwrap());
            if held.len() == 2 && left > 0 {
                assert!(consumer.next().now_or_never().is_none());
                held.remove(0).receipt.ack().await;
            }
        }
        join_all(held.iter().map(|delivery| delivery.receipt.ack())).await;
        channel.close().await;
        assert_eq!(broker.inspect(&queue).await.unwrap().unwrap().messages, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_the_end_of_the_queue_shows_behind_all_that_is_unacked() {
        let (broker, queue) = bundled(1, 5).await;
        let channel = broker.open().await.unwrap();
        let mut consumer = unbundled(&channel, &queue, 2).await;
        let mut held = vec![consumer.next().await.unwrap().unwrap()];
        consumer.lift_limit();
        channel.delete(&queue).await.unwrap();
        let reading = async {
            while let Some(delivery) = consumer.next().await {
                held.push(delivery.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap();
        assert_eq!(held.len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_channel_shows_though_as_many_are_unacked_as_may_be() {
        let (broker, queue) = bundled(2, 3).await;
        let client = broker.connect();
        let channel = client.open().await.unwrap();
        let mut consumer = unbundled(&channel, &queue, 2).await;
        let _held = [consumer.next().await.unwrap().unwrap(), consumer.next().await.unwrap().unwrap()];
        assert!(consumer.next().now_or_never().is_none());
        client.isolate();
        assert!(consumer.next().await.unwrap().is_err());
    }
}
