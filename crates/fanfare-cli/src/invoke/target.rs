//! A target as the command line and files give it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use fanfare_protocol::{ServiceName, TargetKey};
use serde_json::value::RawValue;

/// A target whose names and JSON have been checked.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) key: TargetKey,
    pub(super) service: ServiceName,
    pub(super) request: Box<RawValue>,
}

impl Given {
    /// Checks the names. The key is the service's name where it is left out.
    pub(super) fn new(key: Option<&str>, service: &str, request: Option<Box<RawValue>>) -> Result<Self> {
        let service = ServiceName::new(service)?;
        let key = key.map_or_else(|| Ok(service.clone().into()), TargetKey::new)?;
        Ok(Self { key, service, request: request.unwrap_or_else(|| RawValue::NULL.to_owned()) })
    }

    pub(super) fn with_request(self, request: Box<RawValue>) -> Self {
        Self { request, ..self }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}={}", self.key, self.service, self.request)
    }
}

impl FromStr for Given {
    type Err = Error;

    /// Reads `[KEY@]SERVICE[=JSON]`. Neither a service's name nor a key that is given like this holds `=`, so the first one
    /// begins the JSON; a key may hold `@`, so the last one before that ends the key.
    fn from_str(text: &str) -> Result<Self> {
        let (name, json) = match text.split_once('=') {
            Some((name, json)) => (name, Some(json)),
            None => (text, None),
        };
        let (key, service) = match name.rsplit_once('@') {
            Some((key, service)) => (Some(key), service),
            None => (None, name),
        };
        if service.is_empty() {
            bail!("it names no service: write it as [KEY@]SERVICE[=JSON]");
        }
        let request = json
            .map(serde_json::from_str)
            .transpose()
            .context("what follows `=` is not JSON (a string needs its quotes)")?;
        Self::new(key, service, request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, key: &str, service: &str, request: &str) {
        let given: Given = text.parse().unwrap();
        let seen = (given.key.as_str(), given.service.as_str(), given.request.get());
        assert_eq!(seen, (key, service, request), "{text}");
    }

    #[test]
    fn all_forms_are_read() {
        check("svc", "svc", "svc", "null");
        check("svc={\"a\": 1.0}", "svc", "svc", "{\"a\": 1.0}");
        check("key@svc=[1]", "key", "svc", "[1]");
        check("me@example.org@svc", "me@example.org", "svc", "null");
        check("svc=\"a=b@c\"", "svc", "svc", "\"a=b@c\"");
        check("größe 1@svc", "größe 1", "svc", "null");
    }

    #[test]
    fn mistakes_say_what_is_wrong() {
        for (text, expected) in [
            ("", "it names no service"),
            ("key@", "it names no service"),
            ("@svc", "target key \"\" is not allowed: it is empty"),
            ("a b=1", "service name \"a b\" is not allowed: ' ' is not one of"),
            ("svc=hello", "what follows `=` is not JSON"),
            ("svc=", "what follows `=` is not JSON"),
            ("svc={} {}", "what follows `=` is not JSON"),
        ] {
            let error = format!("{:#}", text.parse::<Given>().unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
