//! The way of a fan-out from its requests to its manifest, and what is left where it fails.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use fanfare_broker::{Aftercare, Broker, BrokerError, PublishError};
use fanfare_protocol::{Manifest, Message, QueueNames, RunId};
use fanfare_publisher::{Aggregation, Config, Failure, Fanout, InvokeError, Publisher, QueueType, Target};
use harness::{Fault, Faulty, lost};

const FANIN: &str = "fanfare.fanin";
const PRICE: &str = "fanfare.service.price";
const STOCK: &str = "fanfare.service.stock";

async fn served() -> std::sync::Arc<Faulty> {
    let broker = Faulty::new();
    broker.serve(&["price", "stock", "done", "log"]).await;
    // As where a coordinator has been.
    broker.memory.declare(&QueueNames::default().fanin()).await.unwrap();
    broker
}

/// Three targets and a final callback.
fn enrichment(publisher: &Publisher) -> Fanout {
    publisher
        .fanout("shop")
        .cid("order-7")
        .target("price", [1, 2])
        .add(Target::raw("stock", r#"{ "a" : 1 }"#))
        .add(Target::new("stock", "x").key("stock 2"))
        .on_final("done")
}

/// Properties, headers and body, one a line, for golden tests.
fn shown(message: &Message) -> String {
    let properties = &message.properties;
    let text = |value: &Option<_>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut lines = vec![
        format!("content_type={}", text(&properties.content_type)),
        format!("correlation_id={}", text(&properties.correlation_id)),
        format!("reply_to={}", text(&properties.reply_to)),
        format!("message_id={}", text(&properties.message_id)),
        format!("type={}", text(&properties.kind)),
        format!("app_id={}", text(&properties.app_id)),
        format!("timestamp={}", properties.timestamp.unwrap_or_default()),
    ];
    lines.extend(message.headers.iter().map(|(name, value)| format!("{name}: {value:?}")));
    lines.push(String::from_utf8(message.body.to_vec()).unwrap());
    lines.join("\n")
}

#[tokio::test]
async fn requests_and_manifest_are_what_the_protocol_says() {
    let broker = served().await;
    let fanout = enrichment(&broker.publisher()).on_target(["log"]).metadata("order", 7);
    let accepted = fanout.invoke().await.unwrap();
    assert_eq!(accepted.cid.as_str(), "order-7");
    assert_eq!(accepted.run.to_string(), "00000000000000000000000000000001");

    let stock = broker.messages(STOCK).await;
    assert_eq!(stock[0].body, r#"{ "a" : 1 }"#.as_bytes());
    assert_eq!(
        shown(&stock[1]),
        r#"content_type=application/json
correlation_id=order-7
reply_to=fanfare.agg.order-7.00000000000000000000000000000001
message_id=order-7/2
type=fanfare.request
app_id=shop
timestamp=1737316545
fanfare-channel: Text("fanout-call")
fanfare-key: Text("stock 2")
fanfare-metadata: Table({"order": Text("7")})
fanfare-req-ts: Text("2025-01-19 19:55:45")
fanfare-run: Text("00000000000000000000000000000001")
fanfare-source: Text("shop")
fanfare-target: Text("stock")
fanfare-version: Int(1)
"x""#
    );
    let manifests = broker.messages(FANIN).await;
    assert_eq!(manifests.len(), 1);
    assert_eq!(
        shown(&manifests[0]),
        r#"content_type=application/json
correlation_id=order-7
reply_to=
message_id=order-7/manifest
type=fanfare.manifest
app_id=shop
timestamp=1737316545
fanfare-run: Text("00000000000000000000000000000001")
fanfare-version: Int(1)
{"cid":"order-7","run":"00000000000000000000000000000001","source":"shop","req_ts_utc":"2025-01-19 19:55:45","channel":"fanout-call","targets":[{"key":"price","service":"price"},{"key":"stock","service":"stock"},{"key":"stock 2","service":"stock"}],"on_target":["log"],"on_final":["done"],"reply_to":"fanfare.agg.order-7.00000000000000000000000000000001","deadline_ms":86400000,"sentinel":true,"metadata":{"order":"7"}}"#
    );
}

#[tokio::test]
async fn a_parallel_execution_has_its_own_channel_and_a_fan_out_may_have_no_deadline() {
    let broker = served().await;
    let parallel = broker.publisher().parallel("shop").targets([("price", 1)]).on_target("log");
    parallel.without_deadline().invoke().await.unwrap();
    let request = &broker.messages(PRICE).await[0];
    assert_eq!(request.text("fanfare-channel"), Some("parallel-exec-call"));
    let manifest = Manifest::decode(&broker.messages(FANIN).await[0], &QueueNames::default()).unwrap();
    assert_eq!(manifest.deadline_ms, None);
    assert!(manifest.on_final.is_empty());
}

#[tokio::test]
async fn the_manifest_follows_the_last_request_and_comes_once() {
    let broker = served().await;
    enrichment(&broker.publisher()).invoke().await.unwrap();
    let asked = broker.asked();
    let declared = asked.iter().position(|asked| asked.starts_with("declare fanfare.agg.order-7.")).unwrap();
    // Three requests and the sentinel come before it, and the declaration that settles that of its queue, of one that is deleted at once.
    let (manifest, before) = asked[declared + 1..].split_last().unwrap();
    assert_eq!(manifest, "publish fanfare.fanin");
    assert_eq!(before.iter().filter(|asked| asked.starts_with("publish")).count(), 4);
    assert_eq!(before.iter().filter(|asked| asked.starts_with("declare fanfare.agg.")).count(), 1);
    assert_eq!(before.iter().filter(|asked| asked.starts_with("delete fanfare.agg.")).count(), 1);
    assert_eq!(before.len(), 6);
}

#[tokio::test]
async fn no_manifest_waits_for_another_declaration_on_a_broker_that_answers_what_is_written() {
    for (version, declared) in [("4.2.9", 2), ("4.3.0", 1), ("unknown", 2)] {
        let broker = served().await;
        broker.call_itself(version);
        enrichment(&broker.publisher()).invoke().await.unwrap();
        assert_eq!(broker.count("declare fanfare.agg."), declared, "{version}");
    }
}

#[tokio::test]
async fn a_fan_out_without_targets_is_its_sentinel_and_its_manifest() {
    let broker = served().await;
    broker.publisher().fanout("shop").on_final("done").invoke().await.unwrap();
    assert_eq!(broker.count("publish"), 2);
    assert_eq!(broker.messages(FANIN).await.len(), 1);
}

#[tokio::test]
async fn the_same_cid_twice_makes_two_runs_with_a_queue_each() {
    let broker = served().await;
    let publisher = broker.publisher();
    let (first, second) = tokio::join!(enrichment(&publisher).invoke(), enrichment(&publisher).invoke());
    assert_ne!(first.unwrap().run, second.unwrap().run);
    assert_eq!(broker.aggregation_queues().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn queues_that_were_seen_lately_are_not_looked_at_again() {
    let broker = served().await;
    let publisher = broker.publisher();
    for _ in 0..10 {
        enrichment(&publisher).invoke().await.unwrap();
    }
    assert_eq!(broker.count("inspect fanfare.service"), 3);
    // Once to see that it is there, and once to see how many manifests wait.
    assert_eq!(broker.count("inspect fanfare.fanin"), 2);
    assert_eq!(broker.count("declare fanfare.fanin"), 0);
    tokio::time::advance(Duration::from_secs(31)).await;
    enrichment(&publisher).invoke().await.unwrap();
    assert_eq!(broker.count("inspect fanfare.service"), 6);
}

#[tokio::test]
async fn missing_queues_are_declared_where_that_is_wanted() {
    let broker = Faulty::new();
    enrichment(&broker.publisher()).declare_missing().invoke().await.unwrap();
    assert_eq!(broker.messages(STOCK).await.len(), 2);
    // For each that is there for good, one that is not.
    for asked in ["declare", "delete"] {
        let of_others = format!("{asked} fanfare.agg.settling.");
        let for_good = ["declare fanfare.service", "declare fanfare.dead", "declare fanfare.fanin"];
        let for_good: usize = for_good.iter().map(|queue| broker.count(queue)).sum();
        assert_eq!(broker.count(&of_others), for_good);
    }
    assert!(broker.memory.inspect("fanfare.dead").await.unwrap().is_some());
}

#[tokio::test]
async fn what_takes_dead_letters_is_declared_also_where_all_services_were_seen_lately() {
    let broker = served().await;
    let publisher = broker.publisher();
    enrichment(&publisher).invoke().await.unwrap();
    assert_eq!(broker.count("declare fanfare.dead"), 0);
    enrichment(&publisher).declare_missing().invoke().await.unwrap();
    assert_eq!(broker.count("declare fanfare.dead"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_sent_again_until_it_is_confirmed() {
    for (fault, copies) in [
        (Fault::Fails(PublishError::NotSent(lost())), 2),
        (Fault::Fails(PublishError::Refused(STOCK.to_owned())), 2),
        (Fault::Fails(PublishError::Unroutable(STOCK.to_owned())), 2),
        (Fault::Fails(PublishError::Unknown(lost())), 2),
        (Fault::TakenBut(PublishError::Unknown(lost())), 5),
    ] {
        let broker = served().await;
        broker.fail(STOCK, 1, 3, fault.clone());
        enrichment(&broker.publisher()).invoke().await.unwrap();
        assert_eq!(broker.messages(STOCK).await.len(), copies, "{fault:?}");
        assert_eq!(broker.messages(FANIN).await.len(), 1, "{fault:?}");
    }
}

/// Invokes, and checks that it was not accepted and left nothing behind.
async fn not_accepted(broker: &std::sync::Arc<Faulty>) -> Failure {
    match enrichment(&broker.publisher()).invoke().await.unwrap_err() {
        InvokeError::NotAccepted { requests_sent: true, source, .. } => {
            assert!(broker.aggregation_queues().await.is_empty());
            assert_eq!(broker.count("delete fanfare.agg.order-7"), 1);
            source
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_sent_leaves_no_queue_and_no_manifest() {
    for error in [
        PublishError::NotSent(lost()),
        PublishError::Unknown(lost()),
        PublishError::Refused(STOCK.to_owned()),
        PublishError::NotSent(BrokerError::Denied("write".to_owned())),
        PublishError::TooLarge { bytes: 2, most: 1 },
    ] {
        let broker = served().await;
        broker.fail(STOCK, 1, usize::MAX, Fault::Fails(error.clone()));
        let failure = not_accepted(&broker).await;
        assert!(
            matches!(&failure, Failure::Request { service, .. } if service.as_str() == "stock"),
            "{failure:?}"
        );
        assert_eq!(broker.count("publish fanfare.fanin"), 0, "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_may_not_be_declared_is_not_deleted_either() {
    let broker = served().await;
    broker.deny_declarations();
    let refused = enrichment(&broker.publisher()).invoke().await.unwrap_err();
    let denied = |failure: &Failure| matches!(failure, Failure::Broker(BrokerError::Denied(_)));
    assert!(
        matches!(&refused, InvokeError::NotAccepted { requests_sent: false, source, .. } if denied(source)),
        "{refused:?}"
    );
    assert_eq!((broker.count("declare fanfare.agg."), broker.count("delete ")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_waits_for_a_node_that_is_away_is_waited_for() {
    let broker = served().await;
    broker.fail(STOCK, 1, usize::MAX, Fault::Fails(PublishError::NotSent(lost())));
    broker.delay_deletions(Aftercare::MEMBER_TIMEOUT + Duration::from_millis(500));
    not_accepted(&broker).await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_never_confirmed_are_given_up_at_the_time_limit() {
    let broker = served().await;
    broker.fail(STOCK, 1, usize::MAX, Fault::Hangs);
    let started = tokio::time::Instant::now();
    let failure = not_accepted(&broker).await;
    assert!(started.elapsed() >= Duration::from_secs(54) && started.elapsed() < Duration::from_secs(55));
    assert_eq!(failure.to_string(), "2 of 3 requests were confirmed in time for the limit of 60s");
}

#[tokio::test(start_paused = true)]
async fn one_time_limit_holds_for_all_that_an_invocation_waits_for() {
    let began_in_an_outage = async |broker: &std::sync::Arc<Faulty>| {
        broker.memory.isolate();
        let fanout = enrichment(&broker.publisher());
        let started = tokio::time::Instant::now();
        let (outcome, ()) = tokio::join!(fanout.invoke(), async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            broker.memory.rejoin();
        });
        assert!(started.elapsed() < Duration::from_millis(60_100), "{:?}", started.elapsed());
        outcome.unwrap_err()
    };

    let broker = served().await;
    broker.fail(STOCK, 1, usize::MAX, Fault::Hangs);
    broker.delay_deletions(Duration::from_secs(9));
    let error = began_in_an_outage(&broker).await;
    assert!(matches!(error, InvokeError::NotAccepted { requests_sent: true, .. }), "{error:?}");
    // The caller is told before the queue is gone, which goes all the same.
    assert_eq!(broker.aggregation_queues().await.len(), 1);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(broker.aggregation_queues().await.len(), 0);

    let broker = served().await;
    broker.fail(FANIN, 0, usize::MAX, Fault::Hangs);
    let error = began_in_an_outage(&broker).await;
    assert!(matches!(error, InvokeError::Unknown { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_service_queue_that_is_gone_is_found_out_and_forgotten() {
    let broker = served().await;
    let publisher = broker.publisher();
    enrichment(&publisher).invoke().await.unwrap();
    broker.memory.delete(STOCK).await.unwrap();
    let error = enrichment(&publisher).invoke().await.unwrap_err();
    assert!(matches!(error, InvokeError::NotAccepted { requests_sent: true, .. }), "{error:?}");
    let error = enrichment(&publisher).invoke().await.unwrap_err();
    assert_eq!(error.to_string(), "no worker serves `stock`: start one, or pass declare_missing");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_came_back_is_not_accepted_and_not_sent_again() {
    let broker = served().await;
    broker.fail(FANIN, 0, 1, Fault::Fails(PublishError::Unroutable(FANIN.to_owned())));
    assert!(matches!(not_accepted(&broker).await, Failure::Manifest(_)));
    assert_eq!(broker.count("publish fanfare.fanin"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_of_which_nobody_knows_is_unknown_is_not_sent_again_and_keeps_its_queue() {
    for fault in [
        Fault::Fails(PublishError::Unknown(lost())),
        Fault::TakenBut(PublishError::Unknown(lost())),
        Fault::Fails(PublishError::Refused(FANIN.to_owned())),
        Fault::Hangs,
    ] {
        let broker = served().await;
        broker.fail(FANIN, 0, 1, fault.clone());
        let error = enrichment(&broker.publisher()).invoke().await.unwrap_err();
        let InvokeError::Unknown { cid, run, .. } = error else { panic!("{fault:?}: {error:?}") };
        assert_eq!((cid.as_str(), run), ("order-7", RunId::from(uuid::Uuid::from_u128(1))));
        assert_eq!(broker.count("publish fanfare.fanin"), 1, "{fault:?}");
        assert_eq!(broker.aggregation_queues().await.len(), 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_never_left_is_sent_again_within_the_time_limit() {
    let broker = served().await;
    broker.fail(FANIN, 0, 3, Fault::Fails(PublishError::NotSent(lost())));
    enrichment(&broker.publisher()).invoke().await.unwrap();
    assert_eq!(broker.messages(FANIN).await.len(), 1);

    let broker = served().await;
    broker.fail(FANIN, 0, usize::MAX, Fault::Fails(PublishError::NotSent(lost())));
    let started = tokio::time::Instant::now();
    assert!(matches!(not_accepted(&broker).await, Failure::Manifest(PublishError::NotSent(_))));
    assert!(started.elapsed() <= Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_manifest_does_not_wait_to_be_sent_past_the_time_limit() {
    let broker = served().await;
    broker.fail(FANIN, 0, usize::MAX, Fault::Blocks);
    let started = tokio::time::Instant::now();
    assert!(matches!(not_accepted(&broker).await, Failure::Manifest(PublishError::NotSent(_))));
    assert!(started.elapsed() <= Duration::from_secs(60), "{:?}", started.elapsed());
    assert_eq!(broker.messages(FANIN).await, []);
}

#[tokio::test(start_paused = true)]
async fn without_a_broker_nothing_is_sent_and_the_error_says_so() {
    let broker = served().await;
    broker.memory.isolate();
    let error = enrichment(&broker.publisher()).invoke().await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(error.to_string().ends_with("nothing was sent"), "{error}");
    assert_eq!(broker.count("publish"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_before_the_first_request_is_waited_out() {
    let broker = served().await;
    broker.memory.isolate();
    let fanout = enrichment(&broker.publisher());
    let (outcome, ()) = tokio::join!(fanout.invoke(), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        broker.memory.rejoin();
    });
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_invocation_whose_future_is_dropped_is_given_up_and_cleaned_up() {
    let broker = served().await;
    broker.fail(STOCK, 1, usize::MAX, Fault::Hangs);
    let invocation = enrichment(&broker.publisher()).invoke();
    tokio::time::timeout(Duration::from_secs(1), invocation).await.unwrap_err();
    tokio::time::timeout(Duration::from_secs(1), async {
        while broker.count("delete fanfare.agg.order-7") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    assert!(broker.aggregation_queues().await.is_empty());
    assert_eq!(broker.count("publish fanfare.fanin"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_is_being_written_is_left_to_its_end_when_the_future_is_dropped() {
    let broker = served().await;
    broker.fail(FANIN, 0, 1, Fault::Hangs);
    let invocation = enrichment(&broker.publisher()).invoke();
    tokio::time::timeout(Duration::from_secs(1), invocation).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(broker.aggregation_queues().await.len(), 1);
    assert_eq!(broker.count("delete fanfare.agg.order-7"), 0);
}

#[tokio::test]
async fn a_plain_invocation_is_one_request_that_nobody_answers() {
    let broker = served().await;
    let accepted = broker.publisher().send("shop", "price", 5).await.unwrap();
    let request = &broker.messages(PRICE).await[0];
    assert_eq!(request.text("fanfare-channel"), Some("invoke"));
    assert_eq!(request.properties.reply_to, None);
    assert_eq!(request.cid().unwrap(), accepted.cid);
    assert_eq!(request.body, "5".as_bytes());
    assert_eq!(broker.count("publish"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_plain_invocation_that_may_be_in_its_queue_is_unknown() {
    let broker = served().await;
    broker.fail(PRICE, 0, 1, Fault::TakenBut(PublishError::Unknown(lost())));
    broker.fail(PRICE, 0, usize::MAX, Fault::Fails(PublishError::NotSent(lost())));
    let error = broker.publisher().send("shop", "price", 5).await.unwrap_err();
    assert!(matches!(error, InvokeError::Unknown { .. }), "{error:?}");

    let broker = served().await;
    broker.fail(PRICE, 0, usize::MAX, Fault::Fails(PublishError::NotSent(lost())));
    let error = broker.publisher().send("shop", "price", 5).await.unwrap_err();
    assert!(matches!(error, InvokeError::NotAccepted { .. }), "{error:?}");
    let error = broker.publisher().send("shop", "nobody", 5).await.unwrap_err();
    assert!(error.to_string().contains("no worker serves `nobody`"), "{error}");
}

#[tokio::test]
async fn a_cluster_gets_replicated_aggregation_queues_where_configured() {
    let broker = served().await;
    let config = Config { queue_type: QueueType::Quorum, ..Config::default() };
    let accepted = enrichment(&broker.publisher_with(config)).invoke().await.unwrap();
    let queue = QueueNames::default().replicated_aggregation(&accepted.cid, accepted.run);
    broker.memory.declare(&queue).await.expect("it was declared with these arguments");
    let of_quorum = &broker.messages(FANIN).await[0];
    assert!(Manifest::decode(of_quorum, &QueueNames::default()).unwrap().replicated);

    let broker = served().await;
    enrichment(&broker.publisher()).invoke().await.unwrap();
    let of_classic = &broker.messages(FANIN).await[0];
    assert!(!Manifest::decode(of_classic, &QueueNames::default()).unwrap().replicated);
}

#[tokio::test(start_paused = true)]
async fn a_queue_whose_declaration_was_cut_off_is_not_used() {
    let broker = served().await;
    broker.cut_declarations(2);
    let accepted = enrichment(&broker.publisher()).invoke().await.unwrap();
    let used = QueueNames::default().aggregation(&accepted.cid, accepted.run).name;
    let declared: std::collections::BTreeSet<String> = broker
        .asked()
        .into_iter()
        .filter(|asked| asked.starts_with("declare fanfare.agg.order-7."))
        .collect();
    assert_eq!(declared.len(), 3);
    for request in broker.messages(STOCK).await {
        assert_eq!(request.properties.reply_to.as_deref(), Some(&*used));
        assert_eq!(request.run().unwrap(), accepted.run);
    }
    let manifest = &broker.messages(FANIN).await[0];
    let manifest = Manifest::decode(manifest, &QueueNames::default()).unwrap();
    assert_eq!((manifest.run, &manifest.reply_to), (accepted.run, &used));
    // The others are deleted in the background.
    while broker.aggregation_queues().await != [used.clone()] {
        tokio::task::yield_now().await;
    }
}

/// With four shards, of which the fan-out of `order-7` belongs to this one.
const SHARD: &str = "fanfare.shard.2";

fn sharing(broker: &std::sync::Arc<Faulty>) -> Publisher {
    let aggregation = Aggregation::Shared { shards: 4 };
    broker.publisher_with(Config { aggregation, declare_missing: true, ..Config::default() })
}

/// What the caller is told of a shard that is not there, and whether requests were sent.
fn no_shard(error: &InvokeError) -> (String, bool) {
    match error {
        InvokeError::NotAccepted { source: source @ Failure::NoShard { .. }, requests_sent, .. } => {
            (source.to_string(), *requests_sent)
        }
        _ => panic!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_no_coordinator_has_declared_is_refused_and_not_declared() {
    let broker = served().await;
    let (said, requests_sent) = no_shard(&enrichment(&sharing(&broker)).invoke().await.unwrap_err());
    let expected = format!(
        "there is no `{SHARD}`, where this fan-out belongs with 4 shards: start a coordinator first, which declares them, and give it \
         and every publisher the same number of shards (`--shards`)"
    );
    assert_eq!((said, requests_sent), (expected, false));
    assert_eq!((broker.count("publish"), broker.count(&format!("declare {SHARD}"))), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_missing_for_a_moment_is_waited_for() {
    let broker = served().await;
    let publisher = sharing(&broker);
    let (accepted, ()) = tokio::join!(enrichment(&publisher).invoke(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        broker.memory.declare(&QueueNames::default().shard(2)).await.unwrap();
    });
    accepted.unwrap();
    assert_eq!(broker.messages(SHARD).await.len(), 1);
}

#[tokio::test]
async fn a_manifest_that_comes_back_from_its_shard_is_refused_with_the_remedy() {
    let broker = served().await;
    broker.memory.declare(&QueueNames::default().shard(2)).await.unwrap();
    broker.fail(SHARD, 0, 1, Fault::Fails(PublishError::Unroutable(SHARD.to_owned())));
    let publisher = sharing(&broker);
    let (said, requests_sent) = no_shard(&enrichment(&publisher).invoke().await.unwrap_err());
    assert!(said.contains(SHARD) && requests_sent, "{said}");
    enrichment(&publisher).invoke().await.expect("it is looked for again, and found");
}
