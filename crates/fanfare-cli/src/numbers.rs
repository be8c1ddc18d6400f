//! Numbers of which none would be too few.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error};

/// Reads one of the command line.
pub(crate) fn parse<T: FromStr<Err: Display> + Default + PartialEq>(text: &str) -> Result<T, String> {
    some(text.parse().map_err(|error| format!("{error}; give a whole number"))?)
}

/// Reads one of fanfare.toml.
pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    some(T::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn some<T: Default + PartialEq>(number: T) -> Result<T, String> {
    if number == T::default() { Err("0 is not allowed: give 1 or more".to_owned()) } else { Ok(number) }
}
