use std::marker::PhantomData;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{Context, Result, ServiceError};

/// A named piece of work, underneath [`service`](crate::service): JSON in, JSON out.
///
/// Implement it where an async function with types of its own does not do, for instance where one type serves many
/// names from configuration.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Runs it once. The same invocation may run more than once, with the same
    /// [`message_id`](Context::message_id), and at the same time.
    ///
    /// # Errors
    /// Whatever fails it. It is run again where its [`Retry`](crate::Retry) says so; then, to a target it becomes a failed
    /// result, and a failed callback is parked.
    async fn call(&self, context: Context, payload: &RawValue) -> Result<Box<RawValue>>;
}

/// An async function as a service.
pub(crate) struct Function<F, In> {
    function: F,
    takes: PhantomData<fn(In)>,
}

impl<F, In> Function<F, In> {
    pub(crate) const fn new(function: F) -> Self {
        Self { function, takes: PhantomData }
    }
}

#[async_trait]
impl<F, In, Fut, Out> Service for Function<F, In>
where
    F: Fn(Context, In) -> Fut + Send + Sync + 'static,
    In: DeserializeOwned + Send + 'static,
    Fut: Future<Output = Result<Out>> + Send + 'static,
    Out: Serialize + Send + 'static,
{
    async fn call(&self, context: Context, payload: &RawValue) -> Result<Box<RawValue>> {
        let input = serde_json::from_str(payload.get())
            .map_err(|error| ServiceError::unusable("the payload is not what this service takes", error))?;
        let output = (self.function)(context, input).await?;
        serde_json::value::to_raw_value(&output)
            .map_err(|error| ServiceError::unusable("the response cannot be written as JSON", error))
    }
}
