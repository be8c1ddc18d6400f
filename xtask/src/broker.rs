//! RabbitMQ brokers for tests and development, each provided by the first way that this machine allows.

mod cluster;
mod container;
mod doorman;
mod handshake;
mod node;
mod restart;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

pub(crate) use cluster::Cluster;
pub(crate) use doorman::{AskOptions, ask};
pub(crate) use restart::Restartable;

use crate::{interrupt, process, say};

/// How long a broker may take to accept connections. A loaded machine needs a tenth of it.
const START_LIMIT: Duration = Duration::from_secs(120);

/// What may provide a broker.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// A container where that is possible, else the installed package.
    Auto,
    /// A container of `FANFARE_TEST_IMAGE`, by default rabbitmq:4-management.
    Container,
    /// A private node of the installed package.
    Package,
}

/// Options of `cargo xtask broker`.
#[derive(Args)]
pub(crate) struct Options {
    /// What provides the broker.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    from: Way,

    /// Runs a cluster of three nodes of the installed package instead, which can be killed one by one.
    #[arg(long, conflicts_with = "from")]
    cluster: bool,
}

/// A broker that accepts connections. One that was started here ends when this is dropped.
pub(crate) struct Broker {
    url: String,
    version: String,
    provided_by: String,
    instance: Option<Box<dyn Instance>>,
}

/// A running broker that this process owns: dropping it ends it, and nothing of it stays.
trait Instance: Send {
    /// The loopback port that speaks AMQP.
    fn port(&self) -> u16;

    /// The loopback port of the management API, where it runs.
    fn management(&self) -> Option<u16>;

    /// Fails when the broker has ended by itself, saying why.
    fn check_running(&mut self) -> Result<()>;

    /// Whether RabbitMQ's own check of its ports passes.
    fn check_ports(&self) -> Result<()>;

    /// Ends the broker, whose port and data are kept for another start. One that has ended stays so.
    fn end(&mut self, end: End) -> Result<()>;

    /// Starts the broker again where it was ended.
    fn start_again(&mut self) -> Result<()>;

    /// The shell words that run `rabbitmqctl` on this broker.
    fn control(&self) -> String;

    /// The process of the Erlang machine, as this machine numbers it, where that can be told.
    fn pid(&self) -> Option<u32>;
}

/// How a broker ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is asked to stop, and given the time to do so.
    Stopped,
    /// By SIGKILL, in the middle of whatever it does.
    Killed,
}

/// A way to start brokers that was found to work on this machine.
enum Provider {
    Container(container::Engine),
    Package(node::Package),
}

impl Broker {
    /// The broker at a URL that the caller was given. It must answer, and is left as it is.
    pub(crate) fn at(url: &str) -> Result<Self> {
        let provided_by = "FANFARE_TEST_BROKER".to_owned();
        // Only plain AMQP can be asked from here: the tests themselves speak TLS and try lists in turn.
        let version = match handshake::address(url) {
            Some(address) => handshake::version(&address)
                .with_context(|| format!("the broker of FANFARE_TEST_BROKER at {address} does not answer"))?,
            None => "of a version that the tests find out".to_owned(),
        };
        Ok(Self { url: url.to_owned(), version, provided_by, instance: None })
    }

