//! Services that tests invoke, in their own process or in a node's.

use std::time::Duration;

use fanfare_protocol::FinalPayload;
use fanfare_worker::{Context, Registration, service};
use serde::de::IgnoredAny;
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

/// `test.text` answers with so many characters.
pub fn text() -> Registration {
    service("test.text", |_: Context, characters: usize| async move { Ok("x".repeat(characters)) })
}

/// `test.whole` takes a final payload as it is, and tells `test.receipts` of it.
pub fn whole() -> Registration {
    service("test.whole", |context: Context, payload: FinalPayload| async move {
        let mut receipt = Receipt::default();
        for (_, result) in payload.data.iter() {
            receipt.add(result.response::<String>()?.len());
        }
        receipt.send(&context).await
    })
}

/// `test.stream` reads the results of a final payload one after the other, and tells `test.receipts` of them.
pub fn stream() -> Registration {
    let function = |context: Context, _: IgnoredAny| async move {
        let (mut results, mut receipt) = (context.results()?, Receipt::default());
        while let Some((_, result)) = results.next().await? {
            receipt.add(result.response::<String>()?.len());
        }
        receipt.send(&context).await
    };
    service("test.stream", function).streaming()
}

/// What `test.whole` and `test.stream` tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The service.
    pub service: String,
    /// Results that it was given.
    pub results: usize,
    /// Characters of their responses.
    pub characters: usize,
    /// Bytes of memory that its process has had at the most.
    pub peak_bytes: u64,
}

impl Receipt {
    fn add(&mut self, characters: usize) {
        self.results += 1;
        self.characters += characters;
    }

    async fn send(self, context: &Context) -> Result<(), fanfare_worker::ServiceError> {
        let (service, peak_bytes) = (context.service().to_string(), peak_bytes("self")?);
        context.send("test.receipts", Self { service, peak_bytes, ..self }).await?;
        Ok(())
    }
}

/// Bytes of memory that a process has had at the most.
///
/// # Errors
/// Where the system does not tell.
pub fn peak_bytes(process: &str) -> std::io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
    let kibibytes: Option<u64> = peak.and_then(|peak| peak.trim().parse().ok());
    kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| std::io::Error::other("no VmHWM"))
}

/// What `test.report` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The process that it runs in.
    pub process: u32,
    /// The target that it runs for.
    pub key: String,
}
