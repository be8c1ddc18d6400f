use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, Consumer, ConsumerChannel, Delivery};
use fanfare_protocol::{WireTime, header};
use tokio::time::timeout;

use super::{Parked, ParkedQuery};
use crate::Operator;

/// Parked messages that are looked at in one go. All of them are held at once, so that they go back in their order.
const MOST: u16 = 10_000;
/// How long the next of them may take to come. One that does not come is held by another who looks.
const NEXT: Duration = Duration::from_secs(5);
/// How long it is waited for what goes back, which takes the broker a moment.
const BACK: Duration = Duration::from_secs(2);

/// One walk through the queue.
pub(super) struct Look<'a> {
    operator: &'a Operator,
    query: &'a ParkedQuery,
    now: WireTime,
    /// Chosen by their ID, and seen.
    seen: BTreeSet<String>,
    /// None where there is no such queue.
    open: Option<(Arc<dyn ConsumerChannel>, Consumer)>,
    /// Others who consume the queue.
    others: u64,
    /// As many as were there at the beginning, and are still to come.
    left: u64,
    /// As many as are to go back.
    held: u64,
    unseen: u64,
    /// What is parked no more, of what can be told from another that looks the same.
    settled: BTreeSet<String>,
    /// What shares its ID with something that was chosen, and stays.
    spared: BTreeSet<String>,
}

impl<'a> Look<'a> {
    pub(super) async fn begin(operator: &'a Operator, query: &'a ParkedQuery) -> Result<Self, BrokerError> {
        let queue = operator.config.names.parked().name;
        let now = operator.environment.now().into();
        let state = operator.broker.inspect(&queue).await?;
        let there = state.map_or(0, |queue| queue.messages);
        let window = u16::try_from(there).unwrap_or(MOST).min(MOST);
        let mut look = Self {
            operator,
            query,
            now,
            seen: BTreeSet::new(),
            open: None,
            others: state.map_or(0, |queue| queue.consumers),
            left: window.into(),
            held: 0,
            unseen: 0,
            settled: BTreeSet::new(),
            spared: BTreeSet::new(),
        };
        look.unseen = there - look.left;
        if state.is_some() {
            let channel = operator.broker.open().await?;
            // One consumer, which is handed all of them and acks what is settled: the broker puts the others back in their order.
            // Where there are none, it shows whether the user may look.
            let consumer = channel.consume(&queue, window.max(1)).await?;
            look.open = Some((channel, consumer));
        }
        Ok(look)
    }

    /// The next that is meant.
    pub(super) async fn next(&mut self) -> Result<Option<(Parked, Delivery)>, BrokerError> {
        while self.left > 0
            && let Some((_, consumer)) = &mut self.open
        {
            let Ok(next) = timeout(NEXT, consumer.next()).await else { break };
            let Some(delivery) = next.transpose()? else { break };
            self.left -= 1;
            self.held += 1;
            let parked = Parked::of(&delivery.message, &self.operator.config.names);
            let is_chosen = self.query.ids.contains(&parked.id);
            let is_meant = self.query.matches(&parked, self.now);
            if is_meant && (!is_chosen || self.seen.insert(parked.id.clone())) {
                return Ok(Some((parked, delivery)));
            }
            if is_meant {
                self.spared.insert(parked.id);
            }
        }
        Ok(None)
    }

    /// The message is parked no more.
    pub(super) async fn settle(&mut self, parked: &Parked, delivery: &Delivery) {
        delivery.receipt.ack().await;
        self.held -= 1;
        // One that is put back may be parked again by now. Without a name of its own that can be an exact copy of what it was.
        if delivery.message.headers.contains_key(header::PARKED_ID) {
            self.settled.insert(parked.id.clone());
        }
    }

    /// Puts back what was not settled, and returns how many were not seen. Whoever looks next is to see all, so it returns when
    /// they are there, unless somebody else has taken them.
    ///
    /// A channel of RabbitMQ that is closed forgets acks that its queue was too busy to take: more goes back then than was held. Those are
    /// looked for, and settled again.
    pub(super) async fn end(self) -> Result<usize, BrokerError> {
        let (operator, unseen) = (self.operator, self.unseen + self.left);
        let mut settled: BTreeSet<String> = self.settled.difference(&self.spared).cloned().collect();
        let mut more = self.close().await;
        while more && !settled.is_empty() {
            let query = ParkedQuery { ids: settled, ..ParkedQuery::default() };
            let mut again = Look::begin(operator, &query).await?;
            while let Some((parked, delivery)) = again.next().await? {
                again.settle(&parked, &delivery).await;
            }
            settled = again.settled.clone();
            more = again.close().await;
        }
        Ok(usize::try_from(unseen).unwrap_or(usize::MAX))
    }

    /// Gives back what is held. Whether more than that is in the queue then.
    async fn close(self) -> bool {
        let Some((channel, consumer)) = self.open else { return false };
        channel.close().await;
        drop(consumer);
        let (broker, queue) = (&self.operator.broker, self.operator.config.names.parked().name);
        let back = async {
            let mut backoff = Backoff::default();
            loop {
                match broker.inspect(&queue).await {
                    Ok(None) => return false,
                    // It takes back what the channel had when the consumer goes.
                    Ok(Some(state)) if state.messages >= self.held && state.consumers <= self.others => {
                        return state.messages > self.held;
                    }
                    _ => backoff.wait(&*self.operator.environment).await,
                }
            }
        };
        timeout(BACK, back).await.unwrap_or(true)
    }
}
