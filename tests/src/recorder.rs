use std::sync::Arc;

use bytes::Bytes;
use fanfare_broker::{Broker, Consumer, ConsumerChannel};
use fanfare_protocol::{
    Assembly, FinalPayload, LargePayload, Message, Part, QueueNames, ServiceName, TargetResult,
};

use crate::{PATIENCE, Stack};

/// Takes part as a service on the wire: records the messages of its queue as they are, and acks them.
#[derive(Debug)]
pub struct Recorder {
    names: QueueNames,
    queue: String,
    broker: Arc<dyn Broker>,
    consumer: Consumer,
    _channel: Arc<dyn ConsumerChannel>,
}

impl Recorder {
    /// Declares the service's queue and consumes it.
    pub(crate) async fn new(stack: &Stack, service: &str) -> Self {
        let service = ServiceName::new(service).expect("tests use proper names");
        let queue = stack.names().service(&service);
        let broker = stack.connect();
        broker.declare(&queue).await.expect("the queue can be declared");
        Self::consume(stack, broker, queue.name).await
    }

    /// Consumes a queue that exists.
    pub(crate) async fn consume(stack: &Stack, broker: Arc<dyn Broker>, queue: String) -> Self {
        let channel = broker.open().await.expect("a channel can be opened");
        let consumer = channel.consume(&queue, 1000).await.expect("the queue can be consumed");
        Self { names: stack.names().clone(), queue, broker, consumer, _channel: channel }
    }

    /// The next message.
    ///
    /// # Panics
    /// Where none comes.
    pub async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(PATIENCE, self.consumer.next()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing arrived in {} within {PATIENCE:?}", self.queue));
        let delivery = next.expect("the queue stays").expect("the channel stays");
        delivery.receipt.ack().await;
        delivery.message
    }

    /// The next message, which is a final callback: its payload.
    pub async fn next_final(&mut self) -> FinalPayload {
        let message = self.next().await;
        let body = self.payload_of(&message).await;
        serde_json::from_slice(&body).expect("a final payload")
    }

    /// The payload of a final callback. Where that is in parts, they are taken, as a program in any language would.
    ///
    /// # Panics
    /// Where they are not all there.
    pub async fn payload_of(&self, message: &Message) -> Bytes {
        let Some(large) = LargePayload::of(message).expect("it is well-formed") else {
            return message.body.clone();
        };
        let (cid, run) = (message.cid().expect("it has a CID"), message.run().expect("it has a run"));
        let queue = self.names.payload(&cid, run, large.writer).name;
        let channel = self.broker.open().await.expect("a channel can be opened");
        let mut assembly = Assembly::new(&message.body, large).expect("an object");
        while let Some(delivery) = channel.get(&queue).await.expect("the parts are there") {
            assembly.push(&Part::decode(&delivery.message).expect("a part").body);
        }
        channel.delete(&queue).await.expect("the queue can be deleted");
        channel.close().await;
        assembly.finish().expect("all of the payload")
    }

    /// The next message, which is an on-target callback: its result.
    pub async fn next_result(&mut self) -> TargetResult {
        let message = self.next().await;
        TargetResult::from_body(&message.body).expect("a result")
    }

    /// All messages up to now. Call it once nobody publishes to this queue any more.
    pub async fn rest(&mut self) -> Vec<Message> {
        let marker = uuid::Uuid::new_v4().to_string();
        let mut last = Message::default();
        last.properties.message_id = Some(marker.as_str().into());
        self.broker.publish(&self.queue, last).await.expect("the queue takes a message");
        let mut rest = Vec::new();
        loop {
            let message = self.next().await;
            if message.properties.message_id.as_deref() == Some(&marker) {
                return rest;
            }
            rest.push(message);
        }
    }
}
