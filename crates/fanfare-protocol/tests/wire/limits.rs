//! What is too large is replaced, and never in two ways.

use fanfare_protocol::{
    FinalPayload, FinalPayloadBuilder, Manifest, ManifestTarget, TargetResult, limits, nesting,
};

use crate::samples::{key, manifest, result, service};

fn text_of(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes))
}

#[test]
fn a_result_at_the_limit_goes_through_and_one_above_it_fails_saying_so() {
    let around = result("\"\"", None).to_body().len();
    let fits = result(&text_of(limits::RESULT_BYTES - around), None).to_body();
    assert_eq!(fits.len(), limits::RESULT_BYTES);
    assert!(TargetResult::from_body(&fits).unwrap().ok);
    let large = result(&text_of(limits::RESULT_BYTES - around + 1), None).to_body();
    let failed = TargetResult::from_body(&large).unwrap();
    assert!(!failed.ok && failed.response.get() == "null");
    assert_eq!(
        failed.exception.unwrap(),
        format!(
            "the response is too large: the result has {} bytes, and {} is the most; store the data elsewhere \
             and return a reference to it",
            limits::RESULT_BYTES + 1,
            limits::RESULT_BYTES
        )
    );
}

#[test]
fn a_response_nested_too_deeply_fails_saying_so_and_a_final_payload_with_the_deepest_can_be_parsed_whole() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let failed = TargetResult::from_body(&result(&nested(10_000), None).to_body()).unwrap();
    assert_eq!(
        failed.exception.unwrap(),
        "the response is nested too deeply: it has 10000 levels of arrays and objects, and 96 is the most; flatten it, or \
         return it as a string"
    );
    let deepest = result(&nested(limits::NESTING), None).to_body();
    assert!(TargetResult::from_body(&deepest).unwrap().ok);
    let manifest = targets(1);
    let mut builder = FinalPayloadBuilder::new(&manifest);
    builder.push(&deepest).unwrap();
    let payload = builder.finish(limits::MESSAGE_BYTES);
    assert_eq!(nesting(&payload), limits::NESTING + limits::PAYLOAD_LEVELS);
    serde_json::from_slice::<serde_json::Value>(&payload).unwrap();
}

#[test]
fn a_body_above_the_limit_is_refused() {
    let error = TargetResult::from_body(&vec![b' '; limits::RESULT_BYTES + 1]).unwrap_err();
    assert!(error.to_string().contains("is the most"), "{error}");
}

fn targets(count: usize) -> Manifest {
    let target = |n: usize| ManifestTarget { key: key(&n.to_string()), service: service("my.service1") };
    Manifest { targets: (0..count).map(target).collect(), ..manifest() }
}

fn payload(manifest: &Manifest, bodies: &[bytes::Bytes]) -> FinalPayload {
    let mut builder = FinalPayloadBuilder::new(manifest);
    bodies.iter().for_each(|body| builder.push(body).unwrap());
    let body = builder.finish(limits::MESSAGE_BYTES);
    assert!(body.len() <= limits::MESSAGE_BYTES, "{}", body.len());
    assert_eq!(body, builder.finish(limits::MESSAGE_BYTES), "it is the same every time");
    serde_json::from_slice(&body).unwrap()
}

fn failed_of(payload: &FinalPayload) -> Vec<String> {
    payload.failures().map(|failure| failure.key).collect()
}

#[test]
fn the_largest_results_are_left_out_of_a_payload_until_it_fits() {
    const MB: usize = 1024 * 1024;
    let bodies: Vec<_> =
        [3, 7, 1, 7, 4].map(|size| result(&text_of(size * MB), None).to_body()).into_iter().collect();
    let payload = payload(&targets(5), &bodies);
    assert_eq!(failed_of(&payload), ["1"], "the first of the largest is enough");
    let exception = payload.failures().next().unwrap().exception;
    assert!(exception.contains("the response was left out"), "{exception}");
    assert_eq!(payload.get::<String>("3").unwrap().len(), 7 * MB);
}

#[test]
fn the_long_exception_of_a_failed_target_is_cut_where_a_payload_does_not_fit() {
    let long = "why ".repeat(limits::RESULT_BYTES / 8);
    let bodies = vec![result("null", Some(&long)).to_body(); 5];
    let payload = payload(&targets(5), &bodies);
    let cut: Vec<usize> = payload.failures().map(|failure| failure.exception.len()).collect();
    assert_eq!(cut, [150, 150, long.len(), long.len(), long.len()]);
}

#[test]
fn many_results_that_cannot_shrink_do_not_keep_others_from_shrinking() {
    // Failed results whose exception is just not cut, and which are larger than the answers after them.
    const TARGETS: usize = 48_000;
    let stubborn = result("null", Some(&"y".repeat(150))).to_body();
    let answer = result(&text_of(148), None).to_body();
    assert!(stubborn.len() > answer.len());
    let bodies: Vec<_> = (0..TARGETS).map(|n| if n < 12_000 { &stubborn } else { &answer }.clone()).collect();
    let payload = payload(&targets(TARGETS), &bodies);
    assert!(failed_of(&payload).len() > 12_000);
}

#[test]
fn a_payload_that_may_fit_with_all_responses_left_out_does_fit_whatever_they_were() {
    let target = |n: usize| ManifestTarget {
        key: key(&format!("{n:0>5}{}", "\"".repeat(250))),
        service: service(&"s".repeat(100)),
    };
    let mut manifest = Manifest { targets: Vec::new(), ..manifest() };
    let each = {
        manifest.targets.push(target(0));
        let one = manifest.least_payload_bytes();
        manifest.targets.push(target(1));
        manifest.least_payload_bytes() - one
    };
    manifest.targets = (0..limits::MESSAGE_BYTES / each - 1).map(target).collect();
    assert!(manifest.least_payload_bytes() <= limits::MESSAGE_BYTES);
    let odd = ["\u{1}", "\"\\", "語"].map(|piece| result("null", Some(&piece.repeat(2000))).to_body());
    let bodies: Vec<_> = (0..manifest.targets.len()).map(|n| odd[n % odd.len()].clone()).collect();
    assert_eq!(payload(&manifest, &bodies).data.len(), manifest.targets.len());
}
