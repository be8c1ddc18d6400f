//! The command line.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, Styles};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use fanfare_broker::amqp::redacted;
use fanfare_protocol::shortened;

use crate::configuration::{Aggregation, QueueType};
use crate::exit::EXIT_CODES;
use crate::logging::Format;
use crate::table::plain;
use crate::{
    bench, cancel, coordinator, dashboard, demo, doctor, durations, explain, gc, invoke, numbers, parked,
    status, variables, worker,
};

/// Fan-out/fan-in on RabbitMQ: invoke many services in the background, and be called once when all are done.
#[derive(Debug, Parser)]
#[command(name = "fanfare", version, after_help = format!("\
Every setting comes from its flag, else from its FANFARE_ variable, else from fanfare.toml
(--config, else ./fanfare.toml, else /etc/fanfare/fanfare.toml), else it has a default.

Examples:
  fanfare demo
  fanfare worker --broker amqp://localhost
  fanfare coordinator --broker amqp://localhost
  fanfare invoke --target 'helpers.echo={{\"a\":1}}' --on-final helpers.input-logger

{EXIT_CODES}"))]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct Shared {
    /// The settings file
    #[arg(long, global = true, env = "FANFARE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The broker: amqp://user:password@host:5672/vhost, amqps:// for TLS, or several nodes of it divided by commas, which are
    /// tried in turn. Whoever may list processes sees this flag with a password in it: FANFARE_BROKER, fanfare.toml and
    /// --broker-password-file keep it to themselves [default: amqp://localhost; of the demo: memory://]
    #[arg(long, global = true, env = "FANFARE_BROKER", value_name = "URLS", hide_env_values = true)]
    pub(crate) broker: Option<String>,

    /// A file that holds the password of all these URLs and nothing else, in place of what they say
    #[arg(long, global = true, env = "FANFARE_BROKER_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) broker_password_file: Option<PathBuf>,

    /// How every queue name begins [default: fanfare]
    #[arg(long, global = true, env = "FANFARE_PREFIX", value_name = "NAME")]
    pub(crate) prefix: Option<String>,

    /// The type of aggregation queues, for whoever invokes [default: classic]
    #[arg(long, global = true, env = "FANFARE_QUEUE_TYPE", value_name = "TYPE")]
    pub(crate) queue_type: Option<QueueType>,

    /// Where whoever invokes has results gathered [default: per-cid]
    #[arg(long, global = true, env = "FANFARE_AGGREGATION", value_name = "HOW")]
    pub(crate) aggregation: Option<Aggregation>,

    /// How many shards there are for shared aggregation: the same number for whoever invokes and for all coordinators, which
    /// serve them in any case [default: none]
    #[arg(long, global = true, env = "FANFARE_SHARDS", value_name = "N", value_parser = numbers::parse_shards)]
    pub(crate) shards: Option<u32>,

    /// For amqps://, the authorities that may have signed the broker's certificate, as PEM [default: the system's]
    #[arg(long, global = true, env = "FANFARE_CA_CERTIFICATE", value_name = "FILE")]
    pub(crate) ca_certificate: Option<PathBuf>,

    /// For amqps://, what is shown to a broker that asks for a certificate, as PEM
    #[arg(long, global = true, env = "FANFARE_CLIENT_CERTIFICATE", value_name = "FILE")]
    pub(crate) client_certificate: Option<PathBuf>,

    /// The private key of the client certificate, as PEM
    #[arg(long, global = true, env = "FANFARE_CLIENT_KEY", value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,

    /// The login of --broker, to be put into manifests as their user_id, so that coordinators can tell whose they are
    #[arg(long, global = true, env = "FANFARE_USER_ID", value_name = "NAME")]
    pub(crate) user_id: Option<String>,

    /// What the broker's consumer time-out was set to, where it was: the broker does not tell [default: 30m]
    #[arg(long, global = true, env = "FANFARE_CONSUMER_TIMEOUT", value_name = "DURATION", value_parser = durations::parse)]
    pub(crate) consumer_timeout: Option<Duration>,

    /// What is logged to standard error, such as `debug` or `warn,fanfare_coordinator=debug` [default: RUST_LOG, else info for
    /// workers and coordinators, error for the doctor, warn for the others]
    #[arg(long, global = true, env = "FANFARE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// How the log is written [default: text]
    #[arg(long, global = true, env = "FANFARE_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<Format>,
}

// Written out beside the flags that they are for: settings files are read without a command line, too.
impl ValueEnum for QueueType {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Classic, Self::Quorum]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Classic => {
                PossibleValue::new("classic").help("On one node: a fan-out waits while it is down")
            }
            Self::Quorum => PossibleValue::new("quorum").help("On a majority of a cluster's nodes"),
        })
    }
}

