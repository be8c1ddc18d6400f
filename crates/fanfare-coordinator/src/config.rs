use std::time::Duration;

use fanfare_broker::absence;
use fanfare_fanin::Limits;
use fanfare_protocol::QueueNames;

/// How a coordinator works. The defaults suit most.
#[derive(Debug, Clone)]
pub struct Config {
    /// The names of the queues.
    pub names: QueueNames,
    /// What one fan-out may hold unacked, for how long, and how much of it a crash may repeat.
    pub limits: Limits,
    /// Manifests that one channel is handed before another is opened.
    pub prefetch: u16,
    /// Channels that consume manifests. With `prefetch` it bounds how many fan-outs are open here at once; the rest waits
    /// in the queue, or is taken by other coordinators.
    pub most_channels: usize,
    /// How long lies between the two looks that prove a queue's absence.
    pub absence_pause: Duration,
    /// How long a stop may take before what is open is let go as it is.
    pub stop_within: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: QueueNames::default(),
            limits: Limits::default(),
            prefetch: 100,
            most_channels: 50,
            absence_pause: absence::PAUSE,
            stop_within: Duration::from_secs(20),
        }
    }
}

/// A coordinator cannot work with what it was given. Outages are no errors: it waits for their end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range.
    #[error("coordinator setting {setting} = {value} is not allowed: {rule}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// As it was given.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let limits = &self.limits;
        let setting = |setting, value: String, rule| Err(Error::Setting { setting, value, rule });
        if self.prefetch == 0 {
            return setting("prefetch", "0".to_owned(), "give 1 to 65535");
        }
        if self.most_channels == 0 {
            return setting("most_channels", "0".to_owned(), "give at least 1");
        }
        if limits.calls_at_risk == 0 || limits.results_held == 0 {
            return setting("limits", format!("{limits:?}"), "calls_at_risk and results_held are at least 1");
        }
        if limits.results_held >= usize::from(limits.window) {
            let rule = "it must be smaller than limits.window, or no checkpoint is ever written";
            return setting("limits.results_held", limits.results_held.to_string(), rule);
        }
        if limits.renewal < Duration::from_millis(100) {
            return setting(
                "limits.renewal",
                format!("{:?}", limits.renewal),
                "give at least 100ms; 10min is the default",
            );
        }
        Ok(())
    }
}