    /// Starts `count` brokers of one kind, in the first way that works. The first of them has the management API, where that is
    /// asked for; it takes the broker a share of its time.
    pub(crate) fn start(way: Way, count: usize, management: bool) -> Result<Vec<Self>> {
        // Who names an image wants to know how it fares on that one, not on another.
        let way = if way == Way::Auto && container::image_is_chosen() { Way::Container } else { way };
        let mut reasons = Vec::new();
        for provider in [Provider::container, Provider::package] {
            let brokers = provider(way).and_then(|provider| match provider {
                Some(provider) => (0..count)
                    .map(|nth| provider.start(management && nth == 0))
                    .collect::<Result<Vec<_>>>()
                    .map(Some),
                None => Ok(None),
            });
            match brokers {
                Ok(Some(brokers)) => return Ok(brokers),
                Ok(None) => {}
                Err(error) if way == Way::Auto && !error.is::<interrupt::Interrupted>() => {
                    say(format_args!("{error:#}"));
                    reasons.push(format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        bail!(
            "no RabbitMQ broker: start Docker with the image rabbitmq:4-management, or install the package \
             rabbitmq-server, or set FANFARE_TEST_BROKER to an AMQP URL ({})",
            reasons.join("; ")
        )
    }

    /// Starts the nodes of one cluster.
    fn start_cluster(size: usize) -> Result<Vec<Self>> {
        let package = node::Package::find()?;
        let mut first = package.start(false)?;
        wait_until_ready(&mut first)?;
        let others = (1..size).map(|_| first.start_another()).collect::<Result<Vec<_>>>()?;
        let nodes = std::iter::once(first).chain(others);
        nodes.map(|node| Self::of(Box::new(node), package.to_string())).collect()
    }

    /// A broker that was just started, when it accepts connections.
    fn of(mut instance: Box<dyn Instance>, provided_by: String) -> Result<Self> {
        let version = wait_until_ready(instance.as_mut())?;
        Ok(Self { url: url(instance.as_ref()), version, provided_by, instance: Some(instance) })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The URL of the management API of a broker that was started here, where it runs.
    pub(crate) fn management(&self) -> Option<String> {
        let port = self.instance.as_ref()?.management()?;
        Some(format!("http://127.0.0.1:{port}"))
    }

    /// The shell words that run `rabbitmqctl` on a broker that was started here.
    pub(crate) fn control(&self) -> Option<String> {
        self.instance.as_ref().map(|instance| instance.control())
    }

    /// The process of a broker that was started here.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.instance.as_ref().and_then(|instance| instance.pid())
    }

    /// Ends a broker that was started here.
    fn end(&mut self, end: End) -> Result<()> {
        self.instance()?.end(end)
    }

    /// Starts it again where it was ended, and waits until it accepts connections.
    fn start_again(&mut self) -> Result<()> {
        let instance = self.instance()?;
        instance.start_again()?;
        wait_until_ready(instance).map(drop)
    }

    fn instance(&mut self) -> Result<&mut dyn Instance> {
        let instance = self.instance.as_mut().context("this broker was not started here")?;
        Ok(instance.as_mut())
    }
}

impl std::fmt::Display for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RabbitMQ {} from {}", self.version, self.provided_by)
    }
}

impl Provider {
    fn container(way: Way) -> Result<Option<Self>> {
        if way == Way::Package { Ok(None) } else { container::Engine::find().map(Self::Container).map(Some) }
    }

    fn package(way: Way) -> Result<Option<Self>> {
        if way == Way::Container { Ok(None) } else { node::Package::find().map(Self::Package).map(Some) }
    }

    /// A container has the management API in any case, where its image has.
    fn start(&self, management: bool) -> Result<Broker> {
        match self {
            Self::Container(engine) => Broker::of(Box::new(engine.start()?), engine.to_string()),
            Self::Package(package) => Broker::of(Box::new(package.start(management)?), package.to_string()),
        }
    }
}

fn url(instance: &dyn Instance) -> String {
    format!("amqp://guest:guest@127.0.0.1:{}/%2f", instance.port())
}

/// Waits until the broker speaks AMQP on its port and finds all its ports open, and returns its version.
///
/// The port of a container accepts before the broker in it does, so a connection alone proves nothing.
fn wait_until_ready(instance: &mut dyn Instance) -> Result<String> {
    let address = format!("127.0.0.1:{}", instance.port());
    let started = Instant::now();
    loop {
        let ready = handshake::version(&address).and_then(|version| instance.check_ports().map(|()| version));
        match ready {
            Ok(version) => return Ok(version),
            Err(error) => {
                interrupt::check()?;
                instance.check_running()?;
                if started.elapsed() >= START_LIMIT {
                    let limit = START_LIMIT.as_secs();
                    return Err(error.context(format!("the broker accepts no connections after {limit} s")));
                }
            }
        }
        thread::sleep(process::POLL);
    }
}

/// Runs a broker in the foreground, for development.
pub(crate) fn run(options: Options) -> Result<()> {
    process::raise_open_files();
    if options.cluster {
        return cluster::run();
    }
    let mut brokers = Broker::start(options.from, 1, true)?;
    for broker in &mut brokers {
        say(format_args!("{broker}; Ctrl-C ends it. Its URL, for --broker or FANFARE_BROKER:"));
        writeln!(std::io::stdout(), "{}", broker.url())?;
        if let Some(management) = broker.management() {
            say(format_args!("its management API, for --management or FANFARE_MANAGEMENT: {management}"));
        }
        while interrupt::check().is_ok() {
            broker.instance.as_mut().map_or(Ok(()), |instance| instance.check_running())?;
            thread::sleep(process::POLL);
        }
    }
    Ok(())
}
