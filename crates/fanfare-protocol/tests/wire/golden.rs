//! Every message as the protocol's page has it: workers and publishers in other languages rely on these bytes.

use bytes::Bytes;
use fanfare_protocol::{
    Bundle, Callback, CallbackKind, CancelAnswer, CancelRequest, CancelState, Cancellation, Cancelled,
    Channel, Checkpoint, CheckpointEntry, Cid, CompletionPolicy, Ended, EndedBy, EndedRun, Ending, Fence,
    FinalPayload, FinalPayloadBuilder, HeaderValue, Invocation, LargePayload, Manifest, Mark, Message,
    Metadata, Part, Presence, Progress, QueueNames, ReplyAddress, Request, Sentinel, TargetKey, TargetOf,
    TargetResult, TraceParent,
};
use uuid::Uuid;

use crate::samples::{
    aggregation, check, cid, key, manifest, metadata, reply, request, result, run, service, time, written,
};

/// More than any message here has.
const MOST: usize = fanfare_protocol::limits::MESSAGE_BYTES;

const RESULT: &str = r#"{"source":"fanout1.my-service","target":"my.service1","response":"My response","req_ts_utc":"2025-01-19 19:55:45","resp_ts_utc":"2025-01-19 19:55:46","ok":true,"exception":null,"cid":"63e7c3a2ba616badecb125ce"}"#;

#[test]
fn a_request() {
    check(
        &request().encode(),
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         reply_to: fanfare.agg.63e7c3a2ba616badecb125ce.0123456789abcdef0123456789abcdef\n\
         message_id: 63e7c3a2ba616badecb125ce/1\n\
         type: fanfare.request\n\
         app_id: fanout1.my-service\n\
         timestamp: 1737316545\n\
         fanfare-channel = \"fanout-call\"\n\
         fanfare-key = \"ключ 2\"\n\
         fanfare-metadata = {order: \"7\"}\n\
         fanfare-req-ts = \"2025-01-19 19:55:45\"\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-source = \"fanout1.my-service\"\n\
         fanfare-target = \"my.service2\"\n\
         fanfare-version = 1\n\
         { \"untouched\":  1 }",
    );
}

#[test]
fn a_request_of_a_parallel_execution_differs_in_its_channel() {
    let target = TargetOf { parallel: true, ..request().target.unwrap() };
    let parallel = Request { target: Some(target), ..request() };
    let expected = written(&request().encode()).replace("\"fanout-call\"", "\"parallel-exec-call\"");
    check(&parallel.encode(), &expected);
}

#[test]
fn a_plain_invocation_has_no_reply_to_and_no_key() {
    let plain = Request { target: None, metadata: Metadata::default(), ..request() };
    check(
        &plain.encode(),
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/invoke/0123456789abcdef0123456789abcdef\n\
         type: fanfare.request\n\
         app_id: fanout1.my-service\n\
         timestamp: 1737316545\n\
         fanfare-channel = \"invoke\"\n\
         fanfare-req-ts = \"2025-01-19 19:55:45\"\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-source = \"fanout1.my-service\"\n\
         fanfare-target = \"my.service2\"\n\
         fanfare-version = 1\n\
         { \"untouched\":  1 }",
    );
}

#[test]
fn a_result() {
    let body = result("\"My response\"", None).to_body();
    check(
        &TargetResult::message(body, &reply(), time("2025-01-19 19:55:46")),
        &format!(
            "content_type: application/json\n\
             correlation_id: 63e7c3a2ba616badecb125ce\n\
             message_id: 63e7c3a2ba616badecb125ce/0/result\n\
             type: fanfare.result\n\
             timestamp: 1737316546\n\
             fanfare-key = \"my.service1\"\n\
             fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
             fanfare-version = 1\n\
             {RESULT}"
        ),
    );
}

