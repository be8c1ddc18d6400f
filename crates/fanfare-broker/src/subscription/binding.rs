use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Sleep, sleep};

use super::window::Window;
use crate::BrokerError;

/// How long an exchange that somebody deletes, or declares anew, leads to nobody at most.
const PAUSE: Duration = Duration::from_secs(30);

/// Binds a queue to its exchange again and again: nothing tells its consumer that the exchange is gone, or another of that name.
pub(super) struct Binding {
    queue: String,
    exchange: String,
    stage: Stage,
}

enum Stage {
    Waiting(Pin<Box<Sleep>>),
    Asking(BoxFuture<'static, Result<(), BrokerError>>),
}

impl Stage {
    fn waiting() -> Self {
        Self::Waiting(Box::pin(sleep(PAUSE)))
    }
}

impl Binding {
    pub(super) fn new(queue: String, exchange: String) -> Self {
        Self { queue, exchange, stage: Stage::waiting() }
    }

    /// Why the queue is not bound any more. Its channel has ended then.
    pub(super) fn poll_lost(&mut self, window: &Window, context: &mut Context<'_>) -> Poll<BrokerError> {
        loop {
            self.stage = match &mut self.stage {
                Stage::Waiting(pause) => {
                    ready!(pause.as_mut().poll(context));
                    let Some(channel) = window.channel() else { return Poll::Pending };
                    let (queue, exchange) = (self.queue.clone(), self.exchange.clone());
                    Stage::Asking(async move { channel.bind(&queue, &exchange).await }.boxed())
                }
                Stage::Asking(asking) => match ready!(asking.poll_unpin(context)) {
                    Ok(()) => Stage::waiting(),
                    Err(error) => return Poll::Ready(error),
                },
            };
        }
    }
}
