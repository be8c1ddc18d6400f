use fanfare_broker::memory::MemoryBroker;
use fanfare_broker::{Broker, System};
use futures_util::FutureExt;

use super::*;
use crate::{Accepted, Config, Publisher};

fn publisher(broker: &Arc<MemoryBroker>) -> Publisher {
    let broker = Arc::clone(broker) as Arc<dyn Broker>;
    Publisher::new(broker, Arc::new(System), Config { declare_missing: true, ..Config::default() })
}

async fn invoke(publisher: &Publisher, cid: Option<&str>) -> Accepted {
    let fanout = publisher.fanout("test").target("price.quote", 1).on_final("done");
    let fanout = if let Some(cid) = cid { fanout.cid(cid) } else { fanout };
    let accepted = fanout.invoke().await.unwrap();
    // What was begun for the next one comes to its end.
    tokio::time::sleep(Duration::from_millis(1)).await;
    accepted
}

fn ready(publisher: &Publisher) -> Vec<String> {
    let state = publisher.shared.spares.state();
    state.ready.iter().map(|spare| spare.queue.name.clone()).collect()
}

fn queue_of(publisher: &Publisher, Accepted { cid, run }: &Accepted) -> String {
    publisher.config().names.aggregation(cid, *run).name
}

#[tokio::test(start_paused = true)]
async fn the_next_fan_out_is_gathered_in_the_queue_that_was_declared_after_the_last_one() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    // What is invoked once leaves nothing.
    for are_ready in [0, 0, 1, 2, 2, 2] {
        let next = ready(&publisher);
        assert_eq!(next.len(), are_ready);
        let accepted = invoke(&publisher, None).await;
        assert!(next.first().is_none_or(|next| *next == queue_of(&publisher, &accepted)));
    }
}

#[tokio::test(start_paused = true)]
async fn where_cids_are_given_a_queue_is_declared_and_deleted_in_turns() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    for kept in [0, 1, 0, 1, 0] {
        let accepted = invoke(&publisher, Some("mine")).await;
        assert_eq!(accepted.cid.as_str(), "mine");
        assert_eq!(ready(&publisher).len(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn many_at_once_do_not_make_more_than_are_kept() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    join_all((0..100).map(|_| invoke(&publisher, None))).await;
    assert!(ready(&publisher).len() <= MOST, "{:?}", ready(&publisher));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_by_the_time_that_it_is_needed_is_not_used_and_its_deletion_is_no_change() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    let Publisher { shared } = &publisher;
    for cid in [None, Some("mine")] {
        while ready(&publisher).is_empty() {
            invoke(&publisher, cid).await;
        }
        let next = ready(&publisher).remove(0);
        broker.delete(&next).await.unwrap();
        tokio::time::sleep(TRUSTED_FOR).await;
        let answered = shared.spares.state().answered;
        let accepted = invoke(&publisher, cid).await;
        assert_ne!(queue_of(&publisher, &accepted), next);
        assert!(!broker.exists(&next).await.unwrap());
        assert_eq!(shared.spares.state().answered, answered + 2);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_looked_at_is_ready_again() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    let Publisher { shared } = &publisher;
    while ready(&publisher).is_empty() {
        invoke(&publisher, None).await;
    }
    let kept = ready(&publisher);
    tokio::time::sleep(TRUSTED_FOR).await;
    broker.isolate();
    assert!(shared.take_spare(Instant::now() + KEPT_FOR).await.is_none());
    assert_eq!(ready(&publisher), kept);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_is_deleted() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    // Whoever looks for it begins anew the second time.
    for _ in 0..2 {
        while ready(&publisher).is_empty() {
            invoke(&publisher, None).await;
        }
        let unused = ready(&publisher);
        tokio::time::sleep(2 * KEPT_FOR).await;
        assert_eq!(ready(&publisher), [""; 0]);
        for unused in unused {
            assert!(!broker.exists(&unused).await.unwrap());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_is_closed_or_dropped_leaves_none() {
    let broker = Arc::new(MemoryBroker::new());
    let closed = publisher(&broker);
    invoke(&closed, None).await;
    invoke(&closed, None).await;
    let left = ready(&closed).pop().unwrap();
    closed.close().await;
    assert!(!broker.exists(&left).await.unwrap());
    invoke(&closed, None).await;
    assert_eq!(ready(&closed), [""; 0]);
    let dropped = publisher(&broker);
    invoke(&dropped, None).await;
    invoke(&dropped, None).await;
    let left = ready(&dropped).pop().unwrap();
    drop(dropped);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!broker.exists(&left).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn whoever_invokes_one_after_the_other_need_not_wait_for_another_declaration() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    let Publisher { shared } = &publisher;
    for _ in 0..5 {
        invoke(&publisher, None).await;
    }
    let (next, declared) = shared.take_spare(Instant::now()).await.unwrap();
    let settled = shared.settle(&next.queue, declared, false).now_or_never();
    assert!(settled.is_some_and(|settled| settled.is_ok()));
}

fn queue(publisher: &Publisher) -> QueueSpec {
    let names = &publisher.config().names;
    names.aggregation(&Cid::new("c").unwrap(), RunId::from(publisher.environment().unique()))
}

#[tokio::test]
async fn a_declaration_is_settled_by_the_answer_to_what_began_after_its_own() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    let Publisher { shared } = &publisher;
    let queue = queue(&publisher);
    let before = Change::begin(shared);
    let declared = Change::begin(shared).answered();
    let after = Change::begin(shared);
    before.answered();
    let mut settled = Box::pin(shared.settle(&queue, declared, false));
    assert!((&mut settled).now_or_never().is_none());
    after.answered();
    settled.await.unwrap();
    assert_eq!(ready(&publisher), [""; 0]);
}

#[tokio::test]
async fn where_a_change_fails_who_waits_for_it_makes_another() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    let Publisher { shared } = &publisher;
    let queue = queue(&publisher);
    let declared = Change::begin(shared).answered();
    let failing = Change::begin(shared);
    let mut settled = Box::pin(shared.settle(&queue, declared, false));
    assert!((&mut settled).now_or_never().is_none());
    drop(failing);
    settled.await.unwrap();
    assert_eq!(ready(&publisher).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_next_life_of_a_broker_answers_settles_only_what_is_still_there() {
    let broker = Arc::new(MemoryBroker::new());
    let publisher = publisher(&broker);
    let Publisher { shared } = &publisher;
    for is_there in [true, false] {
        let queue = queue(&publisher);
        let declared = shared.declare_aggregation(&queue).await.unwrap();
        if !is_there {
            broker.delete(&queue.name).await.unwrap();
        }
        tokio::time::sleep(TRUSTED_FOR).await;
        let settled = shared.settle(&queue, declared, false).await;
        assert_eq!(settled.is_ok(), is_there, "{settled:?}");
    }
}
