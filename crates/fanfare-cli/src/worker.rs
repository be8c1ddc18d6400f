//! `fanfare worker`: runs services until it is told to stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use fanfare::services::FILE_STATS;
use fanfare::{Registration, ServiceName, WorkerConfig, WorkerError};

use crate::durations;
use crate::exit::{Exit, Failure, without_broker};
use crate::identity;
use crate::monitor::{Address, Monitor, Subject};
use crate::numbers;
use crate::services;
use crate::settings::Settings;
use crate::signals::Signals;

#[derive(Debug, Args)]
#[command(after_help = "\
Stops at SIGTERM or SIGINT: it takes no more, finishes what it runs, and puts the rest back.
It waits for a broker that is away. Services without a line of Rust are named in fanfare.toml,
and only what is named there can ever be run:

  [services.\"image.resize\"]
  exec = [\"python3\", \"resize.py\"]     # JSON on standard input, JSON on standard output
  timeout = \"30s\"
  retry = { attempts = 5 }              # first_delay = \"1s\", longest_delay = \"5m\"
  [services.\"stock.check\"]
  http = \"http://stock.internal/check\"  # POST, JSON both ways

Examples:
  fanfare worker --broker amqp://localhost
  fanfare worker --config fanfare.toml --service image.resize --concurrency 4

Exit codes: 0 stopped; 1 the broker refuses; 2 bad input; 3 the broker does not take this user,
password and virtual host")]
pub(crate) struct WorkerArguments {
    /// Serves this one and not all; repeatable, or divided by commas
    #[arg(long = "service", value_name = "NAME", value_delimiter = ',')]
    services: Vec<ServiceName>,

    /// Leaves out the stock services helpers.echo and helpers.input-logger, and demo.file-stats, which is served only where
    /// fanfare.toml has [stock."demo.file-stats"], since it reads files of this host
    #[arg(long)]
    no_stock: bool,

    /// Invocations of all services together that run at a time [default: 64]
    #[arg(long, env = "FANFARE_WORKER_CONCURRENCY", value_name = "N", value_parser = numbers::parse::<usize>)]
    concurrency: Option<usize>,

    /// Messages of each service that the broker hands out ahead, unless the service says otherwise [default: twice its
    /// concurrency]
    #[arg(long, env = "FANFARE_WORKER_PREFETCH", value_name = "N", value_parser = numbers::parse::<u16>)]
    prefetch: Option<u16>,

    /// How often a message may be delivered again, because its worker died or lost its connection, before it is given up
    /// [default: 20]
    #[arg(long, env = "FANFARE_WORKER_REDELIVERY_LIMIT", value_name = "N", value_parser = numbers::parse_any::<u32>)]
    redelivery_limit: Option<u32>,

    /// How long a message that runs alone, from its third delivery on, keeps the others of its worker from beginning, and waits
    /// for what runs before that [default: 30s]
    #[arg(long, env = "FANFARE_WORKER_ALONE_LIMIT", value_name = "DURATION", value_parser = durations::parse)]
    alone_limit: Option<Duration>,

    /// Bytes of the largest final payload that is put together where it came in parts. Each that is run takes up a few times as
    /// much memory [default: 268435456]
    #[arg(long, env = "FANFARE_WORKER_MOST_PAYLOAD_BYTES", value_name = "N", value_parser = numbers::parse::<usize>)]
    most_payload_bytes: Option<usize>,

    /// How long it may take to finish when it is to stop [default: 30s]
    #[arg(long, env = "FANFARE_WORKER_SHUTDOWN_DEADLINE", value_name = "DURATION", value_parser = durations::parse)]
    shutdown_deadline: Option<Duration>,

    /// Where metrics, health and state are served over HTTP, to whoever reaches it: an IP address and a port, such as
    /// 127.0.0.1:9464 [default: nowhere]
    #[arg(long, env = "FANFARE_LISTEN", value_name = "ADDRESS")]
    listen: Option<Address>,
}

pub(crate) async fn run(arguments: WorkerArguments, settings: &Settings) -> Result<Exit, Failure> {
    let file = &settings.file.worker;
    let defaults = WorkerConfig::default();
    let config = WorkerConfig {
        concurrency: arguments.concurrency.or(file.concurrency).unwrap_or(defaults.concurrency),
        consumer_timeout: settings.consumer_timeout.unwrap_or(defaults.consumer_timeout),
        shutdown_deadline: arguments
            .shutdown_deadline
            .or(file.shutdown_deadline.map(|written| written.0))
            .unwrap_or(defaults.shutdown_deadline),
        redelivery_limit: arguments
            .redelivery_limit
            .or(file.redelivery_limit)
            .unwrap_or(defaults.redelivery_limit),
        alone_limit: arguments
            .alone_limit
            .or(file.alone_limit.map(|written| written.0))
            .unwrap_or(defaults.alone_limit),
        most_result_bytes: file.most_result_bytes.unwrap_or(defaults.most_result_bytes),
        most_payload_bytes: arguments
            .most_payload_bytes
            .or(file.most_payload_bytes)
            .unwrap_or(defaults.most_payload_bytes),
        bundle_results: file.bundle_results.unwrap_or(defaults.bundle_results),
        name: Some(identity::name()),
    };
    let stock = !arguments.no_stock && file.stock.unwrap_or(true);
    let offered = services::offered(&settings.file, stock, arguments.prefetch.or(file.prefetch));
    let chosen = offered.and_then(|all| chosen(all, &arguments.services)).map_err(Failure::bad_input)?;
    let fanfare = settings.fanfare("worker")?;
    let signals = Signals::listen()?;
    let worker = fanfare.worker_with(config).services(chosen);
    let (broker, readiness) = (Arc::clone(fanfare.broker()), worker.readiness());
    let subject = Subject { role: "worker", broker, readiness, coordinator: None, operator: None };
    let _monitor = Monitor::start_if_any(arguments.listen.or(file.listen), subject).await?;
    let outcome = worker.run_until(signals.first()).await;
    let outcome = match outcome {
        Ok(()) => Ok(Exit::Done),
        Err(error @ WorkerError::Broker(_)) => Err(match without_broker(&fanfare).await {
            Some(failure) => failure,
            None => Failure::new(Exit::Failed, error),
        }),
        Err(error) => Err(Failure::bad_input(error)),
    };
    fanfare.close().await;
    outcome
}

fn chosen(mut all: BTreeMap<ServiceName, Registration>, names: &[ServiceName]) -> Result<Vec<Registration>> {
    if all.is_empty() {
        bail!("there is no service to run: name some in fanfare.toml, or do without --no-stock");
    }
    if names.is_empty() {
        return Ok(all.into_values().collect());
    }
    let known = all.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| match all.remove(name) {
            Some(registration) => Ok(registration),
            None if name.as_str() == FILE_STATS => bail!(
                "`{name}` reads files of this host: to serve it, write [stock.\"{name}\"] into fanfare.toml"
            ),
            None => bail!("there is no service `{name}` to run, or it is named twice; there are {known}"),
        })
        .collect()
}
