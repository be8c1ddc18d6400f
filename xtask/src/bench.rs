//! Provides a broker for `fanfare bench`, and holds a short form of it against the ratios that are recorded.

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
/// The share of a recorded ratio that is to be reached. Ratios differ from run to run by less than this leaves.
const LEAST: f64 = 2.0 / 3.0;

/// Options of `cargo xtask bench`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                                       everything, in about an hour
  cargo xtask bench -- --widths 10,100 --payload 100      as `fanfare bench --help` says
  cargo xtask bench --short                               under two minutes, for CI; fails where a ratio has fallen by a third
  cargo xtask bench --short --record                      notes the ratios of this machine for that
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

/// Ratios by what they are of.
type Ratios = BTreeMap<String, f64>;

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

fn recorded(file: &PathBuf) -> Result<Ratios> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("cannot read {}: make it with `cargo xtask bench --short --record`", file.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a map of ratios", file.display()))
}

fn measured(report: &str) -> Result<Ratios> {
    let report: Value = serde_json::from_str(report)?;
    let cases = report["cases"].as_array().context("the figures have no cases")?;
    let ratio = |case: &Value| {
        let aggregation = case["aggregation"].as_str().context("a case has no aggregation")?;
        let key = format!(
            "{aggregation}, width {}, {} bytes, {} on-target",
            case["width"], case["payload"], case["on_target"]
        );
        let ratio = case["ratio"].as_f64().with_context(|| format!("{key} has no ratio"))?;
        Ok((key, (ratio * 100.0).round() / 100.0))
    };
    cases.iter().map(ratio).collect()
}

/// Fails where a ratio has fallen too far, naming each that has.
fn compare(measured: &Ratios, recorded: &Ratios) -> Result<()> {
    let mut fallen = Vec::new();
    for (case, before) in recorded {
        let ratio =
            measured.get(case).with_context(|| format!("{case} is recorded, but was not measured"))?;
        say(format_args!("{case}: {ratio:.2}, recorded {before:.2}"));
        if *ratio < before * LEAST {
            fallen.push(format!("{case} reaches {ratio:.2} of its limit, and {before:.2} is recorded"));
        }
    }
    for (case, ratio) in measured.iter().filter(|(case, _)| !recorded.contains_key(*case)) {
        say(format_args!("{case}: {ratio:.2}, not recorded"));
    }
    if fallen.is_empty() {
        return Ok(());
    }
    bail!(
        "{}; find what has become slower, or record it with `cargo xtask bench --short --record` where it has to be",
        fallen.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(ratio: f64) -> Ratios {
        Ratios::from([("shared, width 10, 100 bytes, 0 on-target".to_owned(), ratio)])
    }

    #[test]
    fn ratio_may_fall_by_a_third_and_no_more() {
        compare(&ratios(0.41), &ratios(0.6)).unwrap();
        let error = compare(&ratios(0.39), &ratios(0.6)).unwrap_err().to_string();
        assert!(error.starts_with("shared, width 10, 100 bytes, 0 on-target reaches 0.39"), "{error}");
        assert!(compare(&Ratios::new(), &ratios(0.6)).is_err());
    }

    #[test]
    fn ratios_are_read_from_the_figures() {
        let case =
            r#"{"aggregation": "shared", "width": 10, "payload": 100, "on_target": 0, "ratio": 0.601}"#;
        assert_eq!(measured(&format!("{{\"cases\": [{case}]}}")).unwrap(), ratios(0.6));
    }
}
