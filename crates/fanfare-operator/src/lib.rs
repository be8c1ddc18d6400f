//! What an operator asks and does.
//!
//! [`Operator::status`] tells which fan-outs are open, or have ended lately: all coordinators are asked, and their answers made
//! one. Nothing that it does changes a fan-out.
#![doc(test(attr(deny(warnings))))]

mod asking;
mod error;
mod operator;
mod status;

pub use error::AskError;
pub use operator::{Config, Operator};
pub use status::{Coordinators, Status};
