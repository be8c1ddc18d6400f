//! Chaos on a real broker: publishers, workers and coordinators as processes that are killed in the middle of fan-outs,
//! with connections that drop and a broker that is killed too, and the oracle's verdict on what came of it.

mod broker;
mod dice;
mod invoke;
mod journal;
mod leftovers;
mod mix;
mod post;
mod proxy;
mod publishing;
mod report;
mod supervisor;
mod work;

pub(crate) use broker::ChaosBroker;
pub(crate) use dice::Dice;
pub use journal::Journal;
pub use publishing::publish;
pub use report::Report;
pub use supervisor::{Gathering, Options, run};
pub use work::services;
