//! Every row of the protocol's table of queues.

use std::collections::BTreeMap;

use fanfare_protocol::name::Prefix;
use fanfare_protocol::queue::Argument;
use fanfare_protocol::{Cid, QueueNames, QueueSpec, ServiceName};

use crate::samples::{cid, run, service};

fn internal() -> BTreeMap<&'static str, Argument> {
    BTreeMap::from([("x-queue-type", "quorum".into()), ("x-delivery-limit", 2_147_483_647.into())])
}

#[track_caller]
fn check(queue: QueueSpec, name: &str, exclusive: bool, arguments: BTreeMap<&'static str, Argument>) {
    assert_eq!(queue, QueueSpec { name: name.to_owned(), exclusive, arguments });
}

#[test]
fn a_services_queue() {
    let mut arguments = internal();
    arguments.extend([
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-routing-key", "fanfare.dead".into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
    ]);
    let names = QueueNames::default();
    check(names.service(&service("price.quote")), "fanfare.service.price.quote", false, arguments);
    assert_eq!(names.service_queue(&service("price.quote")), "fanfare.service.price.quote");
    assert_eq!(names.service_of("fanfare.service.price.quote"), Some(service("price.quote")));
    assert_eq!(names.service_of("fanfare.fanin"), None);
    assert_eq!(names.service_of("other.service.price.quote"), None);
}

#[test]
fn the_queues_of_fanfare_itself() {
    let names = QueueNames::default();
    check(names.fanin(), "fanfare.fanin", false, internal());
    check(names.dead(), "fanfare.dead", false, internal());
    check(names.parked(), "fanfare.parked", false, internal());
    assert_eq!((names.fanin_queue(), names.dead_queue()), (names.fanin().name, names.dead().name));
}

#[test]
fn a_delay_queue_passes_on_by_routing_key_and_has_an_exchange_of_its_name() {
    let names = QueueNames::default();
    let mut arguments = internal();
    arguments.extend([
        ("x-message-ttl", 6_000.into()),
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
    ]);
    check(names.delay(6), "fanfare.delay.6", false, arguments);
    assert_eq!(names.delay_exchange(6).name, "fanfare.delay.6");
}

#[test]
fn an_aggregation_queue_and_its_replicated_kin() {
    let name = "fanfare.agg.63e7c3a2ba616badecb125ce.0123456789abcdef0123456789abcdef";
    let mut arguments = BTreeMap::from([
        ("x-queue-type", "classic".into()),
        ("x-single-active-consumer", true.into()),
        ("x-expires", 604_800_000.into()),
    ]);
    let names = QueueNames::default();
    check(names.aggregation(&cid(), run()), name, false, arguments.clone());
    arguments.extend(internal());
    check(names.replicated_aggregation(&cid(), run()), name, false, arguments);
}

#[test]
fn the_queue_of_a_large_payload_and_its_replicated_kin() {
    let hex = "0123456789abcdef0123456789abcdef";
    let name = format!("fanfare.payload.63e7c3a2ba616badecb125ce.{hex}.{hex}");
    let mut arguments =
        BTreeMap::from([("x-queue-type", "classic".into()), ("x-expires", 2_419_200_000_i64.into())]);
    let names = QueueNames::default();
    check(names.payload(&cid(), run(), run()), &name, false, arguments.clone());
    arguments.extend(internal());
    check(names.replicated_payload(&cid(), run(), run()), &name, false, arguments);
    let dotted = fanfare_protocol::Cid::new("a.b").expect("a proper CID");
    assert_eq!(names.payload_of(&names.payload(&dotted, run(), run()).name), Some((dotted, run(), run())));
    for other in ["fanfare.payload.c.r", "shop.payload.c.r.w", &name[1..], "fanfare.agg.c"] {
        assert_eq!(names.payload_of(other), None, "{other}");
    }
}

#[test]
fn a_shard_and_the_cids_that_belong_to_it() {
    let mut arguments = internal();
    arguments.insert("x-single-active-consumer", true.into());
    let names = QueueNames::default();
    check(names.shard(3), "fanfare.shard.3", false, arguments);
    let mut arguments = internal();
    arguments.insert("x-message-ttl", 5_000.into());
    check(names.full(), "fanfare.shard.full", false, arguments);
    // CRC-32 of the CID, modulo the number of shards.
    let of = |text: &str, shards| QueueNames::shard_of(&Cid::new(text).unwrap(), shards);
    assert_eq!(of("123456789", 1_000), 0xCBF4_3926_u32 % 1_000);
    assert_eq!((of("123456789", 4), of("123456789", 1)), (2, 0));
}

