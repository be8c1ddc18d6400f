use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

/// The broker that chaos kills. Another process owns it, and tells by environment variables how to get at it.
#[derive(Debug, Clone)]
pub(crate) struct ChaosBroker {
    url: String,
    restart: String,
    control: String,
}

/// A queue, as the broker's own tool lists it.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    messages: u64,
}

impl ChaosBroker {
    /// The one of the environment.
    pub(crate) fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask chaos`"))
        };
        Ok(Self {
            url: variable("FANFARE_TEST_RESTART_BROKER")?,
            restart: variable("FANFARE_TEST_RESTART_COMMAND")?,
            control: variable("FANFARE_TEST_RESTART_CONTROL")?,
        })
    }

    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its URL by way of another port.
    pub(crate) fn url_by(&self, port: u16) -> Result<String> {
        let (before, path, _) = self.split()?;
        Ok(format!("{before}127.0.0.1:{port}/{path}"))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.split().map(|(_, _, address)| address)
    }

    fn split(&self) -> Result<(&str, &str, SocketAddr)> {
        let split = || {
            let (before, rest) = self.url.split_at(self.url.find('@')? + 1);
            let (address, path) = rest.split_once('/')?;
            Some((before, path, address.parse().ok()?))
        };
        split().with_context(|| format!("{} is not of the form scheme://user@address:port/path", self.url))
    }

    /// Kills it by SIGKILL and starts it again. Returns when it accepts connections.
    pub(crate) async fn kill_and_start(&self) -> Result<()> {
        let status = shell(&format!("{} --kill", self.restart)).status().await?;
        ensure_success(status, &self.restart)
    }

    /// Messages of each queue whose name starts with a prefix, those included that were handed out and are not acked.
    pub(crate) async fn messages(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let list = format!("{} -q list_queues name messages --formatter json", self.control);
        let output = shell(&list).stdout(Stdio::piped()).output().await?;
        ensure_success(output.status, &list)?;
        let queues: Vec<Listed> = serde_json::from_slice(&output.stdout).context("queues in JSON")?;
        let of_prefix = queues.into_iter().filter(|queue| queue.name.starts_with(prefix));
        Ok(of_prefix.map(|queue| (queue.name, queue.messages)).collect())
    }
}

fn ensure_success(status: ExitStatus, command: &str) -> Result<()> {
    ensure!(status.success(), "`{command}`: {status}");
    Ok(())
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).kill_on_drop(true);
    shell
}
