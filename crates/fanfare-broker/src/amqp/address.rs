use std::fmt;
use std::str::FromStr;

use fanfare_protocol::shortened;
use lapin::uri::{AMQPScheme, AMQPUri};

/// The seconds between heartbeats where the URL does not say: a peer that is gone without a word is noticed after twice
/// as long.
const HEARTBEAT_SECONDS: u16 = 20;

/// Bytes of a frame where the URL does not say, as RabbitMQ's own. lapin fills the buffers of a connection with zeros where it learns
/// their size from the broker, which makes all 8 MiB of them resident, and has them from the system where it is told.
const FRAME_MAX_BYTES: u32 = 128 * 1024;

/// What may follow the `?` of a URL.
const OPTIONS: [&str; 5] = ["heartbeat", "frame_max", "channel_max", "connection_timeout", "auth_mechanism"];

/// The URL of one broker, `amqp://user:password@host:port/vhost`, or `amqps://` for TLS.
///
/// The port is 5672, or 5671 with TLS, where it is left out; user and password are `guest`; the virtual host is `/`, with a
/// final slash and without. Options are `heartbeat` (seconds), `frame_max` (bytes), `channel_max`,
/// `connection_timeout` (milliseconds) and `auth_mechanism` (`plain`, `amqplain`, `external`, ...).
///
/// Displays without its password, and debugs so too.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    uri: AMQPUri,
    shown: String,
}

/// A URL that is not that of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no broker address: {reason}; write it as amqp://user:password@host:5672/vhost",
    shortened(.address)
)]
pub struct InvalidAddress {
    /// What was given, without any password.
    pub address: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Address {
    /// The addresses of a comma-separated list.
    ///
    /// # Errors
    /// Where there is none, or one is no address of a broker.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidAddress> {
        // A comma in a password does not start an address: only one that is followed by a scheme does.
        let mut addresses: Vec<String> = Vec::new();
        for part in text.split(',') {
            match addresses.last_mut() {
                Some(last) if !part.contains("://") && !part.trim().is_empty() => {
                    last.push(',');
                    last.push_str(part);
                }
                _ => addresses.push(part.to_owned()),
            }
        }
        addresses.iter().map(|address| address.trim().parse()).collect()
    }

    /// The host, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.uri.authority.host
    }

    /// The virtual host, `/` unless another is given.
    #[must_use]
    pub fn virtual_host(&self) -> &str {
        &self.uri.vhost
    }

    /// The user's name.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// The password, for whoever has to show it to the same broker in another way. It belongs into no log.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.uri.authority.userinfo.password
    }

    /// Whether the broker is reached through TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// The same with this password, which is not encoded in any way, so that it need not stand in the URL.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.uri.authority.userinfo.password = password.into();
        self
    }

    pub(super) fn uri(&self) -> &AMQPUri {
        &self.uri
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let shown = redacted(text);
        let invalid = |reason: &str| InvalidAddress { address: shown.clone(), reason: reason.to_owned() };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        let behind_scheme = text.find("://").map_or(text, |end| &text[end + 3..]);
        if behind_scheme.split_once(['/', '?', '#']).is_some_and(|(_, rest)| rest.contains('@')) {
            // It would pass for a host with a path, and what is said of these would show a part of the password.
            return Err(invalid("in a password, write %2f for /, %3f for ?, %23 for # and %40 for @"));
        }
        let url = url::Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return Err(invalid("it must start with amqp:// or amqps://"));
        }
        let host =
            url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("it names no host"))?;
        if host.contains(',') {
            return Err(invalid("each address of a list needs its own amqp://"));
        }
        if let Some((option, _)) = url.query_pairs().find(|(option, _)| !OPTIONS.contains(&&**option)) {
            let options = OPTIONS.join(", ");
            return Err(invalid(&format!("it has no option `{option}`, only {options}")));
        }
        if url.path().trim_start_matches('/').contains('/') {
            return Err(invalid("a slash inside a virtual host's name is written %2f"));
        }
        let mut uri: AMQPUri = text.parse().map_err(|error: String| invalid(&error))?;
        if let Some(url::Host::Ipv6(host)) = url.host() {
            // The parser of lapin takes an IPv6 address for a missing host, and would go to localhost.
            uri.authority.host = host.to_string();
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".to_owned();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.frame_max.get_or_insert(FRAME_MAX_BYTES);
        Ok(Self { uri, shown })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.shown)
    }
}

