use std::fmt;
use std::vec;

use fanfare_protocol::{FinalPayload, Invocation, Results, TargetResult};
use fanfare_publisher::Publisher;

use crate::parts::PartReader;
use crate::{Result, ServiceError};

/// The results of a fan-out, one after the other, in the order in which the caller gave the targets: see
/// [`Context::results`](crate::Context::results).
pub struct ResultStream {
    /// None where there is no more to read.
    parts: Option<PartReader>,
    read: vec::IntoIter<(String, TargetResult)>,
}

impl ResultStream {
    /// Of the payload that an invocation has in its body, or in parts.
    pub(crate) fn of(invocation: &Invocation, publisher: &Publisher) -> Result<Self> {
        if let Some(payload) = invocation.large {
            let parts = Some(PartReader::new(publisher, invocation, payload));
            return Ok(Self { parts, read: Vec::new().into_iter() });
        }
        let payload: FinalPayload = serde_json::from_slice(&invocation.body)
            .map_err(|error| ServiceError::unusable("the payload has no results of a fan-out", error))?;
        Ok(Self { parts: None, read: payload.data.into_iter() })
    }

    /// The next target's key and its result; none behind the last.
    ///
    /// # Errors
    /// Where results cannot be read: their queue is gone, or another holds them.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<(String, TargetResult)>> {
        loop {
            if let Some(entry) = self.read.next() {
                return Ok(Some(entry));
            }
            let Some(parts) = &mut self.parts else { return Ok(None) };
            let Some(part) = parts.next().await? else { return Ok(None) };
            let entries: Results = serde_json::from_slice(&part)
                .map_err(|error| ServiceError::unusable("a part of the payload is malformed", error))?;
            self.read = entries.into_iter();
        }
    }
}

impl fmt::Debug for ResultStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultStream").field("read", &self.read.len()).finish_non_exhaustive()
    }
}
