//! A worker or a coordinator as a process of its own, for tests that kill it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use fanfare_broker::System;
use fanfare_broker::amqp::{self, AmqpBroker};
use fanfare_coordinator::{Coordinator, ShardSettings};
use fanfare_protocol::{Prefix, QueueNames};
use fanfare_publisher::{Aggregation, Publisher};
use fanfare_tests::chaos::{self, Journal};
use fanfare_tests::services;
use fanfare_worker::Worker;

/// How long it is recorded in a shard that fan-outs have ended: longer than a broker that was killed is away, and short enough for
/// tests to wait until nothing is left.
const RECORDED: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    broker: String,
    #[arg(long)]
    prefix: String,
    /// Shards that a coordinator serves.
    #[arg(long, global = true, default_value_t = 0)]
    shards: u32,
    /// What is invoked here is gathered in them.
    #[arg(long, global = true)]
    shared: bool,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serves the services of `fanfare_tests::services`.
    Worker {
        /// Invocations at a time, of each service.
        #[arg(long, default_value_t = 16)]
        concurrency: usize,
        /// Messages of each service that are handed out ahead.
        #[arg(long)]
        prefetch: Option<u16>,
        /// Redeliveries after which a message is given up.
        #[arg(long)]
        redelivery_limit: Option<u32>,
        /// Only `test.report` is served, and never answers.
        #[arg(long)]
        hangs: bool,
        #[command(flatten)]
        chaos: Option<Chaos>,
    },
    /// Invokes fan-outs of all kinds, for chaos.
    Publisher {
        /// Chooses them.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        chaos: Chaos,
    },
    /// Serves `test.whole`, or `test.stream`.
    Receiver {
        /// The second.
        #[arg(long)]
        streams: bool,
    },
    /// Coordinates.
    Coordinator {
        /// Milliseconds after which what is held is renewed.
        #[arg(long)]
        renewal_ms: Option<u64>,
    },
}

/// Takes part in chaos.
#[derive(Args)]
struct Chaos {
    /// Where the journal goes.
    #[arg(long = "chaos", required = false)]
    folder: PathBuf,
    /// Names the journal.
    #[arg(long, required = false)]
    process: String,
}

impl Chaos {
    fn journal(&self) -> Result<Arc<Journal>> {
        Journal::create(&self.folder, &self.process).map(Arc::new)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter()).init();
    let arguments = Arguments::parse();
    let names = QueueNames::new(Prefix::new(arguments.prefix)?);
    let broker = Arc::new(AmqpBroker::new(amqp::Config::parse(&arguments.broker)?, Arc::new(System)));
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let shutdown = async move {
        terminated.recv().await;
    };
    let aggregation = match (arguments.shared, arguments.shards) {
        (true, shards) => Aggregation::Shared { shards },
        (false, _) => Aggregation::PerCid,
    };
    let invokes = fanfare_publisher::Config { names: names.clone(), aggregation, ..Default::default() };
    match arguments.role {
        Role::Publisher { seed, chaos } => {
            // Workers may not have come so far yet.
            let config = fanfare_publisher::Config { declare_missing: true, ..invokes };
            let publisher = Publisher::new(broker, Arc::new(System), config);
            chaos::publish(publisher, chaos.journal()?, seed, shutdown).await?;
        }
        Role::Worker { concurrency, prefetch, redelivery_limit, hangs, chaos } => {
            let publisher = Publisher::new(broker, Arc::new(System), invokes);
            let services = match chaos {
                Some(chaos) => chaos::services(&chaos.journal()?, concurrency),
                None if hangs => vec![services::report(true).concurrency(concurrency)],
                None => services::all(concurrency),
            };
            let services = services.into_iter().map(|service| match prefetch {
                Some(prefetch) => service.prefetch(prefetch),
                None => service,
            });
            let mut config = fanfare_worker::Config::default();
            config.redelivery_limit = redelivery_limit.unwrap_or(config.redelivery_limit);
            Worker::new(publisher, config).services(services).run_until(shutdown).await?;
        }
        Role::Receiver { streams } => {
            let config = fanfare_publisher::Config { names, declare_missing: true, ..Default::default() };
            let publisher = Publisher::new(broker, Arc::new(System), config);
            let service = if streams { services::stream() } else { services::whole() };
            let worker = Worker::new(publisher, fanfare_worker::Config::default());
            worker.service(service).run_until(shutdown).await?;
        }
        Role::Coordinator { renewal_ms } => {
            let mut config = fanfare_coordinator::Config {
                names,
                shards: arguments.shards,
                shard_limits: ShardSettings { recorded: RECORDED, ..ShardSettings::default() },
                absence_pause: Duration::from_millis(300),
                ..Default::default()
            };
            if let Some(milliseconds) = renewal_ms {
                config.limits.renewal = Duration::from_millis(milliseconds);
            }
            Coordinator::new(broker, Arc::new(System), config).run_until(shutdown).await?;
        }
    }
    Ok(())
}

fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into())
}
