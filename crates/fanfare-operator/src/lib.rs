//! What an operator asks and does.
//!
//! [`Operator::status`] tells which fan-outs are open, or have ended lately: all coordinators are asked, and their answers made
//! one, and a [`Roll`] names those that no longer answer. [`Operator::explain`] tells what each missing target of one waits for. [`Operator::parked`], [`replay`](Operator::replay) and [`purge`](Operator::purge) see to what was parked.
#![doc(test(attr(deny(warnings))))]

mod advice;
mod asking;
mod error;
mod explain;
mod operator;
mod parked;
mod roll;
mod status;

pub use advice::to_prefix;
pub use error::{AskError, LookError};
pub use explain::{Explanation, MissingFrom, ServiceQueue, Shard, Told, Whereabouts};
pub use operator::{Config, Operator};
pub use parked::{Parked, ParkedMessages, ParkedQuery, ReplayError, Replayed};
pub use roll::{Heard, Roll};
pub use status::{Coordinators, Status};
