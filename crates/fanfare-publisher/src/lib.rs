//! Invokes fan-outs and parallel executions of Fanfare.
