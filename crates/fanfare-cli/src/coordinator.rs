//! `fanfare coordinator`: collects results and invokes callbacks until it is told to stop.

use std::time::Duration;

use clap::Args;
use fanfare::{CoordinatorConfig, CoordinatorLimits};

use crate::durations;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::signals::Signals;

#[derive(Debug, Args)]
#[command(after_help = "\
Without a coordinator fan-outs are accepted and wait; with several, each takes its share, and
one that dies is replaced by the others. Stops at SIGTERM or SIGINT. It waits for a broker that
is away.

Examples:
  fanfare coordinator --broker amqp://localhost
  fanfare coordinator --broker amqp://one,amqp://two --renewal 5m

Exit codes: 0 stopped; 2 bad input")]
pub(crate) struct CoordinatorArguments {
    /// Fan-outs that one channel is handed before another channel is opened [default: 100]
    #[arg(long, env = "FANFARE_COORDINATOR_PREFETCH", value_name = "N")]
    prefetch: Option<u16>,

    /// The most of such channels; with --prefetch this bounds the fan-outs that are open here [default: 50]
    #[arg(long, env = "FANFARE_COORDINATOR_CHANNELS", value_name = "N")]
    channels: Option<usize>,

    /// How long anything is held unacknowledged: below half of the broker's consumer time-out [default: 10m]
    #[arg(long, env = "FANFARE_COORDINATOR_RENEWAL", value_name = "DURATION", value_parser = durations::parse)]
    renewal: Option<Duration>,

    /// How long it may take to hand over when it is to stop [default: 20s]
    #[arg(long, env = "FANFARE_COORDINATOR_SHUTDOWN_DEADLINE", value_name = "DURATION", value_parser = durations::parse)]
    shutdown_deadline: Option<Duration>,
}

pub(crate) async fn run(arguments: CoordinatorArguments, settings: &Settings) -> Result<Exit, Failure> {
    let file = &settings.file.coordinator;
    let defaults = CoordinatorConfig::default();
    let renewal = arguments.renewal.or(file.renewal.map(|written| written.0));
    let stop_within = arguments.shutdown_deadline.or(file.shutdown_deadline.map(|written| written.0));
    let config = CoordinatorConfig {
        limits: CoordinatorLimits { renewal: renewal.unwrap_or(defaults.limits.renewal), ..defaults.limits },
        prefetch: arguments.prefetch.or(file.prefetch).unwrap_or(defaults.prefetch),
        most_channels: arguments.channels.or(file.channels).unwrap_or(defaults.most_channels),
        stop_within: stop_within.unwrap_or(defaults.stop_within),
        ..defaults
    };
    let fanfare = settings.fanfare("coordinator")?;
    let signals = Signals::listen()?;
    let outcome = fanfare.coordinator_with(config).run_until(signals.first()).await;
    fanfare.close().await;
    outcome.map(|()| Exit::Done).map_err(Failure::bad_input)
}
