//! What is in the broker's queues: whether anything is under way, and what is left at the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fanfare_broker::amqp::{self, AmqpBroker};
use fanfare_broker::{Broker, ConsumerChannel, System};
use fanfare_protocol::{Message, QueueNames, header};

use super::{ChaosBroker, Journal};
use crate::oracle::Event;

/// How long the broker may take to hand out a message that it has.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether any queue but those for a person, and those of fan-outs, holds a message. A fan-out that is open has its manifest
/// in one of them.
pub(super) async fn busy(broker: &ChaosBroker, names: &QueueNames) -> Result<bool> {
    let messages = broker.messages(&format!("{}.", names.prefix())).await?;
    let idle = [names.parked().name, names.dead_queue()];
    let agg = aggregation_prefix(names);
    Ok(messages
        .iter()
        .any(|(queue, messages)| *messages > 0 && !queue.starts_with(&agg) && !idle.contains(queue)))
}

/// Tells the oracle what is left when everyone has gone.
pub(super) async fn write(broker: &ChaosBroker, names: &QueueNames, journal: &Journal) -> Result<()> {
    let connection: Arc<dyn Broker> =
        Arc::new(AmqpBroker::new(amqp::Config::parse(broker.url())?, Arc::new(System)));
    let prefix = format!("{}.", names.prefix());
    for queue in broker.messages(&prefix).await?.into_keys() {
        if queue.starts_with(&aggregation_prefix(names)) {
            let run = queue.rsplit('.').next().unwrap_or_default().to_owned();
            journal.write(Event::QueueLeft { run })?;
        } else {
            for message in read(&*connection, &queue).await.with_context(|| format!("reading {queue}"))? {
                journal.write(left(queue.trim_start_matches(&prefix), &message))?;
            }
        }
    }
    connection.close().await;
    Ok(())
}

/// All messages of a queue that nobody else reads, which keeps them.
async fn read(broker: &dyn Broker, queue: &str) -> Result<Vec<Message>> {
    let ready = broker.inspect(queue).await?.map_or(0, |state| state.messages);
    let channel: Arc<dyn ConsumerChannel> = broker.open().await?;
    let mut consumer = channel.consume(queue, u16::MAX).await?;
    let mut messages = Vec::new();
    while (messages.len() as u64) < ready {
        let delivery = tokio::time::timeout(LIMIT, consumer.next()).await?.context("the queue is gone")??;
        messages.push(delivery.message);
    }
    channel.close().await;
    Ok(messages)
}

fn left(queue: &str, message: &Message) -> Event {
    Event::MessageLeft {
        queue: queue.to_owned(),
        kind: message.kind().to_owned(),
        run: message.run().ok().map(|run| run.to_string()),
        message_id: message.properties.message_id.as_ref().map(ToString::to_string),
        reason: message.text(header::REASON).map(str::to_owned),
    }
}

fn aggregation_prefix(names: &QueueNames) -> String {
    format!("{}.agg.", names.prefix())
}
