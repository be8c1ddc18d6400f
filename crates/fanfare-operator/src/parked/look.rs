use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::{Backoff, BrokerError, Consumer, ConsumerChannel, Delivery, QueueState};
use fanfare_protocol::{WireTime, header};
use tokio::time::timeout;

use super::turn::Turn;
use super::{Parked, ParkedQuery};
use crate::{LookError, Operator};

/// Parked messages that are looked at in one go. All of them are held at once, so that they go back in their order.
const MOST: u16 = 10_000;
/// How long the next of them may take to come. One that does not come was taken by a consumer that is no operator's.
const NEXT: Duration = Duration::from_secs(5);
/// How long it is waited for what goes back, which takes the broker a moment.
const BACK: Duration = Duration::from_secs(2);

/// What has become of a message that is parked no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is in the queue that it came from.
    PutBack,
    /// It is gone for good.
    Dropped,
}

/// One walk through the queue.
pub(super) struct Look<'a, 'q> {
    operator: &'a Operator,
    turn: Turn<'a>,
    query: &'q ParkedQuery,
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

impl<'a, 'q> Look<'a, 'q> {
    pub(super) async fn begin(operator: &'a Operator, query: &'q ParkedQuery) -> Result<Self, LookError> {
        let look = Self::walk(operator, query, Turn::take(operator).await?).await?;
        if look.others > 0 {
            tracing::warn!(
                queue = operator.config.names.parked().name,
                consumers = look.others,
                "others consume what is parked: what they hold is not seen"
            );
        }
        Ok(look)
    }

    async fn walk(operator: &'a Operator, query: &'q ParkedQuery, turn: Turn<'a>) -> Result<Self, LookError> {
        let queue = operator.config.names.parked().name;
        let now = operator.environment.now().into();
        let state = unconsumed(operator, &queue).await?;
        let there = state.map_or(0, |queue| queue.messages);
        let window = u16::try_from(there).unwrap_or(MOST).min(MOST);
        let mut look = Self {
            operator,
            turn,
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

    /// Who else consumes the queue.
    pub(super) const fn others(&self) -> u64 {
        self.others
    }

    /// The next that is meant.
    pub(super) async fn next(&mut self) -> Result<Option<(Parked, Delivery)>, LookError> {
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
    pub(super) async fn settle(&mut self, parked: &Parked, delivery: &Delivery, settled: Settled) {
        delivery.receipt.ack().await;
        self.held -= 1;
        // One that is put back may be parked again by now. Without a name of its own that can be an exact copy of what it was.
        if settled == Settled::Dropped || delivery.message.headers.contains_key(header::PARKED_ID) {
            self.settled.insert(parked.id.clone());
        }
    }

    /// Puts back what was not settled, and returns how many were not seen. Whoever looks next is to see all, so it returns when
    /// they are there, unless somebody else has taken them.
    ///
    /// A channel of RabbitMQ that is closed forgets acks that its queue was too busy to take: more goes back then than was held. Those are
    /// looked for, and settled again.
    pub(super) async fn end(self) -> Result<usize, LookError> {
        let (operator, unseen) = (self.operator, self.unseen + self.left);
        let mut settled: BTreeSet<String> = self.settled.difference(&self.spared).cloned().collect();
        let (mut turn, mut more) = self.close().await;
        while more && !settled.is_empty() {
            let query = ParkedQuery { ids: settled, ..ParkedQuery::default() };
            let mut again = Look::walk(operator, &query, turn).await?;
            while let Some((parked, delivery)) = again.next().await? {
                again.settle(&parked, &delivery, Settled::Dropped).await;
            }
            settled = again.settled.clone();
            (turn, more) = again.close().await;
        }
        turn.end().await;
        Ok(usize::try_from(unseen).unwrap_or(usize::MAX))
    }

    /// Gives back what is held. Whether more than that is in the queue then.
    async fn close(self) -> (Turn<'a>, bool) {
        let Self { operator, turn, open, others, held, .. } = self;
        let Some((channel, consumer)) = open else { return (turn, false) };
        channel.close().await;
        drop(consumer);
        let (broker, queue) = (&operator.broker, operator.config.names.parked().name);
        let back = async {
            let mut backoff = Backoff::default();
            loop {
                match broker.inspect(&queue).await {
                    Ok(None) => return false,
                    // It takes back what the channel had when the consumer goes.
                    Ok(Some(state)) if state.messages >= held && state.consumers <= others => {
                        return state.messages > held;
                    }
                    _ => backoff.wait(&*operator.environment).await,
                }
            }
        };
        let more = timeout(BACK, back).await.unwrap_or(true);
        (turn, more)
    }
}

/// The queue when nobody consumes it any more, or not soon: that of an operator who died may be on its way out.
async fn unconsumed(operator: &Operator, queue: &str) -> Result<Option<QueueState>, BrokerError> {
    let free = async {
        let mut backoff = Backoff::default();
        loop {
            match operator.broker.inspect(queue).await {
                Ok(Some(state)) if state.consumers > 0 => backoff.wait(&*operator.environment).await,
                state => return state,
            }
        }
    };
    match timeout(BACK, free).await {
        Ok(state) => state,
        Err(_) => operator.broker.inspect(queue).await,
    }
}
