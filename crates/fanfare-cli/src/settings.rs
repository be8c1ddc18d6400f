//! Flags, `FANFARE_*` variables and `fanfare.toml`, put together.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fanfare::{
    Aggregation, Builder, ClientCertificate, ConnectError, Fanfare, Operator, OperatorConfig, Prefix,
    PublisherConfig, QueueNames, QueueType, Tls,
};
use fanfare_broker::amqp::Address;

use crate::arguments::Shared;
use crate::configuration::{self, Broker, Configuration, ConfigurationError};
use crate::exit::Failure;
use crate::logging::Format;
use crate::management::{Management, ManagementUrl};
use crate::table::shown;
use crate::{identity, logging, services};

/// The broker where nothing says another.
const DEFAULT_BROKER: &str = "amqp://localhost";

/// Where a settings file is looked for when none is named.
const DEFAULT_FILES: [&str; 2] = ["fanfare.toml", "/etc/fanfare/fanfare.toml"];

/// The settings that all commands share, and the file's others for those that take them.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) broker: Option<String>,
    pub(crate) names: QueueNames,
    pub(crate) queue_type: QueueType,
    pub(crate) aggregation: Aggregation,
    /// Shards that coordinators serve; 0 for none.
    pub(crate) shards: u32,
    pub(crate) log: Option<String>,
    pub(crate) log_format: Format,
    pub(crate) user_id: Option<String>,
    /// None where nobody says that it is not the default.
    pub(crate) consumer_timeout: Option<Duration>,
    pub(crate) file: Configuration,
    tls: Tls,
    password: Option<Password>,
}

impl Settings {
    /// Reads the settings file, where there is one, and puts the flags before it. Clap has put them before variables.
    pub(crate) fn load(flags: Shared) -> Result<Self, Failure> {
        let file = match file_of(flags.config.as_deref()) {
            Some(path) => Configuration::read(&path).and_then(checked).map_err(Failure::bad_input)?,
            None => Configuration::default(),
        };
        Self::merge(flags, file)
    }

    fn merge(flags: Shared, file: Configuration) -> Result<Self, Failure> {
        let tls = tls(&flags, &file)?;
        let password = password(flags.broker_password_file.as_deref(), &file).map_err(Failure::bad_input)?;
        let prefix = match flags.prefix {
            Some(prefix) => Some(Prefix::new(prefix).map_err(Failure::bad_input)?),
            None => file.prefix.clone(),
        };
        let written = file.broker.as_ref().map(Broker::urls);
        let shards = flags.shards.or(file.shards).unwrap_or_default();
        let aggregation = aggregation(flags.aggregation.or(file.aggregation), shards)?;
        Ok(Self {
            broker: flags.broker.or(written),
            aggregation,
            shards,
            names: prefix.map(QueueNames::new).unwrap_or_default(),
            queue_type: flags.queue_type.or(file.queue_type).map(queue_type).unwrap_or_default(),
            log: flags.log.or_else(|| file.log.clone()),
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
            user_id: flags.user_id.or_else(|| file.user_id.clone()),
            consumer_timeout: flags.consumer_timeout.or(file.consumer_timeout.map(|written| written.0)),
            tls,
            password,
            file,
        })
    }

    /// The broker's URL, or the list of them.
    pub(crate) fn broker_urls(&self) -> &str {
        self.broker.as_deref().unwrap_or(DEFAULT_BROKER)
    }

    /// The first address of the broker.
    pub(crate) fn broker_address(&self) -> Result<Option<Address>, Failure> {
        let first = Address::list(self.broker_urls()).map_err(Failure::bad_input)?.into_iter().next();
        Ok(first.map(|address| match &self.password {
            Some(Password(password)) => address.with_password(password),
            None => address,
        }))
    }

    /// The management API of the broker, at a URL where that is given. None where it is not to be asked.
    pub(crate) fn management(&self, url: Option<&ManagementUrl>) -> Result<Option<Management>, Failure> {
        Ok(self.broker_address()?.and_then(|broker| Management::of(&broker, url)))
    }

