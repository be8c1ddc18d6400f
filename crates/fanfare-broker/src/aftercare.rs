use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::{Broker, BrokerError, QueueState};

/// When a queue is looked at, each counted from the look before. A node takes seconds to start, or minutes where it has many queues.
const PAUSES: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];

/// Queues that are looked after at a time. What is beyond that is left to an operator.
const MOST: usize = 10_000;

/// Sees to it that queues which were deleted stay so. Clones share one limit.
///
/// A node of RabbitMQ that starts makes a list of the quorum queues, takes them up one after the other, and writes the name of each into the
/// broker's tables then, also where the queue was deleted after the list was made (`rabbit_quorum_queue:recover/2`; not where the tables are
/// Khepri's). What comes back is a name, which never expires: it can be looked at, refuses messages, and ends the connection of who consumes it.
/// A worker whose late result is for it would try for ever. To delete it takes it away for good.
#[derive(Debug, Clone)]
pub struct Aftercare {
    broker: Arc<dyn Broker>,
    room: Arc<Semaphore>,
}

impl Aftercare {
    /// How long RabbitMQ waits, while it deletes a queue, for a member of it that does not answer, as those on a node that is
    /// away or starts (`rabbit_quorum_queue`, `DELETE_TIMEOUT`). Whoever deletes has to wait for longer, or is never told.
    pub const MEMBER_TIMEOUT: Duration = Duration::from_secs(5);

    /// A deletion that takes so long is one after which the queue has to be looked after: about [`Self::MEMBER_TIMEOUT`].
    pub const SLOW: Duration = Self::MEMBER_TIMEOUT.saturating_sub(Duration::from_secs(1));

    /// Of queues of a broker.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, room: Arc::new(Semaphore::new(MOST)) }
    }

    /// Looks after a queue that was deleted and whose name nobody uses again, for as long as this process runs, eleven minutes at most. Where
    /// it is there again, it is deleted again, unless it holds messages or is consumed: that is more than a name.
    pub fn watch(&self, queue: String) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            tracing::debug!(queue, "too many queues are looked after already");
            return;
        };
        let broker = Arc::clone(&self.broker);
        tokio::spawn(async move {
            let _place = place;
            for pause in PAUSES {
                tokio::time::sleep(pause).await;
                match delete_name(&*broker, &queue).await {
                    Ok(true) => {
                        tracing::info!(queue, "the name of a deleted queue was there again, and is deleted")
                    }
                    Ok(false) => {}
                    Err(BrokerError::Closed) => return,
                    Err(error) => tracing::debug!(queue, %error, "cannot look after a deleted queue now"),
                }
            }
        });
    }
}

/// Deletes a queue of which there is only the name. Whether it has.
async fn delete_name(broker: &dyn Broker, queue: &str) -> Result<bool, BrokerError> {
    let is_name = matches!(broker.inspect(queue).await?, Some(QueueState { messages: 0, consumers: 0 }));
    if is_name {
        broker.delete(queue).await?;
    }
    Ok(is_name)
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Message, QueueNames};
    use tokio::time::sleep;

    use super::*;
    use crate::memory::MemoryBroker;

    #[tokio::test(start_paused = true)]
    async fn a_name_that_comes_back_is_deleted_and_a_queue_is_not() {
        let broker = Arc::new(MemoryBroker::new());
        let queue = QueueNames::default().parked();
        let aftercare = Aftercare::new(Arc::clone(&broker) as Arc<dyn Broker>);
        aftercare.watch(queue.name.clone());
        for pause in PAUSES {
            sleep(pause / 2).await;
            broker.declare(&queue).await.unwrap();
            sleep(pause).await;
            assert!(!broker.exists(&queue.name).await.unwrap(), "after {pause:?}");
            sleep(pause / 2).await;
        }

        aftercare.watch(queue.name.clone());
        broker.declare(&queue).await.unwrap();
        broker.publish(&queue.name, Message::default()).await.unwrap();
        sleep(PAUSES.iter().sum::<Duration>() * 2).await;
        assert!(broker.exists(&queue.name).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_away_is_asked_again_and_one_that_is_closed_is_not() {
        let broker = MemoryBroker::new();
        let (away, queue) = (Arc::new(broker.connect()), QueueNames::default().parked());
        let aftercare = Aftercare::new(Arc::clone(&away) as Arc<dyn Broker>);
        aftercare.watch(queue.name.clone());
        broker.declare(&queue).await.unwrap();
        away.isolate();
        sleep(PAUSES[0] * 2).await;
        away.rejoin();
        sleep(PAUSES[1]).await;
        assert!(!broker.exists(&queue.name).await.unwrap());
        assert_eq!(aftercare.room.available_permits(), MOST - 1);
        away.close().await;
        sleep(PAUSES[2]).await;
        assert_eq!(aftercare.room.available_permits(), MOST);
    }
}
