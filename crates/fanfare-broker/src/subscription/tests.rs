use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fanfare_protocol::{Message, QueueNames, QueueSpec, header};
use tokio::time::timeout;
use tracing_subscriber::fmt::MakeWriter;

use crate::memory::MemoryBroker;
use crate::{Broker, Delivery, Subscription, SubscriptionOptions, System};

/// Long enough for every backoff, in virtual time.
const SOON: Duration = Duration::from_secs(60);

/// A broker with a subscription of its own client to the queue of manifests.
struct Fixture {
    broker: MemoryBroker,
    client: Arc<MemoryBroker>,
    queue: QueueSpec,
    subscription: Subscription,
}

impl Fixture {
    fn new(prefetch: u16, most_channels: usize) -> Self {
        let broker = MemoryBroker::new();
        let client = Arc::new(broker.connect());
        let queue = QueueNames::default().fanin();
        let options = SubscriptionOptions { prefetch, most_channels };
        let subscription = Subscription::new(
            Arc::clone(&client) as Arc<dyn Broker>,
            Arc::new(System),
            queue.clone(),
            options,
        );
        Self { broker, client, queue, subscription }
    }

    async fn with_messages(prefetch: u16, most_channels: usize, bodies: &[&str]) -> Self {
        let fixture = Self::new(prefetch, most_channels);
        fixture.broker.declare(&fixture.queue).await.unwrap();
        fixture.publish(bodies).await;
        fixture
    }

    async fn publish(&self, bodies: &[&str]) {
        for body in bodies {
            let message = Message { body: (*body).to_owned().into(), ..Message::default() };
            self.broker.publish(&self.queue.name, message).await.unwrap();
        }
    }

    async fn next(&mut self) -> Delivery {
        timeout(SOON, self.subscription.next()).await.expect("a delivery comes").expect("it is not stopped")
    }

    /// Lets the subscription work although nothing comes.
    async fn idle(&mut self) {
        assert!(timeout(SOON, self.subscription.next()).await.is_err(), "nothing is to come");
    }

    async fn ready(&self) -> u64 {
        self.broker.inspect(&self.queue.name).await.unwrap().unwrap().messages
    }

    async fn consumers(&self) -> u64 {
        self.broker.inspect(&self.queue.name).await.unwrap().unwrap().consumers
    }
}

