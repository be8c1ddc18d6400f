use std::collections::BTreeMap;
use std::sync::Arc;

use fanfare_broker::{Broker, BrokerError, PublishError};
use fanfare_protocol::{Bundle, Message, limits};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

/// Results that are looked at together. Others wait for the next look.
const AT_ONE_GO: usize = 4_000;

/// Publishes results: as one message those that are ready for the same queue at the same time. It waits for none that is not.
#[derive(Debug, Clone)]
pub(crate) struct Bundler {
    ready: mpsc::UnboundedSender<Ready>,
}

/// A result to publish, and whom to tell.
#[derive(Debug)]
struct Ready {
    queue: String,
    result: Message,
    caller: oneshot::Sender<Result<(), PublishError>>,
}

impl Bundler {
    /// Starts the task that does so. It ends with the last handle.
    /// Each result travels alone unless it is to `bundle`.
    pub(crate) fn start(broker: Arc<dyn Broker>, bundle: bool) -> Self {
        let (ready, inbox) = mpsc::unbounded_channel();
        let most = if bundle { limits::BUNDLED } else { 1 };
        tokio::spawn(run(broker, inbox, most));
        Self { ready }
    }

    /// Publishes a result, and returns when it is confirmed.
    pub(crate) async fn publish(&self, queue: &str, result: Message) -> Result<(), PublishError> {
        let (caller, outcome) = oneshot::channel();
        let ready = Ready { queue: queue.to_owned(), result, caller };
        if self.ready.send(ready).is_err() {
            return Err(PublishError::NotSent(BrokerError::Closed));
        }
        tokio::select! {
            biased;
            outcome = outcome => outcome.unwrap_or(Err(PublishError::Unknown(BrokerError::Closed))),
            // A result that was handed over as the task ended may lie there for ever.
            () = self.ready.closed() => Err(PublishError::NotSent(BrokerError::Closed)),
        }
    }
}

async fn run(broker: Arc<dyn Broker>, mut inbox: mpsc::UnboundedReceiver<Ready>, most: usize) {
    let (mut ready, mut publishing) = (Vec::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            biased;
            Some(()) = publishing.next() => {}
            came = inbox.recv_many(&mut ready, AT_ONE_GO) => {
                if came == 0 {
                    break;
                }
                // Services that can go on do, and those that end by that have their results taken along.
                tokio::task::yield_now().await;
                while ready.len() < AT_ONE_GO && let Ok(more) = inbox.try_recv() {
                    ready.push(more);
                }
                for (queue, bundle) in bundles(ready.drain(..), most) {
                    publishing.push(publish(&*broker, queue, bundle));
                }
            }
        }
    }
    while publishing.next().await.is_some() {}
}

/// What travels together: so many at the most, within the limits of a bundle.
fn bundles(ready: impl Iterator<Item = Ready>, most: usize) -> Vec<(String, Vec<Ready>)> {
    let mut bundles = Vec::new();
    let mut growing: BTreeMap<String, (usize, Vec<Ready>)> = BTreeMap::new();
    for ready in ready {
        let bytes = Bundle::bytes(&ready.result);
        let (gathered, bundle) = growing.entry(ready.queue.clone()).or_default();
        let is_full = *gathered + bytes > limits::BUNDLE_BYTES || bundle.len() == most;
        if is_full && !bundle.is_empty() {
            *gathered = 0;
            bundles.push((ready.queue.clone(), std::mem::take(bundle)));
        }
        *gathered += bytes;
        bundle.push(ready);
    }
    bundles.extend(growing.into_iter().map(|(queue, (_, bundle))| (queue, bundle)));
    bundles
}

async fn publish(broker: &dyn Broker, queue: String, bundle: Vec<Ready>) {
    let (results, callers): (Vec<_>, Vec<_>) =
        bundle.into_iter().map(|Ready { result, caller, .. }| (result, caller)).unzip();
    let bundle = if results.len() > 1 { Bundle::encode(&results) } else { None };
    let together = match bundle {
        Some(message) => Some(broker.publish(&queue, message).await),
        None => None,
    };
    let outcomes = match together {
        // One travels as it is; and so does each where the broker takes less than all of them.
        None | Some(Err(PublishError::TooLarge { .. })) => {
            join_all(results.into_iter().map(|result| broker.publish(&queue, result))).await
        }
        Some(outcome) => vec![outcome; callers.len()],
    };
    for (caller, outcome) in callers.into_iter().zip(outcomes) {
        // Who has stopped waiting has it delivered again.
        let _ = caller.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use fanfare_broker::memory::MemoryBroker;
    use fanfare_protocol::{QueueNames, header};

    use super::*;

    fn result(place: usize, bytes: usize) -> Message {
        let mut result = Message { body: format!("\"{}\"", "x".repeat(bytes)).into(), ..Message::default() };
        result.properties.kind = Some(header::TYPE_RESULT.into());
        result.properties.message_id = Some(format!("c/{place}/result").into());
        result
    }

    /// Publishes results of these sizes at the same time. Returns how many are in each message of the queue.
    async fn together(bundle: bool, sizes: &[usize]) -> Vec<usize> {
        let (broker, queue) = (Arc::new(MemoryBroker::new()), QueueNames::default().shard(0));
        broker.declare(&queue).await.unwrap();
        let bundler = Bundler::start(Arc::clone(&broker) as Arc<dyn Broker>, bundle);
        let all = sizes
            .iter()
            .enumerate()
            .map(|(place, bytes)| bundler.publish(&queue.name, result(place, *bytes)));
        assert!(join_all(all).await.iter().all(Result::is_ok));
        let channel = broker.open().await.unwrap();
        let mut messages = Vec::new();
        while let Some(delivery) = channel.get(&queue.name).await.unwrap() {
            let message = delivery.message;
            let is_bundle = message.kind() == header::TYPE_RESULTS;
            messages.push(if is_bundle { Bundle::decode(&message).unwrap().len() } else { 1 });
        }
        messages
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_together_travels_together_within_the_limits() {
        assert_eq!(together(true, &[1]).await, [1]);
        assert_eq!(together(true, &[1; 7]).await, [7]);
        assert_eq!(together(false, &[1; 3]).await, [1; 3]);
        assert_eq!(
            together(true, &[1; limits::BUNDLED + 1]).await.iter().sum::<usize>(),
            limits::BUNDLED + 1
        );
        let half = limits::BUNDLE_BYTES / 2;
        assert_eq!(together(true, &[half, half, 1, limits::BUNDLE_BYTES * 2, 1]).await, [1, 2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_told_what_became_of_it() {
        let broker = Arc::new(MemoryBroker::new());
        let bundler = Bundler::start(Arc::clone(&broker) as Arc<dyn Broker>, true);
        let outcomes = join_all((0..3).map(|place| bundler.publish("missing", result(place, 1)))).await;
        for outcome in outcomes {
            assert!(matches!(outcome, Err(PublishError::Unroutable(_))), "{outcome:?}");
        }
    }
}
