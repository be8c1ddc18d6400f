use std::collections::VecDeque;

use fanfare_broker::{BrokerError, Consumer, Delivery};
use fanfare_protocol::{Bundle, header};

/// A consumer that hands out the results of a bundle one by one.
#[derive(Debug)]
pub(crate) struct Unbundled {
    consumer: Consumer,
    /// Results of the bundle that was delivered last.
    more: VecDeque<Delivery>,
}

impl Unbundled {
    pub(crate) fn new(consumer: Consumer) -> Self {
        Self { consumer, more: VecDeque::new() }
    }

    /// The next delivery, as [`Consumer::next`] has it.
    pub(crate) async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        loop {
            if let Some(result) = self.more.pop_front() {
                return Some(Ok(result));
            }
            match self.consumer.next().await? {
                Ok(delivery) => self.more = unbundle(delivery),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The results that a delivery brings where it is a bundle; otherwise, and where that is malformed, what it is.
fn unbundle(delivery: Delivery) -> VecDeque<Delivery> {
    let bundle = Some(&delivery.message).filter(|message| message.kind() == header::TYPE_RESULTS);
    let results = bundle.and_then(|bundle| Bundle::decode(bundle).ok()).filter(|results| !results.is_empty());
    let Some(results) = results else { return VecDeque::from([delivery]) };
    let Delivery { receipt, redelivered, .. } = delivery;
    let receipts = receipt.split(results.len());
    let single = |(message, receipt)| Delivery { message, redelivered, receipt };
    results.into_iter().zip(receipts).map(single).collect()
}

#[cfg(test)]
mod tests {
    use fanfare_broker::Broker;
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_protocol::{Message, QueueNames};

    use super::*;

    fn message(kind: &str, id: &str) -> Message {
        let mut message = Message { body: "{}".into(), ..Message::default() };
        message.properties.kind = Some(kind.to_owned());
        message.properties.message_id = Some(id.to_owned());
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
        let mut consumer = Unbundled::new(channel.consume(&queue.name, 10).await.unwrap());
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
}
