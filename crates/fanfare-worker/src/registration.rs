use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fanfare_protocol::{Channel, InvalidName, ServiceName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::service::Function;
use crate::{Context, Result, Retry, Service, WorkerError};

/// Makes a service of an async function: any type that serde reads in, any that it writes out, and
/// [`RawValue`](serde_json::value::RawValue) in a `Box` for JSON as it is.
///
/// ```
/// use std::time::Duration;
/// use fanfare_worker::{Context, service};
///
/// let add = service("math.add", |_: Context, (a, b): (u32, u32)| async move {
///     Ok(a.checked_add(b).ok_or("the sum is too large")?)
/// })
/// .concurrency(8)
/// .timeout(Duration::from_secs(30));
/// # drop(add);
/// ```
///
/// A name that is not allowed is reported when the worker starts.
pub fn service<F, In, Fut, Out>(name: impl AsRef<str>, function: F) -> Registration
where
    F: Fn(Context, In) -> Fut + Send + Sync + 'static,
    In: DeserializeOwned + Send + 'static,
    Fut: Future<Output = Result<Out>> + Send + 'static,
    Out: Serialize + Send + 'static,
{
    Registration::new(name, Function::new(function))
}

/// A service and how a worker is to run it.
#[must_use = "a service runs once it is given to a worker"]
pub struct Registration {
    name: std::result::Result<ServiceName, InvalidName>,
    service: Arc<dyn Service>,
    concurrency: usize,
    prefetch: Option<u16>,
    timeout: Option<Duration>,
    retry: Option<Retry>,
    streaming: bool,
}

impl Registration {
    /// Invocations of one service that run at the same time in one worker, unless it says otherwise.
    pub const DEFAULT_CONCURRENCY: usize = 16;

    /// A service under a name.
    pub fn new(name: impl AsRef<str>, service: impl Service) -> Self {
        Self {
            name: ServiceName::new(name.as_ref()),
            service: Arc::new(service),
            concurrency: Self::DEFAULT_CONCURRENCY,
            prefetch: None,
            timeout: None,
            retry: None,
            streaming: false,
        }
    }

    /// The service's name.
    ///
    /// # Errors
    /// Where the name that was given is not allowed; the worker refuses it with the same error.
    pub fn name(&self) -> std::result::Result<&ServiceName, &InvalidName> {
        self.name.as_ref()
    }

    /// Sets how many invocations run at the same time in one worker: 1 or more,
    /// [`DEFAULT_CONCURRENCY`](Self::DEFAULT_CONCURRENCY) where it is left out. The worker has a limit for all of its
    /// services together beside it.
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    /// Sets how many messages the broker hands out ahead of their acks: 1 or more, twice the concurrency where it is left
    /// out. Less than the concurrency limits that as well.
    pub fn prefetch(self, prefetch: u16) -> Self {
        Self { prefetch: Some(prefetch), ..self }
    }

    /// Sets after how long an invocation fails. Without it, it may take any time.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Sets how often a failed invocation is run again, whether it is a target, a callback or a plain invocation. Without it,
    /// targets have [one attempt](Retry::OF_TARGETS) and the others [five](Retry::OF_CALLBACKS).
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// Says that the service reads final payloads with [`Context::results`]. What it takes as its payload is then the
    /// payload without `data`, where that is too large for one message: take [`IgnoredAny`](serde::de::IgnoredAny), or a type
    /// of the other fields. Without this, such a payload is put together first, as if it had come in one message.
    pub fn streaming(self) -> Self {
        Self { streaming: true, ..self }
    }

    pub(crate) fn check(self) -> std::result::Result<Registered, WorkerError> {
        let name = self.name?;
        if self.concurrency == 0 || self.prefetch == Some(0) {
            return Err(WorkerError::Nothing { service: name });
        }
        if let Some(rule) = self.retry.and_then(|retry| retry.broken_rule()) {
            return Err(WorkerError::Retry { service: name, rule });
        }
        let twice = u16::try_from(self.concurrency.saturating_mul(2)).unwrap_or(u16::MAX);
        Ok(Registered {
            name,
            service: self.service,
            concurrency: self.concurrency.min(tokio::sync::Semaphore::MAX_PERMITS),
            prefetch: self.prefetch.unwrap_or(twice),
            timeout: self.timeout,
            retry: self.retry,
            streaming: self.streaming,
        })
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A registration that keeps all rules.
pub(crate) struct Registered {
    pub(crate) name: ServiceName,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) concurrency: usize,
    pub(crate) prefetch: u16,
    pub(crate) timeout: Option<Duration>,
    retry: Option<Retry>,
    pub(crate) streaming: bool,
}

impl Registered {
    /// The retries of an invocation through this channel.
    pub(crate) fn retry(&self, channel: Channel) -> Retry {
        let default = if channel.is_call() { Retry::OF_TARGETS } else { Retry::OF_CALLBACKS };
        self.retry.unwrap_or(default)
    }
}
