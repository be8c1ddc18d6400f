use std::fmt;
use std::sync::Arc;

use fanfare_protocol::{Channel, Cid, Invocation, Metadata, RunId, ServiceName, Source, TargetKey, WireTime};
use fanfare_publisher::{Accepted, Fanout, InvokeError, Publisher};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::slot::Slot;
use crate::{Result, ResultStream};

/// What a service is told beside its payload, and its way to invoke others. Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use fanfare_worker::{Context, service};
///
/// let intake = service("orders.intake", |context: Context, items: Vec<String>| async move {
///     let prices = context.fanout().target("price.quote", &items).invoke_and_wait(Duration::from_secs(30)).await?;
///     let price: u32 = prices.get("price.quote")?;
///     context.send("audit.log", format!("{}: {price}", context.cid())).await?;
///     Ok(price)
/// });
/// # drop(intake);
/// ```
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

struct Shared {
    service: ServiceName,
    invocation: Arc<Invocation>,
    redelivered: bool,
    cancellation: CancellationToken,
    publisher: Publisher,
    slot: Slot,
}

impl Context {
    pub(crate) fn new(
        service: ServiceName,
        invocation: Arc<Invocation>,
        redelivered: bool,
        cancellation: CancellationToken,
        publisher: Publisher,
        slot: Slot,
    ) -> Self {
        let shared = Shared { service, invocation, redelivered, cancellation, publisher, slot };
        Self { shared: Arc::new(shared) }
    }

    /// How the service was invoked: as a target, as a callback, or plainly.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.shared.invocation.channel
    }

    /// The correlation ID of the fan-out, or of the plain invocation.
    #[must_use]
    pub fn cid(&self) -> &Cid {
        &self.shared.invocation.cid
    }

    /// The run, which tells two fan-outs with the same CID apart.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.shared.invocation.run
    }

    /// Who issued the fan-out, or the plain invocation.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.shared.invocation.source
    }

    /// As a target, the key in the fan-out; as an on-target callback, that of the target that completed.
    #[must_use]
    pub fn key(&self) -> Option<&TargetKey> {
        self.shared.invocation.key.as_ref()
    }

    /// The service's own name.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.shared.service
    }

    /// 1, and more on a retry.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.shared.invocation.attempt
    }

    /// The same at every repetition of this invocation. Together with the [run](Self::run) it tells whether work was done
    /// already: a service may run more than once for one invocation.
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.shared.invocation.message_id
    }

    /// Whether the broker may have handed this message out before. Where it has not, no other worker has begun with it; but
    /// whoever published the message may have published it twice, which only the [`message_id`](Self::message_id) tells.
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.shared.redelivered
    }

    /// When the fan-out was invoked, where the message says so.
    #[must_use]
    pub fn requested_at(&self) -> Option<WireTime> {
        self.shared.invocation.requested_at
    }

    /// What the caller tells all targets and callbacks.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.shared.invocation.metadata
    }

    /// Cancelled when the service is to end early: it ran out of time, its fan-out was cancelled, or its worker stops and can wait no
    /// longer. What the service itself awaits is dropped then, at once or within a second; tasks that it spawned need the token.
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        &self.shared.cancellation
    }

    /// As a final callback, the results of the fan-out, one after the other. A service that is
    /// [streaming](crate::Registration::streaming) is given those of a large payload as it reads them, in constant memory; any other
    /// has been given all of them.
    ///
    /// Each call begins with the first. Drop one stream before another is read: it holds what it has read of a large payload.
    ///
    /// ```
    /// use fanfare_worker::{Context, service};
    /// use serde::de::IgnoredAny;
    ///
    /// let report = service("report.write", |context: Context, _: IgnoredAny| async move {
    ///     let (mut results, mut total) = (context.results()?, 0);
    ///     while let Some((key, result)) = results.next().await? {
    ///         if !result.ok {
    ///             return Err(format!("{key} has failed").into());
    ///         }
    ///         total += result.response::<u64>()?;
    ///     }
    ///     Ok(total)
    /// })
    /// .streaming();
    /// # drop(report);
    /// ```
    ///
    /// # Errors
    /// Where the payload is not that of a final callback.
    pub fn results(&self) -> Result<ResultStream> {
        ResultStream::of(&self.shared.invocation, &self.shared.publisher)
    }

    /// Starts a fan-out with this service as the source, and a CID of its own. To wait for it with
    /// [`invoke_and_wait`](Fanout::invoke_and_wait) gives this service's slot to others meanwhile.
    pub fn fanout(&self) -> Fanout {
        let fanout = self.shared.publisher.fanout(&self.shared.service);
        fanout.nested().while_waiting(Arc::new(self.shared.slot.clone()))
    }

    /// Starts a parallel execution with this service as the source, and a CID of its own.
    pub fn parallel(&self) -> Fanout {
        self.shared.publisher.parallel(&self.shared.service).nested()
    }

    /// Invokes one service, whose answer nobody waits for, with this service as the source.
    ///
    /// # Errors
    /// As for [`Publisher::send`].
    pub async fn send(
        &self,
        service: impl AsRef<str>,
        payload: impl Serialize,
    ) -> Result<Accepted, InvokeError> {
        self.shared.publisher.send(&self.shared.service, service, payload).await
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("service", self.service())
            .field("channel", &self.channel())
            .field("cid", self.cid())
            .field("message_id", &self.message_id())
            .finish_non_exhaustive()
    }
}
