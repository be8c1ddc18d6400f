use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::message::{HeaderValue, Headers};
use crate::{Malformed, header};

/// What a caller wants to tell every target and callback of a fan-out beside their payloads: strings by name,
/// 4 KiB in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Metadata(BTreeMap<String, String>);

/// An entry would break a limit of [`Metadata`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMetadata {
    /// A name is empty or longer than the 128 bytes that every AMQP client takes.
    #[error("metadata name {} is not allowed: give 1 to 128 bytes", crate::quoted(.0))]
    Name(String),
    /// All entries together are too large.
    #[error(
        "metadata of {bytes} bytes is not allowed: names and values together may have {} bytes",
        limits::METADATA_BYTES
    )]
    Size {
        /// Bytes of all names and values.
        bytes: usize,
    },
}

impl TryFrom<BTreeMap<String, String>> for Metadata {
    type Error = InvalidMetadata;
    fn try_from(entries: BTreeMap<String, String>) -> Result<Self, InvalidMetadata> {
        let mut metadata = Self::default();
        entries.into_iter().try_for_each(|(name, value)| metadata.insert(name, value))?;
        Ok(metadata)
    }
}

impl From<Metadata> for BTreeMap<String, String> {
    fn from(metadata: Metadata) -> Self {
        metadata.0
    }
}

impl Metadata {
    /// Sets one entry, replacing an earlier one of the same name.
    ///
    /// # Errors
    /// [`InvalidMetadata`] where the name or the size breaks a limit; the entries are then as before.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<(), InvalidMetadata> {
        let (name, value) = (name.into(), value.into());
        if name.is_empty() || name.len() > 128 {
            return Err(InvalidMetadata::Name(name));
        }
        let replaced = self.0.get(&name).map_or(0, |old| name.len() + old.len());
        let bytes = self.bytes() - replaced + name.len() + value.len();
        if bytes > limits::METADATA_BYTES {
            return Err(InvalidMetadata::Size { bytes });
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// One entry.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All entries, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    pub(crate) fn write(&self, headers: &mut Headers) {
        if !self.is_empty() {
            let table = self.0.iter().map(|(name, value)| (name.as_str(), HeaderValue::from(value.as_str())));
            headers.insert(header::METADATA, HeaderValue::Table(table.collect()));
        }
    }

    pub(crate) fn read(headers: &Headers) -> Result<Self, Malformed> {
        match headers.get(header::METADATA) {
            None => Ok(Self::default()),
            Some(HeaderValue::Table(table)) => table
                .iter()
                .map(|(name, value)| match value {
                    HeaderValue::Text(value) => Ok((name.to_owned(), value.to_string())),
                    _ => Err(Malformed::new(format!(
                        "entry {} of header fanfare-metadata is not a string",
                        crate::quoted(name)
                    ))),
                })
                .collect::<Result<BTreeMap<_, _>, _>>()
                .and_then(|entries| {
                    let checked = Self::try_from(entries);
                    checked.map_err(|error| Malformed::new(format!("header fanfare-metadata: {error}")))
                }),
            Some(_) => Err(Malformed::new("header fanfare-metadata is not a table")),
        }
    }
}
