//! What the broker gives up, because of an operator's time limit for instance, is not lost.

use fanfare_protocol::Message;
use fanfare_tests::{Recorder, Stack, answer, in_shards, on_both_brokers};

on_both_brokers!(
    a_request_that_expires_fails_its_target_and_is_parked,
    a_request_that_expires_after_its_fan_out_has_ended_is_parked,
    a_manifest_among_the_dead_letters_goes_back,
    a_callback_that_expires_is_parked,
    whatever_else_is_among_the_dead_letters_is_parked,
);

in_shards!(
    a_request_that_expires_fails_its_target_and_is_parked,
    a_request_that_expires_after_its_fan_out_has_ended_is_parked,
    a_manifest_among_the_dead_letters_goes_back,
    a_callback_that_expires_is_parked,
    whatever_else_is_among_the_dead_letters_is_parked,
);

/// Takes the next message of a service out of its queue and lets it expire there.
async fn expires(stack: &Stack, queue: &str) -> Message {
    let mut service = stack.record_queue(queue).await;
    let mut message = service.next().await;
    drop(service);
    message.properties.expiration = Some("50".into());
    stack.publish(queue, message.clone()).await;
    message
}

async fn is_parked(parked: &mut Recorder, message: &Message, from: &str) {
    let copy = parked.next().await;
    assert_eq!(copy.properties.message_id, message.properties.message_id);
    assert_eq!(copy.body, message.body);
    assert_eq!(copy.text("fanfare-parked-from"), Some(from));
    let expected = format!("queue `{from}` gave it up (expired)");
    assert_eq!(copy.text("fanfare-reason"), Some(expected.as_str()));
}

async fn a_request_that_expires_fails_its_target_and_is_parked(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut done = stack.record("my.done").await;
    let queue = stack.declare_service("my.target").await;
    let mut other = stack.record("my.other").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1).target("my.other", 2);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let request = expires(&stack, &queue).await;
    answer(&stack, &other.next().await, "2").await;
    let payload = done.next_final().await;
    assert!(payload.data.get("my.other").expect("its result").ok);
    let failed = payload.data.get("my.target").expect("its result");
    let expected = format!(
        "the request was never answered: queue `{queue}` gave it up (expired); it is kept among the parked messages"
    );
    assert_eq!(failed.exception.as_deref(), Some(expected.as_str()));
    assert_eq!((failed.source.as_str(), failed.target.as_str()), ("my.source", "my.target"));
    is_parked(&mut parked, &request, &queue).await;
    stack.ended([&accepted], coordinator).await;
    for recorder in [&mut done, &mut parked] {
        assert_eq!(recorder.rest().await, []);
    }
}

async fn a_request_that_expires_after_its_fan_out_has_ended_is_parked(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut done = stack.record("my.done").await;
    let queue = stack.declare_service("my.target").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let mut target = stack.record_queue(&queue).await;
    let request = target.next().await;
    answer(&stack, &request, "1").await;
    done.next_final().await;
    stack.queue_is_gone(&stack.names().aggregation(&accepted.cid, accepted.run).name).await;
    drop(target);
    stack.publish(&queue, request).await;
    let request = expires(&stack, &queue).await;
    is_parked(&mut parked, &request, &queue).await;
    stack.ended([&accepted], coordinator).await;
    assert_eq!(done.rest().await, []);
}

async fn a_manifest_among_the_dead_letters_goes_back(stack: Stack) {
    let mut done = stack.record("my.done").await;
    let mut target = stack.record("my.target").await;
    let manifests = stack.names().fanin();
    stack.bystander().declare(&manifests).await.expect("the queue can be declared");
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let mut taken = stack.record_queue(&stack.manifests_of(&accepted)).await;
    let manifest = taken.next().await;
    drop(taken);
    let dead = stack.names().dead();
    stack.bystander().declare(&dead).await.expect("the queue can be declared");
    stack.publish(&dead.name, manifest).await;
    let coordinator = stack.coordinator();
    answer(&stack, &target.next().await, "1").await;
    assert!(done.next_final().await.data.get("my.target").expect("its result").ok);
    stack.ended([&accepted], coordinator).await;
}

async fn a_callback_that_expires_is_parked(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let mut target = stack.record("my.target").await;
    let queue = stack.declare_service("my.done").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source").target("my.target", 1);
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    answer(&stack, &target.next().await, "1").await;
    let callback = expires(&stack, &queue).await;
    is_parked(&mut parked, &callback, &queue).await;
    stack.ended([&accepted], coordinator).await;
}

async fn whatever_else_is_among_the_dead_letters_is_parked(stack: Stack) {
    let mut parked = stack.record_parked().await;
    let dead = stack.names().dead();
    stack.bystander().declare(&dead).await.expect("the queue can be declared");
    let coordinator = stack.coordinator();
    let mut request = Message { body: "1".into(), ..Message::default() };
    request.properties.kind = Some("fanfare.request".into());
    // Nothing that is not the request's own aggregation queue is answered.
    request.properties.reply_to = Some(stack.names().parked().name.into());
    for message in [Message::default(), request] {
        stack.publish(&dead.name, message.clone()).await;
        let copy = parked.next().await;
        assert_eq!((copy.kind(), &copy.body), (message.kind(), &message.body));
        assert_eq!(copy.text("fanfare-parked-from"), Some(dead.name.as_str()));
    }
    stack.queue_has(&dead.name, "nothing", |state| state.messages == 0).await;
    coordinator.stop().await;
    assert_eq!(parked.rest().await, []);
}
