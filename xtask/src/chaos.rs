//! Provides a broker to be killed, and runs the chaos of `tests/tests/chaos.rs` on it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::broker::{Broker, Restartable, Way};
use crate::process::{self, Group};
use crate::{environment, say};

/// Options of `cargo xtask chaos`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask chaos                                             two minutes
  cargo xtask chaos --minutes 30 --seed 7                       as chosen by 7, as far as processes can be repeated
  cargo xtask chaos --aggregation shared                        with all fan-outs in shards
  FANFARE_TEST_IMAGE=rabbitmq:4.3-management cargo xtask chaos --from container

Fails where a promise was broken, shows the records that prove it, and keeps what every process wrote.")]
pub(crate) struct Options {
    /// For how long things are killed. Everything that is open is given time to end after that.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,

    /// What chooses fan-outs and faults [default: a fresh one, which is printed]
    #[arg(long)]
    seed: Option<u64>,

    /// Where results are gathered.
    #[arg(long, value_enum, default_value_t = Gathering::Both)]
    aggregation: Gathering,

    /// What provides the broker.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    from: Way,
}

/// Where results are gathered.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Gathering {
    /// In a queue of each fan-out's own.
    PerCid,
    /// In shards.
    Shared,
    /// Some fan-outs share, and the others do not.
    Both,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    process::raise_open_files();
    let seed = options.seed.unwrap_or_else(fresh_seed);
    let broker = Broker::start(options.from, 1, false)?.pop().expect("one broker was asked for");
    say(format_args!("chaos on {broker}, {} min, seed {seed}", options.minutes));
    let broker = Restartable::new(broker)?;
    let mut command = environment::cargo();
    // The workspace's features are those of `cargo test`, so that nothing is built a second time.
    command.args(["test", "--locked", "--workspace", "--quiet", "--test", "chaos", "--"]);
    command.args(["--minutes", &options.minutes.to_string(), "--seed", &seed.to_string()]);
    let aggregation = options.aggregation.to_possible_value().expect("all can be given");
    command.args(["--aggregation", aggregation.get_name()]);
    command.env("FANFARE_TEST_RESTART_BROKER", broker.url());
    command.env("FANFARE_TEST_RESTART_COMMAND", broker.command());
    command.envs(broker.control().map(|control| ("FANFARE_TEST_RESTART_CONTROL", control)));
    ensure!(Group::spawn(&mut command)?.wait(None)?.success(), "chaos broke a promise, or could not be run");
    Ok(())
}

/// Any number will do that differs from run to run and is short enough to be typed again.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) % 1_000_000
}
