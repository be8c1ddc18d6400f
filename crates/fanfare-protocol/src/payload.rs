use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::name::TargetKey;
use crate::{EndedBy, Malformed, Manifest, ManifestTarget, TargetResult};

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
                while let Some((key, result)) = map.next_entry::<String, TargetResult>()? {
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

mod list_or_empty_string {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        if list.is_empty() { serializer.serialize_str("") } else { list.serialize(serializer) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
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

/// Bytes of an exception in JSON where its result had to make room.
const SHORTENED_BYTES: usize = 150;
/// Bytes of a result in a final payload beside its names and its exception: field names, punctuation and times.
const FRAME_BYTES: usize = 200;

/// The start of a text that takes at most [`SHORTENED_BYTES`] in JSON.
fn shortened(text: &str) -> &str {
    let in_json = |c: char| match c {
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    };
    let mut bytes = 0;
    let end = text.char_indices().find(|(_, c)| {
        bytes += in_json(*c);
        bytes > SHORTENED_BYTES
    });
    end.map_or(text, |(end, _)| &text[..end])
}

impl Manifest {
    /// Bytes that the final payload of this fan-out has at most when every response has been left out of it. Where that is more
    /// than [`crate::limits::MESSAGE_BYTES`], there is no final callback that could be invoked whatever the targets answer.
    #[must_use]
    pub fn least_payload_bytes(&self) -> usize {
        let every = FRAME_BYTES + SHORTENED_BYTES + self.source.as_str().len() + self.cid.as_str().len();
        // Escaping at most doubles a key, which has no control characters.
        let own = |target: &ManifestTarget| 2 * target.key.as_str().len() + target.service.as_str().len();
        let callbacks =
            self.on_target.iter().chain(&self.on_final).map(|callback| callback.as_str().len() + 3);
        every
            + callbacks.sum::<usize>()
            + self.targets.iter().map(|target| every + own(target)).sum::<usize>()
    }
}

/// Puts the final payload of a fan-out together from result bodies, which go in as they are.
#[derive(Debug)]
pub struct FinalPayloadBuilder<'a> {
    manifest: &'a Manifest,
    results: Vec<&'a RawValue>,
}

impl<'a> FinalPayloadBuilder<'a> {
    /// Starts the payload of a fan-out.
    #[must_use]
    pub fn new(manifest: &'a Manifest) -> Self {
        Self { manifest, results: Vec::with_capacity(manifest.targets.len()) }
    }

    /// Adds the result of the next target, in the manifest's order.
    ///
    /// # Errors
    /// Where the body is not JSON in UTF-8.
    pub fn push(&mut self, body: &'a [u8]) -> Result<(), Malformed> {
        let raw = serde_json::from_slice(body)
            .map_err(|error| Malformed::new(format!("a result is malformed: {error}")))?;
        self.results.push(raw);
        Ok(())
    }

    /// The body of the final callbacks.
    ///
    /// Where it would be larger than `most` bytes ([`crate::limits::MESSAGE_BYTES`] unless the broker takes less), the largest results
    /// are replaced by failed ones that say so, largest first and by the manifest's order among equals, until it fits or
    /// none is left: the outcome depends on the results alone, so every coordinator comes to the same bytes.
    #[must_use]
    pub fn finish(&self, most: usize) -> Bytes {
        debug_assert_eq!(self.results.len(), self.manifest.targets.len(), "one result for each target");
        let whole = self.encode(&BTreeMap::new());
        if whole.len() <= most {
            return whole.into();
        }
        let mut excess = whole.len() - most;
        let mut largest: Vec<usize> = (0..self.results.len()).collect();
        largest.sort_by_key(|place| std::cmp::Reverse(self.results[*place].get().len()));
        let mut replaced: BTreeMap<usize, Box<RawValue>> = BTreeMap::new();
        for place in largest {
            let was = self.results[place].get();
            let Some(smaller) =
                self.left_out(place, was, whole.len(), most).filter(|raw| raw.get().len() < was.len())
            else {
                continue;
            };
            let saved = was.len() - smaller.get().len();
            replaced.insert(place, smaller);
            excess = excess.saturating_sub(saved);
            if excess == 0 {
                break;
            }
        }
        self.encode(&replaced).into()
    }

    /// The failed result that takes the place of one for which there is no room. Its size has a limit, on which
    /// [`Manifest::least_payload_bytes`] relies: it takes no text from the result but the start of its exception.
    fn left_out(&self, place: usize, body: &str, bytes: usize, most: usize) -> Option<Box<RawValue>> {
        let result: TargetResult = serde_json::from_str(body).ok()?;
        let exception = match &result.exception {
            Some(exception) => shortened(exception).to_owned(),
            None => format!(
                "the response was left out: all results have {bytes} bytes, a message holds {most}, this one had {}",
                body.len()
            ),
        };
        let failed = TargetResult {
            source: self.manifest.source.to_string(),
            target: self.manifest.targets[place].service.to_string(),
            response: crate::result::null(),
            ok: false,
            exception: Some(exception),
            cid: self.manifest.cid.clone(),
            ..result
        };
        serde_json::value::to_raw_value(&failed).ok()
    }

    fn encode(&self, replaced: &BTreeMap<usize, Box<RawValue>>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Wire<'a> {
            source: &'a str,
            req_ts_utc: crate::WireTime,
            #[serde(with = "list_or_empty_string")]
            on_target: Vec<String>,
            on_final: Vec<&'a str>,
            data: Data<'a>,
        }
        struct Data<'a> {
            keys: Vec<(&'a TargetKey, &'a RawValue)>,
        }
        impl Serialize for Data<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.keys.iter().map(|(key, raw)| (*key, *raw)))
            }
        }
        let keys = self
            .manifest
            .targets
            .iter()
            .zip(&self.results)
            .enumerate()
            .map(|(place, (target, raw))| {
                (&target.key, replaced.get(&place).map_or(*raw, |smaller| &**smaller))
            })
            .collect();
        crate::result::to_json(&Wire {
            source: self.manifest.source.as_str(),
            req_ts_utc: self.manifest.req_ts_utc,
            on_target: self.manifest.on_target.iter().map(ToString::to_string).collect(),
            on_final: self.manifest.on_final.iter().map(AsRef::as_ref).collect(),
            data: Data { keys },
        })
    }
}
