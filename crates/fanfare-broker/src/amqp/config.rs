use std::path::PathBuf;
use std::time::Duration;

use super::{Address, InvalidAddress};

/// How to reach RabbitMQ, and how much may be under way.
///
/// ```
/// use fanfare_broker::amqp::Config;
///
/// let config = Config::parse("amqp://user:secret@one,amqp://user:secret@two")?;
/// assert_eq!(config.urls[1].to_string(), "amqp://user:***@two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The nodes of one broker. Each connection tries them in turn, first the one that worked last.
    pub urls: Vec<Address>,
    /// For `amqps://`.
    pub tls: Tls,
    /// What the broker's management page calls the connections. The tags of consumers are its first 200 bytes and a number.
    pub connection_name: String,
    /// How long a message may wait to be sent, while there is no connection, the broker takes no messages or too many are
    /// unconfirmed. 30 s by default.
    pub send_timeout: Duration,
    /// How many messages may be unconfirmed at a time; what is above waits. 1,000 by default.
    pub in_flight: usize,
}

/// The certificates for `amqps://`, in PEM files. They are read at every connect, so that they can be replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that may have signed the broker's certificate, instead of those that the system trusts.
    pub authorities: Option<PathBuf>,
    /// What this client shows to a broker that asks for it.
    pub client: Option<ClientCertificate>,
}

/// A certificate with its key. To log in by it as well, add `?auth_mechanism=external` to the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by the intermediate ones.
    pub certificate: PathBuf,
    /// Its private key, not encrypted: PKCS#8 (`BEGIN PRIVATE KEY`), PKCS#1 or SEC1.
    pub key: PathBuf,
}

impl Config {
    /// The defaults for one URL, or a comma-separated list of them.
    ///
    /// # Errors
    /// Where one of them is no address of a broker.
    pub fn parse(urls: &str) -> Result<Self, InvalidAddress> {
        Ok(Self {
            urls: Address::list(urls)?,
            tls: Tls::default(),
            connection_name: "fanfare".to_owned(),
            send_timeout: Duration::from_secs(30),
            in_flight: 1_000,
        })
    }
}