impl ValueEnum for Aggregation {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::PerCid, Self::Shared]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::PerCid => PossibleValue::new("per-cid").help("In a queue for each fan-out"),
            Self::Shared => {
                PossibleValue::new("shared").help("In shards, which all fan-outs share: for many small ones")
            }
        })
    }
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Text => PossibleValue::new("text").help("A line of text for each event"),
            Self::Json => PossibleValue::new("json")
                .help("A JSON object a line for each event, with the fields of its span"),
        })
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Counts the files under a folder with one fan-out: publisher, worker and coordinator in one process
    Demo(demo::DemoArguments),
    /// Runs services: the stock ones, and those that fanfare.toml names
    Worker(worker::WorkerArguments),
    /// Collects results and invokes callbacks. Run as many as you like
    Coordinator(coordinator::CoordinatorArguments),
    /// Invokes a fan-out or a parallel execution
    Invoke(invoke::InvokeArguments),
    /// Serves a page that shows all fan-outs, worker pools and parked messages
    Dashboard(dashboard::DashboardArguments),
    /// Tells which fan-outs are open, and how far they have come
    Status(status::StatusArguments),
    /// Tells what each missing target of a fan-out waits for, and what to do about it
    Explain(explain::ExplainArguments),
    /// Looks at messages that were kept for a person, puts them back, or drops them
    Parked(parked::ParkedArguments),
    /// Ends a fan-out without waiting for any more of its targets
    Cancel(cancel::CancelArguments),
    /// Removes aggregation queues that no fan-out owns, such as those of publishers that crashed
    Gc(gc::GcArguments),
    /// Tells whether broker, queues and permissions are as Fanfare needs them, and what to do where they are not
    Doctor(doctor::DoctorArguments),
    /// Measures how many fan-outs a broker bears, beside what it does without Fanfare
    Bench(bench::BenchArguments),
}

impl Command {
    /// What is logged where nobody says anything: processes that run on are followed by their logs, and the output of the
    /// others is not to be buried in theirs.
    pub(crate) const fn default_log(&self) -> &'static str {
        match self {
            Self::Worker(_) | Self::Coordinator(_) | Self::Dashboard(_) => "info",
            // What fails is in its report.
            Self::Demo(_) => "warn,fanfare_worker=error",
            Self::Invoke(_)
            | Self::Status(_)
            | Self::Explain(_)
            | Self::Parked(_)
            | Self::Cancel(_)
            | Self::Gc(_)
            | Self::Bench(_) => "warn",
            Self::Doctor(_) => "error",
        }
    }
}

/// Why a command line is refused. It repeats what it was given, of which no password is left and nothing that a terminal would act upon.
pub(crate) fn refusal(error: clap::Error) -> String {
    // Once more without styles, which could not be told from what is to be escaped.
    let error = Arguments::command().styles(Styles::plain()).try_get_matches().err().unwrap_or(error);
    let text = cut(variables::blamed(error)).render().ansi().to_string();
    text.trim_end().lines().map(|line| plain(&without_passwords(line))).collect::<Vec<_>>().join("\n")
}

/// The error without the end of what it repeats, where that is long.
fn cut(mut error: clap::Error) -> clap::Error {
    let long = |(kind, value): (ContextKind, &ContextValue)| match value {
        ContextValue::String(value) => match shortened(value) {
            Cow::Owned(short) => Some((kind, short)),
            Cow::Borrowed(_) => None,
        },
        _ => None,
    };
    let long: Vec<_> = error.context().filter_map(long).collect();
    if !long.is_empty() {
        // It repeats the same.
        error.remove(ContextKind::Suggested);
    }
    for (kind, short) in long {
        error.insert(kind, ContextValue::String(short));
    }
    error
}

/// A line that may quote a URL.
fn without_passwords(line: &str) -> String {
    let has_user = line.find("://").is_some_and(|scheme| line[scheme..].contains('@'));
    if has_user { redacted(line) } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a command line as a shell divides them; the examples need no more of it than single quotes.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn refusal_shows_no_password() {
        let arguments = ["fanfare", "gc", "--management", "ftp://user:sec'ret@host/"];
        let shown = without_passwords(&Arguments::try_parse_from(arguments).unwrap_err().to_string());
        assert!(shown.contains("'ftp://user:***@host/'"), "{shown}");
        assert_eq!(without_passwords("use amqp://host:5672"), "use amqp://host:5672");
    }

    #[test]
    fn refusal_repeats_the_start_of_what_is_long_and_says_how_long_it_is() {
        let long = "x".repeat(100_000);
        let target = format!("a b={long}");
        for arguments in
            [["invoke", &long], ["invoke", &format!("--{long}")], ["gc", &format!("--min-age={long}")]]
        {
            let error = Arguments::try_parse_from(["fanfare"].into_iter().chain(arguments)).unwrap_err();
            let refused = cut(error).to_string();
            assert!(refused.len() < 1_000 && refused.contains("xxx... (10000"), "{refused}");
        }
        let error = Arguments::try_parse_from(["fanfare", "invoke", "--target", &target]).unwrap_err();
        let refused = cut(error).to_string();
        assert!(
            refused.contains("xxx... (100004 bytes)' for '--target <[KEY@]SERVICE[=JSON]>'"),
            "{refused}"
        );
    }

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_help_has_examples_and_they_parse() {
        let mut command = Arguments::command();
        command.build();
        let helps = std::iter::once(command.clone()).chain(command.get_subcommands().cloned());
        for mut help in helps.filter(|command| command.get_name() != "help") {
            let text = help.render_long_help().to_string();
            let examples: Vec<&str> =
                text.lines().filter_map(|line| line.strip_prefix("  fanfare ")).collect();
            assert!(!examples.is_empty(), "no example in the help of {}", help.get_name());
            for example in examples {
                let command = example.split(['|', '<', '>']).next().unwrap();
                let line = words(&format!("fanfare {command}"));
                if let Err(error) = Arguments::try_parse_from(&line) {
                    panic!("{line:?}: {error}");
                }
            }
        }
    }
}
