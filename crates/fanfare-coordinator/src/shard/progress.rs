use std::collections::BTreeMap;
use std::sync::Arc;

use fanfare_broker::{Broker, PublishError};
use fanfare_fanin::{FanIn, Shard};
use fanfare_protocol::{Manifest, Progress, RunId};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::Tag;
use crate::fan_out::PROGRESS_PAUSE;

/// The fan-outs whose callers want to know how far they have come.
#[derive(Default)]
pub(super) struct Watchers {
    watched: BTreeMap<RunId, Watched>,
    telling: FuturesUnordered<BoxFuture<'static, (RunId, bool)>>,
}

struct Watched {
    waiter: String,
    manifest: Arc<Manifest>,
    told: usize,
    busy: bool,
}

impl Watchers {
    /// Tells the caller of a fan-out from now on, where that wants to know.
    pub(super) fn begin(&mut self, manifest: &Arc<Manifest>) {
        if let (true, Some(waiter)) = (manifest.progress, manifest.waiter.clone()) {
            let watched = Watched { waiter, manifest: Arc::clone(manifest), told: 0, busy: false };
            self.watched.insert(manifest.run, watched);
        }
    }

    pub(super) fn end(&mut self, run: &RunId) {
        self.watched.remove(run);
    }

    /// Tells the callers how many targets have responded. Nothing depends on it: there is one try, and what has changed meanwhile
    /// is told by the next.
    pub(super) fn tell(&mut self, machine: &Shard<Tag>, broker: &Arc<dyn Broker>) {
        for (run, watched) in &mut self.watched {
            let responded = machine.fan_in(run).map_or(watched.told, FanIn::responded);
            if watched.busy || watched.told == responded {
                continue;
            }
            (watched.told, watched.busy) = (responded, true);
            let targets = watched.manifest.targets.len();
            let message = Progress { responded, targets }.encode(&watched.manifest);
            let (broker, waiter, run) = (Arc::clone(broker), watched.waiter.clone(), *run);
            self.telling.push(Box::pin(async move {
                let sent = broker.publish(&waiter, message).await;
                tokio::time::sleep(PROGRESS_PAUSE).await;
                (run, !matches!(sent, Err(PublishError::Unroutable(_))))
            }));
        }
    }

    /// A word has got through to a caller, or found nobody. None where there is none under way.
    pub(super) async fn told(&mut self) -> Option<()> {
        let (run, heard) = self.telling.next().await?;
        if !heard {
            self.watched.remove(&run);
        } else if let Some(watched) = self.watched.get_mut(&run) {
            watched.busy = false;
        }
        Some(())
    }
}
