//! The `fanfare` binary as a user runs it: exit codes, messages, output.

mod arguments;
mod demo;
mod rabbitmq;
mod support;
