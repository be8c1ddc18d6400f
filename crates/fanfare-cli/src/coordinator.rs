//! `fanfare coordinator`: collects results and invokes callbacks until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, anyhow};
use clap::Args;
use fanfare::{CoordinatorConfig, CoordinatorError, CoordinatorLimits, ShardSettings};
use fanfare_protocol::shortened;
use tokio::time::{Instant, timeout_at};

use crate::durations;
use crate::exit::{Exit, Failure, without_broker};
use crate::identity;
use crate::monitor::{Address, Monitor, Subject};
use crate::numbers;
use crate::settings::Settings;
use crate::signals::Signals;

#[derive(Debug, Args)]
#[command(after_help = "\
Without a coordinator fan-outs are accepted and wait; with several, each takes its share, and
one that dies is replaced by the others. Stops at SIGTERM or SIGINT. It waits for a broker that
is away.

Examples:
  fanfare coordinator --broker amqp://localhost --listen 127.0.0.1:9464
  fanfare coordinator --broker amqp://one,amqp://two --renewal 5m
  fanfare coordinator --user-id fanfare-coordinator --accept-user fanfare-publisher

Exit codes: 0 stopped; 1 the broker refuses; 2 bad input; 3 the broker does not take this user,
password and virtual host")]
pub(crate) struct CoordinatorArguments {
    /// Fan-outs that one channel is handed before another channel is opened [default: 100]
    #[arg(long, env = "FANFARE_COORDINATOR_PREFETCH", value_name = "N", value_parser = numbers::parse::<u16>)]
    prefetch: Option<u16>,

    /// The most of such channels; with --prefetch this bounds the fan-outs that are open here [default: 100]
    #[arg(long, env = "FANFARE_COORDINATOR_CHANNELS", value_name = "N", value_parser = numbers::parse::<usize>)]
    channels: Option<usize>,

    /// How long anything is held unacknowledged: below half of the broker's consumer time-out [default: 10m]
    #[arg(long, env = "FANFARE_COORDINATOR_RENEWAL", value_name = "DURATION", value_parser = durations::parse)]
    renewal: Option<Duration>,

    /// On-target callbacks that a crash may repeat, of each fan-out and at the most [default: 100]
    #[arg(long, env = "FANFARE_COORDINATOR_CALLS_AT_RISK", value_name = "N", value_parser = numbers::parse::<usize>)]
    calls_at_risk: Option<usize>,

    /// Bytes of a final payload above which it travels in parts, each a message of its own [default: 16711680, as many as fit
    /// into a message everywhere]
    #[arg(long, env = "FANFARE_COORDINATOR_LARGE_PAYLOAD_BYTES", value_name = "N", value_parser = numbers::parse::<usize>)]
    large_payload_bytes: Option<usize>,

    /// Accepts manifests of this user only, by the user_id that the broker has checked; repeatable, or divided by commas. The
    /// others are parked. It needs --user-id, which is accepted without being listed
    #[arg(
        long = "accept-user",
        env = "FANFARE_COORDINATOR_ACCEPT_USERS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    accept_users: Vec<String>,

    /// How long it may take to hand over when it is to stop [default: 20s]
    #[arg(long, env = "FANFARE_COORDINATOR_SHUTDOWN_DEADLINE", value_name = "DURATION", value_parser = durations::parse)]
    shutdown_deadline: Option<Duration>,

    /// Where metrics, health and state are served over HTTP, to whoever reaches it: an IP address and a port, such as
    /// 127.0.0.1:9464 [default: nowhere]
    #[arg(long, env = "FANFARE_LISTEN", value_name = "ADDRESS")]
    listen: Option<Address>,
}

