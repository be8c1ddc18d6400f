//! Services that tests invoke, in their own process or in a node's.

use std::time::Duration;

use fanfare_worker::{Context, Registration, service};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// All of them.
#[must_use]
pub fn all(concurrency: usize) -> Vec<Registration> {
    let services = [echo(), fail(), sleep(), report(false), mortal()];
    services.into_iter().map(|service| service.concurrency(concurrency)).collect()
}

/// `test.echo` answers with what it is given.
pub fn echo() -> Registration {
    service("test.echo", |_: Context, payload: Value| async move { Ok(payload) })
}

/// `test.mortal` answers with what it is given, a little later, unless that is `"dies"`: of that its process dies.
pub fn mortal() -> Registration {
    service("test.mortal", |_: Context, payload: Value| async move {
        if payload == "dies" {
            std::process::abort();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(payload)
    })
}

/// `test.fail` fails, with its payload as the reason.
pub fn fail() -> Registration {
    service("test.fail", |_: Context, reason: String| async move { Err::<(), _>(reason.into()) })
}

/// `test.sleep` takes as many milliseconds as it is given, and answers with that number.
pub fn sleep() -> Registration {
    service("test.sleep", |_: Context, milliseconds: u64| async move {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        Ok(milliseconds)
    })
}

/// `test.report` tells `test.reports` where it runs, takes as many milliseconds as it is given, and answers with its process
/// id. One that hangs never answers.
pub fn report(hangs: bool) -> Registration {
    service("test.report", move |context: Context, milliseconds: u64| async move {
        let report = Report {
            process: std::process::id(),
            key: context.key().map(ToString::to_string).unwrap_or_default(),
        };
        context.send("test.reports", &report).await?;
        if hangs {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        Ok(report.process)
    })
}

/// What `test.report` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The process that it runs in.
    pub process: u32,
    /// The target that it runs for.
    pub key: String,
}
