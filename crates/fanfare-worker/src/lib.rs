//! Runs services: async functions that targets, callbacks and plain invocations call.
//!
//! [`service`] makes one of an async function, [`Worker`] consumes the queues of several and runs them, and [`Context`]
//! is what a service is told beside its payload. A service that fails, panics, runs out of time or is given input that it
//! cannot read is answered for with a failed result; the worker lives on. [`Retry`] says how often a failure is tried again, and a
//! request that kills its worker again and again is given up in the end.
#![doc(test(attr(deny(warnings))))]

mod answer;
mod bundler;
mod cancelled;
mod context;
mod error;
mod execution;
mod gone;
mod history;
mod lane;
mod listener;
mod parts;
mod pipeline;
mod registration;
mod result_stream;
mod retry;
mod risk;
mod service;
mod slot;
mod telemetry;
mod turn;
mod whereabouts;
mod worker;

pub use context::Context;
pub use error::{Result, ServiceError, WorkerError};
pub use registration::{Registration, service};
pub use result_stream::ResultStream;
pub use retry::Retry;
pub use service::Service;
pub use telemetry::describe_metrics;
pub use worker::{Config, Worker};
