//! Services that tests invoke, in their own process or in a node's.

use std::time::Duration;

use fanfare_worker::{Context, Registration, service};
use serde_json::Value;

/// All of them.
#[must_use]
pub fn all(concurrency: usize) -> Vec<Registration> {
    vec![echo(), fail(), sleep()].into_iter().map(|service| service.concurrency(concurrency)).collect()
}

/// `test.echo` answers with what it is given.
#[must_use]
pub fn echo() -> Registration {
    service("test.echo", |_: Context, payload: Value| async move { Ok(payload) })
}

/// `test.fail` fails, with its payload as the reason.
#[must_use]
pub fn fail() -> Registration {
    service("test.fail", |_: Context, reason: String| async move { Err::<(), _>(reason.into()) })
}

/// `test.sleep` takes as many milliseconds as it is given, and answers with that number.
#[must_use]
pub fn sleep() -> Registration {
    service("test.sleep", |_: Context, milliseconds: u64| async move {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        Ok(milliseconds)
    })
}
