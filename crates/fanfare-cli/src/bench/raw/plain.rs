//! Plain lapin: what the raw limit is measured with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use fanfare_broker::amqp::Address;
use fanfare_protocol::queue::Argument;
use fanfare_protocol::{HeaderValue, Message, Properties, QueueSpec};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm,
};

use super::{ACKED_AT_ONCE, PATIENCE};
use crate::exit::Failure;
use crate::settings::Settings;

const PERSISTENT: u8 = 2;

/// The address that Fanfare connects to, for lapin.
pub(in crate::bench) fn uri(settings: &Settings) -> Result<AMQPUri, Failure> {
    let urls = settings.broker_urls();
    let address = settings.broker_address()?;
    let (Some(address), 1) = (address, Address::list(urls).map_or(0, |list| list.len())) else {
        return Err(Failure::bad_input(anyhow!(
            "--broker names several addresses: give one, so that all of the benchmark is on one node"
        )));
    };
    let mut uri: AMQPUri = urls.trim().parse().map_err(|error: String| Failure::bad_input(anyhow!(error)))?;
    uri.authority.userinfo.password = address.password().to_owned();
    uri.vhost = address.virtual_host().to_owned();
    Ok(uri)
}

pub(super) async fn connect(uri: &AMQPUri) -> Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name("fanfare bench raw".into());
    Connection::connect_uri(uri.clone(), properties).await.context("plain lapin cannot connect")
}

/// Declares a queue with the arguments that Fanfare declares it with.
pub(super) async fn declare(channel: &Channel, queue: &QueueSpec) -> Result<()> {
    let mut arguments = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Int(number) => AMQPValue::LongLongInt(*number),
            Argument::Bool(value) => AMQPValue::Boolean(*value),
        };
        arguments.insert((*name).into(), value);
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.name.as_str().into(), options, arguments).await?;
    Ok(())
}

pub(super) async fn consume(channel: &Channel, queue: &str) -> Result<Consumer> {
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    Ok(channel.basic_consume(queue.into(), "".into(), options, arguments).await?)
}

/// A message without anything but its body.
pub(super) fn bare() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

/// What the protocol has a message say of itself beside its body.
pub(super) fn labels(message: &Message) -> BasicProperties {
    type Setter = fn(BasicProperties, ShortString) -> BasicProperties;
    let mut headers = FieldTable::default();
    for (name, value) in message.headers.iter() {
        let value = match value {
            HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
            HeaderValue::Int(number) => AMQPValue::LongLongInt(*number),
            HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
            other => unreachable!("no message of the benchmark has a header such as {other:?}"),
        };
        headers.insert(name.into(), value);
    }
    let Properties { content_type, correlation_id, reply_to, message_id, kind, app_id, timestamp, .. } =
        &message.properties;
    let texts: [(Option<&str>, Setter); 6] = [
        (content_type.as_deref(), BasicProperties::with_content_type),
        (correlation_id.as_deref(), BasicProperties::with_correlation_id),
        (reply_to.as_deref(), BasicProperties::with_reply_to),
        (message_id.as_deref(), BasicProperties::with_message_id),
        (kind.as_deref(), BasicProperties::with_type),
        (app_id.as_deref(), BasicProperties::with_app_id),
    ];
    let labels = bare().with_headers(headers).with_timestamp(timestamp.unwrap_or_default());
    texts.into_iter().fold(labels, |labels, (text, set)| match text {
        Some(text) => set(labels, text.into()),
        None => labels,
    })
}

/// Publishes as Fanfare does: persistent, mandatory, to a queue.
pub(super) async fn publish(
    channel: &Channel,
    queue: ShortString,
    labels: BasicProperties,
    body: &[u8],
) -> Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    Ok(channel.basic_publish("".into(), queue, options, body, labels).await?)
}

/// The tag of the next delivery.
pub(super) async fn delivered(consumer: &mut Consumer) -> Result<u64> {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await.context("a message is missing")?;
    Ok(delivery.context("a consumer was cancelled")??.delivery_tag)
}

/// Acks all that a consumer is handed: many at once where they come at once.
pub(super) async fn ack(channel: Channel, mut consumer: Consumer, acked: Arc<AtomicU64>) -> Result<()> {
    while let Some(delivery) = consumer.next().await {
        let mut last = delivery?.delivery_tag;
        let mut count = 1;
        while count < ACKED_AT_ONCE
            && let Some(Some(delivery)) = consumer.next().now_or_never()
        {
            last = delivery?.delivery_tag;
            count += 1;
        }
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
        acked.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

pub(super) async fn confirmed(oldest: Option<(PublisherConfirm, usize)>) -> Result<usize> {
    let Some((confirm, bytes)) = oldest else { return Ok(0) };
    let confirmation = confirm.await?;
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "a message was not taken: {confirmation:?}");
    Ok(bytes)
}
