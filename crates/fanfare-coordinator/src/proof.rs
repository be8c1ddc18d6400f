use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fanfare_broker::ConsumerChannel;
use fanfare_fanin::Publication;
use fanfare_protocol::Manifest;
use tokio::sync::Mutex;

/// Proof that a checkpoint spares its on-target callbacks a repetition.
///
/// The confirm alone is none: it comes over another connection than the deliveries. Where theirs has died without a word, another
/// coordinator may have been handed them, and have come to its fence, before the checkpoint was in the queue. So the channel that holds them is asked
/// for an answer *after* the confirm. Where it gives one, the broker had not taken them back before the checkpoint was there, and whoever is handed
/// them reads that before a fence of its own.
#[derive(Debug)]
pub(crate) struct Proof {
    channel: Arc<dyn ConsumerChannel>,
    /// How often the channel was asked.
    asked: AtomicU64,
    /// Which time it was that it answered last. Locked while it is being asked.
    answered: Mutex<u64>,
}

impl Proof {
    /// By the channel that holds the deliveries.
    pub(crate) fn by(channel: Arc<dyn ConsumerChannel>) -> Self {
        Self { channel, asked: AtomicU64::new(0), answered: Mutex::new(0) }
    }

    /// Returns when the channel has answered what it was asked after this was called: for many at once, where many wait. It never does where
    /// the channel has ended, of which its consumer hears.
    pub(crate) async fn given(&self) {
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

/// Whether this counts only with proof: a checkpoint that says of on-target callbacks that they are not to be repeated.
pub(crate) fn needs_proof(publication: &Publication, manifest: &Manifest) -> bool {
    let is_called = matches!(publication, Publication::Checkpoint(checkpoint) if checkpoint.called);
    is_called && !manifest.on_target.is_empty()
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
    async fn no_proof_comes_of_a_channel_that_is_dead_or_has_ended() {
        let broker = MemoryBroker::new();
        let proof = Proof::by(broker.open().await.unwrap());
        broker.deafen();
        assert!(proof.given().now_or_never().is_none());
        broker.notice();
        assert!(proof.given().now_or_never().is_none());
    }
}
