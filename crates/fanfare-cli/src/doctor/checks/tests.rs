use std::sync::Arc;

use fanfare::QueueNames;
use fanfare_broker::Broker;
use fanfare_broker::memory::MemoryBroker;

use super::super::denying::Denying;
use super::*;

#[test]
fn only_a_queue_with_other_arguments_is_to_be_deleted() {
    let queue = "fanfare.fanin".to_owned();
    let differs = BrokerError::QueueDiffers { queue: queue.clone(), reason: "x-queue-type".to_owned() };
    let told = |error: &BrokerError| trouble("queue a".to_owned(), "look", error).to_string();
    assert!(told(&differs).contains("delete_queue"));
    for error in [
        BrokerError::Denied("user 'u' lacks the right to configure".to_owned()),
        BrokerError::Unavailable { queue, reason: "its node is down".to_owned() },
        BrokerError::Unreachable("connection refused".to_owned()),
    ] {
        assert!(!told(&error).contains("delete"), "{error:?}");
    }
}

const RENEWAL: Duration = Duration::from_secs(600);

/// As the settings have it where nobody says otherwise, without shards.
fn examination(fanfare: &Fanfare) -> Examination<'_> {
    Examination { fanfare, renewal: RENEWAL, consumer_timeout: consumer_timeout::DEFAULT, shards: 0 }
}

