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
    if broker.inspect(queue).await?.is_some() {
        return Ok(false);
    }
    tokio::time::sleep(pause).await;
    Ok(broker.inspect(queue).await?.is_none())
}
