//! Provides a broker for `fanfare bench`, and holds a short form of it against what is recorded.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::broker::{Broker, Way};
use crate::peers::Peers;
use crate::process::{self, Group};
use crate::{environment, say};

/// What is measured where nobody says what: both ways to gather results.
const BOTH: [&str; 4] = ["--modes", "per-cid,shared", "--shards", "4"];
/// What the short form measures: fan-outs in which the queue counts, and such in which the messages do.
const SHORT: [&str; 10] =
    ["--widths", "2,10,100", "--payload", "100", "--on-target", "0,1", "--rounds", "3", "--seconds", "1"];
const SHORT_LIMIT: Duration = Duration::from_secs(600);
/// How throughput grows with workers.
const SCALING: [&str; 16] = [
    "--widths",
    "100",
    "--payload",
    "100",
    "--on-target",
    "0",
    "--workers",
    "1,2,4,8",
    "--concurrency",
    "4",
    "--service-time",
    "20ms",
    "--rounds",
    "2",
    "--seconds",
    "2",
];
/// What the short form is held against, from the root of the repository.
const RECORDED: &str = "docs/bench/short.json";
/// How much of what is recorded is to be reached. Runs differ by less than this leaves.
const LEAST: f64 = 2.0 / 3.0;
/// The same of the clients' CPU time: what a plain message takes of it differs by nearly a third from one run to the next.
const LEAST_OF_CLIENTS: f64 = 1.0 / 2.0;

/// Options of `cargo xtask bench`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                                       everything, in about an hour
  cargo xtask bench -- --widths 10,100 --payload 100      as `fanfare bench --help` says
  cargo xtask bench --short                               some minutes, for CI; fails where a ratio has fallen by a third, or
                                                          that of the clients' CPU time by a half
  cargo xtask bench --short --record                      notes the ratios of this machine for that
  cargo xtask bench --peers                               everything, more workers, memory, and Celery's chords and BullMQ's flows
                                                          beside it; figures and plots go to target/bench, in over an hour
  cargo xtask bench --peers -- --widths 2,10,100 --payload 100 --on-target 0 --rounds 1
                                                          the same of fewer cases

The broker is FANFARE_TEST_BROKER (an AMQP URL) where it is set, else one that is started for this.")]
pub(crate) struct Options {
    /// Measures a few cases only, and compares them with docs/bench/short.json.
    #[arg(long)]
    short: bool,

    /// Writes docs/bench/short.json instead of comparing with it.
    #[arg(long, requires = "short")]
    record: bool,

    /// Measures all that there is, and Celery and BullMQ beside it, for which it installs what they need into target/peers.
    #[arg(long, conflicts_with = "short")]
    peers: bool,

    /// What provides the broker.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    from: Way,

    /// Arguments for `fanfare bench`.
    #[arg(last = true, value_name = "ARGUMENTS", conflicts_with = "short")]
    bench: Vec<String>,
}

/// What of the limit a case reaches, each a share of 1 and better where it is higher. They go by the case.
type Measured = BTreeMap<String, Ratios>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ratios {
    /// Of fan-outs per second: of each round. It falls where somebody waits, and where other programs take the processors too, so the best
    /// of the rounds is held against what is recorded.
    by_time: Vec<f64>,
    /// Of CPU time: what the messages alone take, of what all processes took.
    by_cpu: f64,
    /// The same without the broker, in which queues that come and go outweigh all else.
    by_clients_cpu: f64,
}

/// Builds `fanfare` and has it measure.
pub(crate) fn run(options: &Options) -> Result<()> {
    process::raise_open_files();
    let mut build = environment::cargo();
    build.args(["build", "--release", "--locked", "--package", "fanfare-cli", "--bin", "fanfare"]);
    ensure!(Group::spawn(&mut build)?.wait(None)?.success(), "it could not be built");
    let broker = match environment::variable("FANFARE_TEST_BROKER") {
        Some(url) => Broker::at(&url)?,
        None => Broker::start(options.from, 1, false)?.pop().expect("one broker was asked for"),
    };
    say(format_args!("measuring on {broker}"));
    let bench = || {
        let mut bench = Command::new(environment::target().join("release/fanfare"));
        bench.arg("bench").env("FANFARE_BROKER", broker.url()).current_dir(environment::root());
        if let Some(pid) = broker.pid() {
            bench.args(["--broker-pid", &pid.to_string()]);
        }
        bench
    };
    if options.peers {
        return everything(broker.url(), bench, &options.bench);
    }
    if !options.short {
        let everything = options.bench.is_empty();
        return measure(bench().args(everything.then_some(BOTH).iter().flatten()).args(&options.bench), None);
    }
    let short = || measured(&bench_short(&mut bench())?);
    let file = environment::root().join(RECORDED);
    if options.record {
        let text = serde_json::to_string_pretty(&short()?)? + "\n";
        return fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()));
    }
    let (recorded, first) = (recorded(&file)?, short()?);
    let Err(fallen) = compare(&first, &recorded) else { return Ok(()) };
    // Another program may have taken the processors for a while. What has become dearer is so again.
    say(format_args!("{fallen:#}; measuring again"));
    compare(&better(first, short()?), &recorded)
}

