//! Logs go to standard error, so that they never mix with output.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::exit::Failure;

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// A line of text for each event
    #[default]
    Text,
    /// A JSON object a line for each event, with the fields of its span
    Json,
}

/// Starts logging: what the settings say, else `RUST_LOG`, else the command's default.
pub(crate) fn start(given: Option<&str>, default: &str, format: Format) -> Result<(), Failure> {
    let filter = match given.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok()) {
        Some(given) => filter(&given).map_err(Failure::bad_input)?,
        // lapin logs as errors what is none here, such as that a queue which was looked for does not exist.
        None => EnvFilter::new(format!("{default},lapin=off")),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        Format::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        Format::Json => log.json().flatten_event(true).with_span_list(false).init(),
    }
    Ok(())
}

/// Reads what is to be logged.
pub(crate) fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(text).map_err(|error| {
        anyhow::anyhow!("{text:?} is no log filter: {error}; write it as info or warn,fanfare_worker=debug")
    })
}
