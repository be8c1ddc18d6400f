use std::collections::VecDeque;
use std::future::pending;

use fanfare_broker::{BrokerError, Consumer, Delivery, OpenParts};
use fanfare_protocol::{Bundle, header};

/// A consumer that hands out the results of a bundle one by one, and of them as few unacked ones as the broker would if each had come
/// alone.
#[derive(Debug)]
pub(crate) struct Unbundled {
    consumer: Consumer,
    /// Results of the bundle that was delivered last.
    more: VecDeque<Delivery>,
    /// Results of bundles that are not acked.
    open: OpenParts,
    /// The prefetch, which bounds the deliveries that are not acked, and these.
    window: usize,
}

impl Unbundled {
    pub(crate) fn new(consumer: Consumer, window: u16) -> Self {
        Self { consumer, more: VecDeque::new(), open: OpenParts::default(), window: window.into() }
    }

    /// The next delivery, as [`Consumer::next`] has it. Where as many results are unacked as may be there is none: whoever acks some
    /// asks again then.
    pub(crate) async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        loop {
            // Those that are still in line were not handed out.
            if self.open.count().saturating_sub(self.more.len()) >= self.window {
                return pending().await;
            }
            if let Some(result) = self.more.pop_front() {
                return Some(Ok(result));
            }
            match self.consumer.next().await? {
                Ok(delivery) => self.more = self.unbundle(delivery),
                Err(error) => return Some(Err(error)),
            }
        }
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

#[cfg(test)]
mod tests {
    use fanfare_broker::Broker;
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_protocol::{Message, QueueNames};
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    fn message(kind: &str, id: &str) -> Message {
        let mut message = Message { body: "{}".into(), ..Message::default() };
        message.properties.kind = Some(kind.into());
        message.properties.message_id = Some(id.into());
        message
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
        let mut consumer = Unbundled::new(channel.consume(&queue.name, 10).await.unwrap(), 10);
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
        let (broker, queue) = (MemoryBroker::new(), QueueNames::default().shard(0));
        broker.declare(&queue).await.unwrap();
        let results: Vec<Message> =
            (0..5).map(|n| message("fanfare.result", &format!("c/{n}/result"))).collect();
        broker.publish(&queue.name, Bundle::encode(&results).unwrap()).await.unwrap();
        let channel = broker.open().await.unwrap();
        let mut consumer = Unbundled::new(channel.consume(&queue.name, 2).await.unwrap(), 2);
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
        assert_eq!(broker.inspect(&queue.name).await.unwrap().unwrap().messages, 0);
    }
}