    /// A handle that connects when it is first used.
    pub(crate) fn fanfare(&self, role: &str) -> Result<Fanfare, Failure> {
        self.builder(role)?.build().map_err(refused)
    }

    /// An operator on a handle, who knows how many shards there are also where this program invokes nothing that shares.
    pub(crate) fn operator(&self, fanfare: &Fanfare) -> Operator {
        fanfare.operator_with(OperatorConfig { shards: self.shards, ..OperatorConfig::default() })
    }

    /// The same for who invokes: how many may wait there is its own to say, too.
    pub(crate) fn invoker(&self, most_waiting: Option<u64>) -> Result<Fanfare, Failure> {
        let mut publisher = self.publisher();
        publisher.most_waiting = most_waiting.unwrap_or(publisher.most_waiting);
        self.builder("invoke")?.publisher(publisher).build().map_err(refused)
    }

    /// A handle on a broker that answered, with queues of its own.
    pub(crate) async fn connected_apart(
        &self,
        role: &str,
        prefix: &str,
        aggregation: configuration::Aggregation,
    ) -> Result<Fanfare, Failure> {
        let aggregation = self::aggregation(Some(aggregation), self.shards)?;
        let publisher = PublisherConfig { aggregation, ..self.publisher() };
        self.builder(role)?.publisher(publisher).prefix(prefix).connect().await.map_err(refused)
    }

    fn builder(&self, role: &str) -> Result<Builder, Failure> {
        if self.is_memory() {
            return Err(Failure::bad_input(anyhow!(
                "memory:// is a broker inside one process, so no other process could reach this one: start RabbitMQ \
                 (`docker compose up`, or Debian's package rabbitmq-server) and give --broker amqp://..., or run \
                 `fanfare demo`, which has everything in one process"
            )));
        }
        let urls = self.broker_urls();
        let builder =
            Fanfare::builder(urls).tls(self.tls.clone()).connection_name(identity::at_the_broker(role));
        let builder = builder.publisher(self.publisher());
        Ok(match &self.password {
            Some(Password(password)) => builder.password(password),
            None => builder,
        })
    }

    fn publisher(&self) -> PublisherConfig {
        let file = &self.file.publisher;
        let defaults = PublisherConfig::default();
        PublisherConfig {
            names: self.names.clone(),
            declare_missing: file.declare_missing.unwrap_or(defaults.declare_missing),
            deadline: file.deadline.map_or(defaults.deadline, Into::into),
            time_limit: file.time_limit.map_or(defaults.time_limit, |limit| limit.0),
            most_targets: file.most_targets.unwrap_or(defaults.most_targets),
            most_waiting: file.most_waiting.unwrap_or(defaults.most_waiting),
            user_id: self.user_id.clone(),
            queue_type: self.queue_type,
            aggregation: self.aggregation,
            ..defaults
        }
    }

    /// Whether the broker in memory was asked for.
    pub(crate) fn is_memory(&self) -> bool {
        self.broker.as_deref().is_some_and(is_memory)
    }
}

fn is_memory(broker: &str) -> bool {
    broker.trim_start().starts_with("memory:")
}

/// What the file says, where it keeps the rules of those whom its settings are for.
pub(crate) fn checked(file: Configuration) -> Result<Configuration, ConfigurationError> {
    if let Some(urls) = file.broker.as_ref().map(Broker::urls).filter(|urls| !is_memory(urls)) {
        Address::list(&urls).map_err(|error| file.mistake(&["broker"], error))?;
    }
    if let Some(log) = &file.log {
        logging::filter(log).map_err(|error| file.mistake(&["log"], error))?;
    }
    services::check(&file)?;
    Ok(file)
}

