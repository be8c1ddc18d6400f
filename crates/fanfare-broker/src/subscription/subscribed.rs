use std::collections::VecDeque;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse};
use tokio::time::Instant;

use super::binding::Binding;
use super::window::Window;
use crate::{BrokerError, Consumer, Delivery};

/// One channel of a subscription, with one consumer at a time.
pub(super) struct Subscribed {
    // Dropped before the window, which may close the channel.
    consumer: Consumer,
    stage: Stage,
    /// What was received while nobody asked for it.
    early: VecDeque<Delivery>,
    pub(super) window: Window,
    queue: String,
    binding: Option<Binding>,
    pub(super) since: Instant,
}

enum Stage {
    Consuming,
    /// Its consumer is being cancelled, and what was under way is still handed out. Then another begins, unless that was the last.
    Ending {
        cancelling: Fuse<BoxFuture<'static, ()>>,
        last: bool,
    },
    Beginning {
        prefetch: u16,
        consumer: BoxFuture<'static, Result<Consumer, BrokerError>>,
    },
}

impl Subscribed {
    /// What consumes the queue on the window's channel, with its prefetch.
    pub(super) fn new(consumer: Consumer, queue: String, window: Window) -> Self {
        let (stage, early) = (Stage::Consuming, VecDeque::new());
        Self { consumer, stage, early, window, queue, binding: None, since: Instant::now() }
    }

    /// The queue is to stay bound to an exchange, where there is one.
    pub(super) fn bound_to(self, exchange: Option<String>) -> Self {
        let binding = exchange.map(|exchange| Binding::new(self.queue.clone(), exchange));
        Self { binding, ..self }
    }

    /// Whether it is on its way out.
    pub(super) const fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Ending { last: true, .. })
    }

    /// Its next delivery. `None` where its last consumer has ended, an error where its channel or its binding has.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Delivery, BrokerError>>> {
        let next = match self.early.pop_front() {
            Some(early) => Some(Ok(early)),
            None => ready!(self.poll_received(context)),
        };
        Poll::Ready(next.map(|next| next.map(|delivery| self.window.wrap(delivery))))
    }

    /// Its end, as [`poll_next`](Self::poll_next) tells it. What it receives before that is kept: no more than its prefetch.
    pub(super) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Option<BrokerError>> {
        loop {
            match ready!(self.poll_received(context)) {
                Some(Ok(delivery)) => self.early.push_back(delivery),
                Some(Err(error)) => break Poll::Ready(Some(error)),
                None => break Poll::Ready(None),
            }
        }
    }

    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delivery, BrokerError>>> {
        if let Some(binding) = &mut self.binding
            && let Poll::Ready(error) = binding.poll_lost(&self.window, context)
        {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match &mut self.stage {
                Stage::Consuming => {}
                // Its end shows in the stream of deliveries.
                Stage::Ending { cancelling, .. } => {
                    let _ = cancelling.poll_unpin(context);
                }
                Stage::Beginning { prefetch, consumer } => {
                    let (prefetch, begun) = (*prefetch, ready!(consumer.poll_unpin(context)));
                    match begun {
                        Ok(consumer) => self.begun(consumer, prefetch),
                        Err(error) => break Poll::Ready(Some(Err(error))),
                    }
                    continue;
                }
            }
            let next = ready!(pin!(self.consumer.next()).poll(context));
            if next.is_none() && matches!(self.stage, Stage::Ending { last: false, .. }) {
                self.begin();
                continue;
            }
            break Poll::Ready(next);
        }
    }

    /// Goes on with so many deliveries at a time. What it has handed out so far stays answerable, and counts to them no more.
    pub(super) fn set_prefetch(&mut self, prefetch: u16) {
        self.window.set_prefetch(prefetch);
        if self.may_leave() {
            self.end(false);
        }
    }

    /// Whether it may [leave](Self::leave) now: not while one consumer takes the place of another.
    pub(super) const fn may_leave(&self) -> bool {
        matches!(self.stage, Stage::Consuming)
    }

    /// Goes on its way out. What was under way is still handed out.
    pub(super) fn leave(&mut self) {
        self.end(true);
    }

    /// Cancels its last consumer, for good.
    pub(super) async fn stop(&mut self) {
        if let Stage::Beginning { consumer, .. } = &mut self.stage
            && let Ok(consumer) = consumer.await
        {
            self.consumer = consumer;
        }
        self.cancel().await;
    }

    /// Gives back what its cancelled consumer was handed and nobody has asked for.
    pub(super) async fn give_back(&mut self) {
        for delivery in std::mem::take(&mut self.early) {
            delivery.receipt.requeue().await;
        }
        while let Some(Ok(delivery)) = self.consumer.next().await {
            delivery.receipt.requeue().await;
        }
    }

    /// Cancels its consumer. Where that fails its channel has ended, which shows in the stream.
    fn cancel(&self) -> BoxFuture<'static, ()> {
        let (channel, tag) = (self.window.channel(), self.consumer.tag().to_owned());
        async move {
            if let Some(channel) = channel {
                channel.cancel(&tag).await.ok();
            }
        }
        .boxed()
    }

    fn end(&mut self, last: bool) {
        self.stage = Stage::Ending { cancelling: self.cancel().fuse(), last };
    }

    fn begin(&mut self) {
        let channel = self.window.channel().expect("it is there for as long as the window is");
        let (queue, prefetch) = (self.queue.clone(), self.window.prefetch());
        let beginning = async move { channel.consume(&queue, prefetch).await };
        self.stage = Stage::Beginning { prefetch, consumer: beginning.boxed() };
    }

    /// The next consumer is there. Another prefetch may be wanted by now.
    fn begun(&mut self, consumer: Consumer, prefetch: u16) {
        (self.consumer, self.stage) = (consumer, Stage::Consuming);
        if prefetch != self.window.prefetch() {
            self.end(false);
        }
    }
}
