use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use fanfare_protocol::{limits, nesting};
use futures_util::FutureExt;
use serde_json::value::RawValue;

use crate::registration::Registered;
use crate::{Context, ServiceError};

/// Characters of an exception that are kept. The end of a longer one is cut off.
const EXCEPTION_CHARS: usize = 64 * 1024;

/// Why a service failed, as the caller is told: the error and its causes, a panic's message, or the time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception(String);

impl Exception {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if let Some((end, _)) = text.char_indices().nth(EXCEPTION_CHARS) {
            text.truncate(end);
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A service failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exception: Exception,
    /// Another attempt would only repeat it.
    pub(crate) fatal: bool,
}

impl Failure {
    /// Another attempt may do better.
    pub(crate) fn passing(text: impl Into<String>) -> Self {
        Self { exception: Exception::new(text), fatal: false }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        Self { exception: Exception::new(error.to_string()), fatal: error.is_fatal() }
    }
}

/// Runs a service once, under its time-out. Nothing that the service does gets past this, a panic included. The token is
/// the one that the context holds; it is cancelled where the service is dropped before its end.
pub(crate) async fn execute(
    registered: &Registered,
    context: Context,
    payload: &[u8],
) -> Result<Box<RawValue>, Failure> {
    let payload: &RawValue = serde_json::from_slice(payload)
        .map_err(|error| ServiceError::unusable("the payload is not JSON", error))?;
    let (levels, most) = (nesting(payload.get().as_bytes()), limits::NESTING + limits::PAYLOAD_LEVELS);
    if levels > most {
        // A service may hand it to a parser, or to a program, that does not survive it.
        let rule = format!("it has {levels} levels of arrays and objects, and {most} is the most");
        return Err(ServiceError::unusable("the payload is nested too deeply", rule).into());
    }
    let unfinished = context.cancellation().clone().drop_guard();
    // The service's state is its own affair: what it shares must stand a panic, as with any thread.
    let call = AssertUnwindSafe(async { registered.service.call(context, payload).await }).catch_unwind();
    let outcome = match registered.timeout {
        None => call.await,
        Some(limit) => match tokio::time::timeout(limit, call).await {
            Ok(outcome) => outcome,
            Err(_) => return Err(Failure::passing(timed_out(limit))),
        },
    };
    unfinished.disarm();
    match outcome {
        Ok(answer) => answer.map_err(Failure::from),
        Err(panic) => Err(Failure::passing(format!("the service panicked: {}", message_of(&*panic)))),
    }
}

fn timed_out(limit: Duration) -> String {
    format!("timed out after {limit:?}")
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
