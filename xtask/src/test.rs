//! Runs every test, with all that the tests need provided here and ended here.

use anyhow::{Result, bail};
use clap::Args;

use crate::broker::{Broker, Cluster, Restartable, Way};
use crate::process::{self, Group};
use crate::python::Python;
use crate::{compose, environment, interrupt, onlookers, say};

/// Options of `cargo xtask test`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask test                                          every test
  cargo xtask test --full                                   the long ones and the compose file too
  cargo xtask test -- -p fanfare-broker                     the tests of one crate
  cargo xtask test -- --test end_to_end -- zero_targets     some tests by name

What provides the broker: FANFARE_TEST_BROKER (an AMQP URL) where it is set, else a container of
FANFARE_TEST_IMAGE (rabbitmq:4-management), else a private node of the installed package, which is
installed first where this runs as root on Debian. The cluster is always of the package.")]
pub(crate) struct Options {
    /// Also runs the tests that take long, and the compose test.
    #[arg(long)]
    full: bool,

    /// What provides the brokers.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    from: Way,

    /// Arguments for `cargo test`. With `-p` among them only that package is tested.
    #[arg(last = true, value_name = "ARGUMENTS")]
    cargo: Vec<String>,
}

/// Everything that the tests are handed. All of it ends when this is dropped.
struct Provided {
    broker: Broker,
    /// One that tests may restart, which no other test should have to survive.
    restartable: Option<Restartable>,
    /// One whose nodes tests may kill.
    cluster: Option<Cluster>,
    python: Python,
    /// Where the browser and Prometheus are.
    onlookers: Vec<(&'static str, String)>,
}

/// Provides what the tests need and runs them.
pub(crate) fn run(options: Options) -> Result<()> {
    process::raise_open_files();
    let provided = Provided::new(options.from)?;
    let mut failed = Vec::new();
    if !cargo_test(&options, &provided)? {
        failed.push("cargo test");
    }
    // The rest needs brokers of its own, and the machine for itself.
    drop(provided);
    if options.full
        && let Err(error) = compose::run()
    {
        interrupt::check()?;
        say(format_args!("error: {error:#}"));
        failed.push("compose test");
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn cargo_test(options: &Options, provided: &Provided) -> Result<bool> {
    let mut command = environment::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    if !names_package(&options.cargo) {
        command.arg("--workspace");
    }
    command.args(&options.cargo).envs(provided.variables());
    if options.full {
        command.env("FANFARE_TEST_FULL", "1");
    }
    Ok(Group::spawn(&mut command)?.wait(None)?.success())
}

/// Whether the arguments choose packages themselves, which `--workspace` would override.
fn names_package(arguments: &[String]) -> bool {
    let for_cargo = arguments.iter().take_while(|argument| *argument != "--");
    for_cargo.into_iter().any(|argument| {
        argument == "--package"
            || argument.starts_with("--package=")
            || (argument.starts_with("-p") && !argument.starts_with("--"))
    })
}

impl Provided {
    fn new(way: Way) -> Result<Self> {
        let python = Python::provide()?;
        let onlookers = onlookers::provide()?;
        let (broker, restartable) = match environment::variable("FANFARE_TEST_BROKER") {
            None => {
                let mut brokers = Broker::start(way, 2, true)?.into_iter();
                let both = brokers.next().zip(brokers.next());
                both.map(|(first, second)| (first, Some(second))).expect("two brokers were asked for")
            }
            Some(url) => (Broker::at(&url)?, one_to_restart(way)?),
        };
        say(format_args!("the tests use {broker}"));
        if broker.management().is_none() {
            say(
                "WARNING: the tests that ask the management API are left out: they need a broker that is started here",
            );
        }
        match &restartable {
            Some(broker) => say(format_args!("the tests restart {broker}")),
            None => say("WARNING: the tests that restart a broker are left out"),
        }
        say(format_args!("the tests use {python}"));
        let restartable = restartable.map(Restartable::new).transpose()?;
        let cluster = Cluster::is_possible().then(Cluster::new).transpose()?;
        if cluster.is_none() {
            say(
                "WARNING: the tests that kill nodes of a cluster are left out: they need the package rabbitmq-server",
            );
        }
        Ok(Self { broker, restartable, cluster, python, onlookers })
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = self.python.variables();
        variables.extend(self.onlookers.iter().cloned());
        variables.push(("FANFARE_TEST_BROKER", self.broker.url().to_owned()));
        variables.push(match self.broker.management() {
            Some(url) => ("FANFARE_TEST_MANAGEMENT", url),
            None => ("FANFARE_TEST_NO_MANAGEMENT", "1".to_owned()),
        });
        match &self.restartable {
            Some(broker) => {
                variables.push(("FANFARE_TEST_RESTART_BROKER", broker.url().to_owned()));
                variables.push(("FANFARE_TEST_RESTART_COMMAND", broker.command()));
                let control = broker.control().map(str::to_owned);
                variables.extend(control.map(|control| ("FANFARE_TEST_RESTART_CONTROL", control)));
            }
            None => variables.push(("FANFARE_TEST_NO_RESTART", "1".to_owned())),
        }
        variables.push(match &self.cluster {
            Some(cluster) => ("FANFARE_TEST_CLUSTER_COMMAND", cluster.command()),
            None => ("FANFARE_TEST_NO_CLUSTER", "1".to_owned()),
        });
        variables
    }
}

/// A broker that tests may restart beside one that the caller brought, which is not ours to restart.
fn one_to_restart(way: Way) -> Result<Option<Broker>> {
    match Broker::start(way, 1, false) {
        Ok(mut brokers) => Ok(brokers.pop()),
        Err(error) => {
            interrupt::check()?;
            say(format_args!("WARNING: {error:#}"));
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::names_package;

    fn names(arguments: &str) -> bool {
        names_package(&arguments.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn only_packages_for_cargo_narrow_the_run() {
        assert!(names("-p xtask"));
        assert!(names("--package=xtask --lib"));
        assert!(!names("--lib"));
        assert!(!names("--lib -- -p xtask"));
    }
}
