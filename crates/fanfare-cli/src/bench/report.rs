//! What was measured: for programs as JSON, for people as tables.

use std::fmt;

use fanfare::ServerInfo;
use serde::Serialize;

use super::case::Case;
use super::process::Usage;
use super::publisher::{Measured, Quantiles};
use super::raw::Limits;

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) fanfare: &'static str,
    pub(super) broker: String,
    pub(super) machine: String,
    pub(super) workers: usize,
    /// Invocations of a service that run at a time in one worker.
    pub(super) concurrency: usize,
    pub(super) coordinators: usize,
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    pub(super) cases: Vec<Outcome>,
}

/// What came of one case: medians of its rounds.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    #[serde(flatten)]
    pub(super) case: Case,
    pub(super) fan_outs_per_s: f64,
    pub(super) targets_per_s: f64,
    pub(super) invoke: Quantiles,
    pub(super) fan_in: Quantiles,
    pub(super) raw: Limits,
    /// Messages of one fan-out that have to flow.
    pub(super) messages: usize,
    /// Fan-outs per second that the raw limits allow.
    pub(super) limit_per_s: f64,
    /// The share of its limit that each round reached.
    pub(super) ratios: Vec<f64>,
    pub(super) ratio: f64,
    pub(super) usage: Roles,
}

/// What the processes of each role used in all measured rounds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Roles {
    pub(super) publisher: Usage,
    pub(super) worker: Usage,
    pub(super) coordinator: Usage,
}

/// One round: Fanfare's, and the limits right before and after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) measured: Measured,
    pub(super) limits: Limits,
    pub(super) usage: Roles,
}

impl Outcome {
    pub(super) fn of(case: Case, rounds: &[Round]) -> Self {
        let over = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
        let limit = |round: &Round| case.limit(round.limits.queues_per_s, round.limits.messages_per_s);
        let ratio = |round: &Round| round.measured.fan_outs_per_s / limit(round);
        let quantiles = |of: fn(&Measured) -> Quantiles| Quantiles {
            p50_ms: over(&|round| of(&round.measured).p50_ms),
            p99_ms: over(&|round| of(&round.measured).p99_ms),
        };
        let fan_outs_per_s = over(&|round| round.measured.fan_outs_per_s);
        Self {
            case,
            fan_outs_per_s,
            targets_per_s: fan_outs_per_s * case.width as f64,
            invoke: quantiles(|measured| measured.invoke),
            fan_in: quantiles(|measured| measured.fan_in),
            raw: Limits {
                messages_per_s: over(&|round| round.limits.messages_per_s),
                queues_per_s: over(&|round| round.limits.queues_per_s),
            },
            messages: case.messages().count(),
            limit_per_s: over(&limit),
            ratios: rounds.iter().map(ratio).collect(),
            ratio: over(&ratio),
            usage: rounds.iter().fold(Roles::default(), |sum, round| sum.and(round.usage)),
        }
    }
}

impl Roles {
    fn and(self, other: Self) -> Self {
        Self {
            publisher: self.publisher.and(other.publisher),
            worker: self.worker.and(other.worker),
            coordinator: self.coordinator.and(other.coordinator),
        }
    }
}

impl Report {
    pub(super) fn broker(server: &ServerInfo) -> String {
        format!("{} {}", server.product, server.version)
    }
}

impl fmt::Display for Report {
    /// Two tables in Markdown: what was reached, and what it took.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fanfare, broker, machine, workers, concurrency, coordinators, rounds, seconds, .. } = self;
        writeln!(f, "fanfare {fanfare} on {broker}; {machine}")?;
        writeln!(
            f,
            "workers: {workers}, with a concurrency of {concurrency}; coordinators: {coordinators}; medians of {rounds} rounds \
             of {seconds} s\n"
        )?;
        writeln!(
            f,
            "| width | bytes | on-target | fan-outs/s | targets/s | limit | **ratio** | raw messages/s | raw queues/s |"
        )?;
        writeln!(f, "|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        for outcome in &self.cases {
            let Outcome { fan_outs_per_s, targets_per_s, limit_per_s, ratio, raw, .. } = outcome;
            let Limits { messages_per_s, queues_per_s } = raw;
            write!(f, "{} | {fan_outs_per_s:.1} | {targets_per_s:.0} | {limit_per_s:.1} ", outcome.key())?;
            writeln!(f, "| **{ratio:.2}** | {messages_per_s:.0} | {queues_per_s:.0} |")?;
        }
        writeln!(
            f,
            "\n| width | bytes | on-target | invoke p50/p99 ms | fan-in p50/p99 ms | CPU s: publisher, worker, \
             coordinator | peak MiB: the same |"
        )?;
        writeln!(f, "|--:|--:|--:|--:|--:|--:|--:|")?;
        for outcome in &self.cases {
            let Roles { publisher, worker, coordinator } = outcome.usage;
            let cpu = [publisher, worker, coordinator].map(|usage| format!("{:.1}", usage.cpu_seconds));
            let memory =
                [publisher, worker, coordinator].map(|usage| (usage.peak_rss_bytes >> 20).to_string());
            let (invoke, fan_in) = (outcome.invoke, outcome.fan_in);
            writeln!(
                f,
                "{} | {invoke} | {fan_in} | {} | {} |",
                outcome.key(),
                cpu.join(", "),
                memory.join(", ")
            )?;
        }
        Ok(())
    }
}

impl Outcome {
    /// The first cells of its rows.
    fn key(&self) -> String {
        let Case { width, payload, on_target, .. } = self.case;
        format!("| {width} | {payload} | {on_target}")
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} / {:.1}", self.p50_ms, self.p99_ms)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_between_the_two() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
