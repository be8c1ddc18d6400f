use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_protocol::{RunId, WireTime};
use serde::Serialize;

/// How long it is remembered that a coordinator has answered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Coordinators that are remembered: far more than there are, unless somebody floods the answers.
const MOST: usize = 1_000;

/// Who has answered before, for whoever asks again and again: a coordinator that no longer answers can be named by that, since
/// the broker only counts them.
///
/// ```
/// use fanfare_operator::Roll;
/// use fanfare_protocol::RunId;
///
/// let one: RunId = "0123456789abcdef0123456789abcdef".parse()?;
/// let mut roll = Roll::default();
/// roll.call([(one, "host:7".to_owned())], "2025-01-19 19:55:45".parse()?);
/// let later = roll.call([], "2025-01-19 19:55:48".parse()?);
/// assert_eq!((later[0].name.as_str(), later[0].answers), ("host:7", false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Roll {
    heard: BTreeMap<RunId, (String, WireTime)>,
}

/// A coordinator that answers, or has answered less than ten minutes ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// What tells it from others.
    pub id: RunId,
    /// What whoever runs it calls it, or its ID.
    pub name: String,
    /// Whether it has answered now.
    pub answers: bool,
    /// When it has answered last.
    pub last_utc: WireTime,
}

impl Roll {
    /// Takes down who has answered now, and tells of all who are remembered, by name.
    pub fn call(&mut self, answered: impl IntoIterator<Item = (RunId, String)>, now: WireTime) -> Vec<Heard> {
        let answered: BTreeMap<RunId, String> = answered.into_iter().take(MOST).collect();
        let is_recent =
            |last: &WireTime| (now.to_utc() - last.to_utc()).to_std().is_ok_and(|since| since <= REMEMBERED);
        self.heard.retain(|id, (_, last)| answered.contains_key(id) || is_recent(last));
        while self.heard.len() + answered.len() > 2 * MOST {
            self.heard.pop_first();
        }
        for (id, name) in &answered {
            self.heard.insert(*id, (name.clone(), now));
        }
        let mut all: Vec<Heard> = self
            .heard
            .iter()
            .map(|(id, (name, last))| Heard {
                id: *id,
                name: name.clone(),
                answers: answered.contains_key(id),
                last_utc: *last,
            })
            .collect();
        all.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        all
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn at(seconds: u64) -> WireTime {
        WireTime::from_timestamp(seconds).unwrap()
    }

    fn called(roll: &mut Roll, who: &[u128], now: u64) -> Vec<(String, bool, u64)> {
        let who = who.iter().map(|n| (RunId::from(Uuid::from_u128(*n)), format!("host:{n}")));
        let heard = roll.call(who, at(now));
        heard.into_iter().map(|it| (it.name, it.answers, it.last_utc.timestamp())).collect()
    }

    #[test]
    fn one_that_no_longer_answers_is_named_until_it_is_long_gone() {
        let mut roll = Roll::default();
        let host = |n: u8, answers, last| (format!("host:{n}"), answers, last);
        assert_eq!(called(&mut roll, &[2, 1], 1_000), [host(1, true, 1_000), host(2, true, 1_000)]);
        assert_eq!(called(&mut roll, &[1], 1_002), [host(1, true, 1_002), host(2, false, 1_000)]);
        assert_eq!(called(&mut roll, &[], 1_003), [host(1, false, 1_002), host(2, false, 1_000)]);
        assert_eq!(called(&mut roll, &[2], 1_602), [host(1, false, 1_002), host(2, true, 1_602)]);
        assert_eq!(called(&mut roll, &[2], 1_603), [host(2, true, 1_603)]);
    }
}
