//! Collects the results of fan-outs and publishes their callbacks.
//!
//! A [`Coordinator`] competes with any number of others for manifests. For each one that it is handed, a task of its own
//! consumes the fan-out's aggregation queue on a channel of its own, so that nothing which happens to one fan-out disturbs
//! another, and carries what it reads to a [`FanIn`](fanfare_fanin::FanIn), which decides. Nothing is decided here, and
//! nothing is kept here that is not in the broker, unacknowledged: a coordinator that dies loses nothing. It also sees to what the
//! broker dead-lettered, so that a request which was lost in sight fails its target, it takes requests to cancel a
//! fan-out, and tells operators of those that it holds or has ended lately.
//!
//! ```no_run
//! # async fn example(broker: std::sync::Arc<dyn fanfare_broker::Broker>) -> Result<(), fanfare_coordinator::Error> {
//! use std::sync::Arc;
//! use fanfare_broker::System;
//! use fanfare_coordinator::{Config, Coordinator};
//!
//! let coordinator = Coordinator::new(broker, Arc::new(System), Config::default());
//! coordinator.run_until(std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```

mod addressing;
mod aggregation_queue;
mod config;
mod coordinator;
mod dead_letters;
mod deadline;
mod delivery;
mod ended;
mod fan_out;
mod handle;
mod inquiry;
mod members;
mod messenger;
mod outbox;
mod parts;
mod proof;
mod records;
mod shard;
mod shards;
mod telemetry;
mod trust;
mod unbundled;
mod view;

pub use config::{Config, Error, ShardSettings};
pub use coordinator::Coordinator;
pub use fanfare_fanin::Limits;
pub use handle::Handle;
pub use telemetry::describe_metrics;
