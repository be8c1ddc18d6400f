//! The commands of this repository: `cargo xtask --help`.

mod bench;
mod broker;
mod chaos;
mod compose;
mod environment;
mod fuzz;
mod interrupt;
mod onlookers;
mod peers;
mod process;
mod python;
mod simulate;
mod test;
mod verify;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The commands of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs every test, on a RabbitMQ broker that it provides itself.
    Test(test::Options),
    /// Checks everything that is not a test: format, lints, docs, licences, dependencies.
    Verify,
    /// Runs fan-outs under faults in virtual time, one seed after the other, up to the first violation of a guarantee.
    Simulate(simulate::Options),
    /// Feeds hostile input to every decoder and to the fan-in.
    Fuzz(fuzz::Options),
    /// Runs the broker that the tests would use, prints its URL, and ends it at Ctrl-C.
    Broker(broker::Options),
    /// Kills workers, coordinators, publishers and the broker in the middle of fan-outs, and tells what came of it.
    Chaos(chaos::Options),
    /// Measures how many fan-outs a broker bears, beside what it does without Fanfare.
    Bench(bench::Options),
    /// Brings up docker-compose.yml under a name of its own, invokes through it, and takes it down.
    ComposeTest,
    /// Asks a running `test` or `chaos` to do something with one of its brokers.
    #[command(hide = true)]
    Ask(broker::AskOptions),
}

fn main() -> ExitCode {
    let outcome = interrupt::watch().and_then(|()| match Arguments::parse().command {
        Command::Test(options) => test::run(options),
        Command::Verify => verify::run(),
        Command::Simulate(options) => simulate::run(options),
        Command::Fuzz(options) => fuzz::run(options),
        Command::Broker(options) => broker::run(options),
        Command::Chaos(options) => chaos::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::ComposeTest => compose::run(),
        Command::Ask(options) => broker::ask(options),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            say(error);
            ExitCode::from(130)
        }
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line of progress on standard error.
///
/// A terminal that has gone away must not panic the clean-up that follows, so a failure to print is ignored.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "xtask: {line}");
}
