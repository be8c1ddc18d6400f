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
