//! The `fanfare` command: fan-out/fan-in on RabbitMQ from a shell.
//!
//! Every subcommand is a module with its arguments and a `run`. What they share: [`settings`] puts flags, environment and
//! `fanfare.toml` together, [`exit`] says what the process ends with, and [`signals`] tells when it is to stop.

mod arguments;
mod bench;
mod cancel;
mod configuration;
mod coordinator;
mod dashboard;
mod demo;
mod doctor;
#[cfg(test)]
mod documentation;
mod durations;
mod exit;
mod explain;
mod gc;
mod identity;
mod invoke;
mod logging;
mod management;
mod memory;
mod monitor;
#[cfg(not(feature = "otlp"))]
mod no_otlp;
mod numbers;
#[cfg(feature = "otlp")]
mod otlp;
mod parked;
mod services;
mod settings;
mod signals;
mod silent;
mod status;
mod table;
mod variables;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::exit::{Exit, Failure, say};
use crate::settings::Settings;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            say(arguments::refusal(error));
            return Exit::BadInput.into();
        }
        // It is the help or the version.
        Err(shown) => shown.exit(),
    };
    variables::warn_of_unknown();
    if let Err(error) = memory::give_back_regularly() {
        say(format_args!("memory that is free is not given back to the system: {error}"));
    }
    match run(arguments) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let settings = Settings::load(arguments.shared)?;
    let logging =
        logging::start(settings.log.as_deref(), arguments.command.default_log(), settings.log_format)?;
    let outcome = match arguments.command {
        Command::Demo(arguments) => demo::run(arguments, &settings).await,
        Command::Worker(arguments) => worker::run(arguments, &settings).await,
        Command::Coordinator(arguments) => coordinator::run(arguments, &settings).await,
        Command::Invoke(arguments) => invoke::run(arguments, &settings).await,
        Command::Dashboard(arguments) => dashboard::run(arguments, &settings).await,
        Command::Status(arguments) => status::run(arguments, &settings).await,
        Command::Explain(arguments) => explain::run(arguments, &settings).await,
        Command::Parked(arguments) => parked::run(arguments, &settings).await,
        Command::Cancel(arguments) => cancel::run(arguments, &settings).await,
        Command::Gc(arguments) => gc::run(arguments, &settings).await,
        Command::Doctor(arguments) => doctor::run(arguments, &settings).await,
        Command::Bench(arguments) => bench::run(arguments, &settings).await,
    };
    logging.end().await;
    outcome
}
