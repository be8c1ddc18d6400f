//! What was measured: for programs as JSON, for people as tables.

use std::fmt;

use fanfare::ServerInfo;
use serde::Serialize;

use super::case::Case;
use super::process::Usage;
use super::publisher::{Measured, Quantiles};
use super::raw::{Cost, Flow, Hops, Limits, Queues};

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) fanfare: &'static str,
    pub(super) broker: String,
    pub(super) machine: String,
    /// In shared aggregation.
    pub(super) shards: u32,
    pub(super) service_time_ms: u128,
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
    /// Under full load.
    pub(super) invoke: Quantiles,
    pub(super) fan_in: Quantiles,
    /// One fan-out at a time.
    pub(super) alone: Alone,
    pub(super) raw: Limits,
    /// Messages of one fan-out that have to flow.
    pub(super) messages: usize,
    /// Fan-outs per second that the raw limits allow.
    pub(super) limit_per_s: f64,
    pub(super) limit_of_used_queues_per_s: f64,
    /// The share of its limit that each round reached.
    pub(super) ratios: Vec<f64>,
    pub(super) ratio: f64,
    pub(super) ratio_of_used_queues: f64,
    /// Of the limit that messages have which say of themselves what the protocol has them say.
    pub(super) ratio_of_labelled: f64,
    /// Fan-outs of all measured rounds, which `usage` is for.
    pub(super) fan_outs: usize,
    pub(super) usage: Roles,
    /// CPU time that the messages of a fan-out take through plain lapin, as a share of what Fanfare and the broker took for it. Where
    /// the processors are the limit, it is the ratio that a machine with nothing else to do would show.
    pub(super) cpu_share: f64,
}

/// What one fan-out takes where it is the only one, beside two messages of plain lapin.
#[derive(Debug, Serialize)]
pub(super) struct Alone {
    pub(super) invoke: Quantiles,
    pub(super) fan_in: Quantiles,
    pub(super) two_hops: Quantiles,
}

/// What the processes of each role used in all measured rounds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Roles {
    pub(super) publisher: Usage,
    pub(super) worker: Usage,
    pub(super) coordinator: Usage,
    /// Nothing where its process is not known.
    pub(super) broker: Usage,
}

/// One round: Fanfare's, and the limits right before and after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) measured: Measured,
    pub(super) limits: Limits,
    pub(super) alone: Measured,
    pub(super) hops: Hops,
    pub(super) usage: Roles,
}

impl Outcome {
    pub(super) fn of(case: Case, rounds: &[Round]) -> Self {
        let over = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
        let limit = |round: &Round| case.limit(&round.limits);
        let limit_of_used = |round: &Round| case.limit_of_used_queues(&round.limits);
        let ratio = |round: &Round| round.measured.fan_outs_per_s / limit(round);
        let quantiles = |of: fn(&Round) -> Quantiles| Quantiles {
            p50_ms: over(&|round| of(round).p50_ms),
            p99_ms: over(&|round| of(round).p99_ms),
        };
        let flow = |of: fn(&Limits) -> Flow| Flow {
            messages_per_s: over(&|round| of(&round.limits).messages_per_s),
            cpu: Cost {
                client_us: over(&|round| of(&round.limits).cpu.client_us),
                broker_us: over(&|round| of(&round.limits).cpu.broker_us),
            },
        };
        let fan_outs_per_s = over(&|round| round.measured.fan_outs_per_s);
        let cpu_share = |round: &Round| {
            let Cost { client_us, broker_us } = round.limits.bare.cpu;
            let raw = (client_us + broker_us) * case.messages().count() as f64 / 1e6;
            raw * round.measured.fan_outs as f64 / round.usage.cpu_seconds()
        };
        Self {
            case,
            fan_outs_per_s,
            targets_per_s: fan_outs_per_s * case.width as f64,
            invoke: quantiles(|round| round.measured.invoke),
            fan_in: quantiles(|round| round.measured.fan_in),
            alone: Alone {
                invoke: quantiles(|round| round.alone.invoke),
                fan_in: quantiles(|round| round.alone.fan_in),
                two_hops: quantiles(|round| round.hops.two_hops),
            },
            raw: Limits {
                bare: flow(|limits| limits.bare),
                labelled: flow(|limits| limits.labelled),
                queues: queues(rounds),
            },
            messages: case.messages().count(),
            limit_per_s: over(&limit),
            limit_of_used_queues_per_s: over(&limit_of_used),
            ratios: rounds.iter().map(ratio).collect(),
            ratio: over(&ratio),
            ratio_of_used_queues: over(&|round| round.measured.fan_outs_per_s / limit_of_used(round)),
            ratio_of_labelled: over(&|round| {
                round.measured.fan_outs_per_s / case.limit_of_labelled(&round.limits)
            }),
            fan_outs: rounds.iter().map(|round| round.measured.fan_outs).sum(),
            usage: rounds.iter().fold(Roles::default(), |sum, round| sum.and(round.usage)),
            cpu_share: over(&cpu_share),
        }
    }
}

