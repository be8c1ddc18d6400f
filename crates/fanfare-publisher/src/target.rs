use bytes::Bytes;
use fanfare_protocol::{ServiceName, TargetKey, limits, nesting};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::Invalid;

/// One invocation of a service in a fan-out: the service, its payload, and the key that its result has.
///
/// ```
/// use fanfare_publisher::Target;
///
/// let target = Target::new("stock.check", &["shoe", "sock"]).key("warehouse-2");
/// # drop(target);
/// ```
///
/// A mistake in any part of it waits until the fan-out is invoked.
#[derive(Debug)]
pub struct Target {
    service: String,
    key: Option<String>,
    payload: Result<Bytes, serde_json::Error>,
}

impl Target {
    /// A target whose payload is written as JSON. Its key is the service's name.
    #[must_use]
    pub fn new(service: impl AsRef<str>, payload: impl Serialize) -> Self {
        let payload = serde_json::to_vec(&payload).map(Bytes::from);
        Self { service: service.as_ref().to_owned(), key: None, payload }
    }

    /// A target whose payload is JSON already. It is sent as it is, and refused where it is not JSON.
    #[must_use]
    pub fn raw(service: impl AsRef<str>, payload: impl Into<Bytes>) -> Self {
        let payload = payload.into();
        let payload = serde_json::from_slice::<&RawValue>(&payload).map(|_| payload.clone());
        Self { service: service.as_ref().to_owned(), key: None, payload }
    }

    /// Gives it a key of its own, so that one service can be invoked many times in one fan-out: 1 to 255 bytes of UTF-8
    /// without control characters.
    #[must_use]
    pub fn key(self, key: impl AsRef<str>) -> Self {
        Self { key: Some(key.as_ref().to_owned()), ..self }
    }

    pub(crate) fn check(self) -> Result<CheckedTarget, Invalid> {
        let service = ServiceName::new(self.service)?;
        let key = self.key.map_or_else(|| Ok(service.clone().into()), TargetKey::new)?;
        let body = self.payload.map_err(|source| Invalid::Payload { key: key.clone(), source })?;
        if body.len() > limits::MESSAGE_BYTES {
            return Err(Invalid::PayloadTooLarge { key, bytes: body.len() });
        }
        let levels = nesting(&body);
        if levels > limits::NESTING {
            return Err(Invalid::PayloadTooDeep { key, levels });
        }
        Ok(CheckedTarget { service, key, body })
    }
}

/// A target that keeps all rules.
#[derive(Debug)]
pub(crate) struct CheckedTarget {
    pub(crate) service: ServiceName,
    pub(crate) key: TargetKey,
    pub(crate) body: Bytes,
}
