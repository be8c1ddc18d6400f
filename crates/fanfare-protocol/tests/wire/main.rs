//! The bytes of every message and queue of the protocol, and what becomes of those that break its rules.
#![expect(clippy::unwrap_used, reason = "what helps tests may fail like tests")]

mod arbitrary;
mod golden;
mod limits;
mod operator;
mod queues;
mod refused;
mod samples;
