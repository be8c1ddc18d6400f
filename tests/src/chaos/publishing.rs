use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fanfare_protocol::ServiceName;
use fanfare_publisher::Publisher;
use futures_util::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use super::mix::{Draft, Kind, TARGET};
use super::{Dice, Journal, invoke};

/// Invocations that one publisher has under way at a time, not counting twins.
const LANES: usize = 3;
/// Requests that wait for a worker, above which a publisher waits: enough that every kill finds work, and few enough that
/// all of it ends soon after the last kill.
const BACKLOG: u64 = 300;
/// How long it waits before it looks at the backlog again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The most milliseconds that pass between two invocations of a lane.
const LONGEST_PAUSE: u64 = 300;
/// The most milliseconds that a fan-out which is to be cancelled has before that.
const LONGEST_BEFORE_CANCEL: u64 = 1_000;

/// Invokes fan-outs of all kinds, chosen by a seed, until `shutdown` completes. Those under way are brought to their end
/// then.
///
/// # Errors
/// Where the journal cannot be written.
pub async fn publish(
    publisher: Publisher,
    journal: Arc<Journal>,
    seed: u64,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let stop = CancellationToken::new();
    let lanes = (0..LANES).map(|lane| {
        let dice = Dice::new(seed, &format!("{}/{lane}", journal.process()));
        let lane = Lane { publisher: publisher.clone(), journal: Arc::clone(&journal), dice };
        lane.run(stop.clone())
    });
    let mut lanes = pin!(try_join_all(lanes));
    tokio::select! {
        biased;
        ended = &mut lanes => return ended.map(drop),
        () = shutdown => stop.cancel(),
    }
    lanes.await.map(drop)
}

struct Lane {
    publisher: Publisher,
    journal: Arc<Journal>,
    dice: Dice,
}

impl Lane {
    async fn run(mut self, stop: CancellationToken) -> Result<()> {
        while stop.run_until_cancelled(self.wait_for_room()).await.is_some() {
            self.invoke().await?;
        }
        Ok(())
    }

    async fn wait_for_room(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.dice.below(LONGEST_PAUSE))).await;
        let service = ServiceName::new(TARGET).expect("it is a proper name");
        let queue = self.publisher.config().names.service_queue(&service);
        // Without a broker there is nothing to be looked at, and invocations are to find that out too.
        while let Ok(state) = self.publisher.broker().inspect(&queue).await
            && state.is_none_or(|state| state.messages > BACKLOG)
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn invoke(&mut self) -> Result<()> {
        let draft = Draft::draw(&mut self.dice);
        let cid = self.journal.draw_name();
        let before_cancel = Duration::from_millis(self.dice.below(LONGEST_BEFORE_CANCEL));
        let copies = if draft.kind == Kind::Twins { 2 } else { 1 };
        let invocations = (0..copies).map(|_| async {
            let invocation = self.journal.draw_name();
            let fanout = draft.begin(&self.publisher);
            let fanout = invoke::announce(&self.journal, fanout, &draft, &invocation, Some(&cid))?;
            let invoked = fanout.invoke().await;
            invoke::returned(&self.journal, &invocation, &invoked)?;
            if let (Kind::Cancelled, Ok(accepted)) = (draft.kind, invoked) {
                tokio::time::sleep(before_cancel).await;
                // It may have ended by itself, or nobody may answer in time.
                let _ = self.publisher.cancel(&accepted).await;
            }
            anyhow::Ok(())
        });
        join_all(invocations).await.into_iter().collect()
    }
}
