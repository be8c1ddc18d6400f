//! A message that breaks a rule is refused, and the error names the rule.

use bytes::Bytes;
use fanfare_protocol::{
    Bundle, CancelRequest, Channel, Checkpoint, CompletionPolicy, Ended, Fence, HeaderValue, Invocation,
    Manifest, ManifestTarget, Message, Metadata, QueueNames, TargetResult, limits,
};
use uuid::Uuid;

use crate::samples::{aggregation, cid, key, manifest, request, result, run, service, time};

fn refused_request(change: impl FnOnce(&mut Message)) -> (String, bool) {
    let mut message = request().encode();
    change(&mut message);
    let error = Invocation::decode(&message, &QueueNames::default()).unwrap_err();
    (error.to_string(), error.reply.is_some())
}

#[track_caller]
fn check_request(says: &str, answered: bool, change: impl FnOnce(&mut Message)) {
    let (error, has_reply) = refused_request(change);
    assert!(error.contains(says), "{error:?} does not say {says:?}");
    assert_eq!(has_reply, answered, "{error}");
}

#[test]
fn a_malformed_request_is_answered_where_it_can_be() {
    let text = |text: &str| HeaderValue::from(text);
    check_request("type \"other\"", true, |m| m.properties.kind = Some("other".into()));
    check_request("fanfare-channel is missing", true, |m| drop(m.headers.remove("fanfare-channel")));
    check_request("channel \"x\" is unknown", true, |m| {
        m.headers.insert("fanfare-channel", text("x"));
    });
    check_request("cannot have channel fanout-on-final", true, |m| {
        m.headers.insert("fanfare-channel", text("fanout-on-final"));
    });
    check_request("fanfare-key: target key \"\" is not allowed", true, |m| {
        m.headers.insert("fanfare-key", text(""));
    });
    check_request("fanfare-attempt is not a positive integer", true, |m| {
        m.headers.insert("fanfare-attempt", HeaderValue::Int(0));
    });
    check_request("fanfare-metadata is not a table", true, |m| {
        m.headers.insert("fanfare-metadata", text("x"));
    });
    check_request("fanfare-req-ts: \"now\" is not a time", true, |m| {
        m.headers.insert("fanfare-req-ts", text("now"));
    });
    check_request("fanfare-source: source \"a b\"", true, |m| {
        m.headers.insert("fanfare-source", text("a b"));
    });
    check_request("message_id is missing", true, |m| m.properties.message_id = None);
    check_request("message_id is longer than 248 bytes", true, |m| {
        m.properties.message_id = Some("x".repeat(249).into());
    });
}

#[test]
fn the_failure_of_a_request_without_an_id_tells_its_target_by_the_key() {
    let mut message = request().encode();
    message.properties.message_id = None;
    let to = Invocation::decode(&message, &QueueNames::default()).unwrap_err().reply.unwrap();
    let failed =
        TargetResult::message(result("null", Some("why")).to_body(), &to, time("2025-01-19 19:55:46"));
    assert_eq!(fanfare_protocol::key_of(&failed), message.text("fanfare-key"));
    assert_eq!(failed.properties.message_id.as_deref(), Some(&*format!("{}/result", cid())));
}