/// A broker's URL, or what was meant to be one, without its password: to be shown in logs and errors.
///
/// Whatever could be a password is left out, in texts that are no URLs too.
#[must_use]
pub fn redacted(url: &str) -> String {
    let (scheme, rest) = url.split_at(url.find("://").map_or(0, |end| end + 3));
    let hidden = |credentials: &str, rest: &str| {
        let user = credentials.split_once(':').map(|(user, _)| user);
        match user {
            Some(user) => format!("{scheme}{user}:***{rest}"),
            None => format!("{scheme}{credentials}{rest}"),
        }
    };
    // A password may hold a slash or an @ that ought to be encoded: it ends at the last @.
    if let Some(at) = rest.rfind('@') {
        return hidden(&rest[..at], &rest[at..]);
    }
    // Without an @ there should be a port behind the colon; anything else may be a password whose host was forgotten.
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let is_port =
        |text: &str| !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    match rest[..end].rsplit_once(':') {
        Some((host, port)) if !is_port(port) && !host.starts_with('[') => hidden(&rest[..end], &rest[end..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_split_at_commas_that_start_an_address() {
        let addresses = Address::list("amqp://a:p,w@one, amqps://two:1234/v").unwrap();
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses[0].uri().authority.userinfo.password, "p,w");
        assert_eq!(addresses[1].uri().authority.port, 1234);
        assert_eq!(addresses[1].uri().vhost, "v");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let uri = "amqps://broker".parse::<Address>().unwrap().uri;
        assert_eq!(uri.authority.port, 5671);
        assert_eq!(uri.vhost, "/");
        assert_eq!(uri.query.heartbeat, Some(20));
        assert_eq!("amqp://broker/".parse::<Address>().unwrap().uri.vhost, "/");
        let uri = "amqp://broker?heartbeat=7".parse::<Address>().unwrap().uri;
        assert_eq!(uri.query.heartbeat, Some(7));
    }

    #[test]
    fn ipv6_address_is_kept() {
        let uri = "amqp://[::1]:5673".parse::<Address>().unwrap().uri;
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("::1", 5673));
    }

    #[test]
    fn password_is_never_shown() {
        for url in [
            "amqp://user:secret@host:5672/vhost",
            "amqp://user:sec/ret@host",
            "amqp://user:s@cret@host",
            "amqp://user:secret@",
            "amqp://user:secret",
            "user:secret@host",
            "http://user:secret@host",
            "amqp://user:secret@host:port",
            "amqp://user:secret@host?option=1",
        ] {
            let shown = redacted(url);
            assert!(!shown.contains("secret") && !shown.contains("cret@"), "{shown}");
            assert!(!shown.contains("sec/ret"), "{shown}");
            match url.parse::<Address>() {
                Ok(address) => {
                    assert!(!format!("{address} {address:?}").contains("secret"));
                }
                Err(error) => assert!(!format!("{error} {error:?}").contains("secret"), "{error}"),
            }
        }
        assert_eq!(redacted("amqp://user:secret@host:5672/v"), "amqp://user:***@host:5672/v");
        assert_eq!(redacted("amqp://host:5672/v"), "amqp://host:5672/v");
        assert_eq!(redacted("amqp://[::1]"), "amqp://[::1]");
    }

    #[test]
    fn no_character_makes_any_part_of_a_password_appear() {
        for special in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ é\u{1}".chars() {
            for place in ["x@SECRET", "SECRET@x", "12@SECRET", "SECRET@", "@SECRET", "@12@SECRET=@1"] {
                let password = place.replace('@', &special.to_string());
                for url in [
                    format!("amqp://user:{password}@host:5672/vhost?heartbeat=3"),
                    format!("amqp://user:{password}@host"),
                    format!("http://user:{password}@host"),
                    format!("amqp://one,amqp://user:{password}@two"),
                ] {
                    let said = match Address::list(&url) {
                        Ok(addresses) => format!("{addresses:?} {}", addresses[0]),
                        Err(error) => format!("{error} {error:?}"),
                    };
                    assert!(!said.contains("SECRET"), "{url}: {said}");
                }
            }
        }
    }

    #[test]
    fn password_from_elsewhere_is_taken_as_it_is_and_not_shown() {
        let address = "amqp://user@host".parse::<Address>().unwrap().with_password("p%41/@:");
        assert_eq!(address.uri().authority.userinfo.password, "p%41/@:");
        assert_eq!(format!("{address} {address:?}"), "amqp://user@host Address(amqp://user@host)");
    }

    #[test]
    fn error_names_value_rule_and_remedy() {
        let error = |text: &str| Address::list(text).unwrap_err().to_string();
        assert_eq!(
            error("http://u:p@host"),
            "`http://u:***@host` is no broker address: it must start with amqp:// or amqps://; \
             write it as amqp://user:password@host:5672/vhost"
        );
        assert!(error("").contains("it is empty"));
        assert!(error("amqp://a,b:5672").contains("needs its own amqp://"));
        assert!(error("amqp://a?hartbeat=3").contains("no option `hartbeat`"));
        assert!(error("amqp://a/b/c").contains("%2f"));
        assert!(error("amqp://a,").contains("it is empty"));
        assert!(error("amqp://u:12/x@host").contains("write %2f for /"));
    }
}
