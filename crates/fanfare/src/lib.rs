//! Fan-out/fan-in on RabbitMQ: invoke many services in the background with one call, and be called once when all are done.
//!
//! A *fan-out* invokes *targets*, which are services running in any number of workers, and when all of them are
//! done, its *final callbacks*, which are services too, are invoked with everything that they answered. RabbitMQ is the only
//! store: a fan-out that was accepted always ends, and it ends once, whatever process dies meanwhile.
//!
//! This is all of it in one process, on the broker in memory; with [`Fanfare::connect`] in place of
//! [`Fanfare::in_memory`], the same runs on RabbitMQ, and each of the three parts in as many processes as you like.
//!
//! ```
//! use std::time::Duration;
//! use fanfare::{Context, Fanfare, Target, service};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fanfare = Fanfare::in_memory();
//!
//! let worker = fanfare.worker().service(service("price.quote", |_: Context, item: String| async move {
//!     Ok(item.len() * 5)
//! }));
//! tokio::spawn(worker.run_until(std::future::pending()));
//! tokio::spawn(fanfare.coordinator().run_until(std::future::pending()));
//!
//! let payload = fanfare
//!     .fanout("shop")
//!     .target("price.quote", "shoe")
//!     .add(Target::new("price.quote", "umbrella").key("second"))
//!     .declare_missing() // The worker may not have come so far yet.
//!     .invoke_and_wait(Duration::from_secs(10))
//!     .await?;
//! assert_eq!(payload.get::<usize>("price.quote")?, 20);
//! assert_eq!(payload.get::<usize>("second")?, 40);
//! # Ok(())
//! # }
//! ```
//!
//! - [`Fanfare`] is the handle: it [invokes](Fanfare::fanout), and makes [workers](Fanfare::worker) and
//!   [coordinators](Fanfare::coordinator).
//! - [`service`] makes a service of an async function; its [`Context`] tells how it was invoked and invokes others.
//! - [`FinalPayload`] is what a final callback takes, and [`TargetResult`] what an on-target callback takes.
//! - [`Operator`] tells which fan-outs are open and what they wait for.
//! - [`InvokeError`], [`WaitError`] and [`CancelError`] tell what the caller can do.
//! - [`testkit`] runs all of it in memory for the tests of your services.
//! - [`services`] has those that come with Fanfare, and programs and URLs as services.
#![doc(test(attr(deny(warnings))))]

mod builder;
mod handle;
mod metrics;
pub mod testkit;

pub use builder::{Builder, ConnectError};
pub use handle::Fanfare;
pub use metrics::describe_metrics;

pub use fanfare_broker::amqp::{ClientCertificate, InvalidAddress, Tls};
pub use fanfare_broker::{Broker, BrokerError, Environment, PublishError, Readiness, ServerInfo, System};
pub use fanfare_coordinator::{
    Config as CoordinatorConfig, Coordinator, Error as CoordinatorError, Handle as CoordinatorHandle,
    Limits as CoordinatorLimits, ShardSettings,
};
pub use fanfare_operator::{
    AskError, Config as OperatorConfig, Coordinators, Explanation, Heard, LookError, MissingFrom, Operator,
    Parked, ParkedMessages, ParkedQuery, ReplayError, Replayed, Roll, ServiceQueue, Shard, Status, Told,
    Whereabouts,
};
pub use fanfare_protocol::{
    Cancellation, Channel, Cid, EndedBy, ExplainAnswer, Explained, FailedTarget, FanOutState, FanOutStatus,
    FinalPayload, InvalidMetadata, InvalidName, Lately, Metadata, MissingTarget, PayloadError, Prefix,
    QueueNames, RecentFailure, RespondedTarget, RunId, ServiceName, Sort, Source, StatusAnswer, StatusQuery,
    TargetFailure, TargetKey, TargetResult, Totals, WireTime,
};
pub use fanfare_publisher::{
    Accepted, Aggregation, CancelError, Completion, Config as PublisherConfig, Failure, Fanout, IntoNames,
    Invalid, InvokeError, Publisher, QueueType, Target, WaitError,
};
pub use fanfare_services as services;
pub use fanfare_worker::{
    Config as WorkerConfig, Context, Registration, Result, ResultStream, Retry, Service, ServiceError,
    Worker, WorkerError, service,
};

/// The examples of the README, which run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