/// What comes and goes, where queues do.
fn queues(rounds: &[Round]) -> Option<Queues> {
    let over = |value: fn(&Queues) -> f64| {
        let values: Option<Vec<f64>> =
            rounds.iter().map(|round| round.limits.queues.as_ref().map(value)).collect();
        values.map(median)
    };
    Some(Queues { empty_per_s: over(|of| of.empty_per_s)?, used_per_s: over(|of| of.used_per_s)? })
}

impl Roles {
    fn cpu_seconds(&self) -> f64 {
        [self.publisher, self.worker, self.coordinator, self.broker]
            .iter()
            .map(|usage| usage.cpu_seconds)
            .sum()
    }

    fn and(self, other: Self) -> Self {
        Self {
            publisher: self.publisher.and(other.publisher),
            worker: self.worker.and(other.worker),
            coordinator: self.coordinator.and(other.coordinator),
            broker: self.broker.and(other.broker),
        }
    }
}

impl Report {
    pub(super) fn broker(server: &ServerInfo) -> String {
        format!("{} {}", server.product, server.version)
    }
}

impl fmt::Display for Report {
    /// Three tables in Markdown: what was reached under full load, what it took, and how fast one fan-out is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fanfare, broker, machine, shards, concurrency, coordinators, rounds, seconds, .. } = self;
        writeln!(f, "fanfare {fanfare} on {broker}; {machine}")?;
        writeln!(
            f,
            "targets take {} ms; concurrency of a worker: {concurrency}; coordinators: {coordinators}; shards where these \
             are shared: {shards}; medians of {rounds} rounds of {seconds} s\n",
            self.service_time_ms
        )?;
        head(
            f,
            "fan-outs/s | targets/s | limit/s: empty queues, used queues | **ratio**: empty, used, labelled | raw \
             messages/s: bare, labelled | raw queues/s: empty, used",
        )?;
        for outcome in &self.cases {
            let Outcome { case, fan_outs_per_s, targets_per_s, limit_per_s, ratio, raw, .. } = outcome;
            let Outcome { limit_of_used_queues_per_s, ratio_of_used_queues, ratio_of_labelled, .. } = outcome;
            let Limits { bare, labelled, queues } = raw;
            let queues = queues.map_or("none".to_owned(), |queues| {
                format!("{:.0}, {:.0}", queues.empty_per_s, queues.used_per_s)
            });
            write!(f, "{case} | {fan_outs_per_s:.1} | {targets_per_s:.0} ")?;
            write!(f, "| {limit_per_s:.1}, {limit_of_used_queues_per_s:.1} ")?;
            write!(f, "| **{ratio:.2}**, {ratio_of_used_queues:.2}, {ratio_of_labelled:.2} ")?;
            writeln!(f, "| {:.0}, {:.0} | {queues} |", bare.messages_per_s, labelled.messages_per_s)?;
        }
        writeln!(f)?;
        head(
            f,
            "invoke p50/p99 ms | fan-in p50/p99 ms | CPU µs a target: publisher, worker, coordinator, broker | CPU µs a raw \
             message: client, broker; the same labelled | **share** of CPU that raw messages take | peak MiB: the roles",
        )?;
        for outcome in &self.cases {
            let Outcome { case, invoke, fan_in, usage, fan_outs, .. } = outcome;
            let targets = (fan_outs * case.width) as f64;
            let roles = [usage.publisher, usage.worker, usage.coordinator, usage.broker];
            let cpu = roles.map(|usage| format!("{:.0}", usage.cpu_seconds * 1e6 / targets));
            let memory = roles.map(|usage| (usage.peak_rss_bytes >> 20).to_string());
            write!(f, "{case} | {invoke} | {fan_in} | {} ", cpu.join(", "))?;
            write!(f, "| {}; {} ", outcome.raw.bare.cpu, outcome.raw.labelled.cpu)?;
            writeln!(f, "| **{:.2}** | {} |", outcome.cpu_share, memory.join(", "))?;
        }
        writeln!(f, "\nOne fan-out at a time:\n")?;
        head(f, "invoke p50/p99 ms | fan-in p50/p99 ms | two raw hops p50/p99 ms")?;
        for Outcome { case, alone: Alone { invoke, fan_in, two_hops }, .. } in &self.cases {
            writeln!(f, "{case} | {invoke} | {fan_in} | {two_hops} |")?;
        }
        Ok(())
    }
}

/// The head of a table, with the columns that tell of which case a row is.
fn head(f: &mut fmt::Formatter<'_>, columns: &str) -> fmt::Result {
    writeln!(f, "| aggregation | width | bytes | on-target | workers | {columns} |")?;
    writeln!(f, "|---|{}", "--:|".repeat(4 + columns.split('|').count()))
}

impl fmt::Display for Case {
    /// The first cells of its rows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { aggregation, width, payload, on_target, workers } = self;
        write!(f, "| {aggregation} | {width} | {payload} | {on_target} | {workers}")
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}, {:.0}", self.client_us, self.broker_us)
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