fn measure(bench: &mut Command, limit: Option<Duration>) -> Result<()> {
    ensure!(Group::spawn(bench)?.wait(limit)?.success(), "it could not be measured");
    Ok(())
}

/// Measures Fanfare, its peers beside it, how it grows with workers, and what memory it takes. Prints the tables, and writes
/// figures and plots into `target/bench`.
fn everything(broker: &str, bench: impl Fn() -> Command, cases: &[String]) -> Result<()> {
    let folder = environment::target().join("bench");
    fs::create_dir_all(&folder)?;
    let (figures, others) = (folder.join("figures.json"), folder.join("peers.jsonl"));
    let peers = Peers::measure(broker)?;
    fs::write(&others, peers.lines()).with_context(|| format!("cannot write {}", others.display()))?;
    let mut all = bench();
    all.args(BOTH).args(cases).arg("--json").arg(&figures);
    measure(all.arg("--plot").arg(&folder).arg("--beside").arg(&others), None)?;
    let table = peers.table(&fs::read_to_string(&figures)?)?;
    ensure!(table.lines().count() > 2, "nothing was measured of Fanfare with the peers' widths and payload");
    write!(std::io::stdout(), "\n{table}\n").context("cannot print the table")?;
    let mut scaling = bench();
    scaling.args(SCALING).arg("--json").arg(folder.join("workers.json"));
    measure(scaling.arg("--plot").arg(&folder), None)?;
    for mode in ["per-cid", "shared"] {
        let file = folder.join(format!("memory-{mode}.json"));
        measure(bench().args(["--memory", "--modes", mode, "--shards", "4", "--json"]).arg(file), None)?;
    }
    say(format_args!("figures and plots are in {}", folder.display()));
    Ok(())
}

/// Runs the short form, and returns its figures.
fn bench_short(bench: &mut Command) -> Result<String> {
    let figures = environment::target().join("bench-short.json");
    measure(bench.args(BOTH).args(SHORT).arg("--json").arg(&figures), Some(SHORT_LIMIT))?;
    fs::read_to_string(&figures).with_context(|| format!("cannot read {}", figures.display()))
}

fn recorded(file: &PathBuf) -> Result<Measured> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("cannot read {}: make it with `cargo xtask bench --short --record`", file.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a map of ratios", file.display()))
}

fn measured(report: &str) -> Result<Measured> {
    let report: Value = serde_json::from_str(report)?;
    let cases = report["cases"].as_array().context("the figures have no cases")?;
    let ratios = |case: &Value| {
        let aggregation = case["aggregation"].as_str().context("a case has no aggregation")?;
        let key = format!(
            "{aggregation}, width {}, {} bytes, {} on-target",
            case["width"], case["payload"], case["on_target"]
        );
        let broker = case["raw"]["cpu"]["broker_us"].as_f64().filter(|us| *us > 0.0);
        broker.context(
            "the broker's process is not known: leave FANFARE_TEST_BROKER unset, so that one is started",
        )?;
        let number = |value: &Value| value.as_f64().with_context(|| format!("a figure is missing of {key}"));
        let share = |share: f64| (share * 1_000.0).round() / 1_000.0;
        let by_time = case["ratios"].as_array().with_context(|| format!("{key} has no ratios"))?;
        let roles = ["publisher", "worker", "coordinator"];
        let seconds = roles.map(|role| number(&case["usage"][role]["cpu_seconds"]));
        let seconds = seconds.into_iter().sum::<Result<f64>>()?;
        let raw_us = number(&case["raw"]["cpu"]["client_us"])? * number(&case["messages"])?;
        let ratios = Ratios {
            by_time: by_time.iter().map(|ratio| number(ratio).map(share)).collect::<Result<_>>()?,
            by_cpu: share(number(&case["cpu_share"])?),
            by_clients_cpu: share(raw_us * number(&case["fan_outs"])? / 1e6 / seconds),
        };
        Ok((key, ratios))
    };
    cases.iter().map(ratios).collect()
}