#[test]
fn a_request_to_cancel_is_answered_to_a_waiter_and_nobody_else() {
    let request = CancelRequest { cid: cid(), run: Some(run()), reply_to: "fanfare.wait.1".to_owned() };
    let check = |says: &str, change: &dyn Fn(&mut Message)| {
        let mut message = request.encode();
        change(&mut message);
        let error = CancelRequest::decode(&message, &QueueNames::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    };
    check("it has no type, so it is not fanfare.cancel", &|m| m.properties.kind = None);
    check("type \"\" is not fanfare.cancel", &|m| m.properties.kind = Some("".into()));
    check("reply_to is not the queue of a waiter", &|m| m.properties.reply_to = Some(aggregation().into()));
    check("reply_to is not the queue of a waiter", &|m| m.properties.reply_to = None);
    check("correlation_id is missing", &|m| m.properties.correlation_id = None);
    check("fanfare-run", &|m| drop(m.headers.insert("fanfare-run", HeaderValue::Int(1))));
}

#[test]
fn a_request_that_nobody_can_be_told_of_has_no_reply_address() {
    check_request("reply_to is missing", false, |m| m.properties.reply_to = None);
    check_request("reply_to \"fanfare.parked\" is neither", false, |m| {
        m.properties.reply_to = Some("fanfare.parked".into());
    });
    for id in [None, Some("x".repeat(249))] {
        check_request("message_id is", false, |m| {
            m.headers.remove("fanfare-key");
            m.properties.message_id = id.map(Into::into);
        });
    }
    check_request("header fanfare-run is missing", false, |m| drop(m.headers.remove("fanfare-run")));
    check_request("correlation_id is missing", false, |m| m.properties.correlation_id = None);
    // The coordinator could not find the target by what is derived from the last two either.
    let of_cid = |rest: &str| format!("{}/{rest}", cid());
    for id in ["elsewhere/1".to_owned(), of_cid("+1"), of_cid("1/result"), of_cid("1/result/result")] {
        check_request(&format!("message_id {id:?} tells whose it is"), false, |m| {
            m.headers.remove("fanfare-key");
            m.properties.message_id = Some(id.clone().into());
        });
    }
}

#[test]
fn a_worker_answers_only_to_the_aggregation_queue_of_the_run_at_hand() {
    for queue in [
        "fanfare.service.price.quote".to_owned(),
        "fanfare.agg.other.0123456789abcdef0123456789abcdef".to_owned(),
        aggregation().replace("fanfare.", "other."),
        format!("{}0", aggregation()),
        "other.shard.1".to_owned(),
        "fanfare.shard.01".to_owned(),
        "fanfare.shard.1024".to_owned(),
    ] {
        check_request("is neither the aggregation queue", false, |m| {
            m.properties.reply_to = Some(queue.into())
        });
    }
}

#[test]
fn a_shard_is_answered_to() {
    let names = QueueNames::default();
    let mut message = request().encode();
    message.properties.reply_to = Some(names.shard(7).name.into());
    let invocation = Invocation::decode(&message, &names).unwrap();
    assert_eq!(invocation.reply.unwrap().queue, "fanfare.shard.7");
}

#[track_caller]
fn check_manifest(says: &str, manifest: &Manifest) {
    let error = Manifest::decode(&manifest.encode(), &QueueNames::default()).unwrap_err().to_string();
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

#[test]
fn a_manifest_that_names_what_is_not_its_own_is_refused() {
    let good = manifest();
    assert_eq!(Manifest::decode(&good.encode(), &QueueNames::default()), Ok(good.clone()));
    let shared = Manifest { reply_to: "fanfare.shard.7".to_owned(), ..good.clone() };
    assert_eq!(Manifest::decode(&shared.encode(), &QueueNames::default()), Ok(shared));
    check_manifest(
        "reply_to \"fanfare.fanin\" is neither fanfare.agg.",
        &Manifest { reply_to: "fanfare.fanin".to_owned(), ..good.clone() },
    );
    check_manifest(
        "waiter \"fanfare.service.x\" does not match fanfare.wait.*",
        &Manifest { waiter: Some("fanfare.service.x".to_owned()), ..good.clone() },
    );
    check_manifest(
        "channel invoke is not that of a fan-out",
        &Manifest { channel: Channel::Invoke, ..good.clone() },
    );
    let twice = ManifestTarget { key: key("my.service1"), service: service("x") };
    check_manifest(
        "key \"my.service1\" is there twice",
        &Manifest { targets: vec![twice.clone(), twice.clone()], ..good.clone() },
    );
    check_manifest(
        "on_final lists 101 callbacks",
        &Manifest { on_final: vec![service("x"); 101], ..good.clone() },
    );
    for (name, twice) in [
        ("on_target", Manifest { on_target: vec![service("x"), service("y"), service("x")], ..good.clone() }),
        ("on_final", Manifest { on_final: vec![service("x"); 2], ..good.clone() }),
    ] {
        check_manifest(&format!("{name} lists x twice"), &twice);
    }
    check_manifest(
        "on_final lists my.cb1, and a parallel execution has no final callbacks",
        &Manifest { channel: Channel::ParallelExecCall, ..good.clone() },
    );
    let policy = |completion| Manifest { completion: Some(completion), ..good.clone() };
    check_manifest(
        "completion when 3 of 2 targets have responded",
        &policy(CompletionPolicy { responded: Some(3), ..CompletionPolicy::default() }),
    );
    check_manifest("lists 100001 targets", &Manifest { targets: vec![twice; 100_001], ..good });
}

#[test]
fn a_repeated_manifest_says_the_same_but_for_what_a_renewal_writes_down() {
    let first = Manifest { deadline_ms: Some(1_000), ..manifest() };
    let check = |message: &Message| {
        let repeated = Manifest::decode(message, &QueueNames::default()).unwrap();
        first.check_repeated(message, &repeated)
    };
    assert_eq!(check(&first.encode()), Ok(()));
    let renewed = first.encode_renewed(Some(time("2025-01-19 19:55:46")));
    assert_eq!(check(&renewed), Ok(()));
    let other = Manifest { on_final: vec![service("other")], ..first.clone() };
    let error = check(&other.encode()).unwrap_err().to_string();
    assert!(error.contains(&format!("another manifest of run {} came before", run())), "{error}");
    assert_eq!(check(&other.encode_renewed(None)), Ok(()), "what a coordinator has renewed is kept");
}

#[test]
fn a_manifest_of_another_type_or_form_is_refused() {
    let decode =
        |message: &Message| Manifest::decode(message, &QueueNames::default()).unwrap_err().to_string();
    let mut message = manifest().encode();
    message.body = Bytes::from_static(b"[]");
    assert!(decode(&message).contains("the manifest is malformed"), "{}", decode(&message));
    message.body = Bytes::from_static(b"{\"cid\":\"a b\"}");
    assert!(decode(&message).contains("CID \"a b\" is not allowed"), "{}", decode(&message));
    message.properties.kind = Some("fanfare.result".into());
    assert!(
        decode(&message).contains("type \"fanfare.result\" is not fanfare.manifest"),
        "{}",
        decode(&message)
    );
    message.properties.kind = None;
    assert!(
        decode(&message).contains("it has no type, so it is not fanfare.manifest"),
        "{}",
        decode(&message)
    );
}

#[test]
fn a_list_is_not_taken_for_an_object() {
    let body = String::from_utf8(manifest().encode().body.to_vec()).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(body.contains(from), "{body}");
        let message = Message { body: body.replacen(from, to, 1).into(), ..manifest().encode() };
        Manifest::decode(&message, &QueueNames::default()).unwrap_err().to_string()
    };
    for (from, to) in [
        ("{", "{\"completion\":[1],"),
        ("{", "{\"completion\":[],"),
        (r#"{"key":"my.service1","service":"my.service1"}"#, r#"["my.service1","my.service1"]"#),
    ] {
        let error = refused(from, to);
        assert!(error.contains("invalid type: sequence, expected an object at line 1"), "{to}: {error}");
    }
    let error = refused("{", "{\"completion\":true,");
    assert!(error.contains("invalid type: boolean `true`, expected an object"), "{error}");
    let message = |body: &'static str| Message { body: body.into(), ..manifest().encode() };
    let entry = message(
        r#"{"coordinator":"0123456789abcdef0123456789abcdef","number":0,"called":true,"results":[["k",{}]]}"#,
    );
    let run = message(
        r#"{"coordinator":"0123456789abcdef0123456789abcdef","number":0,"ended":[["0123456789abcdef0123456789abcdef",0]]}"#,
    );
    let bundled = message(r#"[["c/0/result",null,null,null,null,{}]]"#);
    for error in [
        Checkpoint::decode(&entry).unwrap_err(),
        Ended::decode(&run).unwrap_err(),
        Bundle::decode(&bundled).unwrap_err(),
    ] {
        assert!(error.to_string().contains("expected an object"), "{error}");
    }
}

#[test]
fn a_result_that_contradicts_itself_or_lacks_something_is_refused() {
    let good = String::from_utf8(result("1", None).to_body().to_vec()).unwrap();
    for (from, to, says) in [
        ("\"exception\":null", "\"exception\":\"x\"", "`ok` is true, but there is an `exception`"),
        ("\"ok\":true", "\"ok\":false", "`ok` is false, but there is no `exception`"),
        ("\"ok\":true,\"exception\":null", "\"ok\":false,\"exception\":\"x\"", "`response` is not null"),
        ("\"response\":1,", "", "missing field `response`"),
        ("\"ok\":true", "\"ok\":\"yes\"", "expected a boolean"),
        ("2025-01-19 19:55:46", "yesterday", "\"yesterday\" is not a time"),
        ("2025-01-19 19:55:46", "+12025-01-19 19:55:46", "is not a time"),
        (
            "\"response\":1",
            &format!("\"response\":{}", nested(97)),
            "it has 98 levels of arrays and objects, and 97 is the most",
        ),
        ("\"cid\"", &format!("\"new\":{},\"cid\"", nested(10_000)), "nested too deeply: it has 10001 levels"),
        ("63e7c3a2ba616badecb125ce", "not a cid", "CID \"not a cid\" is not allowed"),
    ] {
        let error = TargetResult::from_body(good.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    let list = r#"["s","t",1,"2025-01-19 19:55:45","2025-01-19 19:55:46",true,null,"c"]"#;
    let error = TargetResult::from_body(list.as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "the result is malformed: it is not a JSON object");
    for (body, says) in [
        (&b""[..], "it cannot be read as JSON: EOF while parsing a value at line 1 column 0"),
        (b"hello", "it cannot be read as JSON: expected value at line 1 column 1"),
        (b"{\n\"source\":x}", "it cannot be read as JSON: expected value at line 2 column 10"),
        (b"5", "it is not a JSON object"),
        (b"\"text\"", "it is not a JSON object"),
        (b"\xff", "it is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0"),
    ] {
        let error = TargetResult::from_body(body).unwrap_err().to_string();
        assert_eq!(error, format!("the result is malformed: {says}"));
    }
}

fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_result_with_other_bytes_than_utf_8_anywhere_is_refused() {
    let mut bytes = result("1", None).to_body().to_vec();
    bytes.pop();
    bytes.extend_from_slice(b",\"ignored\":\"\xff\"}");
    let error = TargetResult::from_body(&bytes).unwrap_err().to_string();
    assert!(error.contains("invalid utf-8"), "{error}");
}

#[test]
fn an_error_stays_short_whatever_the_message_was() {
    let good = String::from_utf8(result("1", None).to_body().to_vec()).unwrap();
    let long = good.replace("\"ok\":true", &format!("\"ok\":\"{}\"", "é".repeat(100_000)));
    let error = TargetResult::from_body(long.as_bytes()).unwrap_err().to_string();
    assert_eq!(error.chars().count(), 1000);
}

#[test]
fn a_malformed_checkpoint_or_fence_says_what_is_wrong() {
    let mut message = manifest().encode();
    message.body = Bytes::from_static(b"{\"coordinator\":\"x\"}");
    let error = Checkpoint::decode(&message).unwrap_err().to_string();
    assert!(error.contains("the checkpoint is malformed") && error.contains("32 hexadecimal"), "{error}");
    message.body = Bytes::from_static(b"{\"token\":\"zz\"}");
    let error = Fence::decode(&message).unwrap_err().to_string();
    assert!(error.contains("malformed: id \"zz\" is not allowed: give a UUID, written as 32"), "{error}");
    message.body = Bytes::from_static(b"{}");
    let error = Fence::decode(&message).unwrap_err().to_string();
    assert!(error.contains("the fence is malformed: missing field `token`"), "{error}");
}

#[test]
fn metadata_beyond_its_limits_is_refused_in_requests_and_manifests_too() {
    let table = |name: &str, bytes: usize| {
        HeaderValue::Table([(name.to_owned(), HeaderValue::from("x".repeat(bytes)))].into())
    };
    check_request("metadata of 4097 bytes is not allowed", true, |m| {
        m.headers.insert("fanfare-metadata", table("a", 4096));
    });
    check_request("is not allowed: give 1 to 128 bytes", true, |m| {
        m.headers.insert("fanfare-metadata", table(&"n".repeat(300), 1));
    });
    let mut message = manifest().encode();
    let body = String::from_utf8(message.body.to_vec()).unwrap();
    let entry = format!("{{\"metadata\":{{\"a\":\"{}\"}},", "x".repeat(5000));
    message.body = body.replacen('{', &entry, 1).replace(",\"metadata\":{\"order\":\"7\"}", "").into();
    let error = Manifest::decode(&message, &QueueNames::default()).unwrap_err().to_string();
    assert!(error.contains("metadata of 5001 bytes is not allowed"), "{error}");
}

#[test]
fn a_parked_message_can_be_sent_whatever_headers_it_had() {
    let text = |bytes: usize| HeaderValue::from("x".repeat(bytes));
    let message = Message::default().with_header("small", "s").with_header("large", text(30_000));
    let parked = message.clone().parked("queue", "why", time("2025-01-19 19:55:45"), Uuid::from_u128(1));
    assert_eq!(parked.headers.len(), 6, "what fits is kept");
    let parked = message.with_header("huge", text(100_000)).parked(
        "queue",
        "why",
        time("2025-01-19 19:55:45"),
        Uuid::from_u128(1),
    );
    assert_eq!(parked.text("fanfare-reason"), Some("why; its largest headers are left out"));
    assert_eq!((parked.text("small"), parked.headers.contains_key("huge")), (Some("s"), false));
}

#[test]
fn metadata_keeps_its_limits_and_stays_as_it_was_when_one_is_broken() {
    let mut metadata = Metadata::default();
    metadata.insert("a", "x".repeat(4095)).unwrap();
    assert!(metadata.insert("b", "").unwrap_err().to_string().contains("4097 bytes"));
    assert!(metadata.insert("", "x").unwrap_err().to_string().contains("1 to 128 bytes"));
    assert!(metadata.insert("n".repeat(129), "x").is_err());
    assert_eq!(metadata.iter().count(), 1);
    metadata.insert("a", "replaced").unwrap();
    assert_eq!(metadata.get("a"), Some("replaced"));
}

#[test]
fn a_bundle_that_breaks_the_rules_is_refused() {
    let decoded = |body: String| {
        let message = Message { body: body.into(), ..Message::default() };
        Bundle::decode(&message).map(|results| results.len()).map_err(|reason| reason.to_string())
    };
    let one = r#"{"message_id":"c/0/result","result":{}}"#;
    let many = |count: usize| format!("[{}]", vec![one; count].join(","));
    assert_eq!(decoded(many(limits::BUNDLED)), Ok(limits::BUNDLED));
    let reason = decoded(many(limits::BUNDLED + 1)).unwrap_err();
    assert_eq!(reason, "the results are malformed: they are 1001, and 1000 is the most of one message");
    let reason = decoded(one.to_owned()).unwrap_err();
    assert!(reason.contains("expected a sequence"), "{reason}");
    let reason = decoded(r#"[{"result":{}}]"#.to_owned()).unwrap_err();
    assert!(reason.contains("missing field `message_id`"), "{reason}");
}
