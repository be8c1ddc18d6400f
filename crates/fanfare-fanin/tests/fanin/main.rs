//! What the fan-in promises: stories of events and the effects expected, and properties of a whole world of coordinators.
#![expect(clippy::unwrap_used, reason = "what helps tests may fail like tests")]

mod cancel;
mod checkpoints;
mod completion;
mod deadline;
mod kept;
mod limits;
mod links;
mod model;
mod outages;
mod policies;
mod properties;
mod reading;
mod renewal;
mod samples;
mod sentinel;
mod shard_story;
mod shards;
mod small_messages;
mod story;
mod take_over;
