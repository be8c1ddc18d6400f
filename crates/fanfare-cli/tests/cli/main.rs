//! The `fanfare` binary as a user runs it: exit codes, messages, output.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod browser;
mod collector;
mod demo;
mod doctor;
mod frozen;
mod gc;
mod http;
mod management;
mod monitor;
mod page;
mod prometheus;
mod proxy;
mod rabbitmq;
mod support;
mod tls;
mod traces;