fn file_of(named: Option<&Path>) -> Option<PathBuf> {
    match named {
        Some(path) => Some(path.to_owned()),
        None => DEFAULT_FILES.into_iter().map(PathBuf::from).find(|path| path.is_file()),
    }
}

/// The broker's password, of the flag's file before that of the settings file.
fn password(flag: Option<&Path>, file: &Configuration) -> Result<Option<Password>> {
    match (flag, &file.broker_password_file) {
        (Some(path), _) => read_password(path).map(Some),
        (None, Some(path)) => {
            let wrong = |error| file.mistake(&["broker_password_file"], format_args!("{error:#}"));
            Ok(Some(read_password(path).map_err(wrong)?))
        }
        (None, None) => Ok(None),
    }
}

/// Reads a password. A newline at its end is the editor's.
fn read_password(path: &Path) -> Result<Password> {
    /// Bytes of a password, beyond which the file is likely to be another.
    const MOST_BYTES: u64 = 4096;
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
    let read = read.with_context(|| format!("cannot read the broker's password from {}", shown(path)))?;
    let password = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() || read as u64 > MOST_BYTES {
        bail!(
            "{} has {read} bytes or more, and a password has 1 to {MOST_BYTES}: name the file that holds it alone",
            shown(path)
        );
    }
    Ok(Password(password.to_owned()))
}

/// The broker's password, which nobody is shown.
struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

fn tls(flags: &Shared, file: &Configuration) -> Result<Tls, Failure> {
    let written = &file.tls;
    let either = |flag: &Option<PathBuf>, written: &Option<PathBuf>| flag.clone().or_else(|| written.clone());
    let authorities = either(&flags.ca_certificate, &written.ca_certificate);
    let certificate = either(&flags.client_certificate, &written.client_certificate);
    let key = either(&flags.client_key, &written.client_key);
    // What is there without the other is to blame, wherever it is from.
    let alone = |key: &str, is_flag: bool, mistake: &'static str| match is_flag {
        true => Failure::bad_input(anyhow!(mistake)),
        false => Failure::bad_input(file.mistake(&["tls", key], mistake)),
    };
    let client = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (Some(_), None) => {
            return Err(alone(
                "client_certificate",
                flags.client_certificate.is_some(),
                "a client certificate needs its key: give --client-key, or client_key in [tls] of fanfare.toml",
            ));
        }
        (None, Some(_)) => {
            return Err(alone(
                "client_key",
                flags.client_key.is_some(),
                "a client key needs its certificate: give --client-certificate, or client_certificate in [tls] of fanfare.toml",
            ));
        }
    };
    Ok(Tls { authorities, client })
}

fn refused(error: ConnectError) -> Failure {
    match error {
        ConnectError::Broker(error) => Failure::no_broker(&error),
        error => Failure::bad_input(error),
    }
}

const fn queue_type(written: configuration::QueueType) -> QueueType {
    match written {
        configuration::QueueType::Classic => QueueType::Classic,
        configuration::QueueType::Quorum => QueueType::Quorum,
    }
}

