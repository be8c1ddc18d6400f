use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use fanfare_protocol::QueueSpec;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::queue::Handed;
use super::server::Server;
use super::state::{ChannelId, ClientId, End, State};
use crate::{Acknowledge, BrokerError, Consumer, ConsumerChannel, Delivery, Receipt};

/// A channel of a client. Its receipts do not keep it open.
pub(super) struct MemoryChannel {
    link: Arc<Link>,
}

/// What a channel, its consumers and its receipts share.
struct Link {
    server: Arc<Server>,
    id: ChannelId,
    end: Arc<End>,
}

impl MemoryChannel {
    pub(super) fn new(server: Arc<Server>, id: ChannelId, end: Arc<End>) -> Self {
        Self { link: Arc::new(Link { server, id, end }) }
    }

    /// Takes one step of a channel that has not ended. As in AMQP, an error ends it.
    async fn step<T>(
        &self,
        step: impl FnOnce(&mut State, ClientId, Instant) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        tokio::task::consume_budget().await;
        let Link { server, id, end } = &*self.link;
        let taken = server.with(|state, now| {
            let client = state.client_of(*id)?;
            Some(step(state, client, now).inspect_err(|error| state.end(*id, error.clone(), now)))
        });
        match taken {
            Some(taken) => taken,
            None => {
                // A client that is deaf has not heard of it yet.
                end.token.cancelled().await;
                Err(end.reason())
            }
        }
    }

    fn end(&self) {
        let owner = BrokerError::Unreachable("its owner closed the channel".to_owned());
        self.link.server.with(|state, now| state.end(self.link.id, owner, now));
    }
}

#[async_trait]
impl ConsumerChannel for MemoryChannel {
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        if prefetch == 0 {
            return Err(BrokerError::Refused(format!(
                "prefetch 0 on queue `{queue}` would be without limit: pass 1 or more"
            )));
        }
        let id = self.link.id;
        let (tag, handed) = self.step(|state, _, now| state.consume(id, queue, prefetch, now)).await?;
        let deliveries = Deliveries { link: Arc::clone(&self.link), handed, done: false };
        Ok(Consumer::new(tag, deliveries.boxed()))
    }

    async fn get(&self, queue: &str) -> Result<Option<Delivery>, BrokerError> {
        let id = self.link.id;
        let handed = self.step(|state, _, now| state.get(id, queue, now)).await?;
        Ok(handed.map(|handed| delivery(handed, &self.link)))
    }

    async fn declare_exclusive(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let queue = QueueSpec { exclusive: true, ..queue.clone() };
        self.step(|state, client, now| state.declare(client, &queue, now)).await
    }

    async fn bind(&self, queue: &str, exchange: &str) -> Result<(), BrokerError> {
        self.step(|state, client, _| state.bind(client, queue, exchange)).await
    }

    async fn cancel(&self, consumer: &str) -> Result<(), BrokerError> {
        let id = self.link.id;
        self.step(|state, _, now| {
            state.cancel(id, consumer, now);
            Ok(())
        })
        .await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        self.step(|state, client, _| state.delete(client, queue)).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.step(|_, _, _| Ok(())).await
    }

    async fn close(&self) {
        self.end();
    }

    async fn ended(&self) {
        self.link.end.token.cancelled().await;
    }
}

impl Drop for MemoryChannel {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl Acknowledge for Link {
    async fn ack(&self, tag: u64) {
        tokio::task::consume_budget().await;
        self.server.with(|state, now| state.settle(self.id, tag, false, now));
    }

    async fn requeue(&self, tag: u64) {
        tokio::task::consume_budget().await;
        self.server.with(|state, now| state.settle(self.id, tag, true, now));
    }

    fn is_live(&self, tag: u64) -> bool {
        self.server.with(|state, _| state.is_unacked(self.id, tag))
    }
}

/// The stream of one consumer. Where it is dropped, what still comes stays with the channel.
struct Deliveries {
    link: Arc<Link>,
    handed: mpsc::UnboundedReceiver<Handed>,
    done: bool,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        // What an ended channel had on its way is back in its queue: handing it out too would only repeat work.
        let handed =
            if self.link.end.token.is_cancelled() { None } else { ready!(self.handed.poll_recv(context)) };
        Poll::Ready(match handed {
            Some(handed) => Some(Ok(delivery(handed, &self.link))),
            None => {
                self.done = true;
                self.link.end.token.is_cancelled().then(|| Err(self.link.end.reason()))
            }
        })
    }
}

fn delivery(Handed { tag, message, redelivered }: Handed, link: &Arc<Link>) -> Delivery {
    Delivery { message, redelivered, receipt: Receipt::new(Arc::clone(link) as Arc<dyn Acknowledge>, tag) }
}

impl std::fmt::Debug for MemoryChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryChannel").field("id", &self.link.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("id", &self.id).finish_non_exhaustive()
    }
}
