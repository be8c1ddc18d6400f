//! `fanfare.toml`, read strictly: a mistake is refused with its line and what was meant.

pub(crate) mod mistakes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use fanfare_protocol::{ServiceName, quoted};
use serde::{Deserialize, Serialize};

pub(crate) use self::mistakes::ConfigurationError;
use self::mistakes::{Source, in_plain_words};
use crate::durations::{Limit, Written};
use crate::logging::Format;
use crate::monitor::Address;
use crate::numbers;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    pub(crate) broker: Option<Broker>,
    pub(crate) broker_password_file: Option<PathBuf>,
    pub(crate) prefix: Option<fanfare_protocol::Prefix>,
    pub(crate) user_id: Option<String>,
    pub(crate) consumer_timeout: Option<Written>,
    pub(crate) queue_type: Option<QueueType>,
    pub(crate) aggregation: Option<Aggregation>,
    #[serde(default, deserialize_with = "numbers::deserialize_shards")]
    pub(crate) shards: Option<u32>,
    pub(crate) log: Option<String>,
    pub(crate) log_format: Option<Format>,
    #[serde(default)]
    pub(crate) tls: Tls,
    #[serde(default)]
    pub(crate) worker: Worker,
    #[serde(default)]
    pub(crate) coordinator: Coordinator,
    #[serde(default)]
    pub(crate) publisher: Publisher,
    #[serde(default)]
    pub(crate) services: BTreeMap<ServiceName, Service>,
    #[serde(default)]
    pub(crate) stock: BTreeMap<ServiceName, Stock>,
    #[serde(skip)]
    source: Source,
}

/// The type of aggregation queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QueueType {
    /// On one node: a fan-out waits while it is down.
    Classic,
    /// On a majority of a cluster's nodes.
    Quorum,
}

/// Where results are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Aggregation {
    /// In a queue for each fan-out.
    PerCid,
    /// In a fixed number of queues that all fan-outs share.
    Shared,
}

impl Display for Aggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerCid => "per-cid",
            Self::Shared => "shared",
        })
    }
}

/// One URL, several divided by commas, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a URL or a list of URLs")]
pub(crate) enum Broker {
    One(String),
    Several(Vec<String>),
}

impl Broker {
    /// All of them in one, as the flag takes them.
    pub(crate) fn urls(&self) -> String {
        match self {
            Self::One(url) => url.clone(),
            Self::Several(urls) => urls.join(","),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) ca_certificate: Option<PathBuf>,
    pub(crate) client_certificate: Option<PathBuf>,
    pub(crate) client_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Worker {
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) concurrency: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) prefetch: Option<u16>,
    pub(crate) shutdown_deadline: Option<Written>,
    pub(crate) redelivery_limit: Option<u32>,
    pub(crate) alone_limit: Option<Written>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) most_result_bytes: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) most_payload_bytes: Option<usize>,
    pub(crate) bundle_results: Option<bool>,
    pub(crate) stock: Option<bool>,
    pub(crate) listen: Option<Address>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Coordinator {
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) prefetch: Option<u16>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) channels: Option<usize>,
    pub(crate) renewal: Option<Written>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) calls_at_risk: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) large_payload_bytes: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) most_targets: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) most_open_in_shard: Option<usize>,
    pub(crate) accept_users: Option<BTreeSet<String>>,
    pub(crate) shutdown_deadline: Option<Written>,
    pub(crate) listen: Option<Address>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Publisher {
    pub(crate) declare_missing: Option<bool>,
    pub(crate) deadline: Option<Limit>,
    pub(crate) time_limit: Option<Written>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) most_targets: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) most_waiting: Option<u64>,
}

/// A service that needs no Rust.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "WrittenService")]
pub(crate) struct Service {
    pub(crate) work: Work,
    pub(crate) timeout: Option<Written>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) prefetch: Option<u16>,
    pub(crate) retry: Option<Retries>,
}

/// How a stock service is run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stock {
    pub(crate) timeout: Option<Written>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) concurrency: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    pub(crate) prefetch: Option<u16>,
    pub(crate) retry: Option<Retries>,
}

/// How often a failed invocation is run again.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retries {
    pub(crate) attempts: u32,
    pub(crate) first_delay: Option<Written>,
    pub(crate) longest_delay: Option<Written>,
}

