//! Collects the results of fan-outs and publishes their callbacks.
