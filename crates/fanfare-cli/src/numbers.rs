//! Whole numbers, and those of which none would be too few.

use std::fmt::Display;
use std::ops::RangeInclusive;

use fanfare_protocol::{limits, quoted};
use serde::{Deserialize, Deserializer, de::Error};

/// Shards that a prefix can have.
const SHARDS: RangeInclusive<u32> = 1..=limits::SHARDS;

/// A number of a setting.
pub(crate) trait Number: TryFrom<u64> + Display + Default + PartialEq {
    /// The greatest that there is, where anybody could come that far.
    const MOST: Option<Self>;
}

impl Number for u16 {
    const MOST: Option<Self> = Some(Self::MAX);
}

impl Number for u32 {
    const MOST: Option<Self> = Some(Self::MAX);
}

impl Number for u64 {
    const MOST: Option<Self> = None;
}

impl Number for usize {
    const MOST: Option<Self> = None;
}

/// Reads one of the command line, of which none would be too few.
pub(crate) fn parse<T: Number>(text: &str) -> Result<T, String> {
    some(read(text, 1)?)
}

/// Reads one of the command line that may be none.
pub(crate) fn parse_any<T: Number>(text: &str) -> Result<T, String> {
    read(text, 0)
}

/// Reads one of fanfare.toml.
pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    some(T::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// Reads a number of shards of the command line.
pub(crate) fn parse_shards(text: &str) -> Result<u32, String> {
    let shards = text.parse().ok().filter(|shards| SHARDS.contains(shards));
    shards.ok_or_else(|| {
        format!(
            "{} is not allowed: give a whole number from {} to {}",
            quoted(text),
            SHARDS.start(),
            SHARDS.end()
        )
    })
}

/// Reads a number of shards of fanfare.toml.
pub(crate) fn deserialize_shards<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    let shards = u32::deserialize(deserializer)?;
    if SHARDS.contains(&shards) {
        return Ok(Some(shards));
    }
    let (least, most) = (SHARDS.start(), SHARDS.end());
    Err(D::Error::custom(format_args!("{shards} is not allowed: give {least} to {most}")))
}

fn read<T: Number>(text: &str, least: u8) -> Result<T, String> {
    let number = text.parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| match T::MOST {
        Some(most) => {
            format!("{} is not allowed: give a whole number from {least} to {most}", quoted(text))
        }
        None => format!("{} is not allowed: give a whole number, {least} or more", quoted(text)),
    })
}

fn some<T: Default + PartialEq>(number: T) -> Result<T, String> {
    if number == T::default() { Err("0 is not allowed: give 1 or more".to_owned()) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_or_too_great_is_refused_with_the_range() {
        for text in ["", "x", "-1", "1.5", "65536", "99999999999999999999"] {
            let expected = format!("{text:?} is not allowed: give a whole number from 1 to 65535");
            assert_eq!(parse::<u16>(text), Err(expected));
        }
        assert_eq!(parse::<u16>("0"), Err("0 is not allowed: give 1 or more".to_owned()));
        assert_eq!((parse::<u16>("65535"), parse_any::<u32>("0")), (Ok(65_535), Ok(0)));
        assert!(parse_any::<u32>("-1").unwrap_err().ends_with("from 0 to 4294967295"));
        assert!(parse_any::<usize>("x").unwrap_err().ends_with("give a whole number, 0 or more"));
    }
}
