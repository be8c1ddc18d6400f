//! `fanfare demo`: counts the files under a folder with fan-outs, everything in one process.

mod files;
mod report;
mod stage;

use std::env;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use self::files::Files;
use self::report::Report;
use self::stage::Stage;
use crate::exit::{Exit, Failure, print};
use crate::settings::Settings;
use crate::signals::Signals;

/// Files of one fan-out. Its final payload holds what was found out about all of them, and is put together in memory, so that more
/// files than these are counted by several fan-outs, one after the other.
const FILES_OF_ONE_FANOUT: usize = 5_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Every regular file under PATH, as `find PATH -type f` lists them, becomes a target that the
service demo.file-stats counts: lines, words and bytes as `wc` in a UTF-8 locale, and SHA-256.
On-target callbacks move the progress bar, and the final callback brings what is printed.
Publisher, worker and coordinator run in this process, on a broker in its memory, or with
--broker on RabbitMQ, under a prefix of their own that is cleaned up afterwards. 5,000 files
make one fan-out; more make several.

With --json, a path is a string, or the list of its bytes where it is not UTF-8. The table
shows what a terminal could not bear in quotes and with escapes, as in \"line\\nbreak\" or \"not utf-8 \\xFF\".

Examples:
  fanfare demo
  fanfare demo /usr/share/doc --json
  fanfare demo crates --broker amqp://localhost

Exit codes: 0 done; 1 a file could not be counted; 2 bad input; 3 no broker")]
pub(crate) struct DemoArguments {
    /// The folder, or one file [default: the current folder] [env: FANFARE_DEMO_PATH=]
    path: Option<PathBuf>,

    /// Prints all that was found out as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: DemoArguments, settings: &Settings) -> Result<Exit, Failure> {
    let signals = Signals::listen()?;
    let path = arguments.path.unwrap_or_else(default_path);
    let files = Files::under(&path).map_err(Failure::bad_input)?;
    let mut stage = Stage::set(settings, files.entries.len()).await?;
    let counted = tokio::select! {
        counted = count(&mut stage, &files) => counted,
        () = signals.first() => Err(Failure::new(Exit::Failed, anyhow!("interrupted"))),
    };
    stage.clear().await;
    let report = counted?;
    if arguments.json {
        print(report.to_json())?;
    } else {
        print(&report)?;
    }
    Ok(if report.is_complete() { Exit::Done } else { Exit::Failed })
}

/// What the variable names, or the current folder. Cargo sets the variable to an absolute path, which is shortened to the
/// one that a person would type.
fn default_path() -> PathBuf {
    let Some(path) = env::var_os("FANFARE_DEMO_PATH").filter(|path| !path.is_empty()).map(PathBuf::from)
    else {
        return PathBuf::from(".");
    };
    let here = env::current_dir().ok();
    match here.as_deref().and_then(|here| path.strip_prefix(here).ok()) {
        Some(below) if below.as_os_str().is_empty() => PathBuf::from("."),
        Some(below) => below.to_owned(),
        None => path,
    }
}

async fn count<'a>(stage: &mut Stage, files: &'a Files) -> Result<Report<'a>, Failure> {
    let mut report = Report::new(&files.missed);
    // A folder without files is a fan-out too, without targets.
    let mut rest = &files.entries[..];
    loop {
        let (now, later) = rest.split_at(rest.len().min(FILES_OF_ONE_FANOUT));
        report.add(now, &stage.count(now).await?);
        if later.is_empty() {
            return Ok(report);
        }
        rest = later;
    }
}
