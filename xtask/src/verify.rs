//! Checks everything that is not a test, all of it even when something fails, and sums up.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, Group};
use crate::{environment, interrupt, say};

/// The crates that decide and do nothing else, and must not be able to.
const PURE: [&str; 2] = ["fanfare-protocol", "fanfare-fanin"];

/// What a pure crate must not depend on, even through others: runtimes, clients, and what leads to them.
/// A name that ends in a dash stands for all that begin with it.
const IMPURE: [&str; 8] =
    ["tokio", "tokio-", "lapin", "deadpool", "deadpool-", "async-", "futures", "futures-"];

/// The only places that may know lapin: the broker's client, of which a change touches nothing else, and the raw limit that
/// `fanfare bench` holds it against.
const LAPIN_HOMES: [&str; 3] = [
    "crates/fanfare-broker/src/amqp/",
    "crates/fanfare-broker/src/amqp.rs",
    "crates/fanfare-cli/src/bench/raw",
];

const LAPIN: [&str; 4] = ["lapin::", "deadpool_lapin", "use lapin;", "extern crate lapin"];

const TOOL_LIMIT: Duration = Duration::from_secs(120);

enum Outcome {
    Passed,
    LeftOut(&'static str),
}

type Check = (&'static str, fn() -> Result<Outcome>);

const CHECKS: [Check; 6] = [
    ("format", format),
    ("lints", lints),
    ("docs", docs),
    ("dependencies", dependencies),
    ("pure crates", pure_crates),
    ("lapin stays in its folder", lapin_stays),
];

/// Runs all checks and fails when any of them does.
pub(crate) fn run() -> Result<()> {
    let mut summary = Vec::new();
    let mut failed = 0;
    for (name, check) in CHECKS {
        say(format_args!("checking {name}"));
        let outcome = check();
        interrupt::check()?;
        summary.push(match outcome {
            Ok(Outcome::Passed) => format!("passed    {name}"),
            Ok(Outcome::LeftOut(reason)) => format!("left out  {name}: {reason}"),
            Err(error) => {
                failed += 1;
                format!("FAILED    {name}: {error:#}")
            }
        });
    }
    summary.iter().for_each(say);
    ensure!(failed == 0, "{failed} of {} checks failed", CHECKS.len());
    Ok(())
}

fn format() -> Result<Outcome> {
    cargo(environment::cargo().args(["fmt", "--all", "--check"]))?;
    cargo(environment::cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
}

fn lints() -> Result<Outcome> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    cargo(environment::cargo().args(arguments))
}

fn docs() -> Result<Outcome> {
    let mut command = environment::cargo();
    command.env("RUSTDOCFLAGS", "-D warnings");
    cargo(command.args(["doc", "--workspace", "--no-deps", "--locked"]))
}

fn dependencies() -> Result<Outcome> {
    if !environment::works("cargo-deny", &["--version"]) {
        return Ok(Outcome::LeftOut("cargo-deny is not installed"));
    }
    cargo(environment::cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}

fn pure_crates() -> Result<Outcome> {
    for package in PURE {
        let mut tree = environment::cargo();
        tree.args(["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--locked"]);
        let tree = process::output(&mut tree, TOOL_LIMIT)?;
        let names = tree.lines().filter_map(|line| line.split(' ').next());
        if let Some(name) = names.into_iter().find(|name| is_impure(name)) {
            bail!("`{package}` depends on `{name}`: it must decide without doing anything");
        }
    }
    Ok(Outcome::Passed)
}

fn lapin_stays() -> Result<Outcome> {
    let mut found = Vec::new();
    for folder in ["crates", "tests"] {
        find_lapin(&environment::root().join(folder), &mut found)?;
    }
    ensure!(found.is_empty(), "lapin is named outside of {}: {}", LAPIN_HOMES[0], found.join(", "));
    Ok(Outcome::Passed)
}

fn cargo(command: &mut Command) -> Result<Outcome> {
    let status = Group::spawn(command)?.wait(None)?;
    ensure!(status.success(), "see above");
    Ok(Outcome::Passed)
}

fn is_impure(package: &str) -> bool {
    IMPURE.iter().any(|name| if name.ends_with('-') { package.starts_with(name) } else { package == *name })
}

fn find_lapin(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find_lapin(&path, found)?;
            continue;
        }
        let shown = path.strip_prefix(environment::root()).unwrap_or(&path).display().to_string();
        if path.extension().is_some_and(|extension| extension == "rs")
            && !LAPIN_HOMES.iter().any(|home| shown.starts_with(home))
        {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
            let lines = text.lines().enumerate().filter(|(_, line)| names_lapin(line));
            found.extend(lines.map(|(index, _)| format!("{shown}:{}", index + 1)));
        }
    }
    Ok(())
}

/// Whether a line of code, not a comment, names lapin.
fn names_lapin(line: &str) -> bool {
    !line.trim_start().starts_with("//") && LAPIN.iter().any(|token| line.contains(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_and_their_parts_are_impure() {
        assert!(["tokio", "tokio-util", "futures-core", "async-trait", "lapin"].into_iter().all(is_impure));
        assert!(!["serde", "uuid", "chrono", "futuristic"].into_iter().any(is_impure));
    }

    #[test]
    fn comments_may_name_lapin() {
        assert!(names_lapin("use lapin::Channel;"));
        assert!(names_lapin("fn pool() -> deadpool_lapin::Pool {"));
        assert!(!names_lapin("    // Unlike lapin::Consumer, this ends by itself."));
    }
}
