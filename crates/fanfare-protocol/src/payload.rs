use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::object::Object;
use crate::{EndedBy, TargetResult};

/// What a final callback receives: every target's result, by key, in the order in which the caller gave the targets.
///
/// ```
/// use fanfare_protocol::FinalPayload;
///
/// let payload: FinalPayload = serde_json::from_str(
///     r#"{"source":"shop","req_ts_utc":"2025-01-19 19:55:45","on_target":"","on_final":["done"],"data":{
///         "price":{"source":"shop","target":"price","response":42,"req_ts_utc":"2025-01-19 19:55:45",
///         "resp_ts_utc":"2025-01-19 19:55:46","ok":true,"exception":null,"cid":"c1"}}}"#,
/// )?;
/// assert_eq!(payload.get::<u32>("price")?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FinalPayload {
    /// Who issued the fan-out.
    pub source: String,
    /// When it was issued.
    pub req_ts_utc: crate::WireTime,
    /// Its on-target callbacks. On the wire, the empty string where there are none; a list is read as well.
    #[serde(with = "list_or_empty_string")]
    pub on_target: Vec<String>,
    /// Its final callbacks.
    pub on_final: Vec<String>,
    /// The results; see [`FinalPayload::get`].
    pub data: Results,
}

/// The results of a fan-out, in the order of its targets.
#[derive(Debug, Clone, Default)]
pub struct Results {
    ordered: Vec<(String, TargetResult)>,
    places: BTreeMap<String, usize>,
}

/// A target's answer cannot be had from a payload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The target failed; the exception is what it said.
    #[error(transparent)]
    Failed(#[from] TargetFailure),
    /// The fan-out has no target of this key.
    #[error("the fan-out has no target {0:?}")]
    Missing(String),
    /// The answer is not of the type that was asked for.
    #[error("the response of target {key:?} is not of the expected form")]
    Form {
        /// The target's key.
        key: String,
        /// What does not fit.
        source: serde_json::Error,
    },
}

/// A target failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("target {key:?} failed: {exception}")]
pub struct TargetFailure {
    /// The target's key.
    pub key: String,
    /// The error and its causes, as the target gave them.
    pub exception: String,
}

impl FinalPayload {
    /// The answer of one target as a value of the caller's type.
    ///
    /// # Errors
    /// [`PayloadError::Failed`] where the target failed, [`PayloadError::Missing`] where there is no such key, and
    /// [`PayloadError::Form`] where the answer is of another form.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<T, PayloadError> {
        let result = self.data.get(key).ok_or_else(|| PayloadError::Missing(key.to_owned()))?;
        response_of(key, result)
    }

    /// What ended the fan-out before all targets had responded; none where they had.
    #[must_use]
    pub fn ended_by(&self) -> Option<EndedBy> {
        self.data.iter().filter_map(|(_, result)| result.ended_by).max()
    }

    /// The targets that failed, those that had not responded in time included, in the caller's order.
    pub fn failures(&self) -> impl Iterator<Item = TargetFailure> {
        self.data.iter().filter(|(_, result)| !result.ok).map(|(key, result)| TargetFailure {
            key: key.to_owned(),
            exception: result.exception.clone().unwrap_or_default(),
        })
    }
}

pub(crate) fn response_of<T: DeserializeOwned>(key: &str, result: &TargetResult) -> Result<T, PayloadError> {
    if !result.ok {
        let exception = result.exception.clone().unwrap_or_default();
        return Err(TargetFailure { key: key.to_owned(), exception }.into());
    }
    serde_json::from_str(result.response.get())
        .map_err(|source| PayloadError::Form { key: key.to_owned(), source })
}

impl Results {
    /// The result of one target.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&TargetResult> {
        self.places.get(key).map(|place| &self.ordered[*place].1)
    }

    /// All results with their keys, in the order of the targets.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TargetResult)> {
        self.ordered.iter().map(|(key, result)| (key.as_str(), result))
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ordered.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ordered.is_empty()
    }
}

impl IntoIterator for Results {
    type Item = (String, TargetResult);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.ordered.into_iter()
    }
}

impl Serialize for Results {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, result) in self.iter() {
            map.serialize_entry(key, result)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Results {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Results;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("results by target key")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Results, A::Error> {
                let mut results = Results::default();
                while let Some((key, Object(result))) = map.next_entry::<String, Object<TargetResult>>()? {
                    let place = results.ordered.len();
                    if let Some(first) = results.places.insert(key.clone(), place) {
                        results.places.insert(key, first);
                    } else {
                        results.ordered.push((key, result));
                    }
                }
                Ok(results)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

pub(crate) mod list_or_empty_string {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        if list.is_empty() { serializer.serialize_str("") } else { list.serialize(serializer) }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            List(Vec<String>),
        }
        match Either::deserialize(deserializer)? {
            Either::Text(text) if text.is_empty() => Ok(Vec::new()),
            Either::Text(text) => {
                Err(D::Error::custom(format!("{text:?} is neither a list nor the empty string")))
            }
            Either::List(list) => Ok(list),
        }
    }
}
