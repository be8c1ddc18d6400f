//! What the fan-in promises: stories of events and the effects expected, and properties of a whole world of coordinators.

mod checkpoints;
mod completion;
mod limits;
mod outages;
mod reading;
mod renewal;
mod samples;
mod story;
mod take_over;
