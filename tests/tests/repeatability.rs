//! A seed tells all: what it led to once, it leads to again.
//!
//! This is a program of its own, and one test, because what Fanfare logs is a part of a trace, and whether anyone listens to a log line
//! is remembered for all threads of a process: simulations that run beside this one would take lines out of it.

use clap::ValueEnum;
use fanfare_tests::simulation::{Defect, simulate};

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..12 {
        repeats(seed, None);
    }
    for defect in Defect::value_variants() {
        repeats(3, Some(*defect));
    }
}

fn repeats(seed: u64, defect: Option<Defect>) {
    let (one, other) = (simulate(seed, defect, true), simulate(seed, defect, true));
    assert!(one.trace.len() > 100, "seed {seed} leads to next to nothing");
    let differs = one.trace.iter().zip(&other.trace).find(|(one, other)| one != other);
    assert_eq!(differs, None, "seed {seed}, {defect:?}");
    assert_eq!(one.trace.len(), other.trace.len(), "seed {seed}, {defect:?}");
}
