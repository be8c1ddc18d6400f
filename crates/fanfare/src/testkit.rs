//! Everything in memory, for the tests of your own services and callbacks: no broker, no set-up, nothing left behind.
//!
//! ```
//! use fanfare::testkit::{TestKit, recorder};
//! use fanfare::{Channel, Context, FinalPayload, service};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let double = service("math.double", |_: Context, n: u32| async move { Ok(n * 2) });
//! let (enriched, mut recorded) = recorder("order.enriched");
//! let kit = TestKit::start([double, enriched]).await;
//!
//! kit.fanout("test").target("math.double", 21).on_final("order.enriched").invoke().await?;
//!
//! let received = recorded.next().await;
//! assert_eq!(received.context.channel(), Channel::FanoutOnFinal);
//! assert_eq!(received.payload::<FinalPayload>()?.get::<u32>("math.double")?, 42);
//! # Ok(())
//! # }
//! ```

use std::ops::Deref;
use std::time::Duration;

use fanfare_coordinator::Coordinator;
use fanfare_worker::{Context, Registration, Worker, service};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Fanfare;

/// How long [`Recorded::next`] waits before it panics.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long starting may take before it panics.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at the queues while starting.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A broker in memory with a worker and a coordinator running in the background. It dereferences to a [`Fanfare`] handle,
/// so that it invokes like one. Everything ends when it is dropped.
#[derive(Debug)]
pub struct TestKit {
    fanfare: Fanfare,
    stopping: CancellationToken,
    tasks: JoinSet<()>,
}

impl TestKit {
    /// Starts the services, on the Tokio runtime that this is called on. When it returns, they can be invoked.
    ///
    /// # Panics
    /// Where a service's registration breaks a rule.
    pub async fn start(services: impl IntoIterator<Item = Registration>) -> Self {
        let mut kit =
            Self { fanfare: Fanfare::in_memory(), stopping: CancellationToken::new(), tasks: JoinSet::new() };
        let services: Vec<Registration> = services.into_iter().collect();
        let coordinator = kit.fanfare.coordinator();
        kit.run_coordinator(coordinator);
        if !services.is_empty() {
            let worker = kit.fanfare.worker().services(services);
            // A worker declares the queues of all its services before it serves any, this one last.
            let (last, ready) = recorder("fanfare.testkit.ready");
            drop(ready);
            kit.run_worker(worker.service(last));
            kit.until_served("fanfare.testkit.ready").await;
        }
        kit
    }

    /// The handle.
    #[must_use]
    pub const fn fanfare(&self) -> &Fanfare {
        &self.fanfare
    }

    /// Stops the worker and the coordinator, and waits until they have finished what they do.
    ///
    /// # Panics
    /// Where one of them did.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("neither worker nor coordinator panics");
        }
    }

    fn run_worker(&mut self, worker: Worker) {
        let stopping = self.stopping.clone().cancelled_owned();
        self.tasks.spawn(async {
            worker.run_until(stopping).await.expect("the services keep the rules for registrations");
        });
    }

    fn run_coordinator(&mut self, coordinator: Coordinator) {
        let stopping = self.stopping.clone().cancelled_owned();
        self.tasks.spawn(async {
            coordinator.run_until(stopping).await.expect("the default configuration is allowed");
        });
    }

    async fn until_served(&mut self, service: &str) {
        let service = fanfare_protocol::ServiceName::new(service).expect("the name keeps the rules");
        let queue = self.fanfare.names().service_queue(&service);
        let broker = self.fanfare.broker().clone();
        let there = async {
            while !matches!(broker.inspect(&queue).await, Ok(Some(_))) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            biased;
            started = tokio::time::timeout(START_LIMIT, there) => started.expect("a worker starts in no time"),
            Some(ended) = self.tasks.join_next() => ended.expect("a registration breaks a rule"),
        }
    }
}

impl Deref for TestKit {
    type Target = Fanfare;

    fn deref(&self) -> &Fanfare {
        &self.fanfare
    }
}

/// A service that keeps what it is given for a test to look at, and answers `null`.
pub fn recorder(name: impl AsRef<str>) -> (Registration, Recorded) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let registration = service(name, move |context: Context, payload: Box<RawValue>| {
        // A test that has seen enough looks away.
        let _ = sender.send(Received { context, payload });
        async { Ok(()) }
    });
    (registration, Recorded { receiver })
}

/// What a [`recorder`] was given.
#[derive(Debug)]
pub struct Recorded {
    receiver: mpsc::UnboundedReceiver<Received>,
}

/// One invocation of a [`recorder`].
#[derive(Debug)]
pub struct Received {
    /// How it was invoked.
    pub context: Context,
    payload: Box<RawValue>,
}

impl Recorded {
    /// The next invocation, in the order in which they came.
    ///
    /// # Panics
    /// Where none comes within [`PATIENCE`].
    pub async fn next(&mut self) -> Received {
        let next = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
        next.expect("the service is invoked in time").expect("the service is still registered")
    }

    /// The next invocation if it came already.
    pub fn try_next(&mut self) -> Option<Received> {
        self.receiver.try_recv().ok()
    }
}

impl Received {
    /// The payload as a value of the test's type: a [`FinalPayload`](crate::FinalPayload) of a final callback, a
    /// [`TargetResult`](crate::TargetResult) of an on-target one.
    ///
    /// # Errors
    /// Where it is of another form.
    pub fn payload<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.payload.get())
    }

    /// The payload as JSON, byte for byte.
    #[must_use]
    pub fn json(&self) -> &str {
        self.payload.get()
    }
}
