//! The fan-in of one fan-out as a state machine: events and the time go in, effects come out.
//!
//! Nothing here does I/O, reads a clock, draws a random number or awaits. [`FanIn`] is told what was read from the
//! aggregation queue, what was confirmed and what time it is, and answers with what to publish, what to ack and when to
//! delete the queue. A coordinator carries events and effects between it and a broker; a simulation does the same between it
//! and a list.
//!
//! The machine keeps these rules, whatever the order of events:
//!
//! - Targets are counted by the set of their keys. The first result of a key, in the queue's order, stands.
//! - A delivery is acked once nothing lives only in it: its results have been written into a newer checkpoint, or the
//!   fan-out is over, or it was never needed.
//! - A final callback is published when all targets have completed and all their on-target callbacks are confirmed.
//! - At most [`Limits::calls_at_risk`] on-target callbacks are ever published without a checkpoint that is
//!   [confirmed](Event::Confirmed).
//! - Whatever ends a fan-out before all targets have responded (a deadline, a completion policy, a cancel) does so by failed
//!   results that are appended to the queue, and that count when they are read.
//! - A hold that takes over publishes nothing but checkpoints and a fence until it has read that fence back.
//! - The end comes in one order: final callbacks confirmed, queue deleted, deliveries acked, manifest acked.
//!
//! [`Shard`] holds the fan-outs that share one queue. It gives each what is meant for it, and adds what they share.
//!
//! Inside, `gathered` keeps the results and what they live in, which `home` names, `manifests` keeps the manifest's deliveries, `checkpoints`
//! decides what is written back to the queue, `machine` takes the events in and lets out what has become due, and
//! [`FanIn::read`] tells what a message of an aggregation queue is.

mod checkpoints;
mod copies;
mod effect;
mod event;
mod gathered;
mod home;
mod kept;
mod machine;
mod places;
mod read;
mod shard;

pub use effect::{Effect, Publication, PublicationId, Summary};
pub use event::{Answer, Event, Item};
pub use machine::{Deadline, FanIn, Hold, Limits, Time};
pub use shard::{Memory, Shard, ShardEffect, ShardEvent, ShardLimits, ShardPublication, ShardPublicationId};
