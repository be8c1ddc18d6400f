//! The simulation finds mistakes that are put in, and finds nothing under the same seed without them.

use fanfare_tests::oracle::Kind;
use fanfare_tests::simulation::{Defect, simulate};

/// Seeds among which each mistake shows, most within some tens.
const SEEDS: u64 = 3_000;

#[track_caller]
fn is_found(defect: Defect, as_kind: Kind) {
    let found = (0..SEEDS).find(|seed| simulate(*seed, Some(defect), false).verdict.count(as_kind) > 0);
    let seed = found.unwrap_or_else(|| panic!("{defect:?} led to nothing {as_kind} in {SEEDS} seeds"));
    let without = simulate(seed, None, false);
    assert_eq!(
        without.verdict.violations,
        [],
        "without {defect:?}: cargo xtask simulate --seed {seed} --trace"
    );
}

#[test]
fn an_ack_before_the_results_confirm_is_found() {
    is_found(Defect::AckBeforeConfirm, Kind::NeverEnded);
}

#[test]
fn a_manifest_before_its_requests_confirms_is_found() {
    is_found(Defect::ManifestBeforeConfirm, Kind::NeverEnded);
}

#[test]
fn a_manifest_before_its_queues_declaration_is_settled_is_found() {
    is_found(Defect::DeclarationUnsettled, Kind::Lost);
}

#[test]
fn a_quorum_queue_that_nothing_is_declared_after_is_found() {
    is_found(Defect::DeclaredLast, Kind::NeverEnded);
}

#[test]
fn a_final_callback_before_the_on_target_callbacks_confirms_is_found() {
    is_found(Defect::FinalBeforeConfirm, Kind::Early);
}

#[test]
fn an_ack_before_the_checkpoints_confirm_is_found() {
    is_found(Defect::CheckpointUnconfirmed, Kind::NeverEnded);
}

#[test]
fn a_confirm_taken_for_proof_is_found() {
    is_found(Defect::ConfirmIsProof, Kind::Duplicated);
}

#[test]
fn the_lack_of_checkpoints_is_found() {
    is_found(Defect::NoCheckpoint, Kind::NeverEnded);
}

#[test]
fn the_lack_of_a_fence_is_found() {
    is_found(Defect::NoFence, Kind::Contradicted);
}

#[test]
fn what_was_handed_out_taken_for_what_is_kept_is_found() {
    is_found(Defect::HandedOutIsKept, Kind::Contradicted);
}

#[test]
fn a_mark_that_is_too_small_is_found() {
    is_found(Defect::SmallMarks, Kind::Contradicted);
}

#[test]
fn an_emptied_queue_taken_for_a_young_one_is_found() {
    is_found(Defect::NoSentinel, Kind::Contradicted);
}

#[test]
fn a_count_instead_of_a_set_is_found() {
    is_found(Defect::CountInsteadOfSet, Kind::Unexpected);
}

#[test]
fn a_deadline_that_decides_by_itself_is_found() {
    is_found(Defect::DeadlineDecides, Kind::Contradicted);
}

#[test]
fn a_manifest_acked_before_the_queue_is_deleted_is_found() {
    is_found(Defect::ManifestAckedFirst, Kind::NeverEnded);
}

#[test]
fn a_consumer_cancelled_before_the_queue_is_deleted_is_found() {
    is_found(Defect::CancelBeforeDelete, Kind::Unexpected);
}

#[test]
fn an_ack_of_several_fan_outs_is_found() {
    is_found(Defect::MultipleAcrossFanOuts, Kind::NeverEnded);
}
