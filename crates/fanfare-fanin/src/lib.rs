//! The fan-in state machine of Fanfare: events and the time go in, effects come out.