fn text(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

#[tokio::test]
async fn permissions_are_tried_and_nothing_is_left_behind() {
    let fanfare = Fanfare::in_memory();
    let found = examination(&fanfare).permissions().await;
    assert!(
        found.len() == 4 && found.iter().all(|finding| finding.verdict == Verdict::Ok),
        "{}",
        text(&found)
    );
}

#[tokio::test]
async fn user_id_that_is_not_the_login_is_wrong() {
    let found = async |user_id: &str| {
        let broker = Arc::new(MemoryBroker::new());
        let fanfare = Fanfare::on(broker).user_id(user_id).build().unwrap();
        examination(&fanfare).user_id().await.expect("there is one").to_string()
    };
    assert_eq!(found(MemoryBroker::DEFAULT_USER).await, "ok      user_id `guest`: the broker takes it");
    let wrong = found("eve").await;
    assert!(
        wrong.starts_with("WRONG   user_id `eve`: ") && wrong.contains("-> set it to this login"),
        "{wrong}"
    );
    assert!(examination(&Fanfare::in_memory()).user_id().await.is_none());
}

#[tokio::test]
async fn fan_outs_that_wait_for_a_coordinator_are_wrong() {
    let fanfare = Fanfare::in_memory();
    let examination = examination(&fanfare);
    assert!(
        text(&examination.coordinators().await).contains("WRONG   coordinators: none\n        -> start one")
    );
    fanfare.fanout("test").target("a", 1).on_final("b").declare_missing().invoke().await.unwrap();
    let found = text(&examination.coordinators().await);
    assert!(found.contains("ok      queue fanfare.fanin: there, with the right arguments"), "{found}");
    assert!(found.contains("WRONG   coordinators: none, and 1 fan-out waits for one"), "{found}");
    let found = text(&examination.service(&ServiceName::new("a").unwrap()).await);
    assert!(found.contains("WRONG   workers of a: none, and 1 message waits for one"), "{found}");
}

#[tokio::test]
async fn what_the_user_may_not_look_at_is_neither_wrong_nor_well() {
    let (broker, names) = (MemoryBroker::new(), QueueNames::default());
    let shard = names.shard(0);
    for queue in [names.fanin(), shard.clone()] {
        broker.declare(&queue).await.unwrap();
    }
    let channel = broker.open().await.unwrap();
    let _coordinator = channel.consume(&names.fanin_queue(), 1).await.unwrap();
    broker.declare_exchange(&names.workers()).await.unwrap();
    let ear = names.worker(RunId::from(System.unique()));
    channel.declare_exclusive(&ear).await.unwrap();
    channel.bind(&ear.name, &names.workers().name).await.unwrap();

    for lets_look in [false, true] {
        let could_not = if lets_look { "compare its arguments" } else { "look" };
        let lacks = |name: &str| {
            format!(
                "denied  queue {name}: could not {could_not}: user 'u' lacks the right to configure on '{name}'\n"
            )
        };
        let denying = Denying { broker: broker.connect(), lets_look };
        let fanfare = Fanfare::on(Arc::new(denying)).build().unwrap();
        let examination = Examination { shards: 1, ..examination(&fanfare) };
        let coordinators = text(&examination.coordinators().await);
        assert!(coordinators.starts_with(&lacks(&names.fanin_queue())), "{coordinators}");
        assert_eq!(coordinators.contains("ok      coordinators: there (1 consumer, "), lets_look);
        let shards = text(&examination.shards().await);
        assert!(shards.starts_with(&lacks(&shard.name)), "{shards}");
        assert_eq!(shards.contains("nobody consumes it"), lets_look, "{shards}");
        let permissions = text(&examination.permissions().await);
        assert!(permissions.starts_with("denied  permission to configure"), "{permissions}");
        let exchanges = text(&examination.cancelling().await);
        assert!(exchanges.contains("ok      exchange fanfare.workers: there, and heard"), "{exchanges}");
        for told in [coordinators, shards, permissions, exchanges] {
            assert!(!told.contains("WRONG"), "{told}");
        }
    }
}

#[tokio::test]
async fn exchange_that_nobody_listens_to_is_worth_knowing_and_a_missing_one_is_not_created() {
    let fanfare = Fanfare::in_memory();
    let examination = examination(&fanfare);
    for _ in 0..2 {
        let found = text(&examination.cancelling().await);
        assert_eq!(found.matches("not there yet").count(), 2, "{found}");
    }
    let (broker, workers) = (fanfare.broker(), fanfare.names().workers());
    broker.declare_exchange(&workers).await.unwrap();
    let found = text(&examination.cancelling().await);
    assert!(
        found.contains("note    exchange fanfare.workers: there, and nobody listens, so a cancel"),
        "{found}"
    );
    let channel = broker.open().await.unwrap();
    let queue = fanfare.names().worker(RunId::from(System.unique()));
    channel.declare_exclusive(&queue).await.unwrap();
    channel.bind(&queue.name, &workers.name).await.unwrap();
    let found = text(&examination.cancelling().await);
    assert!(found.contains("ok      exchange fanfare.workers: there, and heard"), "{found}");
}

#[tokio::test]
async fn exchange_that_is_taken_from_coordinators_is_told_from_one_that_nobody_has_declared() {
    let fanfare = Fanfare::in_memory();
    let (broker, names) = (fanfare.broker(), fanfare.names());
    broker.declare(&names.dead()).await.unwrap();
    let channel = broker.open().await.unwrap();
    let _coordinator = channel.consume(&names.dead_queue(), 1).await.unwrap();
    let found = text(&examination(&fanfare).cancelling().await);
    assert!(
        found.contains("warn    exchange fanfare.coordinators: missing, and coordinators run"),
        "{found}"
    );
    assert!(found.contains("note    exchange fanfare.workers: not there yet"), "{found}");
}

#[tokio::test]
async fn queue_with_other_arguments_is_wrong_and_a_missing_one_is_not_created() {
    let fanfare = Fanfare::in_memory();
    let examination = examination(&fanfare);
    let service = ServiceName::new("a").unwrap();
    let queue = fanfare.names().service(&service);
    assert!(
        text(&examination.service(&service).await)
            .starts_with("note    queue fanfare.service.a: not there yet")
    );
    assert_eq!(fanfare.broker().inspect(&queue.name).await.unwrap(), None);
    let other = QueueSpec { name: queue.name.clone(), ..fanfare.names().fanin() };
    fanfare.broker().declare(&other).await.unwrap();
    let found = text(&examination.service(&service).await);
    assert!(found.starts_with("WRONG   queue fanfare.service.a: "), "{found}");
}

#[tokio::test]
async fn shard_that_no_coordinator_has_declared_is_told_and_not_created() {
    let fanfare = Fanfare::in_memory();
    let examination = Examination { shards: 2, ..examination(&fanfare) };
    let (broker, names) = (fanfare.broker(), fanfare.names());
    broker.declare(&names.shard(0)).await.unwrap();
    let found = text(&examination.shards().await);
    assert_eq!(
        found,
        "ok      queue fanfare.shard.0: there, with the right arguments\n\
         warn    coordinators of fanfare.shard.0: nobody consumes it, and 0 messages wait\n        \
         -> have a coordinator serve it: fanfare coordinator --shards 2\n\
         warn    coordinators of fanfare.shard.1: none has declared it, so publishers are refused\n        \
         -> have a coordinator serve it: fanfare coordinator --shards 2\n"
    );
    assert!(!broker.exists(&names.shard(1).name).await.unwrap());
}

#[tokio::test]
async fn renewal_that_the_consumer_timeout_would_overtake_is_wrong() {
    let fanfare = Fanfare::in_memory();
    let timed = |consumer_timeout| Examination { consumer_timeout, ..examination(&fanfare) };
    let found = timed(2 * RENEWAL).consumer_timeout().await;
    assert_eq!(found.verdict, Verdict::Wrong, "{found}");
    let found = timed(3 * RENEWAL).consumer_timeout().await;
    assert_eq!(found.verdict, Verdict::Unknown, "{found}");
    assert!(found.to_string().contains("To raise it: set `consumer_timeout"), "{found}");
}

#[tokio::test]
async fn parked_messages_are_counted() {
    let fanfare = Fanfare::in_memory();
    let parked = fanfare.names().parked();
    fanfare.broker().declare(&parked).await.unwrap();
    fanfare.broker().publish(&parked.name, Message::default()).await.unwrap();
    let found = text(&examination(&fanfare).left_behind().await);
    assert!(found.contains("warn    kept in fanfare.parked: 1 message\n        -> each says"), "{found}");
}