fn aggregation(written: Option<configuration::Aggregation>, shards: u32) -> Result<Aggregation, Failure> {
    match (written, shards) {
        (Some(configuration::Aggregation::Shared), 0) => Err(Failure::bad_input(anyhow!(
            "shared aggregation needs to know how many shards there are: give --shards, or shards in fanfare.toml, the \
             number that the coordinators were told"
        ))),
        (Some(configuration::Aggregation::Shared), shards) => Ok(Aggregation::Shared { shards }),
        (Some(configuration::Aggregation::PerCid) | None, _) => Ok(Aggregation::PerCid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration;
    use crate::exit::Exit;

    fn file(text: &str) -> Configuration {
        Configuration::parse(text, Path::new("fanfare.toml")).unwrap()
    }

    #[test]
    fn flag_goes_before_file_and_file_before_default() {
        let flags = Shared { broker: Some("amqp://flag".to_owned()), ..Shared::default() };
        let settings = Settings::merge(flags, file("broker = \"amqp://file\"\nprefix = \"file\"")).unwrap();
        assert_eq!(settings.broker.as_deref(), Some("amqp://flag"));
        assert_eq!(settings.names.prefix().as_str(), "file");
        let settings = Settings::merge(Shared::default(), file("")).unwrap();
        assert_eq!((settings.broker.as_deref(), settings.names.prefix().as_str()), (None, "fanfare"));
    }

    #[test]
    fn aggregation_reaches_the_publisher_and_needs_shards() {
        let of = |text: &str| {
            let fanfare = Settings::merge(Shared::default(), file(text))?.fanfare("invoke")?;
            Ok::<_, Failure>(fanfare.publisher().config().aggregation)
        };
        assert_eq!(of("").unwrap(), Aggregation::PerCid);
        assert_eq!(of("shards = 4").unwrap(), Aggregation::PerCid);
        assert_eq!(of("aggregation = \"shared\"\nshards = 4").unwrap(), Aggregation::Shared { shards: 4 });
        assert_eq!(of("aggregation = \"shared\"").unwrap_err().exit, Exit::BadInput);
    }

    #[test]
    fn queue_type_reaches_the_publisher() {
        let of = |text: &str, flag: Option<configuration::QueueType>| {
            let flags = Shared { queue_type: flag, ..Shared::default() };
            let fanfare = Settings::merge(flags, file(text)).unwrap().fanfare("test").unwrap();
            fanfare.publisher().config().queue_type
        };
        assert_eq!(of("", None), QueueType::Classic);
        assert_eq!(of("queue_type = \"quorum\"", None), QueueType::Quorum);
        assert_eq!(of("", Some(configuration::QueueType::Quorum)), QueueType::Quorum);
        let flag = Some(configuration::QueueType::Classic);
        assert_eq!(of("queue_type = \"quorum\"", flag), QueueType::Classic);
    }

    #[test]
    fn list_of_brokers_is_one_setting() {
        let settings =
            Settings::merge(Shared::default(), file("broker = [\"amqp://a\", \"amqp://b\"]")).unwrap();
        assert_eq!(settings.broker.as_deref(), Some("amqp://a,amqp://b"));
    }

    #[test]
    fn broker_and_log_of_the_file_are_refused_with_their_lines() {
        for (text, expected) in [
            ("broker = \"http://me:hunter2@x\"", "fanfare.toml:1:10: "),
            ("broker = [\"amqp://a\",\n  \"b\"]", "fanfare.toml:1:10: "),
            ("\nlog = \"fanfare=loud\"", "fanfare.toml:2:7: \"fanfare=loud\" is no log filter"),
        ] {
            let error = checked(file(text)).unwrap_err().to_string();
            assert!(error.starts_with(expected) && !error.contains("hunter2"), "{error}");
        }
        checked(file("broker = \"memory://\"")).unwrap();
    }

    #[test]
    fn what_is_wrong_in_the_file_is_refused_with_its_line() {
        for (text, expected) in [
            ("\n[tls]\nclient_key = \"k.pem\"", "fanfare.toml:3:14: a client key needs its certificate"),
            (
                "[tls]\nclient_certificate = \"c.pem\"",
                "fanfare.toml:2:22: a client certificate needs its key",
            ),
            (
                "\nbroker_password_file = \"no-such-file\"",
                "fanfare.toml:2:24: cannot read the broker's password from \"no-such-file\": ",
            ),
        ] {
            let error = format!("{:?}", Settings::merge(Shared::default(), file(text)).unwrap_err());
            assert!(error.contains(&expected.replace('"', "\\\"")) || error.contains(expected), "{error}");
        }
    }

    #[test]
    fn client_certificate_without_its_key_is_refused() {
        let flags = Shared { client_certificate: Some("c.pem".into()), ..Shared::default() };
        assert_eq!(Settings::merge(flags, file("")).unwrap_err().exit, Exit::BadInput);
    }
}
