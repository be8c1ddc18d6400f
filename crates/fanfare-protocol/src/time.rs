use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, SubsecRound, Timelike, Utc};
use serde::{Deserialize, Serialize, Serializer};
use smol_str::{SmolStr, format_smolstr};

const FORMAT: &str = "%Y-%m-%d %H:%M:%S";

/// What the four digits of a year can say: from 0000-01-01 00:00:00 to 9999-12-31 23:59:59.
const EARLIEST: DateTime<Utc> = DateTime::from_timestamp(-62_167_219_200, 0).expect("chrono has the year 0");
const LATEST: DateTime<Utc> = DateTime::from_timestamp(253_402_300_799, 0).expect("chrono has the year 9999");

/// A time as the protocol writes it: `YYYY-MM-DD HH:MM:SS`, UTC, whole seconds.
///
/// ```
/// use fanfare_protocol::WireTime;
///
/// let time: WireTime = "2025-01-19 19:55:45".parse()?;
/// assert_eq!(time.to_string(), "2025-01-19 19:55:45");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "SmolStr")]
pub struct WireTime(DateTime<Utc>);

impl WireTime {
    /// The time as `chrono` has it.
    #[must_use]
    pub const fn to_utc(self) -> DateTime<Utc> {
        self.0
    }

    /// The time so many seconds after 1970, where it can be written.
    #[must_use]
    pub fn from_timestamp(seconds: u64) -> Option<Self> {
        let time = DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)?;
        (EARLIEST..=LATEST).contains(&time).then_some(Self(time))
    }

    /// Seconds since 1970, as the AMQP property `timestamp` counts them; 0 for earlier times.
    #[must_use]
    pub fn timestamp(self) -> u64 {
        u64::try_from(self.0.timestamp()).unwrap_or(0)
    }
}

impl From<DateTime<Utc>> for WireTime {
    /// Fractions of a second are dropped, and a time that can't be written becomes the nearest that can.
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(0).clamp(EARLIEST, LATEST))
    }
}

impl fmt::Display for WireTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every message has some, and what `format` does takes several times as long.
        let (date, time) = (self.0.date_naive(), self.0.time());
        write!(f, "{:04}-{:02}-{:02} ", date.year(), date.month(), date.day())?;
        write!(f, "{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second())
    }
}

impl From<WireTime> for SmolStr {
    fn from(time: WireTime) -> Self {
        format_smolstr!("{time}")
    }
}

impl FromStr for WireTime {
    type Err = crate::Malformed;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            crate::Malformed::new(format!(
                "{} is not a time of the form YYYY-MM-DD HH:MM:SS",
                crate::quoted(text)
            ))
        };
        let time = as_written(text).or_else(|| NaiveDateTime::parse_from_str(text, FORMAT).ok());
        let time = time.ok_or_else(wrong)?.and_utc();
        // Years beyond would be written with more digits and a sign.
        if (EARLIEST..=LATEST).contains(&time) { Ok(Self(time)) } else { Err(wrong()) }
    }
}

/// Reads what was written with all of its digits, as every message of Fanfare has it, without going through a format.
fn as_written(text: &str) -> Option<NaiveDateTime> {
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b' ', h1, h2, b':', min1, min2, b':', s1, s2] =
        text.as_bytes()
    else {
        return None;
    };
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0, |number, digit| {
            digit.is_ascii_digit().then(|| 10 * number + u32::from(digit - b'0'))
        })
    };
    let year = number(&[y1, y2, y3, y4])?.try_into().ok()?;
    let date = NaiveDate::from_ymd_opt(year, number(&[m1, m2])?, number(&[d1, d2])?)?;
    date.and_hms_opt(number(&[h1, h2])?, number(&[min1, min2])?, number(&[s1, s2])?)
}

impl TryFrom<SmolStr> for WireTime {
    type Error = crate::Malformed;
    fn try_from(text: SmolStr) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl Serialize for WireTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_chrono_reads_it() {
        for text in [
            "2025-01-19 19:55:45",
            "2024-02-29 00:00:00",
            "2025-02-29 00:00:00",
            "2025-13-01 00:00:00",
            "2025-01-19 24:00:00",
            "2025-06-30 23:59:60",
            "2025-01-19 19:55:4x",
            "2025-01-19T19:55:45",
            "2025-1-19 19:55:45",
            "+025-01-19 19:55:45",
        ] {
            let read = NaiveDateTime::parse_from_str(text, FORMAT).ok().map(|time| WireTime(time.and_utc()));
            assert_eq!(text.parse().ok(), read, "{text}");
            assert!(as_written(text).is_none_or(|time| Some(WireTime(time.and_utc())) == read), "{text}");
        }
        assert!(as_written("2025-01-19 19:55:45").is_some());
    }

    #[test]
    fn every_time_can_be_written_and_read_back() {
        let (latest, earliest) = ("9999-12-31 23:59:59", "0000-01-01 00:00:00");
        for (time, written) in [
            (LATEST, latest),
            (LATEST + chrono::Duration::seconds(1), latest),
            (DateTime::<Utc>::MAX_UTC, latest),
            (EARLIEST, earliest),
            (EARLIEST - chrono::Duration::milliseconds(1), earliest),
            (DateTime::<Utc>::MIN_UTC, earliest),
        ] {
            let time = WireTime::from(time);
            assert_eq!(time.to_string(), written);
            assert_eq!(written.parse(), Ok(time));
        }
    }
}
