//! `FANFARE_*` variables that nothing reads.

use std::collections::BTreeSet;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue};

use crate::arguments::Arguments;
use crate::configuration::mistakes::closest;
use crate::exit::say;

const PREFIX: &str = "FANFARE_";

/// Variables that no flag stands for: the demo's, those of programs that a worker runs as services, and those that
/// docker-compose.yml and the project's own checks read.
const OTHERS: [&str; 15] = [
    "FANFARE_DEMO_PATH",
    "FANFARE_CID",
    "FANFARE_RUN",
    "FANFARE_KEY",
    "FANFARE_CHANNEL",
    "FANFARE_MESSAGE_ID",
    "FANFARE_ATTEMPT",
    "FANFARE_METADATA",
    "FANFARE_PAYLOAD_BYTES",
    "FANFARE_AMQP_PORT",
    "FANFARE_MANAGEMENT_PORT",
    "FANFARE_DASHBOARD_PORT",
    "FANFARE_PROMETHEUS_PORT",
    "FANFARE_GRAFANA_PORT",
    "FANFARE_CI_COMPOSE",
];

/// Warns of variables that look like settings and are none.
pub(crate) fn warn_of_unknown() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let names: BTreeSet<String> = names.filter(|name| name.starts_with(PREFIX)).collect();
    if names.is_empty() {
        return;
    }
    let known = known();
    for warning in names.iter().filter_map(|name| warning(name, &known)) {
        say(format_args!("warning: {warning}"));
    }
}

/// The variables that there are.
pub(crate) fn known() -> BTreeSet<String> {
    let command = Arguments::command();
    let all = std::iter::once(&command).chain(command.get_subcommands());
    let flags = all.flat_map(|command| command.get_arguments().filter_map(|argument| argument.get_env()));
    let flags = flags.filter_map(|name| name.to_str().map(str::to_owned));
    flags.chain(OTHERS.map(str::to_owned)).collect()
}

/// A mistake in the value of a variable is that of the variable, and not of the flag that stands for the same.
pub(crate) fn blamed(mut error: clap::Error) -> clap::Error {
    let variable = match (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue)) {
        (Some(ContextValue::String(argument)), Some(ContextValue::String(value))) => {
            variable_of(argument).filter(|variable| holds(variable, value))
        }
        _ => None,
    };
    let flag = |argument: &str| argument.split([' ', '=']).next().map(str::to_owned);
    let named = error.get(ContextKind::InvalidArg).map(ToString::to_string).as_deref().and_then(flag);
    let is_given = std::env::args_os().any(|given| flag(&given.to_string_lossy()) == named);
    if let Some(variable) = variable.filter(|_| !is_given) {
        error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
    }
    error
}

/// The variable of an argument, which is shown as in a usage line.
fn variable_of(argument: &str) -> Option<String> {
    let mut command = Arguments::command();
    command.build();
    let all = std::iter::once(&command).chain(command.get_subcommands());
    let mut arguments = all.flat_map(clap::Command::get_arguments);
    let variable = arguments.find(|known| known.to_string() == argument)?.get_env()?;
    variable.to_str().map(str::to_owned)
}

/// Whether a variable has this value, or has it among several.
fn holds(variable: &str, value: &str) -> bool {
    std::env::var(variable).is_ok_and(|held| held == value || held.split(',').any(|part| part == value))
}

fn warning(name: &str, known: &BTreeSet<String>) -> Option<String> {
    if known.contains(name) || name.starts_with("FANFARE_TEST_") || is_of_kubernetes(name) {
        return None;
    }
    // Without what all of them share, which would make any two alike.
    let bare = |name: &'_ str| name.strip_prefix(PREFIX).map(str::to_owned).unwrap_or_default();
    let bare_known: Vec<String> = known.iter().map(|name| bare(name)).collect();
    let meant = match closest(&bare(name), bare_known.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {PREFIX}{meant}?"),
        None => "docs/configuration.md lists those that there are".to_owned(),
    };
    Some(format!("{name} is no setting, and does nothing: {meant}"))
}

/// Whether it is one of those that Kubernetes sets for a service whose name begins with `fanfare-`.
fn is_of_kubernetes(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_variable_is_told_with_what_was_meant() {
        let known = known();
        for (name, meant) in [
            ("FANFARE_BROKR", "did you mean FANFARE_BROKER?"),
            ("FANFARE_BROKER_URL", "did you mean FANFARE_BROKER?"),
            ("FANFARE_WORKER_CONCURENCY", "did you mean FANFARE_WORKER_CONCURRENCY?"),
            ("FANFARE_COORDINATOR_RENEWEL", "did you mean FANFARE_COORDINATOR_RENEWAL?"),
            ("FANFARE_XYZ", "docs/configuration.md lists"),
        ] {
            let warning = warning(name, &known).unwrap();
            assert!(
                warning.starts_with(&format!("{name} is no setting")) && warning.contains(meant),
                "{warning}"
            );
        }
    }

    #[test]
    fn variables_that_somebody_reads_are_known() {
        let known = known();
        for name in [
            "FANFARE_BROKER",
            "FANFARE_MANAGEMENT",
            "FANFARE_DEMO_PATH",
            "FANFARE_TEST_BROKER",
            "FANFARE_METADATA",
            "FANFARE_COORDINATOR_SERVICE_HOST",
            "FANFARE_COORDINATOR_PORT_5672_TCP_ADDR",
        ] {
            assert_eq!(warning(name, &known), None);
        }
    }
}
