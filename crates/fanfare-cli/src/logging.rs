//! Logs go to standard error, so that they never mix with output.

mod format;

use std::io::{self, IsTerminal};

use fanfare_protocol::quoted;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub(crate) use self::format::Format;
use crate::exit::Failure;
#[cfg(not(feature = "otlp"))]
use crate::no_otlp::Export;
#[cfg(feature = "otlp")]
use crate::otlp::Export;

/// What is told of this process, until it is ended.
pub(crate) struct Logging {
    export: Option<Export>,
}

impl Logging {
    /// Sends what has not been sent yet.
    pub(crate) async fn end(self) {
        if let Some(export) = self.export {
            export.end().await;
        }
    }
}

/// Starts logging: what the settings say, else `RUST_LOG`, else the command's default.
pub(crate) fn start(given: Option<&str>, default: &str, format: Format) -> Result<Logging, Failure> {
    let filter = match given.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok()) {
        Some(given) => filter(&given).map_err(Failure::bad_input)?,
        // lapin logs as errors what is none here, such as that a queue which was looked for does not exist.
        None => EnvFilter::new(format!("{default},lapin=off")),
    };
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let log = match format {
        Format::Text => log.with_ansi(io::stderr().is_terminal()).with_filter(filter).boxed(),
        Format::Json => log.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed(),
    };
    let export = Export::start().map_err(Failure::bad_input)?;
    tracing_subscriber::registry().with(log).with(export.as_ref().map(Export::layer)).init();
    Ok(Logging { export })
}

/// Reads what is to be logged.
pub(crate) fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(text).map_err(|error| {
        anyhow::anyhow!(
            "{} is no log filter: {error}; write it as info or warn,fanfare_worker=debug",
            quoted(text)
        )
    })
}