#[test]
fn a_failed_result_has_an_exception_and_a_null_response() {
    let body = result("null", Some("broken: \"why\"")).to_body();
    let expected = RESULT
        .replace("\"My response\"", "null")
        .replace(r#""ok":true,"exception":null"#, r#""ok":false,"exception":"broken: \"why\"""#);
    assert_eq!(String::from_utf8(body.to_vec()).unwrap(), expected);
}

#[test]
fn a_bundle_stands_for_its_results() {
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let of = |place: usize, cid: &str, key: Option<&str>| {
        let cid = Cid::new(cid).unwrap();
        let message_id = format!("{cid}/{place}");
        let run = if place == 2 { "1".repeat(32).parse().unwrap() } else { run() };
        let to = ReplyAddress {
            queue: QueueNames::default().shard(0).name.into(),
            cid,
            run,
            key: key.map(|key| TargetKey::new(key).unwrap()),
            message_id: message_id.into(),
        };
        TargetResult::message(
            Bytes::from(format!("{{\"place\": {place}}}")),
            &to,
            time("2025-01-19 19:55:46"),
        )
    };
    let traced = of(1, "a", Some("k\"1")).traced(traceparent.parse().ok());
    let results = [of(0, "a", None), traced, of(2, "b", Some("k2"))];
    let bundle = Bundle::encode(&results).unwrap();
    check(
        &bundle,
        &format!(
            "content_type: application/json\n\
             correlation_id: a\n\
             message_id: a/0/results\n\
             type: fanfare.results\n\
             timestamp: 1737316546\n\
             fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
             fanfare-version = 1\n\
             [{{\"message_id\":\"a/0/result\",\"result\":{{\"place\": 0}}}},\
             {{\"message_id\":\"a/1/result\",\"key\":\"k\\\"1\",\"traceparent\":\"{traceparent}\",\"result\":{{\"place\": 1}}}},\
             {{\"message_id\":\"b/2/result\",\"correlation_id\":\"b\",\"run\":\"11111111111111111111111111111111\",\"key\":\"k2\",\"result\":{{\"place\": 2}}}}]"
        ),
    );
    assert_eq!(Bundle::decode(&bundle).unwrap(), results);
    assert!(Bundle::encode(&[]).is_none());
}

#[test]
fn a_manifest() {
    check(
        &manifest().encode(),
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/manifest\n\
         type: fanfare.manifest\n\
         app_id: fanout1.my-service\n\
         timestamp: 1737316545\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {\"cid\":\"63e7c3a2ba616badecb125ce\",\"run\":\"0123456789abcdef0123456789abcdef\",\
         \"source\":\"fanout1.my-service\",\"req_ts_utc\":\"2025-01-19 19:55:45\",\"channel\":\"fanout-call\",\
         \"targets\":[{\"key\":\"my.service1\",\"service\":\"my.service1\"},{\"key\":\"ключ 2\",\"service\":\"my.service2\"}],\
         \"on_target\":[\"audit.log\"],\"on_final\":[\"my.cb1\",\"helpers.input-logger\"],\
         \"reply_to\":\"fanfare.agg.63e7c3a2ba616badecb125ce.0123456789abcdef0123456789abcdef\"}",
    );
}

#[test]
fn a_manifest_with_all_that_may_be_set() {
    let full = Manifest {
        channel: Channel::ParallelExecCall,
        on_final: Vec::new(),
        deadline_ms: Some(60_000),
        waiter: Some("fanfare.wait.1".to_owned()),
        progress: true,
        sentinel: true,
        replicated: true,
        completion: Some(CompletionPolicy { succeeded: Some(2), responded: Some(1), failed_above: Some(0) }),
        metadata: metadata(),
        ..manifest()
    };
    let body = String::from_utf8(full.encode().body.to_vec()).unwrap();
    assert!(body.contains(r#""channel":"parallel-exec-call""#));
    assert!(
        body.ends_with(r#","deadline_ms":60000,"waiter":"fanfare.wait.1","progress":true,"sentinel":true,"replicated":true,"completion":{"succeeded":2,"responded":1,"failed_above":0},"metadata":{"order":"7"}}"#),
        "{body}"
    );
    assert_eq!(Manifest::decode(&full.encode(), &QueueNames::default()), Ok(full));
}

#[test]
fn a_renewed_manifest_says_so_and_when_it_ends() {
    let message = manifest().encode_renewed(Some(time("2025-01-20 00:00:00")));
    let expected = written(&manifest().encode())
        .replace(
            "\nfanfare-run",
            "\ndeadline_utc = \"2025-01-20 00:00:00\"\nfanfare-renewed = true\nfanfare-run",
        )
        .replace("abcdef\"}", "abcdef\",\"deadline_utc\":\"2025-01-20 00:00:00\"}");
    check(&message, &expected);
    assert!(Manifest::is_renewed(&message) && !Manifest::is_renewed(&manifest().encode()));
    let again = Manifest::decode(&message, &QueueNames::default()).unwrap().encode_renewed(None);
    check(&again, &expected);
}

#[test]
fn progress_of_a_fan_out() {
    let progress = Progress { responded: 1, targets: 2 };
    let message = progress.encode(&manifest());
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/progress\n\
         type: fanfare.progress\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {\"responded\":1,\"targets\":2}",
    );
    assert_eq!(Progress::decode(&message), Ok(progress));
}

#[test]
fn an_on_target_callback() {
    let manifest = Manifest { metadata: metadata(), ..manifest() };
    let kind = CallbackKind::OnTarget { callback: &manifest.on_target[0], place: 1 };
    let message =
        Callback { manifest: &manifest, kind, body: Bytes::from_static(RESULT.as_bytes()) }.encode();
    check(
        &message,
        &format!(
            "content_type: application/json\n\
             correlation_id: 63e7c3a2ba616badecb125ce\n\
             message_id: 63e7c3a2ba616badecb125ce/1/on-target/audit.log\n\
             type: fanfare.callback\n\
             app_id: fanout1.my-service\n\
             fanfare-channel = \"fanout-on-target\"\n\
             fanfare-key = \"ключ 2\"\n\
             fanfare-metadata = {{order: \"7\"}}\n\
             fanfare-req-ts = \"2025-01-19 19:55:45\"\n\
             fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
             fanfare-source = \"fanout1.my-service\"\n\
             fanfare-target = \"my.service2\"\n\
             fanfare-version = 1\n\
             {RESULT}"
        ),
    );
    let parallel = Manifest { channel: Channel::ParallelExecCall, ..manifest.clone() };
    let expected = written(&message).replace("\"fanout-on-target\"", "\"parallel-exec-on-target\"");
    check(&Callback { manifest: &parallel, kind, body: message.body }.encode(), &expected);
}

#[test]
fn a_final_callback_and_the_answer_to_a_waiter() {
    let manifest = manifest();
    let body = Bytes::from_static(b"{}");
    let ending = Ending { failed: 1, ..Ending::default() };
    let kind = CallbackKind::OnFinal { callback: Some(&manifest.on_final[0]), ending };
    let message = Callback { manifest: &manifest, kind, body: body.clone() }.encode();
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/on-final/my.cb1\n\
         type: fanfare.callback\n\
         app_id: fanout1.my-service\n\
         fanfare-channel = \"fanout-on-final\"\n\
         fanfare-failed = 1\n\
         fanfare-req-ts = \"2025-01-19 19:55:45\"\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-source = \"fanout1.my-service\"\n\
         fanfare-targets = 2\n\
         fanfare-version = 1\n\
         {}",
    );
    let kind = CallbackKind::OnFinal { callback: None, ending };
    let expected = written(&message).replace("/on-final/my.cb1", "/on-final");
    check(&Callback { manifest: &manifest, kind, body }.encode(), &expected);
}

#[test]
fn a_part_of_a_payload_and_the_callback_that_refers_to_it() {
    let manifest = manifest();
    let writer = "abcdefabcdefabcdefabcdefabcdefab".parse().unwrap();
    let part = Part { writer, number: 7, body: Bytes::from_static(b"{\"a\":{}}") };
    let message = part.clone().encode(&manifest.cid, manifest.run);
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/payload/abcdefabcdefabcdefabcdefabcdefab/7\n\
         type: fanfare.payload-part\n\
         fanfare-payload = \"abcdefabcdefabcdefabcdefabcdefab\"\n\
         fanfare-payload-part = 7\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {\"a\":{}}",
    );
    assert_eq!(Part::decode(&message).unwrap(), part);
    let kind = CallbackKind::OnFinal { callback: Some(&manifest.on_final[0]), ending: Ending::default() };
    let callback = Callback { manifest: &manifest, kind, body: Bytes::from_static(b"{}") }.encode();
    let large = LargePayload { writer, parts: 8, bytes: 9_000_000 };
    let expected = written(&callback).replace(
        "\nfanfare-req-ts",
        "\nfanfare-payload = \"abcdefabcdefabcdefabcdefabcdefab\"\nfanfare-payload-bytes = 9000000\n\
         fanfare-payload-parts = 8\nfanfare-req-ts",
    );
    let referring = large.refer(callback);
    check(&referring, &expected);
    let invocation = Invocation::decode(&referring, &QueueNames::default()).unwrap();
    assert_eq!(invocation.large, Some(large));
    let queue = QueueNames::default().payload(&manifest.cid, manifest.run, writer);
    assert_eq!(
        queue.name,
        "fanfare.payload.63e7c3a2ba616badecb125ce.0123456789abcdef0123456789abcdef.abcdefabcdefabcdefabcdefabcdefab"
    );
    let mut broken = referring.clone();
    broken.headers.remove("fanfare-payload-parts");
    let error = Invocation::decode(&broken, &QueueNames::default()).unwrap_err().to_string();
    assert!(error.contains("fanfare-payload-parts"), "{error}");
}

#[test]
fn the_final_callback_of_a_fan_out_that_ended_early_says_why_and_how_many_were_missing() {
    let manifest = manifest();
    let message = |ending| {
        let kind = CallbackKind::OnFinal { callback: Some(&manifest.on_final[0]), ending };
        written(&Callback { manifest: &manifest, kind, body: Bytes::from_static(b"{}") }.encode())
    };
    let all_responded = message(Ending { failed: 2, missing: 0, by: None });
    for (by, word) in [
        (EndedBy::Deletion, "deletion"),
        (EndedBy::Deadline, "deadline"),
        (EndedBy::Completion, "completion"),
        (EndedBy::Cancel, "cancel"),
    ] {
        let expected = all_responded
            .replace("\nfanfare-failed", &format!("\nfanfare-ended-by = \"{word}\"\nfanfare-failed"))
            .replace("\nfanfare-req-ts", "\nfanfare-missing = 1\nfanfare-req-ts");
        assert_eq!(message(Ending { failed: 2, missing: 1, by: Some(by) }), expected);
    }
}

#[test]
fn a_failure_in_the_place_of_a_missing_target_says_why_it_was_not_awaited() {
    let failed = TargetResult { ended_by: Some(EndedBy::Completion), ..result("null", Some("not awaited")) };
    let body = String::from_utf8(failed.to_body().to_vec()).unwrap();
    let expected = RESULT
        .replace("\"My response\"", "null")
        .replace(r#""ok":true,"exception":null"#, r#""ok":false,"exception":"not awaited""#)
        .replace("\"}", "\",\"ended_by\":\"completion\"}");
    assert_eq!(body, expected);
    assert_eq!(TargetResult::from_body(body.as_bytes()).unwrap().ended_by, Some(EndedBy::Completion));
    for other in ["null", "7", "\"else\"", "{\"a\":[1]}"] {
        let foreign = expected.replace("\"completion\"", other);
        assert_eq!(TargetResult::from_body(foreign.as_bytes()).unwrap().ended_by, None, "{foreign}");
    }
}

#[test]
fn a_final_payload_tells_what_ended_the_fan_out() {
    let manifest = manifest();
    let payload = |ended: [Option<EndedBy>; 2]| -> FinalPayload {
        let bodies = ended.map(|ended_by| TargetResult { ended_by, ..result("null", Some("x")) }.to_body());
        let mut builder = FinalPayloadBuilder::new(&manifest);
        bodies.iter().for_each(|body| builder.push(body));
        serde_json::from_slice(&builder.finish(MOST, MOST).joined()).unwrap()
    };
    assert_eq!(payload([None, None]).ended_by(), None);
    assert_eq!(payload([None, Some(EndedBy::Deadline)]).ended_by(), Some(EndedBy::Deadline));
    let both = payload([Some(EndedBy::Cancel), Some(EndedBy::Deadline)]);
    assert_eq!(both.ended_by(), Some(EndedBy::Cancel));
}

#[test]
fn a_final_payload_holds_the_results_byte_for_byte_in_the_callers_order() {
    let manifest = manifest();
    let spaced = RESULT.replace(":true", " : true");
    let mut builder = FinalPayloadBuilder::new(&manifest);
    builder.push(&Bytes::from_static(RESULT.as_bytes()));
    builder.push(&spaced.clone().into());
    let body = String::from_utf8(builder.finish(MOST, MOST).joined().to_vec()).unwrap();
    assert_eq!(
        body,
        format!(
            r#"{{"source":"fanout1.my-service","req_ts_utc":"2025-01-19 19:55:45","on_target":["audit.log"],"on_final":["my.cb1","helpers.input-logger"],"data":{{"my.service1":{RESULT},"ключ 2":{spaced}}}}}"#
        )
    );
    let payload: FinalPayload = serde_json::from_str(&body).unwrap();
    assert_eq!(payload.get::<String>("ключ 2").unwrap(), "My response");
}

#[test]
fn without_on_target_callbacks_the_payload_has_the_empty_string_and_readers_take_either() {
    let empty = Manifest { targets: Vec::new(), on_target: Vec::new(), ..manifest() };
    let body = FinalPayloadBuilder::new(&empty).finish(MOST, MOST).joined();
    let expected = r#"{"source":"fanout1.my-service","req_ts_utc":"2025-01-19 19:55:45","on_target":"","on_final":["my.cb1","helpers.input-logger"],"data":{}}"#;
    assert_eq!(body, expected);
    for body in [expected.to_owned(), expected.replace(r#""on_target":"""#, r#""on_target":[]"#)] {
        let payload: FinalPayload = serde_json::from_str(&body).unwrap();
        assert!(payload.on_target.is_empty() && payload.data.is_empty());
        assert_eq!(serde_json::to_string(&payload).unwrap(), expected);
    }
}

#[test]
fn a_checkpoint() {
    let checkpoint = Checkpoint {
        coordinator: "fedcba9876543210fedcba9876543210".parse().unwrap(),
        number: 3,
        called: true,
        entries: vec![CheckpointEntry {
            key: key("ключ 2"),
            body: Bytes::from_static(RESULT.as_bytes()),
            traceparent: None,
        }],
    };
    let message = checkpoint.encode(&manifest());
    check(
        &message,
        &format!(
            "content_type: application/json\n\
             correlation_id: 63e7c3a2ba616badecb125ce\n\
             message_id: 63e7c3a2ba616badecb125ce/checkpoint/fedcba9876543210fedcba9876543210/3\n\
             type: fanfare.checkpoint\n\
             fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
             fanfare-version = 1\n\
             {{\"coordinator\":\"fedcba9876543210fedcba9876543210\",\"number\":3,\"called\":true,\
             \"results\":[{{\"key\":\"ключ 2\",\"result\":{RESULT}}}]}}"
        ),
    );
    assert_eq!(Checkpoint::decode(&message), Ok(checkpoint));
}

#[test]
fn what_lies_in_an_aggregation_queue_from_before_its_manifest() {
    check(
        &Sentinel::encode(&manifest().cid, manifest().run),
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/sentinel\n\
         type: fanfare.sentinel\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {}",
    );
}

#[test]
fn a_fence() {
    let fence = Fence { token: "fedcba9876543210fedcba9876543210".parse().unwrap() };
    let message = fence.encode(&manifest());
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/fence/fedcba9876543210fedcba9876543210\n\
         type: fanfare.fence\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {\"token\":\"fedcba9876543210fedcba9876543210\"}",
    );
    assert_eq!(Fence::decode(&message), Ok(fence));
}

#[test]
fn a_mark_is_a_fence_of_the_run_that_its_writer_knows_again() {
    let writer = "fedcba9876543210fedcba9876543210".parse().unwrap();
    let mark = Mark { coordinator: writer, number: 7, is_padded: false };
    let message = mark.encode(&manifest());
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/mark/fedcba9876543210fedcba9876543210/7\n\
         type: fanfare.fence\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {\"token\":\"0123456789abcdef0123456789abcdef\",\"coordinator\":\"fedcba9876543210fedcba9876543210\",\"number\":7}",
    );
    let padded = Mark { is_padded: true, ..mark }.encode(&manifest());
    let body = std::str::from_utf8(&padded.body).unwrap();
    assert!(body.ends_with(&format!(r#","number":7,"padding":"{}"}}"#, " ".repeat(4_096))), "{body}");
    for message in [message, padded] {
        assert_eq!(Fence::decode(&message), Ok(Fence { token: manifest().run }));
        assert_eq!(Mark::number_of(&message, writer), Some(7));
        assert_eq!(Mark::number_of(&message, manifest().run), None);
    }
}

#[test]
fn a_fence_in_a_shard_belongs_to_no_fan_out() {
    let fence = Fence { token: "fedcba9876543210fedcba9876543210".parse().unwrap() };
    let message = fence.encode_in_shard("fanfare.shard.3");
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: fanfare.shard.3\n\
         message_id: fanfare.shard.3/fence/fedcba9876543210fedcba9876543210\n\
         type: fanfare.fence\n\
         fanfare-version = 1\n\
         {\"token\":\"fedcba9876543210fedcba9876543210\"}",
    );
    assert_eq!(Fence::decode(&message), Ok(fence));
}

#[test]
fn a_record_of_fan_outs_that_have_ended() {
    let ended = Ended {
        coordinator: "fedcba9876543210fedcba9876543210".parse().unwrap(),
        number: 2,
        ended: vec![EndedRun { run: run(), age_ms: 0 }, EndedRun { run: run().after(1), age_ms: 600 }],
    };
    let message = ended.encode("fanfare.shard.3");
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: fanfare.shard.3\n\
         message_id: fanfare.shard.3/ended/fedcba9876543210fedcba9876543210/2\n\
         type: fanfare.ended\n\
         fanfare-version = 1\n\
         {\"coordinator\":\"fedcba9876543210fedcba9876543210\",\"number\":2,\"ended\":[\
         {\"run\":\"0123456789abcdef0123456789abcdef\",\"age_ms\":0},\
         {\"run\":\"0123456789abcdef0123456789abcdf0\",\"age_ms\":600}]}",
    );
    assert_eq!(Ended::decode(&message), Ok(ended));
}

#[test]
fn a_presence() {
    let coordinator = "fedcba9876543210fedcba9876543210".parse().unwrap();
    let presence = Presence { coordinator, shards: 8, leaving: false };
    let message = presence.encode();
    check(
        &message,
        "content_type: application/json\n\
         correlation_id: fedcba9876543210fedcba9876543210\n\
         message_id: fedcba9876543210fedcba9876543210/presence\n\
         type: fanfare.presence\n\
         fanfare-version = 1\n\
         {\"coordinator\":\"fedcba9876543210fedcba9876543210\",\"shards\":8,\"leaving\":false}",
    );
    assert_eq!(Presence::decode(&message), Ok(presence));
}

#[test]
fn a_request_to_cancel_names_the_run_where_it_is_known() {
    let reply_to = "fanfare.wait.fedcba9876543210fedcba9876543210".to_owned();
    let request = CancelRequest { cid: cid(), run: Some(run()), reply_to };
    check(
        &request.encode(),
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         reply_to: fanfare.wait.fedcba9876543210fedcba9876543210\n\
         message_id: 63e7c3a2ba616badecb125ce/cancel\n\
         type: fanfare.cancel\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {}",
    );
    let of_all = CancelRequest { run: None, ..request.clone() };
    let expected =
        written(&request.encode()).replace("fanfare-run = \"0123456789abcdef0123456789abcdef\"\n", "");
    check(&of_all.encode(), &expected);
    for request in [request, of_all] {
        assert_eq!(CancelRequest::decode(&request.encode(), &QueueNames::default()), Ok(request));
    }
}

#[test]
fn answers_to_a_request_to_cancel() {
    let coordinator = "fedcba9876543210fedcba9876543210".parse().unwrap();
    let by = |ended_by| Cancellation { responded: 1, missing: 2, ended_by };
    for (state, body) in [
        (CancelState::Unknown, r#""state":"unknown""#),
        (CancelState::Refused { reason: "why".to_owned() }, r#""state":"refused","reason":"why""#),
        (CancelState::Found { run: run() }, r#""state":"found","run":"0123456789abcdef0123456789abcdef""#),
        (
            CancelState::Ended { run: run(), cancellation: by(Some(EndedBy::Cancel)) },
            r#""state":"ended","run":"0123456789abcdef0123456789abcdef","responded":1,"missing":2,"ended_by":"cancel""#,
        ),
        (
            CancelState::Ended { run: run(), cancellation: by(None) },
            r#""state":"ended","run":"0123456789abcdef0123456789abcdef","responded":1,"missing":2,"ended_by":null"#,
        ),
    ] {
        let answer = CancelAnswer { coordinator, state };
        check(
            &answer.encode(&cid()),
            &format!(
                "content_type: application/json\n\
                 correlation_id: 63e7c3a2ba616badecb125ce\n\
                 message_id: 63e7c3a2ba616badecb125ce/cancel-answer/fedcba9876543210fedcba9876543210\n\
                 type: fanfare.cancel-answer\n\
                 fanfare-version = 1\n\
                 {{\"coordinator\":\"fedcba9876543210fedcba9876543210\",{body}}}"
            ),
        );
        assert_eq!(CancelAnswer::decode(&answer.encode(&cid())), Ok(answer));
    }
}

#[test]
fn what_workers_are_told_of_a_cancelled_fan_out() {
    let cancelled = Cancelled { cid: cid(), run: run() };
    check(
        &cancelled.encode(),
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         message_id: 63e7c3a2ba616badecb125ce/cancelled\n\
         type: fanfare.cancelled\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-version = 1\n\
         {}",
    );
    assert_eq!(Cancelled::decode(&cancelled.encode()), Ok(cancelled));
}

#[test]
fn a_parked_message_keeps_everything_and_says_why() {
    let message = request().encode().parked(
        "fanfare.service.x",
        &"because ".repeat(1000),
        time("2025-01-19 19:55:45"),
        Uuid::from_u128(1),
    );
    let mut without = message.clone();
    assert_eq!(message.text("fanfare-reason").unwrap().chars().count(), 1000);
    assert_eq!(message.text("fanfare-parked-from"), Some("fanfare.service.x"));
    assert_eq!(message.text("fanfare-parked-at"), Some("2025-01-19 19:55:45"));
    assert_eq!(message.text("fanfare-parked-id"), Some("00000000-0000-0000-0000-000000000001"));
    for name in ["fanfare-reason", "fanfare-parked-from", "fanfare-parked-at", "fanfare-parked-id"] {
        without.headers.remove(name);
    }
    assert_eq!(without, request().encode());
}

#[test]
fn a_parked_message_tells_in_a_header_whose_it_was_and_claims_to_be_nobody_s() {
    let mut message = request().encode();
    message.properties.user_id = Some("shop".into());
    let parked = message.clone().parked(
        "fanfare.service.x",
        "because",
        time("2025-01-19 19:55:45"),
        Uuid::from_u128(1),
    );
    assert_eq!(parked.text("fanfare-parked-user"), Some("shop"));
    assert_eq!(parked.properties, request().encode().properties);
    assert_eq!(message.without_user(), request().encode());
}

#[test]
fn a_parked_message_is_published_again_as_it_was_before_its_attempts_with_the_name_it_was_parked_under() {
    let mut failed = request().encode().retried(3);
    failed.properties.user_id = Some("shop".into());
    let park = |message: Message, id| {
        let at = time("2025-01-19 19:55:45");
        message.parked("fanfare.service.x", "because", at, Uuid::from_u128(id))
    };
    let replayed = |id| request().encode().with_header("fanfare-replayed", Uuid::from_u128(id).to_string());
    let once = park(failed, 1).with_header("x-delivery-count", 3).unparked();
    assert_eq!(once, replayed(1));
    assert_eq!(park(once, 2).unparked(), replayed(2));
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let invocation = Invocation::decode(&request().encode(), &QueueNames::default()).unwrap();
    assert_eq!(invocation.channel, Channel::FanoutCall);
    assert_eq!((invocation.cid, invocation.run), (cid(), run()));
    assert_eq!(invocation.key, Some(key("ключ 2")));
    assert_eq!(invocation.attempt, 1);
    assert_eq!(invocation.metadata, metadata());
    assert_eq!(invocation.requested_at, Some(time("2025-01-19 19:55:45")));
    assert_eq!(invocation.body, request().body);
    let reply = invocation.reply.unwrap();
    assert_eq!(
        (reply.queue.as_str(), reply.message_id.as_str()),
        (aggregation().as_str(), "63e7c3a2ba616badecb125ce/1")
    );
    assert_eq!(Invocation::target_of(&request().encode()), Ok(service("my.service2")));
}

#[test]
fn a_callback_is_read_as_it_was_written_and_answers_nobody() {
    let manifest = manifest();
    let kind = CallbackKind::OnTarget { callback: &manifest.on_target[0], place: 0 };
    let mut message =
        Callback { manifest: &manifest, kind, body: Bytes::from_static(RESULT.as_bytes()) }.encode();
    message.properties.reply_to = Some(aggregation().into());
    let invocation = Invocation::decode(&message, &QueueNames::default()).unwrap();
    assert_eq!(invocation.channel, Channel::FanoutOnTarget);
    assert_eq!(invocation.key, Some(key("my.service1")));
    assert_eq!(invocation.reply, None);
    assert_eq!(invocation.message_id, "63e7c3a2ba616badecb125ce/0/on-target/audit.log");
}

#[test]
fn a_retry_is_the_request_with_its_attempt_and_without_what_the_broker_added() {
    let mut delivered = request()
        .encode()
        .with_header("x-delivery-count", 2)
        .with_header("x-death", "a list")
        .with_header("x-first-death-queue", "fanfare.delay.1")
        .with_header("x-last-death-reason", "expired");
    delivered.properties.expiration = Some("1000".into());
    let retry = delivered.retried(2);
    check(
        &retry,
        "content_type: application/json\n\
         correlation_id: 63e7c3a2ba616badecb125ce\n\
         reply_to: fanfare.agg.63e7c3a2ba616badecb125ce.0123456789abcdef0123456789abcdef\n\
         message_id: 63e7c3a2ba616badecb125ce/1\n\
         type: fanfare.request\n\
         app_id: fanout1.my-service\n\
         timestamp: 1737316545\n\
         fanfare-attempt = 2\n\
         fanfare-channel = \"fanout-call\"\n\
         fanfare-key = \"ключ 2\"\n\
         fanfare-metadata = {order: \"7\"}\n\
         fanfare-req-ts = \"2025-01-19 19:55:45\"\n\
         fanfare-run = \"0123456789abcdef0123456789abcdef\"\n\
         fanfare-source = \"fanout1.my-service\"\n\
         fanfare-target = \"my.service2\"\n\
         fanfare-version = 1\n\
         { \"untouched\":  1 }",
    );
    assert_eq!(Invocation::decode(&retry, &QueueNames::default()).unwrap().attempt, 2);
    let next = retry.retried(3);
    assert_eq!(Invocation::decode(&next, &QueueNames::default()).unwrap().attempt, 3);
}

#[test]
fn a_trace() {
    let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let written = |message: &Message| message.headers["traceparent"] == HeaderValue::from(parent.to_string());
    assert!(written(&Request { traceparent: Some(parent), ..request() }.encode()));
    let manifest = Manifest { traceparent: Some(parent), ..manifest() };
    let encoded = manifest.encode();
    assert!(
        std::str::from_utf8(&encoded.body).unwrap().ends_with(&format!("\"traceparent\":\"{parent}\"}}"))
    );
    assert_eq!(Manifest::decode(&encoded, &QueueNames::default()).unwrap(), manifest);
    let ending = Ending::default();
    let kind = CallbackKind::OnFinal { callback: Some(&manifest.on_final[0]), ending };
    let callback = Callback { manifest: &manifest, kind, body: Bytes::from_static(b"{}") }.encode();
    assert!(written(&callback));
    let linked = callback.linked(&[parent, parent]);
    let link = HeaderValue::from(parent.to_string());
    assert_eq!(linked.headers["fanfare-links"], HeaderValue::List(vec![link.clone(), link]));
    let decoded = Invocation::decode(&linked, &QueueNames::default()).unwrap();
    assert_eq!((decoded.traceparent, decoded.links), (Some(parent), vec![parent; 2]));

    let entry = CheckpointEntry {
        key: key("ключ 2"),
        body: Bytes::from_static(RESULT.as_bytes()),
        traceparent: Some(parent),
    };
    let checkpoint = Checkpoint { coordinator: run(), number: 0, called: false, entries: vec![entry] };
    let encoded = checkpoint.encode(&manifest);
    let written =
        format!("\"results\":[{{\"key\":\"ключ 2\",\"result\":{RESULT},\"traceparent\":\"{parent}\"}}]");
    assert!(std::str::from_utf8(&encoded.body).unwrap().contains(&written));
    assert_eq!(Checkpoint::decode(&encoded).unwrap(), checkpoint);
}
