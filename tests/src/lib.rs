//! What the end-to-end tests share: a [`Stack`] of Fanfare's parts on a broker, with queues of its own.
//!
//! Most tests are written once and run on both brokers, by [`on_both_brokers!`]. Those on RabbitMQ need
//! `FANFARE_TEST_BROKER`, which `cargo xtask test` provides; without it they fail, and say so.

mod by_hand;
pub mod chaos;
mod cluster;
mod log;
mod mortal;
mod operator;
pub mod oracle;
mod recorder;
mod running;
pub mod services;
pub mod simulation;
mod stack;

pub use by_hand::answer;
pub use cluster::Cluster;
pub use log::Log;
pub use mortal::{Death, Mortal, Step};
pub use operator::Operator;
pub use recorder::Recorder;
pub use running::{Doomed, Node, Running};
pub use stack::{Stack, run};

use std::fmt::Debug;
use std::time::Duration;

/// After which a test gives up waiting for something that should have happened. It bounds failures and is never waited
/// for in a test that passes.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Whether the tests that can take long are to do so: `cargo xtask test --full`.
#[must_use]
pub fn full() -> bool {
    std::env::var_os("FANFARE_TEST_FULL").is_some()
}

/// Turns async functions that take a [`Stack`] into tests on the in-memory broker and on RabbitMQ.
#[macro_export]
macro_rules! on_both_brokers {
    ($($name:ident),+ $(,)?) => {
        $crate::tests_on!(in_memory, $crate::Stack::in_memory(), $($name),+);
        $crate::on_rabbitmq!($($name),+);
    };
}

/// Turns async functions that take a [`Stack`] into tests on both brokers, with fan-outs that share two shards.
#[macro_export]
macro_rules! in_shards {
    ($($name:ident),+ $(,)?) => {
        mod in_shards {
            use super::{$($name),+};
            $crate::tests_on!(in_memory, $crate::Stack::in_memory().sharing(2), $($name),+);
            $crate::tests_on!(on_rabbitmq, $crate::Stack::on_rabbitmq().sharing(2), $($name),+);
        }
    };
}

/// Turns async functions that take a [`Stack`] into tests on RabbitMQ.
#[macro_export]
macro_rules! on_rabbitmq {
    ($($name:ident),+ $(,)?) => {
        $crate::tests_on!(on_rabbitmq, $crate::Stack::on_rabbitmq(), $($name),+);
    };
}

/// Turns async functions that take a [`Stack`] into tests on RabbitMQ, with fan-outs that share two shards.
#[macro_export]
macro_rules! in_shards_on_rabbitmq {
    ($($name:ident),+ $(,)?) => {
        mod in_shards {
            use super::{$($name),+};
            $crate::tests_on!(on_rabbitmq, $crate::Stack::on_rabbitmq().sharing(2), $($name),+);
        }
    };
}

/// A module of tests on one kind of stack, which the other macros are made of.
#[doc(hidden)]
#[macro_export]
macro_rules! tests_on {
    ($module:ident, $stack:expr, $($name:ident),+) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::run($stack, super::$name).await;
            })+
        }
    };
}

/// Waits until a condition holds, looking every few milliseconds, and fails the test where it does not within
/// [`PATIENCE`].
///
/// # Panics
/// Where the condition does not come to hold.
pub async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    eventually_seen(what, condition, |&holds| holds).await;
}

/// Looks every few milliseconds until what it sees is as wanted, and fails the test with what it saw last where it is not within
/// [`PATIENCE`].
///
/// # Panics
/// Where it does not come to be as wanted.
pub async fn eventually_seen<T: Debug, F: Future<Output = T>>(
    what: &str,
    mut look: impl FnMut() -> F,
    wanted: impl Fn(&T) -> bool,
) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = look().await;
        if wanted(&seen) {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited {PATIENCE:?} for this in vain: {what}; seen last: {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
