//! Invokes fan-outs and parallel executions, and waits for their outcome where the caller wants to.
//!
//! [`Publisher`] is the way in. [`Publisher::fanout`] and [`Publisher::parallel`] start a [`Fanout`], which gathers targets
//! and callbacks and checks all of it when it is invoked; [`Publisher::send`] invokes one service that nobody answers for, and
//! [`Publisher::cancel`] ends what was invoked.
//!
//! A fan-out exists if and only if its manifest is confirmed, and the manifest is published only after every request
//! is. [`InvokeError`] therefore tells three cases apart: nothing was sent, the fan-out does not exist, or nobody can say.
#![doc(test(attr(deny(warnings))))]

mod backlog;
mod cancelling;
mod completion;
mod error;
mod fanout;
mod invocation;
mod known_queues;
mod names;
mod plan;
mod publisher;
mod schedule;
mod spares;
mod target;
mod telemetry;
mod waiting;

pub use completion::Completion;
pub use error::{CancelError, Failure, Invalid, InvokeError, WaitError};
pub use fanout::Fanout;
pub use invocation::Accepted;
pub use names::IntoNames;
pub use publisher::{Aggregation, Config, Publisher, QueueType};
pub use target::Target;
pub use telemetry::describe_metrics;
pub use waiting::{WhileWaiting, Yielded};
