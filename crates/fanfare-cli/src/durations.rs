//! Durations as people write them.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use fanfare_protocol::{quoted, shortened};
use serde::{Deserialize, Deserializer, de::Error};

/// What anything can be set to: nothing takes no time, and what is to take longer is to have no limit.
const ALLOWED: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(365 * 24 * 60 * 60);

/// Reads a duration such as `500ms`, `30s`, `5m` or `1h 30m`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| {
        format!(
            "{} is no duration: {}; write it as 500ms, 30s, 5m or 1h",
            quoted(text),
            shortened(&error.to_string())
        )
    })?;
    if ALLOWED.contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{} is not allowed: give 1 ms to 365 days", quoted(text)))
    }
}

/// A limit that can be turned off: a duration, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    After(Duration),
    Never,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Never);
        }
        parse(text).map(Self::After).map_err(|error| format!("{error}, or none"))
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl From<Limit> for Option<Duration> {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::After(duration) => Some(duration),
            Limit::Never => None,
        }
    }
}

/// A duration in fanfare.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written(pub(crate) Duration);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}
