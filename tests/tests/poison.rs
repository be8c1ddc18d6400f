//! A request that kills its worker, among many that do not.

use fanfare_publisher::Target;
use fanfare_tests::{Node, Stack, on_rabbitmq};
use tokio_util::sync::CancellationToken;

const NODE: &str = env!("CARGO_BIN_EXE_fanfare-test-node");

on_rabbitmq!(a_poison_target_among_200_good_ones_fails_and_they_all_succeed);

/// Starts a worker again whenever it dies, and returns how often it did.
async fn supervise(stack: Stack, redelivery_limit: u32, stop: CancellationToken) -> u32 {
    let limit = redelivery_limit.to_string();
    let mut deaths = 0;
    loop {
        let arguments = ["worker", "--prefetch", "10", "--redelivery-limit", &limit];
        let mut node = Node::start(NODE, &stack, &arguments);
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                node.kill().await;
                return deaths;
            }
            status = node.ended() => {
                assert!(!status.success(), "nobody has stopped it");
                deaths += 1;
            }
        }
    }
}

async fn a_poison_target_among_200_good_ones_fails_and_they_all_succeed(stack: Stack) {
    const GOOD: u32 = 200;
    const REDELIVERY_LIMIT: u32 = 5;
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let queue = stack.declare_service("test.mortal").await;
    let coordinator = stack.coordinator();
    let fanout = stack.publisher().fanout("my.source");
    let fanout = (0..GOOD).fold(fanout, |fanout, number| {
        let fanout = match number {
            10 => fanout.add(Target::new("test.mortal", "dies").key("poison")),
            _ => fanout,
        };
        fanout.add(Target::new("test.mortal", number).key(number.to_string()))
    });
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let stop = CancellationToken::new();
    let workers = [(); 3].map(|()| tokio::spawn(supervise(stack.clone(), REDELIVERY_LIMIT, stop.clone())));

    let payload = done.next_final().await;
    for number in 0..GOOD {
        let result = payload.get::<u32>(&number.to_string());
        assert_eq!(result.expect("it succeeded"), number);
    }
    let poison = payload.data.get("poison").expect("its result");
    let exception = poison.exception.as_deref().expect("it failed");
    assert!(exception.starts_with("the request is given up: it was delivered 7 times"), "{exception}");
    assert_eq!(payload.data.len(), GOOD as usize + 1);
    let copy = parked.next().await;
    assert_eq!(copy.text("fanfare-key"), Some("poison"));
    assert_eq!(copy.text("fanfare-parked-from"), Some(queue.as_str()));
    stack.ended([&accepted], coordinator).await;
    stop.cancel();
    let mut deaths = 0;
    for worker in workers {
        deaths += worker.await.expect("the supervisor does not panic");
    }
    assert_eq!(deaths, REDELIVERY_LIMIT + 1, "it is run as often as it is allowed to, and no more");
    assert_eq!(parked.rest().await, []);
}