/// What a service of the configuration does.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Exec { command: Vec<String>, directory: Option<PathBuf>, env: BTreeMap<String, String> },
    Http(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenService {
    exec: Option<Vec<String>>,
    http: Option<String>,
    directory: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    timeout: Option<Written>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    concurrency: Option<usize>,
    #[serde(default, deserialize_with = "numbers::deserialize")]
    prefetch: Option<u16>,
    retry: Option<Retries>,
}

impl TryFrom<WrittenService> for Service {
    type Error = String;

    fn try_from(written: WrittenService) -> Result<Self, String> {
        let WrittenService { exec, http, directory, env, timeout, concurrency, prefetch, retry } = written;
        let work = match (exec, http) {
            (Some(command), None) => {
                check_variables(&env)?;
                Work::Exec { command, directory, env }
            }
            (None, Some(_)) if directory.is_some() || !env.is_empty() => {
                return Err("`directory` and `env` are for `exec`, not for `http`".to_owned());
            }
            (None, Some(url)) => Work::Http(url),
            (Some(_), Some(_)) => {
                return Err(
                    "a service has either `exec` or `http`, and this one has both: leave one out".to_owned()
                );
            }
            (None, None) => {
                return Err(
                    "a service needs `exec = [\"program\", \"argument\"]` or `http = \"http://...\"`"
                        .to_owned(),
                );
            }
        };
        Ok(Self { work, timeout, concurrency, prefetch, retry })
    }
}

/// Variables that no program could be given.
fn check_variables(env: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "{} in `env` is no name of a variable: give one without `=` and NUL",
                quoted(name)
            ));
        }
        if value.contains('\0') {
            return Err(format!(
                "the value of {} in `env` holds NUL, which no variable can: leave it out",
                quoted(name)
            ));
        }
    }
    Ok(())
}

impl Configuration {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigurationError> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        match toml::from_str(text) {
            Ok(configuration) => Ok(Self { source, ..configuration }),
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                Err(source.mistake(offset, in_plain_words(error.message())))
            }
        }
    }

    /// What a key says is wrong, by a rule that is not this file's own.
    pub(crate) fn mistake(&self, key: &[&str], mistake: impl Display) -> ConfigurationError {
        self.source.mistake(self.source.offset(key), mistake.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(super) fn parse(text: &str) -> Result<Configuration, String> {
        Configuration::parse(text, Path::new("fanfare.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_there_is_can_be_set() {
        let configuration = parse(
            r#"
            broker = ["amqp://one", "amqp://two"]
            broker_password_file = "/run/secrets/broker"
            prefix = "shop"
            user_id = "fanfare-coordinator"
            consumer_timeout = "2h"
            queue_type = "quorum"
            log = "debug"
            log_format = "json"
            [tls]
            ca_certificate = "ca.pem"
            client_certificate = "client.pem"
            client_key = "client.key"
            [worker]
            concurrency = 32
            prefetch = 8
            shutdown_deadline = "1m"
            redelivery_limit = 50
            alone_limit = "10s"
            most_result_bytes = 1000000
            most_payload_bytes = 100000000
            bundle_results = false
            stock = false
            listen = "127.0.0.1:9465"
            [coordinator]
            prefetch = 50
            channels = 4
            renewal = "5m"
            calls_at_risk = 20
            large_payload_bytes = 1000000
            most_targets = 5000
            most_open_in_shard = 1000
            accept_users = ["shop", "fanfare-worker"]
            shutdown_deadline = "10s"
            listen = "[::1]:9464"
            [publisher]
            declare_missing = true
            deadline = "1h 30m"
            time_limit = "20s"
            most_targets = 5000
            most_waiting = 100
            [services."image.resize"]
            exec = ["python3", "resize.py"]
            directory = "/srv"
            env = { MODE = "fast" }
            timeout = "30s"
            concurrency = 2
            prefetch = 4
            retry = { attempts = 5, first_delay = "2s", longest_delay = "10m" }
            [services."stock.check"]
            http = "http://stock/check"
            [stock."helpers.echo"]
            timeout = "10s"
            concurrency = 4
            prefetch = 8
            retry = { attempts = 3 }
            "#,
        )
        .unwrap();
        assert_eq!(configuration.publisher.deadline, Some(Limit::After(Duration::from_secs(5400))));
        let without = parse("[publisher]\ndeadline = \"none\"").unwrap();
        assert_eq!(without.publisher.deadline, Some(Limit::Never));
        let services: Vec<&str> = configuration.services.keys().map(ServiceName::as_str).collect();
        assert_eq!(services, ["image.resize", "stock.check"]);
    }
}
