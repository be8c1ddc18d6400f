//! Provides a broker for `fanfare bench`, and holds a short form of it against the shares of CPU that are recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::broker::{Broker, Way};
use crate::process::{self, Group};
use crate::{environment, peers, say};

/// What is measured where nobody says what: both ways to gather results.
const BOTH: [&str; 4] = ["--modes", "per-cid,shared", "--shards", "4"];
/// What the short form measures: fan-outs in which the queue counts, and such in which the messages do.
const SHORT: [&str; 10] =
    ["--widths", "1,100", "--payload", "100", "--on-target", "0,1", "--rounds", "2", "--seconds", "1"];
const SHORT_LIMIT: Duration = Duration::from_secs(240);
/// What the short form is held against, from the root of the repository.
const RECORDED: &str = "docs/bench/short.json";
/// How much of what is recorded is to be reached. Runs differ by less than this leaves.
const LEAST: f64 = 2.0 / 3.0;

/// Options of `cargo xtask bench`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                                       everything, in about an hour
  cargo xtask bench -- --widths 10,100 --payload 100      as `fanfare bench --help` says
  cargo xtask bench --short                               under two minutes, for CI; fails where a share has fallen by a third
  cargo xtask bench --short --record                      notes the shares of this machine for that
  cargo xtask bench --peers                               beside Celery's chords and BullMQ's flows, in some minutes

The broker is FANFARE_TEST_BROKER (an AMQP URL) where it is set, else one that is started for this.")]
pub(crate) struct Options {
    /// Measures a few cases only, and compares them with docs/bench/short.json.
    #[arg(long)]
    short: bool,

    /// Writes docs/bench/short.json instead of comparing with it.
    #[arg(long, requires = "short")]
    record: bool,

    /// Measures Fanfare beside Celery and BullMQ, for which it installs what they need into target/peers.
    #[arg(long, conflicts_with = "short")]
    peers: bool,

    /// What provides the broker.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    from: Way,

    /// Arguments for `fanfare bench`.
    #[arg(last = true, value_name = "ARGUMENTS", conflicts_with_all = ["short", "peers"])]
    bench: Vec<String>,
}

/// Shares of CPU time that the messages alone take, by what they are of.
type Shares = BTreeMap<String, f64>;

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
    let mut bench = std::process::Command::new(environment::target().join("release/fanfare"));
    bench.arg("bench").env("FANFARE_BROKER", broker.url()).current_dir(environment::root());
    if let Some(pid) = broker.pid() {
        bench.args(["--broker-pid", &pid.to_string()]);
    }
    if options.peers {
        return peers::compare(broker.url(), &mut bench);
    }
    if !options.short {
        let everything = options.bench.is_empty();
        let arguments = bench.args(everything.then_some(BOTH).iter().flatten()).args(&options.bench);
        let status = Group::spawn(arguments)?.wait(None)?;
        ensure!(status.success(), "it could not be measured");
        return Ok(());
    }
    let measured = measured(&bench_short(&mut bench)?)?;
    let file = environment::root().join(RECORDED);
    if options.record {
        let text = serde_json::to_string_pretty(&measured)? + "\n";
        return fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()));
    }
    compare(&measured, &recorded(&file)?)
}

/// Runs the short form, and returns its figures.
fn bench_short(bench: &mut std::process::Command) -> Result<String> {
    let figures = environment::target().join("bench-short.json");
    bench.args(BOTH).args(SHORT).arg("--json").arg(&figures);
    let status = Group::spawn(bench)?.wait(Some(SHORT_LIMIT))?;
    ensure!(status.success(), "it could not be measured");
    fs::read_to_string(&figures).with_context(|| format!("cannot read {}", figures.display()))
}

fn recorded(file: &PathBuf) -> Result<Shares> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("cannot read {}: make it with `cargo xtask bench --short --record`", file.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a map of shares", file.display()))
}

fn measured(report: &str) -> Result<Shares> {
    let report: Value = serde_json::from_str(report)?;
    let cases = report["cases"].as_array().context("the figures have no cases")?;
    let share = |case: &Value| {
        let aggregation = case["aggregation"].as_str().context("a case has no aggregation")?;
        let key = format!(
            "{aggregation}, width {}, {} bytes, {} on-target",
            case["width"], case["payload"], case["on_target"]
        );
        // Of the rates, a ratio tells little where other programs use the same processors.
        let broker = case["raw"]["cpu"]["broker_us"].as_f64().filter(|us| *us > 0.0);
        broker.context(
            "the broker's process is not known: leave FANFARE_TEST_BROKER unset, so that one is started",
        )?;
        let share = case["cpu_share"].as_f64().with_context(|| format!("{key} has no cpu_share"))?;
        Ok((key, (share * 100.0).round() / 100.0))
    };
    cases.iter().map(share).collect()
}

/// Fails where a ratio has fallen too far, naming each that has.
fn compare(measured: &Shares, recorded: &Shares) -> Result<()> {
    let mut fallen = Vec::new();
    for (case, before) in recorded {
        let share =
            measured.get(case).with_context(|| format!("{case} is recorded, but was not measured"))?;
        say(format_args!("{case}: {share:.2}, recorded {before:.2}"));
        if *share < before * LEAST {
            fallen.push(format!(
                "in {case}, the messages alone take {share:.2} of all CPU time, and {before:.2} is recorded"
            ));
        }
    }
    for (case, share) in measured.iter().filter(|(case, _)| !recorded.contains_key(*case)) {
        say(format_args!("{case}: {share:.2}, not recorded"));
    }
    if fallen.is_empty() {
        return Ok(());
    }
    bail!(
        "{}; find what has become dearer, or record it with `cargo xtask bench --short --record` where it has to be",
        fallen.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(share: f64) -> Shares {
        Shares::from([("shared, width 10, 100 bytes, 0 on-target".to_owned(), share)])
    }

    #[test]
    fn share_may_fall_by_a_third_and_no_more() {
        compare(&shares(0.41), &shares(0.6)).unwrap();
        let error = compare(&shares(0.39), &shares(0.6)).unwrap_err().to_string();
        assert!(
            error.starts_with("in shared, width 10, 100 bytes, 0 on-target, the messages alone take 0.39"),
            "{error}"
        );
        assert!(compare(&Shares::new(), &shares(0.6)).is_err());
    }

    #[test]
    fn shares_are_read_from_the_figures() {
        let figures = |broker: f64| {
            let case = format!(
                r#"{{"aggregation": "shared", "width": 10, "payload": 100, "on_target": 0, "cpu_share": 0.601,
                    "raw": {{"cpu": {{"broker_us": {broker}}}}}}}"#
            );
            format!("{{\"cases\": [{case}]}}")
        };
        assert_eq!(measured(&figures(50.0)).unwrap(), shares(0.6));
        assert!(measured(&figures(0.0)).unwrap_err().to_string().contains("process is not known"));
    }
}
