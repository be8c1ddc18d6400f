//! Feeds hostile input to every decoder and to the fan-in: what is in `fuzz/`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::process::{self, Group};
use crate::{environment, say};

/// What cargo-fuzz would set, without the sanitizers, which need a nightly compiler: the code under test is safe Rust, and
/// what is looked for are panics, broken promises, hangs and memory without bound.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What one input may take, in seconds and in megabytes, and how long it may be in bytes.
const LIMITS: [&str; 3] = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=16384"];

/// Lines of a failed run that are shown.
const SHOWN_LINES: usize = 60;

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask fuzz                                  every target, from its corpus in fuzz/corpus
  cargo xtask fuzz world --seconds 600              one of them for longer
  cargo xtask fuzz world -- target/fuzz/found/...   once more what was found

What is found is kept in target/fuzz/found; what it learns, in target/fuzz/corpus.")]
pub(crate) struct Options {
    /// Only this one: the name of a file of fuzz/fuzz_targets.
    target: Option<String>,

    /// How long each target runs.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Arguments for the engine, libFuzzer, in place of a run: files to be replayed, or `-help=1`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    engine: Vec<String>,
}

/// Builds the targets and runs them, as many at a time as there are processors.
pub(crate) fn run(options: Options) -> Result<()> {
    let targets = targets(options.target.as_deref())?;
    let programs = build()?;
    if !options.engine.is_empty() {
        let [target] = &targets[..] else { bail!("name the target that takes these arguments") };
        let status = Group::spawn(Command::new(programs.join(target)).args(&options.engine))?.wait(None)?;
        ensure!(status.success(), "{target} failed: {status}");
        return Ok(());
    }
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    say(format_args!("fuzzing {} for {} s each, {at_once} at a time", targets.join(", "), options.seconds));
    let waiting = Mutex::new(VecDeque::from(targets));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let failed = thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            while let Some(target) = next() {
                if let Err(error) = fuzz(&programs, &target, options.seconds) {
                    say(format_args!("error: {error:#}"));
                    failed.push(target);
                }
            }
            failed
        };
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    crate::interrupt::check()?;
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// The names of all targets, or the one that was asked for.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let folder = environment::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    match only {
        None => Ok(names),
        Some(only) if names.iter().any(|name| name == only) => Ok(vec![only.to_owned()]),
        Some(only) => bail!("there is no target `{only}`; there are {}", names.join(", ")),
    }
}

/// Where everything about fuzzing lies that is not in the repository.
fn home() -> PathBuf {
    environment::target().join("fuzz")
}

/// Builds all targets, and returns the folder of the programs. The flags are for the code under test: with a target given
/// by name, cargo keeps them from what runs during the build.
fn build() -> Result<PathBuf> {
    let host = host()?;
    let mut command = environment::cargo();
    command
        .args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target", &host])
        .env("CARGO_TARGET_DIR", home())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", COVERAGE);
    let status = Group::spawn(&mut command)?.wait(None)?;
    ensure!(
        status.success(),
        "the fuzz targets cannot be built; libFuzzer needs a C++ compiler (Debian's g++)"
    );
    Ok(home().join(host).join("release"))
}

fn host() -> Result<String> {
    let version = process::output(Command::new("rustc").arg("-vV"), Duration::from_secs(20))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| anyhow!("`rustc -vV` names no host"))
}

/// Runs one target. What it prints is shown where it fails.
fn fuzz(programs: &Path, target: &str, seconds: u64) -> Result<()> {
    let (learnt, found) = (home().join("corpus").join(target), home().join("found").join(target));
    for folder in [&learnt, &found] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let log = found.join("log");
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(programs.join(target));
    command
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg("-print_final_stats=1")
        .arg(&learnt)
        .arg(environment::root().join("fuzz/corpus").join(target))
        .stdout(output.try_clone()?)
        .stderr(output);
    let status = Group::spawn(&mut command)?.wait(None)?;
    let printed = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let lines: Vec<&str> = printed.lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        bail!("{target} found something (see {}):\n{end}", found.display());
    }
    say(format_args!("fuzzed {target}: {} inputs, nothing found", executed(&printed)));
    Ok(())
}

fn executed(printed: &str) -> &str {
    let stated = printed.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    stated.map_or("?", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus() {
        for target in targets(None).unwrap() {
            let corpus = environment::root().join("fuzz/corpus").join(&target);
            assert!(fs::read_dir(&corpus).is_ok_and(|mut inputs| inputs.next().is_some()), "{target}");
        }
    }
}
