//! A request that kills its worker, among many that do not.

use std::os::unix::process::ExitStatusExt;

use fanfare_publisher::Target;
use fanfare_tests::{Node, Stack, in_shards_on_rabbitmq, on_rabbitmq};
use tokio_util::sync::CancellationToken;

const SIGKILL: i32 = 9;
const NODE: &str = env!("CARGO_BIN_EXE_fanfare-test-node");

on_rabbitmq!(
    a_poison_target_among_200_good_ones_fails_and_they_all_succeed,
    several_poison_targets_fail_none_of_those_between_them,
);

in_shards_on_rabbitmq!(
    a_poison_target_among_200_good_ones_fails_and_they_all_succeed,
    several_poison_targets_fail_none_of_those_between_them,
);

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
                // It may have died before that.
                let died = node.kill().await.signal() != Some(SIGKILL);
                return deaths + u32::from(died);
            }
            status = node.ended() => {
                assert!(!status.success(), "nobody has stopped it");
                deaths += 1;
            }
        }
    }
}

async fn a_poison_target_among_200_good_ones_fails_and_they_all_succeed(stack: Stack) {
    all_but_the_poison_succeed(stack, 201, &[10], 3, 5).await;
}

async fn several_poison_targets_fail_none_of_those_between_them(stack: Stack) {
    all_but_the_poison_succeed(stack, 10, &[0, 5, 9], 2, 5).await;
}

/// Invokes so many targets, of which those at some places kill whoever runs them.
async fn all_but_the_poison_succeed(
    stack: Stack,
    targets: u32,
    poison: &[u32],
    workers: usize,
    redelivery_limit: u32,
) {
    let mut done = stack.record("my.done").await;
    let mut parked = stack.record_parked().await;
    let queue = stack.declare_service("test.mortal").await;
    let coordinator = stack.coordinator();
    let fanout = (0..targets).fold(stack.publisher().fanout("my.source"), |fanout, number| {
        let target = match poison.contains(&number) {
            true => Target::new("test.mortal", "dies"),
            false => Target::new("test.mortal", number),
        };
        fanout.add(target.key(number.to_string()))
    });
    let accepted = fanout.on_final("my.done").invoke().await.expect("accepted");
    let stop = CancellationToken::new();
    let supervised = |_| tokio::spawn(supervise(stack.clone(), redelivery_limit, stop.clone()));
    let supervisors: Vec<_> = (0..workers).map(supervised).collect();

    // Of several, one may be counted again while it waits in the worker that another one kills.
    let given_up = match poison {
        [_] => format!("the request is given up: it was delivered {} times", redelivery_limit + 2),
        _ => "the request is given up: it was delivered".to_owned(),
    };
    let payload = done.next_final().await;
    assert_eq!(payload.data.len(), targets as usize);
    for number in 0..targets {
        let key = number.to_string();
        if poison.contains(&number) {
            let exception =
                payload.data.get(&key).expect("its result").exception.as_deref().expect("it failed");
            assert!(exception.starts_with(&given_up), "{exception}");
        } else {
            assert_eq!(payload.get::<u32>(&key).expect("it succeeded"), number);
        }
    }
    let mut copies = Vec::new();
    for _ in poison {
        let copy = parked.next().await;
        assert_eq!(copy.text("fanfare-parked-from"), Some(queue.as_str()));
        copies.push(copy.text("fanfare-key").expect("its key").parse::<u32>().expect("a number"));
    }
    copies.sort_unstable();
    assert_eq!(copies, poison);
    stack.ended([&accepted], coordinator).await;
    stop.cancel();
    let mut deaths = 0;
    for supervisor in supervisors {
        deaths += supervisor.await.expect("the supervisor does not panic");
    }
    let most = (redelivery_limit + 1) * u32::try_from(poison.len()).expect("a few");
    let least = redelivery_limit + 1;
    assert!((least..=most).contains(&deaths), "{deaths} deaths: each runs as often as it is allowed to");
    assert_eq!(parked.rest().await, []);
}
