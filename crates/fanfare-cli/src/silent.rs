//! Who does not answer, where all coordinators are asked: the broker counts them, and its management API tells their names.

use std::collections::{BTreeMap, BTreeSet};

use fanfare::{AskError, Coordinators, Fanfare, RunId};

use crate::exit::{self, Exit, Failure, say};
use crate::identity;
use crate::management::{Management, WITHOUT_TLS};

/// Those who did not answer.
#[derive(Debug)]
pub(crate) enum Unheard {
    /// All have, as far as the broker knows them.
    Nobody,
    /// Their names.
    Known(BTreeSet<String>),
    /// Why nobody knows.
    Unknown(String),
}

impl Unheard {
    /// Their names, where somebody is missing and they are known.
    pub(crate) fn names(&self) -> Option<&BTreeSet<String>> {
        match self {
            Self::Known(names) if !names.is_empty() => Some(names),
            _ => None,
        }
    }

    /// Tells of them on standard error.
    pub(crate) fn say(&self) {
        match self {
            Self::Nobody => {}
            Self::Known(names) if names.is_empty() => say(
                "warning: who did not answer is not known: it is no `fanfare coordinator`, or is of an earlier version",
            ),
            Self::Known(names) => {
                for name in names {
                    say(format_args!("warning: coordinator {name} did not answer"));
                }
            }
            Self::Unknown(reason) => say(format_args!("warning: who did not answer is not known: {reason}")),
        }
    }
}

/// Those who are missing from an answer.
pub(crate) async fn missing(
    fanfare: &Fanfare,
    management: Option<&Management>,
    coordinators: &Coordinators,
) -> Unheard {
    match coordinators.silent {
        Some(1..) => unheard(fanfare, management, &coordinators.heard).await,
        _ => Unheard::Nobody,
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
        unheard(fanfare, management, &BTreeMap::new()).await.say();
    }
    Failure::new(Exit::Failed, error)
}

/// Who is connected and not among those who have answered.
pub(crate) async fn unheard(
    fanfare: &Fanfare,
    management: Option<&Management>,
    heard: &BTreeMap<RunId, String>,
) -> Unheard {
    let tags = match management {
        Some(management) => management.consumer_tags(&fanfare.names().dead_queue()).await,
        None => Err(WITHOUT_TLS.to_owned()),
    };
    tags.map_or_else(Unheard::Unknown, |tags| Unheard::Known(missing_of(&tags, heard)))
}

/// The coordinators among those who consume the dead letters, as all do, that have not answered.
fn missing_of(tags: &[String], heard: &BTreeMap<RunId, String>) -> BTreeSet<String> {
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
        assert_eq!(missing_of(&tags.map(str::to_owned), &heard), BTreeSet::from(["host:2".to_owned()]));
    }
}