pub(crate) async fn run(arguments: CoordinatorArguments, settings: &Settings) -> Result<Exit, Failure> {
    let file = &settings.file.coordinator;
    let defaults = CoordinatorConfig::default();
    let renewal_of_file = arguments.renewal.is_none() && file.renewal.is_some();
    let users_of_file = arguments.accept_users.is_empty() && file.accept_users.is_some();
    let renewal = arguments.renewal.or(file.renewal.map(|written| written.0));
    let stop_within = arguments.shutdown_deadline.or(file.shutdown_deadline.map(|written| written.0));
    let calls_at_risk = arguments.calls_at_risk.or(file.calls_at_risk);
    let large_payload_of_file = arguments.large_payload_bytes.is_none() && file.large_payload_bytes.is_some();
    let large_payload_bytes = arguments.large_payload_bytes.or(file.large_payload_bytes);
    let accepted_users = match arguments.accept_users {
        users if users.is_empty() => file.accept_users.clone(),
        users => Some(users.into_iter().collect()),
    };
    let config = CoordinatorConfig {
        limits: CoordinatorLimits {
            renewal: renewal.unwrap_or(defaults.limits.renewal),
            calls_at_risk: calls_at_risk.unwrap_or(defaults.limits.calls_at_risk),
            large_payload_bytes: large_payload_bytes.unwrap_or(defaults.limits.large_payload_bytes),
            ..defaults.limits
        },
        consumer_timeout: settings.consumer_timeout.unwrap_or(defaults.consumer_timeout),
        accepted_users,
        user_id: settings.user_id.clone(),
        prefetch: arguments.prefetch.or(file.prefetch).unwrap_or(defaults.prefetch),
        most_channels: arguments.channels.or(file.channels).unwrap_or(defaults.most_channels),
        stop_within: stop_within.unwrap_or(defaults.stop_within),
        most_targets: file.most_targets.unwrap_or(defaults.most_targets),
        shards: settings.shards,
        shard_limits: ShardSettings {
            most_open: file.most_open_in_shard.unwrap_or(defaults.shard_limits.most_open),
            ..defaults.shard_limits
        },
        name: Some(identity::name()),
        ..defaults
    };
    let fanfare = settings.fanfare("coordinator")?;
    let signals = Signals::listen()?;
    let (stop_within, mut deadline) = (config.stop_within, None);
    let stopping = async {
        signals.first().await;
        deadline = Some(Instant::now() + stop_within);
    };
    let coordinator = fanfare.coordinator_with(config);
    let (broker, handle) = (Arc::clone(fanfare.broker()), coordinator.handle());
    let subject = Subject {
        role: "coordinator",
        broker,
        readiness: handle.readiness().clone(),
        coordinator: Some(handle),
        operator: Some(settings.operator(&fanfare)),
    };
    let _monitor = Monitor::start_if_any(arguments.listen.or(file.listen), subject).await?;
    let outcome = coordinator.run_until(stopping).await;
    let outcome = match outcome {
        Ok(()) => Ok(Exit::Done),
        Err(error @ CoordinatorError::Broker(_)) => Err(match without_broker(&fanfare).await {
            Some(failure) => failure,
            None => Failure::new(Exit::Failed, error),
        }),
        Err(CoordinatorError::Setting { setting, value, rule }) => Err(Failure::bad_input(match setting {
            "limits.renewal" if renewal_of_file => wrong(settings, "renewal", &value, rule),
            "accepted_users" if users_of_file => wrong(settings, "accept_users", &value, rule),
            "limits.large_payload_bytes" if large_payload_of_file => {
                wrong(settings, "large_payload_bytes", &value, rule)
            }
            "limits.large_payload_bytes" => anyhow!("--large-payload-bytes {value} is not allowed: {rule}"),
            "limits.renewal" => anyhow!("--renewal {value} is not allowed: {rule}"),
            "accepted_users" => anyhow!("--accept-user {} is not allowed: {rule}", shortened(&value)),
            other => anyhow!("{other} = {value} is not allowed: {rule}"),
        })),
        Err(error) => Err(Failure::bad_input(error)),
    };
    match deadline {
        // The process's end closes what a broker that does not answer leaves open.
        Some(deadline) => drop(timeout_at(deadline, fanfare.close()).await),
        None => fanfare.close().await,
    }
    outcome
}

/// What is wrong with a setting of the file.
fn wrong(settings: &Settings, key: &str, value: &str, rule: &str) -> Error {
    settings
        .file
        .mistake(&["coordinator", key], format_args!("{} is not allowed: {rule}", shortened(value)))
        .into()
}
