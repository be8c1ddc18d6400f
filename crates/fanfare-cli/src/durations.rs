//! Durations as people write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

/// Reads a duration such as `500ms`, `30s`, `5m` or `1h 30m`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is no duration: {error}; write it as 500ms, 30s, 5m or 1h"))
}

/// A duration in fanfare.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written(pub(crate) Duration);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}
