use std::future::pending;

use fanfare_broker::{BrokerError, Delivery};
use futures_util::FutureExt;

use crate::unbundled::Unbundled;

/// Where deliveries come from.
pub(super) enum Source {
    Consumer(Unbundled),
    /// The consumer has ended, which was not told yet; with an error where its channel did.
    Ended(Option<BrokerError>),
    /// There is nothing more.
    Nothing,
}

impl Source {
    pub(super) async fn next(&mut self) -> Option<Result<Delivery, BrokerError>> {
        match self {
            Self::Consumer(consumer) => consumer.next().await,
            Self::Ended(error) => error.take().map(Err),
            Self::Nothing => pending().await,
        }
    }

    /// One that is there already.
    pub(super) fn ready(&mut self) -> Option<Delivery> {
        let Self::Consumer(consumer) = self else { return None };
        match consumer.next().now_or_never()? {
            Some(Ok(delivery)) => return Some(delivery),
            Some(Err(error)) => *self = Self::Ended(Some(error)),
            None => *self = Self::Ended(None),
        }
        None
    }
}
