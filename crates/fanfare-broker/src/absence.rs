//! Telling a queue that is gone from one that cannot be reached.

use std::time::Duration;

use crate::{Broker, BrokerError};

/// How long lies between the two looks that prove absence. While a node of a cluster goes down or comes up, its queues can
/// be missing for a moment.
pub const PAUSE: Duration = Duration::from_secs(3);

/// Whether a queue is gone: the broker said so twice, `pause` apart. Anything else is an outage, and the answer is no.
///
/// # Errors
/// Where the broker could not be asked: nothing is proven then.
pub async fn is_gone(broker: &dyn Broker, queue: &str, pause: Duration) -> Result<bool, BrokerError> {
    if broker.exists(queue).await? {
        return Ok(false);
    }
    tokio::time::sleep(pause).await;
    Ok(!broker.exists(queue).await?)
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::QueueNames;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::memory::MemoryBroker;

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_gone_only_when_it_is_missing_twice() {
        let broker = MemoryBroker::new();
        let queue = QueueNames::default().parked();
        let start = Instant::now();
        assert!(is_gone(&broker, &queue.name, PAUSE).await.unwrap());
        assert!(start.elapsed() >= PAUSE, "one look proves nothing");

        let comes_back = async {
            sleep(PAUSE / 2).await;
            broker.declare(&queue).await.unwrap();
        };
        let (gone, ()) = tokio::join!(is_gone(&broker, &queue.name, PAUSE), comes_back);
        assert!(!gone.unwrap());
        let start = Instant::now();
        assert!(!is_gone(&broker, &queue.name, PAUSE).await.unwrap());
        assert_eq!(start.elapsed(), Duration::ZERO, "one look proves presence");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_between_the_looks_proves_nothing() {
        let broker = MemoryBroker::new();
        let outage = async {
            sleep(PAUSE / 2).await;
            broker.isolate();
        };
        let (gone, ()) = tokio::join!(is_gone(&broker, "missing", PAUSE), outage);
        assert!(gone.unwrap_err().is_outage());
    }
}
