//! What holds whatever happens in whatever order.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fanfare_protocol::{CompletionPolicy, Manifest, Message};
use proptest::prelude::*;

use crate::model::{LIMITS, Record, Step, World};
use crate::samples::{body, id, numbered, result_of};

/// A fan-out and what is done to it.
#[derive(Debug, Clone)]
struct Scenario {
    targets: usize,
    on_target: usize,
    on_final: usize,
    /// Seconds after which what is missing fails.
    deadline: Option<u64>,
    /// None where it is not one that a fan-out of so many targets can have.
    completion: CompletionPolicy,
    /// Targets that are not among the answers never answer, where the fan-out can end without them.
    silent: bool,
    coordinators: usize,
    /// Answers in the order in which they are given: by target, and which of its answers. More than one is a
    /// redelivered request that was answered differently.
    answers: Vec<(usize, usize)>,
    steps: Vec<Step>,
}

impl Scenario {
    fn run(&self) -> Record {
        let numbered = numbered(self.targets, self.on_target, self.on_final);
        let completion = Some(self.completion).filter(|policy| policy.check(self.targets).is_ok());
        let manifest = Manifest { completion, ..numbered };
        let answered: BTreeSet<usize> = self.answers.iter().map(|(target, _)| *target).collect();
        let responding = answered.iter().filter(|target| **target < self.targets).count();
        let responded = completion.and_then(|policy| policy.responded).filter(|wanted| *wanted <= responding);
        let silent = self.silent && (self.deadline.is_some() || responded.is_some());
        let missing = (0..self.targets).filter(|target| !silent && !answered.contains(target));
        let missing = missing.map(|target| (target, 0));
        let work = self.answers.iter().copied().chain(missing).map(|(target, n)| answer_of(target, n));
        let mut world =
            World::new(manifest, self.deadline.map(Duration::from_secs), self.coordinators, work.collect());
        for step in &self.steps {
            world.step(*step);
        }
        world.calm_down()
    }

    fn check(&self) -> Result<Record, TestCaseError> {
        let record = self.run();
        prop_assert_eq!(record.finals.len(), self.on_final, "each final callback is invoked");
        prop_assert_eq!(
            record.calls.len(),
            self.targets * self.on_target,
            "each on-target callback is invoked"
        );
        let repeats: usize = record.calls.values().map(|times| times - 1).sum();
        let most = record.losses * LIMITS.calls_at_risk.max(self.on_target);
        prop_assert!(repeats <= most, "{} repeats after {} losses", repeats, record.losses);
        Ok(record)
    }
}

/// Targets beyond the manifest's are strangers; so are other runs. The second answer of a target is a failure, the third one
/// is malformed.
fn answer_of(target: usize, n: usize) -> Message {
    let key = target.to_string();
    match n {
        1 => result_of(id(1), &key, body(&format!("!{target}.1"))),
        2 => result_of(id(1), &key, Bytes::from(format!("malformed {target}"))),
        3 => result_of(id(99), &key, body("of another run")),
        n => result_of(id(1), &key, body(&format!("{target}.{n}"))),
    }
}

fn any_answers(targets: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((0..targets + 2, 0..4usize), 0..3 * targets + 2)
        // An answer of another run is none.
        .prop_map(|answers| answers.into_iter().filter(|(_, n)| *n != 3).collect::<Vec<_>>())
}

/// Steps in which nothing is lost.
fn calm(coordinators: usize) -> impl Strategy<Value = Step> {
    let c = 0..coordinators;
    prop_oneof![
        4 => Just(Step::Work),
        2 => c.clone().prop_map(Step::TakeManifest),
        2 => c.clone().prop_map(Step::Open),
        8 => c.clone().prop_map(Step::Deliver),
        4 => (c.clone(), 0..20usize).prop_map(|(c, pick)| Step::Land(c, pick)),
        8 => (c.clone(), 0..20usize).prop_map(|(c, pick)| Step::Confirm(c, pick)),
        1 => c.clone().prop_map(Step::Delete),
        1 => c.clone().prop_map(Step::DeleteHalf),
        1 => c.clone().prop_map(Step::Learn),
        1 => c.clone().prop_map(Step::Stop),
        1 => c.prop_map(Step::Cancel),
        1 => (1..40u64).prop_map(Step::Time),
        1 => Just(Step::Late(0)),
    ]
}

/// Steps among which anything may be lost.
fn troubled(coordinators: usize) -> impl Strategy<Value = Step> {
    let c = 0..coordinators;
    prop_oneof![
        30 => calm(coordinators),
        1 => c.clone().prop_map(Step::LoseChannel),
        1 => c.clone().prop_map(Step::LoseManifestChannel),
        1 => (c, any::<bool>()).prop_map(|(c, late)| Step::Crash(c, late)),
        1 => (0..20usize).prop_map(Step::Late),
        1 => Just(Step::Restart),
    ]
}

fn policy() -> impl Strategy<Value = CompletionPolicy> {
    let rule = || proptest::option::weighted(0.3, 0..8usize);
    (rule(), rule(), rule()).prop_map(|(succeeded, responded, failed_above)| CompletionPolicy {
        succeeded,
        responded,
        failed_above,
    })
}

fn scenario<S: Strategy<Value = Step>>(steps: fn(usize) -> S) -> impl Strategy<Value = Scenario> {
    let deadline = proptest::option::weighted(0.3, 0..200u64);
    let ends_early = (deadline, policy(), any::<bool>());
    (0..=14usize, 0..=3usize, 1..=2usize, 2..=3usize, ends_early).prop_flat_map(
        move |(targets, on_target, on_final, coordinators, (deadline, completion, silent))| {
            let steps = proptest::collection::vec(steps(coordinators), 0..250);
            (any_answers(targets), steps).prop_map(move |(answers, steps)| Scenario {
                targets,
                on_target,
                on_final,
                deadline,
                completion,
                silent,
                coordinators,
                answers,
                steps,
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_fan_out_ends_the_same_way_whatever_is_lost_when(scenario in scenario(troubled)) {
        scenario.check()?;
    }

    #[test]
    fn everything_happens_exactly_once_while_nothing_is_lost(scenario in scenario(calm)) {
        let record = scenario.check()?;
        prop_assert!(record.calls.values().chain(record.finals.values()).all(|times| *times == 1));
    }
}
