//! One look for all who want to see the same at about the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use serde::Serialize;
use tokio::time::Instant;

/// Looks that are remembered: fan-outs that somebody watches, and the few that all do.
const MOST: usize = 100;

/// What was looked at lately. Nothing is looked at where nobody asks.
#[derive(Default)]
pub(super) struct Looks {
    looks: Mutex<BTreeMap<String, Look>>,
}

struct Look {
    begun: Instant,
    /// How long it may be shown.
    lasts: Duration,
    told: Shared<BoxFuture<'static, Option<Arc<str>>>>,
}

impl Look {
    /// Whether it is under way, or not old.
    fn is_fresh(&self) -> bool {
        self.told.peek().is_none() || self.begun.elapsed() < self.lasts
    }
}

impl Looks {
    /// What a look tells as JSON, or what the last one at the same told, where that has begun less than `lasts` ago. None
    /// where too much is looked at.
    pub(super) async fn at<T: Serialize>(
        &self,
        what: String,
        lasts: Duration,
        look: impl Future<Output = T> + Send + 'static,
    ) -> Option<Arc<str>> {
        let told = {
            let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
            looks.retain(|_, look| look.is_fresh());
            match looks.get(&what) {
                Some(look) => look.told.clone(),
                None if looks.len() >= MOST => return None,
                None => {
                    let told = async move {
                        let told = look.await;
                        Some(serde_json::to_string(&told).expect("strings and numbers are JSON").into())
                    };
                    let told = told.boxed().shared();
                    looks.insert(what, Look { begun: Instant::now(), lasts, told: told.clone() });
                    // Whoever asked may go before it has ended.
                    tokio::spawn(told.clone());
                    told
                }
            }
        };
        told.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LASTS: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn all_who_look_at_the_same_within_a_while_cause_one_look() {
        let (looks, taken) = (Looks::default(), Arc::new(AtomicUsize::new(0)));
        let look = |what: &str| {
            let taken = Arc::clone(&taken);
            looks.at(what.to_owned(), LASTS, async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                taken.fetch_add(1, Ordering::Relaxed)
            })
        };
        let (one, other, different) = tokio::join!(look("a"), look("a"), look("b"));
        assert_eq!(one, other);
        assert_ne!(one, different);
        assert_eq!(look("a").await, one, "it is not old yet");
        tokio::time::advance(LASTS).await;
        assert_ne!(look("a").await, one);
        assert_eq!(taken.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_ends_though_nobody_waits_for_it_and_only_so_many_are_remembered() {
        let looks = Looks::default();
        let slow = || tokio::time::sleep(Duration::from_millis(1));
        for n in 0..MOST {
            assert!(looks.at(n.to_string(), LASTS, slow()).now_or_never().is_none());
        }
        assert_eq!(looks.at("more".to_owned(), LASTS, slow()).await, None);
        tokio::time::sleep(LASTS).await;
        assert!(looks.at("more".to_owned(), LASTS, slow()).await.is_some());
    }
}
