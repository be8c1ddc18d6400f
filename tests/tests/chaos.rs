//! Kills everything that can be killed in the middle of fan-outs, and tells what came of it: `cargo xtask chaos`.
#![allow(clippy::print_stdout, reason = "its result is a table")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fanfare_tests::chaos::{self, Gathering, Options};

#[derive(Parser)]
struct Arguments {
    /// For how long things are killed.
    #[arg(long, default_value_t = 2)]
    minutes: u64,
    /// Chooses fan-outs and faults.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where results are gathered.
    #[arg(long, value_enum, default_value_t = Gathering::Both)]
    aggregation: Gathering,
    /// Only judges the journals that an earlier run has kept.
    #[arg(long)]
    judge: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Arguments { minutes, seed, aggregation, judge } = Arguments::parse();
    if let Some(folder) = judge {
        let report = chaos::Report::of(&folder)?;
        print!("{report}");
        return Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let folder = folder()?;
    println!("journals are in {}", folder.display());
    let options = Options {
        duration: Duration::from_secs(60 * minutes),
        seed,
        aggregation,
        program: PathBuf::from(env!("CARGO_BIN_EXE_fanfare-test-node")),
        folder: folder.clone(),
    };
    let report = chaos::run(options).await?;
    print!("{report}");
    if !report.is_clean() {
        println!("the journals that prove it are kept in {}", folder.display());
        return Ok(ExitCode::FAILURE);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(ExitCode::SUCCESS)
}

/// A new folder, where cargo keeps what tests leave.
fn folder() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}
