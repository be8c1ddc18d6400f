//! The processes that are measured, as seen by the one that started them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::role::{Order, Role};

/// How long a process may take to end once its input has ended.
const STOP_WITHIN: Duration = Duration::from_secs(40);
/// The unit of times in `/proc`, which Linux keeps at this whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// One of them. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What processes used. Nothing where the system has no `/proc`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// Of all of them together, in their measured rounds.
    pub(super) cpu_seconds: f64,
    /// Of the largest of them, from its start on.
    pub(super) peak_rss_bytes: u64,
    /// Of the largest of them, now.
    pub(super) rss_bytes: u64,
}

impl Process {
    /// Starts this program again, with the same flags and a role.
    pub(super) fn start(role: &Role) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .args(["--role", &serde_json::to_string(role)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start this program again")?;
        let input = child.stdin.take().context("its input is a pipe")?;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
        Ok(Self { child, input, output })
    }

    /// Has it run a round, and returns what it reports.
    pub(super) async fn round<T: DeserializeOwned>(&mut self, order: Order) -> Result<T> {
        self.input.write_all(format!("{}\n", serde_json::to_string(&order)?).as_bytes()).await?;
        let line =
            self.output.next_line().await?.context("a process of the benchmark has ended; see above")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// What it has used since its start.
    pub(super) fn usage(&self) -> Usage {
        self.child.id().and_then(Usage::of).unwrap_or_default()
    }

    /// Ends it by the end of its input.
    pub(super) async fn stop(self) {
        let Self { mut child, input, .. } = self;
        drop(input);
        // Dropped where it does not end in time, which kills it.
        let _ = timeout(STOP_WITHIN, child.wait()).await;
    }
}

impl Usage {
    /// What a process has used since its start.
    pub(super) fn of(process: u32) -> Option<Self> {
        let folder = Path::new("/proc").join(process.to_string());
        parse(
            &fs::read_to_string(folder.join("stat")).ok()?,
            &fs::read_to_string(folder.join("status")).ok()?,
        )
    }

    /// Begins the peak of a process's memory anew, where its owner or root asks for it.
    pub(super) fn reset_peak(process: u32) {
        let _ = fs::write(Path::new("/proc").join(process.to_string()).join("clear_refs"), "5");
    }

    /// What several have used, from readings at the begin and at the end.
    pub(super) fn between(before: &[Self], after: &[Self]) -> Self {
        let cpu = |of: &[Self]| of.iter().map(|usage| usage.cpu_seconds).sum::<f64>();
        Self {
            cpu_seconds: cpu(after) - cpu(before),
            peak_rss_bytes: after.iter().map(|usage| usage.peak_rss_bytes).max().unwrap_or_default(),
            rss_bytes: after.iter().map(|usage| usage.rss_bytes).max().unwrap_or_default(),
        }
    }

    /// With another round.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
            rss_bytes: other.rss_bytes,
        }
    }
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The second field is a name in parentheses, which may hold anything. User and system time are the 14th and the 15th.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    let cpu_seconds = (ticks()? + ticks()?) / TICKS_PER_SECOND;
    let bytes = |name| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    Some(Usage { cpu_seconds, peak_rss_bytes: bytes("VmHWM:")?, rss_bytes: bytes("VmRSS:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_past_a_name_with_anything_in_it() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 500 0 0 0 250 50 0 0 20 0 4 0 100 1000 200";
        let usage = parse(stat, "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n").unwrap();
        let expected = Usage { cpu_seconds: 3.0, peak_rss_bytes: 2048 * 1024, rss_bytes: 1024 * 1024 };
        assert_eq!(usage, expected);
    }
}
