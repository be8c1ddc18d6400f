use std::collections::BTreeSet;
use std::sync::Arc;

use fanfare_protocol::{Manifest, Message};

use crate::Config;

/// Which manifests are accepted, and whose this coordinator's are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    /// All where there are none.
    accepted: Option<Arc<BTreeSet<String>>>,
    own: Option<String>,
    most_targets: usize,
}

impl Trust {
    pub(crate) fn new(config: &Config) -> Self {
        let accepted = config.accepted_users.as_ref().map(|users| {
            let own = config.user_id.iter().cloned();
            Arc::new(users.iter().cloned().chain(own).collect())
        });
        Self { accepted, own: config.user_id.clone(), most_targets: config.most_targets }
    }

    /// Whether a manifest is of an accepted user: by its `user_id`, which no one can forge, since the broker compares it with
    /// the login of whoever publishes it.
    ///
    /// # Errors
    /// Why it is not, and what would help.
    pub(crate) fn check(&self, manifest: &Message) -> Result<(), String> {
        match self.distrusted(manifest) {
            None => Ok(()),
            Some(Some(user)) => Err(format!(
                "its user_id `{user}` is not among the users whose manifests are accepted: add it to accept_users, or find \
                 out why it invokes fan-outs"
            )),
            Some(None) => Err(
                "it has no user_id, and only manifests of certain users are accepted: have the publisher set its user_id"
                    .to_owned(),
            ),
        }
    }

    /// Whether somebody may ask for a cancel, or put a question: the same as for a manifest.
    ///
    /// # Errors
    /// Why not, and what whoever asks can do about it.
    pub(crate) fn check_request(&self, request: &Message) -> Result<(), String> {
        match self.distrusted(request) {
            None => Ok(()),
            Some(Some(user)) => Err(format!(
                "its user_id `{user}` is not among the users whose requests are accepted: ask as one of them, or add it to the \
                 coordinators' accept_users"
            )),
            Some(None) => Err(
                "it has no user_id, and only requests of certain users are accepted: give --user-id, or the setting user_id, \
                 which is the login of the broker's URL"
                    .to_owned(),
            ),
        }
    }

    /// The user of a message, if it says whose it is, where that is none of those who are accepted.
    fn distrusted<'a>(&self, message: &'a Message) -> Option<Option<&'a str>> {
        let accepted = self.accepted.as_ref()?;
        let user = message.properties.user_id.as_deref();
        user.is_none_or(|user| !accepted.contains(user)).then_some(user)
    }

    /// Whether a fan-out is as small as it has to be. One that is open already goes on, whatever is allowed by now.
    ///
    /// # Errors
    /// Why it is not, and what would help.
    pub(crate) fn check_size(&self, manifest: &Manifest, take_over: bool) -> Result<(), String> {
        let (targets, most) = (manifest.targets.len(), self.most_targets);
        if take_over || targets <= most {
            return Ok(());
        }
        Err(format!(
            "it has {targets} targets, and {most} is the most here: split the fan-out, or raise most_targets"
        ))
    }

    /// A manifest as this coordinator publishes it.
    pub(crate) fn sign(&self, mut manifest: Message) -> Message {
        manifest.properties.user_id = self.own.as_deref().map(Into::into);
        manifest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(accepted: Option<&[&str]>) -> Trust {
        let accepted_users = accepted.map(|users| users.iter().map(|&user| user.to_owned()).collect());
        Trust::new(&Config { accepted_users, user_id: Some("coordinator".to_owned()), ..Config::default() })
    }

    fn of(user: Option<&str>) -> Message {
        let mut manifest = Message::default();
        manifest.properties.user_id = user.map(Into::into);
        manifest
    }

    #[test]
    fn without_a_list_every_manifest_is_accepted() {
        for user in [None, Some("anyone")] {
            assert_eq!(trust(None).check(&of(user)), Ok(()));
            assert_eq!(trust(None).check_request(&of(user)), Ok(()));
        }
    }

    #[test]
    fn only_users_of_the_list_and_the_coordinator_itself_are_accepted() {
        let trust = trust(Some(&["shop"]));
        assert_eq!(trust.check(&of(Some("shop"))), Ok(()));
        assert_eq!(trust.check(&trust.sign(of(None))), Ok(()));
        assert!(trust.check(&of(Some("worker"))).unwrap_err().contains("`worker` is not among"));
        assert!(trust.check(&of(None)).unwrap_err().contains("it has no user_id"));
    }

    #[test]
    fn who_asks_is_told_what_to_do_about_it() {
        let trust = trust(Some(&["shop"]));
        assert_eq!(trust.check_request(&of(Some("shop"))), Ok(()));
        let told = |user| trust.check_request(&of(user)).unwrap_err();
        assert!(told(Some("worker")).contains("or add it to the coordinators' accept_users"));
        assert!(told(None).contains("give --user-id, or the setting user_id, which is the login"));
    }
}