#[tokio::test(start_paused = true)]
async fn another_prefetch_holds_from_then_on_the_same_channel_and_gives_nothing_back() {
    let mut fixture = Fixture::with_messages(1, 1, &["a", "b", "c", "d", "e", "f"]).await;
    let a = fixture.next().await;
    fixture.idle().await;
    fixture.subscription.set_prefetch(3);
    let more = [fixture.next().await, fixture.next().await, fixture.next().await];
    fixture.idle().await;
    fixture.subscription.set_prefetch(1);
    let e = fixture.next().await;
    fixture.idle().await;
    for delivery in [a].into_iter().chain(more) {
        assert!(!delivery.redelivered);
        delivery.receipt.ack().await;
    }
    fixture.idle().await;
    e.receipt.ack().await;
    let f = fixture.next().await;
    assert!(!f.redelivered);
    f.receipt.ack().await;
    assert_eq!(fixture.broker.inspect(&fixture.queue.name).await.unwrap().unwrap().messages, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_consumed_again_while_its_owner_has_no_room() {
    let mut fixture = Fixture::with_messages(2, 1, &["a", "b", "c"]).await;
    let a = fixture.next().await;
    fixture.client.cut();
    assert_eq!(fixture.consumers().await, 0);
    assert!(timeout(SOON, fixture.subscription.tend()).await.is_err(), "it hands nothing out");
    assert_eq!((fixture.consumers().await, fixture.ready().await), (1, 1));
    assert!(!a.receipt.is_live());
    for body in ["a", "b", "c"] {
        let delivery = fixture.next().await;
        assert_eq!(delivery.message.body, body);
        assert!(timeout(SOON, fixture.subscription.tend()).await.is_err());
        delivery.receipt.ack().await;
    }
    fixture.publish(&["d", "e"]).await;
    assert!(timeout(SOON, fixture.subscription.tend()).await.is_err());
    assert_eq!(fixture.ready().await, 0);
    fixture.subscription.stop().await;
    assert_eq!(fixture.ready().await, 2, "what was received and not handed out is given back");
}

#[tokio::test(start_paused = true)]
async fn what_is_published_to_an_exchange_comes_to_all_who_are_connected_and_again_after_a_reconnect() {
    let broker = MemoryBroker::new();
    let exchange = QueueNames::default().workers();
    let publish = async |body: &str| {
        let message = Message { body: body.to_owned().into(), ..Message::default() };
        broker.publish_through(&exchange.name, "", message).await
    };
    let client = Arc::new(broker.connect());
    let (names, system) = (QueueNames::default(), Arc::new(System));
    let listen = |client: Arc<dyn Broker>| {
        let names = names.clone();
        Subscription::to_exchange(client, system.clone(), names.workers(), move |id| names.worker(id))
    };
    let mut ears = [listen(Arc::clone(&client) as Arc<dyn Broker>), listen(Arc::new(broker.connect()))];
    for ear in &mut ears {
        assert!(timeout(SOON, ear.next()).await.is_err(), "nothing was published yet");
        assert!(ear.is_connected(), "the exchange was missing, and is declared");
    }
    for round in ["before", "after"] {
        publish(round).await.expect("somebody listens");
        for ear in &mut ears {
            let heard = timeout(SOON, ear.next()).await.expect("it comes").expect("it is not stopped");
            assert_eq!(heard.message.body, round);
            heard.receipt.ack().await;
        }
        client.cut();
        assert!(timeout(SOON, ears[0].next()).await.is_err(), "what was acked does not come again");
    }
    for ear in &mut ears {
        ear.stop().await;
    }
    // Nobody reads their queues any more, so these go, and nobody listens.
    tokio::time::sleep(SOON * 2).await;
    assert!(matches!(publish("nobody").await, Err(crate::PublishError::Unbound(_))));
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_deleted_or_another_of_its_name_leads_there_again() {
    let (broker, names) = (MemoryBroker::new(), QueueNames::default());
    let exchange = names.coordinators();
    let client = Arc::new(broker.connect());
    let draw = move |id| names.coordinator(id);
    let mut ear = Subscription::to_exchange(client, Arc::new(System), exchange.clone(), draw);
    for declared_anew in [false, true] {
        assert!(timeout(SOON, ear.next()).await.is_err(), "nothing was published yet");
        broker.delete_exchange(&exchange.name).await.unwrap();
        if declared_anew {
            broker.declare_exchange(&exchange).await.unwrap();
        }
        assert!(timeout(Duration::from_secs(31), ear.next()).await.is_err(), "nothing is published");
        broker.publish_through(&exchange.name, "", Message::default()).await.expect("it is heard");
        timeout(SOON, ear.next()).await.expect("it comes").expect("it is not stopped").receipt.ack().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_could_not_be_bound_is_not_left_behind() {
    let broker = MemoryBroker::new();
    let names = QueueNames::default();
    let drawn = Arc::new(Mutex::new(Vec::new()));
    let draw = {
        let (names, drawn) = (names.clone(), Arc::clone(&drawn));
        move |id| {
            let queue = names.worker(id);
            drawn.lock().unwrap().push(queue.name.clone());
            queue
        }
    };
    let client = Arc::new(broker.connect());
    let mut ear = Subscription::to_exchange(client.clone(), Arc::new(System), names.workers(), draw);
    assert!(timeout(SOON, ear.next()).await.is_err(), "nothing was published yet");
    let drawn = drawn.lock().unwrap().clone();
    let [unbound, bound] = &drawn[..] else { panic!("{drawn:?}") };
    assert!(!client.exists(unbound).await.unwrap() && client.exists(bound).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_missing_queue_is_declared() {
    let mut fixture = Fixture::new(1, 1);
    assert!(!fixture.subscription.is_connected());
    fixture.idle().await;
    assert!(fixture.subscription.is_connected());
    fixture.publish(&["a"]).await;
    assert_eq!(fixture.next().await.message.body, "a");
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_channel_held_comes_again_and_its_receipts_do_nothing() {
    let mut fixture = Fixture::with_messages(2, 1, &["a"]).await;
    let lost = fixture.next().await;
    fixture.client.cut();
    let again = fixture.next().await;
    assert!(again.redelivered);
    assert_eq!(again.message.int(header::DELIVERY_COUNT), Some(1));
    lost.receipt.ack().await;
    fixture.client.cut();
    fixture.next().await.receipt.ack().await;
    fixture.client.cut();
    fixture.idle().await;
    assert_eq!(fixture.ready().await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out_however_long_it_lasts() {
    let mut fixture = Fixture::with_messages(1, 1, &["a"]).await;
    fixture.client.isolate();
    assert!(timeout(Duration::from_secs(60 * 60), fixture.subscription.next()).await.is_err());
    assert!(!fixture.subscription.is_connected());
    fixture.client.rejoin();
    assert_eq!(fixture.next().await.message.body, "a");
}

#[tokio::test(start_paused = true)]
async fn a_queue_deleted_under_it_is_declared_again() {
    let mut fixture = Fixture::with_messages(1, 1, &["a"]).await;
    let gone = fixture.next().await;
    fixture.broker.delete(&fixture.queue.name).await.unwrap();
    fixture.idle().await;
    fixture.publish(&["b"]).await;
    assert_eq!(fixture.next().await.message.body, "b");
    gone.receipt.ack().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_can_heal_a_queue_with_other_arguments() {
    let mut fixture = Fixture::new(1, 1);
    let other = QueueSpec { arguments: Default::default(), ..fixture.queue.clone() };
    fixture.broker.declare(&other).await.unwrap();
    fixture.idle().await;
    assert!(!fixture.subscription.is_connected());
    fixture.broker.delete(&other.name).await.unwrap();
    fixture.idle().await;
    assert!(fixture.subscription.is_connected());
}

#[tokio::test(start_paused = true)]
async fn held_deliveries_do_not_keep_another_from_coming() {
    let bodies: Vec<String> = (0..11).map(|n| n.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let mut fixture = Fixture::with_messages(1, 20, &bodies).await;
    let mut held = Vec::new();
    for body in &bodies[..10] {
        let delivery = fixture.next().await;
        assert_eq!(delivery.message.body, *body);
        held.push((delivery.receipt.hold(), delivery));
    }
    assert_eq!(fixture.next().await.message.body, bodies[10]);
}

#[tokio::test(start_paused = true)]
async fn deliveries_that_are_not_held_open_no_channel() {
    let mut fixture = Fixture::with_messages(2, 20, &["a", "b", "c"]).await;
    let _deliveries = [fixture.next().await, fixture.next().await];
    fixture.idle().await;
    assert_eq!((fixture.ready().await, fixture.consumers().await), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn never_more_channels_are_opened_than_allowed() {
    let mut fixture = Fixture::with_messages(1, 2, &["a", "b", "c"]).await;
    let first = fixture.next().await;
    let _first_hold = first.receipt.hold();
    let second = fixture.next().await;
    let _second_hold = second.receipt.hold();
    fixture.idle().await;
    assert_eq!((fixture.ready().await, fixture.consumers().await), (1, 2));
    first.receipt.ack().await;
    assert_eq!(fixture.next().await.message.body, "c");
}

#[tokio::test(start_paused = true)]
async fn channels_that_are_no_longer_needed_are_closed() {
    let mut fixture = Fixture::with_messages(1, 20, &["a", "b", "c", "d"]).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let delivery = fixture.next().await;
        held.push((delivery.receipt.hold(), delivery));
    }
    fixture.idle().await;
    assert_eq!(fixture.consumers().await, 5);
    for (hold, delivery) in held {
        drop(hold);
        delivery.receipt.ack().await;
    }
    fixture.idle().await;
    assert_eq!(fixture.consumers().await, 1);
    fixture.publish(&["e"]).await;
    assert!(!fixture.next().await.redelivered);
}

#[tokio::test(start_paused = true)]
async fn stop_gives_back_what_was_not_handed_out_and_leaves_the_rest_answerable() {
    let mut fixture = Fixture::with_messages(3, 1, &["a", "b", "c", "d"]).await;
    let (first, second) = (fixture.next().await, fixture.next().await);
    fixture.subscription.stop().await;
    fixture.subscription.stop().await;
    assert!(fixture.subscription.next().await.is_none());
    assert_eq!((fixture.ready().await, fixture.consumers().await), (2, 0));
    first.receipt.ack().await;
    drop(fixture.subscription);
    second.receipt.requeue().await;

    let channel = fixture.broker.open().await.unwrap();
    let mut consumer = channel.consume(&fixture.queue.name, 10).await.unwrap();
    let mut left = BTreeSet::new();
    for _ in 0..3 {
        left.insert(consumer.next().await.unwrap().unwrap().message.body);
    }
    assert_eq!(left, ["b", "c", "d"].map(Into::into).into());
}

#[tokio::test(start_paused = true)]
async fn dropping_it_gives_back_what_nobody_can_answer_any_more() {
    let mut fixture = Fixture::with_messages(2, 1, &["a", "b"]).await;
    let delivery = fixture.next().await;
    drop(fixture.subscription);
    drop(delivery);
    let state = fixture.broker.inspect(&fixture.queue.name).await.unwrap().unwrap();
    assert_eq!((state.messages, state.consumers), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_given_twice_counts_once() {
    let mut fixture = Fixture::with_messages(1, 1, &["a", "b"]).await;
    let first = fixture.next().await;
    first.receipt.ack().await;
    first.receipt.ack().await;
    first.receipt.requeue().await;
    assert!(!fixture.next().await.redelivered, "the channel is still the first one");
}

#[tokio::test(start_paused = true)]
async fn next_can_be_dropped_at_any_time() {
    let mut fixture = Fixture::with_messages(1, 1, &["a", "b", "c"]).await;
    for body in ["a", "b", "c"] {
        let delivery = loop {
            tokio::select! {
                biased;
                delivery = fixture.subscription.next() => break delivery.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        };
        assert_eq!((delivery.message.body.as_ref(), delivery.redelivered), (body.as_bytes(), false));
        delivery.receipt.ack().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_when_it_begins_and_when_it_ends_and_a_closed_handle_is_not() {
    // Where only one subscriber is there, a test in another thread, which has none, would decide for all what is ever logged.
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).unwrap();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut fixture = Fixture::with_messages(1, 1, &[]).await;
    fixture.idle().await;
    assert_eq!(log.lines(), 0, "the first connection is no outage");
    for outages in 1..=2 {
        fixture.client.isolate();
        fixture.idle().await;
        assert_eq!(log.lines(), outages * 2 - 1);
        fixture.client.rejoin();
        fixture.idle().await;
        assert_eq!(log.lines(), outages * 2);
    }
    fixture.client.close().await;
    fixture.idle().await;
    assert_eq!(log.lines(), 4, "it is its owner who has closed it");
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> usize {
        self.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
