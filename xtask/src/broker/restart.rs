//! A broker that tests may restart.

use anyhow::{Result, bail};

use super::doorman::Doorman;
use super::{Broker, End};

/// A broker that restarts when it is asked to, until this is dropped.
pub(crate) struct Restartable {
    url: String,
    control: Option<String>,
    doorman: Doorman,
}

impl Restartable {
    pub(crate) fn new(mut broker: Broker) -> Result<Self> {
        let (url, control) = (broker.url().to_owned(), broker.control());
        let doorman = Doorman::new("restart", move |question| {
            let end = match question {
                "restart" => End::Stopped,
                "restart --kill" => End::Killed,
                _ => bail!("only `restart` and `restart --kill` are understood"),
            };
            broker.end(end)?;
            broker.start_again()?;
            Ok(String::new())
        })?;
        Ok(Self { url, control, doorman })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn control(&self) -> Option<&str> {
        self.control.as_deref()
    }

    /// The shell words that restart the broker, after a SIGKILL where `--kill` follows. They return when it accepts
    /// connections again.
    pub(crate) fn command(&self) -> String {
        format!("{} restart", self.doorman.command())
    }
}
