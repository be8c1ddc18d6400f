//! Who does not answer, where all coordinators are asked: the broker counts them, and its management API tells their names.

use std::collections::{BTreeMap, BTreeSet};

use fanfare::{AskError, Coordinators, Fanfare, RunId};

use crate::exit::{self, Exit, Failure, say};
use crate::identity;
use crate::management::{Management, WITHOUT_TLS};

/// Names those who are missing from an answer, where the broker knows of any.
pub(crate) async fn name_missing(
    fanfare: &Fanfare,
    management: Option<&Management>,
    coordinators: &Coordinators,
) {
    if coordinators.silent.is_some_and(|silent| silent > 0) {
        name(fanfare, management, &coordinators.heard).await;
    }
}

/// Why an operator was told nothing, for its exit code. Where nobody has answered, names them.
pub(crate) async fn not_told(fanfare: &Fanfare, management: Option<&Management>, error: AskError) -> Failure {
    if matches!(error, AskError::NoMailbox(_) | AskError::NotSent(_))
        && let Some(failure) = exit::without_broker(fanfare).await
    {
        return failure;
    }
    if error.is_unreachable() {
        return Failure::new(Exit::NoBroker, error);
    }
    if matches!(error, AskError::NoAnswer { blocked: false, .. }) {
        name(fanfare, management, &BTreeMap::new()).await;
    }
    Failure::new(Exit::Failed, error)
}

/// Tells who is connected and not among those who have answered, or why nobody knows.
pub(crate) async fn name(
    fanfare: &Fanfare,
    management: Option<&Management>,
    heard: &BTreeMap<RunId, String>,
) {
    let tags = match management {
        Some(management) => management.consumer_tags(&fanfare.names().dead_queue()).await,
        None => Err(WITHOUT_TLS.to_owned()),
    };
    match tags.map(|tags| unheard(&tags, heard)) {
        Ok(names) if names.is_empty() => say(
            "warning: who did not answer is not known: it is no `fanfare coordinator`, or is of an earlier version",
        ),
        Ok(names) => {
            for name in names {
                say(format_args!("warning: coordinator {name} did not answer"));
            }
        }
        Err(reason) => say(format_args!("warning: who did not answer is not known: {reason}")),
    }
}

/// The coordinators among those who consume the dead letters, as all do, that have not answered.
fn unheard(tags: &[String], heard: &BTreeMap<RunId, String>) -> BTreeSet<String> {
    let names = tags.iter().filter_map(|tag| identity::of_consumer(tag, "coordinator"));
    names.filter(|name| !heard.values().any(|heard| heard == name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_connected_and_has_not_answered_is_named() {
        let tags = ["fanfare coordinator host:1 4", "fanfare coordinator host:2 0", "orders 7", "amq.ctag-x"];
        let id = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let heard = BTreeMap::from([(id, "host:1".to_owned())]);
        assert_eq!(unheard(&tags.map(str::to_owned), &heard), BTreeSet::from(["host:2".to_owned()]));
    }
}
