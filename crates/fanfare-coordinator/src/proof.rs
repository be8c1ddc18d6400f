use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fanfare_broker::ConsumerChannel;
use fanfare_fanin::Publication;
use fanfare_protocol::Manifest;
use tokio::sync::Mutex;

/// Proof that the broker had not taken deliveries back before something was in their queue.
///
/// The confirm alone is none: it comes over another connection than the deliveries. Where theirs has died without a word, another
/// coordinator may have been handed them, and have come to its fence, before a checkpoint was in the queue; or the broker was killed, lost what it had not
/// written of them, and has confirmed a mark after its start. So the channel that holds them is asked for an answer *after* the confirm. Where it gives
/// one, whoever is handed them reads the checkpoint before a fence of its own, and the mark is behind them. A mark that the
/// channel itself has handed out needs no question.
#[derive(Debug)]
pub(crate) struct Proof {
    channel: Arc<dyn ConsumerChannel>,
    /// How often the channel was asked.
    asked: AtomicU64,
    /// Which time it was that it answered last. Locked while it is being asked.
    answered: Mutex<u64>,
    /// The last mark that it has handed out.
    mark: AtomicU64,
}

impl Proof {
    /// By the channel that holds the deliveries.
    pub(crate) fn by(channel: Arc<dyn ConsumerChannel>) -> Self {
        Self { channel, asked: AtomicU64::new(0), answered: Mutex::new(0), mark: AtomicU64::new(0) }
    }

    /// The channel has handed out this hold's mark of a number.
    pub(crate) fn has_read(&self, mark: u64) {
        self.mark.fetch_max(mark, Ordering::Relaxed);
    }

    /// Returns when there is proof of something that was confirmed before this was called. Where it was published again, what the channel
    /// has handed out may be the copy that is not confirmed.
    pub(crate) async fn of(&self, what: ToProve, again: bool) {
        match what {
            ToProve::Mark(number) if !again && self.mark.load(Ordering::Relaxed) >= number => {}
            ToProve::Mark(_) | ToProve::Calls => self.given().await,
        }
    }

    /// Returns when the channel has answered what it was asked after this was called: for many at once, where many wait. It never does where
    /// the channel has ended, of which its consumer hears.
    async fn given(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        let mut answered = self.answered.lock().await;
        if *answered > before {
            return;
        }
        let now = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.channel.ping().await.is_err() {
            pending().await
        }
        *answered = now;
    }
}

/// What counts only with proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToProve {
    /// A checkpoint that says of on-target callbacks that they are not to be repeated.
    Calls,
    /// A mark, by its number.
    Mark(u64),
}

impl ToProve {
    pub(crate) fn by(publication: &Publication, manifest: &Manifest) -> Option<Self> {
        match publication {
            Publication::Checkpoint(checkpoint) if checkpoint.called && !manifest.on_target.is_empty() => {
                Some(Self::Calls)
            }
            Publication::Mark(mark) => Some(Self::Mark(mark.number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use fanfare_broker::Broker;
    use fanfare_broker::memory::MemoryBroker;
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn proof_needs_a_question_after_the_confirm_and_one_does_for_all_that_wait() {
        let broker = MemoryBroker::new();
        let proof = Proof::by(broker.open().await.unwrap());
        let asking = proof.answered.lock().await;
        let mut waiting = Box::pin(join_all([proof.given(), proof.given(), proof.given()]));
        assert!((&mut waiting).now_or_never().is_none());
        drop(asking);
        waiting.await;
        assert_eq!(proof.asked.load(Ordering::Relaxed), 1);
        proof.given().await;
        assert_eq!(proof.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_mark_that_the_channel_has_handed_out_needs_no_question() {
        let broker = MemoryBroker::new();
        let proof = Proof::by(broker.open().await.unwrap());
        proof.has_read(2);
        proof.of(ToProve::Mark(2), false).await;
        assert_eq!(proof.asked.load(Ordering::Relaxed), 0);
        proof.of(ToProve::Mark(2), true).await;
        proof.of(ToProve::Mark(3), false).await;
        proof.of(ToProve::Calls, false).await;
        assert_eq!(proof.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn no_proof_comes_of_a_channel_that_is_dead_or_has_ended() {
        let broker = MemoryBroker::new();
        let proof = Proof::by(broker.open().await.unwrap());
        broker.deafen();
        assert!(proof.given().now_or_never().is_none());
        broker.notice();
        assert!(proof.given().now_or_never().is_none());
    }
}