#[test]
fn results_go_to_a_shard_or_to_the_queue_of_their_own_run_and_nowhere_else() {
    let names = QueueNames::default();
    let own = names.aggregation(&cid(), run()).name;
    assert!(names.is_reply_queue(&own, &cid(), run()));
    assert!(names.is_reply_queue("fanfare.shard.7", &cid(), run()));
    let start = own.strip_suffix(&run().to_string()).unwrap();
    for other in [
        format!("{own}0"),
        format!("{start}{}", run().after(1)),
        format!("{start}{}", run().to_string().to_uppercase()),
        format!("{start}{}", uuid::Uuid::try_parse(&run().to_string()).unwrap().hyphenated()),
        format!("fanfare.agg.{}{}", cid(), run()),
        names.aggregation(&Cid::new(format!("{}.x", cid())).unwrap(), run()).name,
        own.replacen("fanfare", "other", 1),
        names.fanin().name,
    ] {
        assert!(!names.is_reply_queue(&other, &cid(), run()), "{other}");
    }
}

#[test]
fn a_shard_is_known_by_its_name() {
    let names = QueueNames::default();
    for number in [0, 7, 1_023] {
        assert_eq!(names.shard_number(&names.shard(number).name), Some(number));
    }
    for other in [
        "fanfare.shard.1024",
        "fanfare.shard.07",
        "fanfare.shard.+7",
        "fanfare.shard.",
        "fanfare.shard.7.8",
        "fanfare.shard.7x",
        "other.shard.7",
        "fanfare.fanin",
    ] {
        assert_eq!(names.shard_number(other), None, "{other}");
    }
}

#[test]
fn a_waiters_queue_is_known_by_its_name() {
    let names = QueueNames::default();
    let queue = names.wait(run());
    assert!(names.is_wait(&queue.name));
    let arguments = BTreeMap::from([("x-queue-type", "classic".into())]);
    check(queue, "fanfare.wait.0123456789abcdef0123456789abcdef", true, arguments);
    for other in ["fanfare.service.wait", "other.wait.1", "fanfare.waiting", "fanfarewait.1", ""] {
        assert!(!names.is_wait(other), "{other}");
    }
    assert!(!names.is_wait(&format!("fanfare.wait.{}", "x".repeat(255))), "it fits into no property");
}

#[test]
fn what_coordinators_and_workers_hear_comes_to_queues_of_their_own() {
    let names = QueueNames::default();
    let arguments = || BTreeMap::from([("x-queue-type", "classic".into()), ("x-expires", 60_000.into())]);
    let id = "0123456789abcdef0123456789abcdef";
    check(names.coordinator(run()), &format!("fanfare.coordinator.{id}"), true, arguments());
    check(names.worker(run()), &format!("fanfare.worker.{id}"), true, arguments());
    assert_eq!(names.coordinators().name, "fanfare.coordinators");
    assert_eq!(names.workers().name, "fanfare.workers");
}

#[test]
fn the_prefix_changes_names_and_the_way_of_dead_letters_only() {
    let names = QueueNames::new(Prefix::new("shop").unwrap());
    let (shop, plain) = (names.service(&service("a")), QueueNames::default().service(&service("a")));
    assert_eq!(shop.name, "shop.service.a");
    assert_eq!(shop.arguments["x-dead-letter-routing-key"], "shop.dead".into());
    assert_eq!(shop.arguments.len(), plain.arguments.len());
}

#[test]
fn the_longest_names_fit_into_a_property() {
    let names = QueueNames::new(Prefix::new("p".repeat(32)).unwrap());
    let longest = "x".repeat(100);
    let cid = Cid::new(longest.clone()).unwrap();
    assert!(names.aggregation(&cid, run()).name.len() <= 255);
    assert!(names.payload(&cid, run(), run()).name.len() <= 255);
    assert!(names.service(&ServiceName::new(longest).unwrap()).name.len() <= 255);
}
