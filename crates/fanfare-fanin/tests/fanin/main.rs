//! What the fan-in promises: stories of events and the effects expected, and properties of a whole world of coordinators.

mod completion;
mod reading;
mod samples;
mod story;
