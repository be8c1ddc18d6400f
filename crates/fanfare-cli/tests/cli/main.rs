//! The `fanfare` binary as a user runs it: exit codes, messages, output.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod demo;
mod frozen;
mod rabbitmq;
mod support;
mod tls;