/// What was better of two runs.
fn better(mut one: Measured, other: Measured) -> Measured {
    for (case, ratios) in other {
        let Some(better) = one.get_mut(&case) else { continue };
        better.by_time.extend(ratios.by_time);
        better.by_cpu = better.by_cpu.max(ratios.by_cpu);
        better.by_clients_cpu = better.by_clients_cpu.max(ratios.by_clients_cpu);
    }
    one
}

/// Fails where a ratio has fallen too far, naming each that has.
fn compare(measured: &Measured, recorded: &Measured) -> Result<()> {
    let mut fallen = Vec::new();
    for (case, before) in recorded {
        let now = measured.get(case).with_context(|| format!("{case} is recorded, but was not measured"))?;
        let best = now.by_time.iter().copied().fold(0.0, f64::max);
        let ratios = [
            ("of the limit is reached", best, median(&before.by_time), LEAST),
            ("of all CPU time is what the messages alone take", now.by_cpu, before.by_cpu, LEAST),
            (
                "of the clients' CPU time is what the messages alone take",
                now.by_clients_cpu,
                before.by_clients_cpu,
                LEAST_OF_CLIENTS,
            ),
        ];
        let told = ratios.map(|(_, now, before, _)| format!("{now:.3} ({before:.3} recorded)"));
        say(format_args!(
            "{case}: by time {}, by CPU time {}, by that of clients {}",
            told[0], told[1], told[2]
        ));
        let has_fallen = ratios.iter().filter(|(_, now, before, least)| *now < before * least);
        fallen.extend(has_fallen.map(|(what, now, before, _)| {
            format!("in {case}, {now:.3} {what}, and {before:.3} is recorded")
        }));
    }
    for case in measured.keys().filter(|case| !recorded.contains_key(*case)) {
        say(format_args!("{case}: not recorded"));
    }
    if fallen.is_empty() {
        return Ok(());
    }
    bail!(
        "{}; find what has become dearer, or record it with `cargo xtask bench --short --record` where it has to be",
        fallen.join("; ")
    )
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(by_time: [f64; 3], by_cpu: f64, by_clients_cpu: f64) -> Measured {
        let ratios = Ratios { by_time: by_time.to_vec(), by_cpu, by_clients_cpu };
        Measured::from([("shared, width 10, 100 bytes, 0 on-target".to_owned(), ratios)])
    }

    #[test]
    fn each_ratio_may_fall_by_so_much_and_no_more() {
        let recorded = ratios([0.6, 0.3, 0.9], 0.6, 0.06);
        compare(&ratios([0.1, 0.41, 0.2], 0.41, 0.031), &recorded).unwrap();
        for (fallen, what) in [
            (ratios([0.1, 0.39, 0.2], 0.6, 0.06), "0.390 of the limit is reached, and 0.600 is recorded"),
            (ratios([0.6; 3], 0.39, 0.06), "0.390 of all CPU time is what the messages alone take"),
            (
                ratios([0.6; 3], 0.6, 0.029),
                "0.029 of the clients' CPU time is what the messages alone take, and 0.060 is recorded",
            ),
        ] {
            let error = compare(&fallen, &recorded).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("in shared, width 10, 100 bytes, 0 on-target, {what}")),
                "{error}"
            );
        }
        assert!(compare(&Measured::new(), &recorded).is_err());
    }

    #[test]
    fn of_two_runs_the_better_figures_count() {
        let both = better(ratios([0.1, 0.2, 0.3], 0.6, 0.02), ratios([0.4, 0.3, 0.2], 0.5, 0.05));
        let Ratios { by_time, by_cpu, by_clients_cpu } = both.values().next().unwrap();
        assert_eq!(by_time[..], [0.1, 0.2, 0.3, 0.4, 0.3, 0.2]);
        assert_eq!((*by_cpu, *by_clients_cpu), (0.6, 0.05));
    }

    #[test]
    fn ratios_are_read_from_the_figures() {
        let figures = |broker: f64| {
            let case = format!(
                r#"{{"aggregation": "shared", "width": 10, "payload": 100, "on_target": 0, "cpu_share": 0.601, "messages": 22,
                    "fan_outs": 1000, "ratios": [0.5, 0.7, 0.6],
                    "usage": {{"publisher": {{"cpu_seconds": 0.5}}, "worker": {{"cpu_seconds": 0.25}}, "coordinator": {{"cpu_seconds": 0.25}}}},
                    "raw": {{"cpu": {{"broker_us": {broker}, "client_us": 20.0}}}}}}"#
            );
            format!("{{\"cases\": [{case}]}}")
        };
        assert_eq!(measured(&figures(50.0)).unwrap(), ratios([0.5, 0.7, 0.6], 0.601, 0.44));
        assert!(measured(&figures(0.0)).unwrap_err().to_string().contains("process is not known"));
    }
}
