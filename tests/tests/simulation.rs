//! The simulation finds nothing where nothing is wrong.

use fanfare_tests::simulation::simulate;

#[test]
fn a_hundred_seeds_keep_every_guarantee() {
    for seed in 0..100 {
        let outcome = simulate(seed, None, false);
        assert_eq!(outcome.verdict.violations, [], "cargo xtask simulate --seed {seed} --trace");
    }
}
