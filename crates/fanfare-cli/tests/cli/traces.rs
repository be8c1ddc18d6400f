//! A fan-out as its trace shows it.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::collector::Collector;
use crate::monitor::Asked;
use crate::support::eventually;

const SERVICES: &str = r#"
[services."t.fine"]
exec = ["cat"]
[services."t.broken"]
exec = ["sh", "-c", "echo no such item >&2; exit 3"]
"#;

#[test]
fn targets_are_spans_under_the_callers_and_the_final_callback_links_to_all_of_them() {
    let collector = Collector::start();
    let variables =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let asked = Asked::start_with("traces", SERVICES, "t.fine", &variables);
    let targets = ["--target", "one@t.fine=1", "--target", "two@t.fine=2", "--target", "t.broken"];
    let callbacks = ["--on-target", "helpers.echo", "--on-final", "helpers.input-logger"];
    asked.invoke(&[&targets[..], &callbacks].concat()).succeeds();

    let named = |name: &str| {
        let spans = collector.spans();
        spans.into_iter().filter(|span| span.name == name).collect::<Vec<_>>()
    };
    eventually("the final callback's span has come", || {
        named("fanout-on-final helpers.input-logger").len() == 1
    });
    eventually("the on-target callbacks' spans have come", || {
        named("fanout-on-target helpers.echo").len() == 3
    });
    let [caller] = &named("invoke")[..] else { panic!("{:?}", collector.spans()) };
    let fine = named("fanout-call t.fine");
    let broken = named("fanout-call t.broken");
    assert_eq!((fine.len(), broken.len()), (2, 1));
    let targets: Vec<_> = fine.iter().chain(&broken).collect();
    let [final_callback] = &named("fanout-on-final helpers.input-logger")[..] else { unreachable!() };
    let on_target = named("fanout-on-target helpers.echo");
    for span in targets.iter().copied().chain(&on_target).chain([final_callback]) {
        assert_eq!((&span.trace_id, &span.parent_span_id), (&caller.trace_id, &caller.span_id), "{span:?}");
    }
    let linked: BTreeSet<_> =
        final_callback.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    let spans: BTreeSet<_> = targets.iter().map(|span| (&span.trace_id, &span.span_id)).collect();
    assert_eq!(linked, spans);
    let status = broken[0].status.as_ref().unwrap();
    assert!(status.code == 2 && status.message.contains("no such item"), "{status:?}");
    assert!(fine.iter().all(|span| span.status.as_ref().is_none_or(|status| status.code != 2)));
}

#[test]
fn that_spans_are_lost_is_said_once_and_without_the_collectors_password() {
    // Nobody listens on this port, which is for the privileged alone.
    let variables =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@127.0.0.1:1"), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let asked = Asked::start_with("lost-traces", SERVICES, "t.fine", &variables);
    let mut invoked = Vec::new();
    for _ in 0..2 {
        invoked.push(asked.invoke(&["--target", "t.fine=1", "--wait", "1m"]));
    }
    for ended in invoked {
        assert_eq!(ended.exit, 0, "{ended:?}");
        let told = "spans are lost: http://me:***@127.0.0.1:1/v1/traces does not take them: ";
        assert_eq!(ended.stderr.matches(told).count(), 1, "{ended:?}");
        assert!(ended.stderr.contains("Connection refused"), "{ended:?}");
        assert!(!ended.stderr.contains("secret"), "{ended:?}");
    }
    let (_, log) = asked.worker.stop(Signal::TERM);
    assert_eq!(log.matches("spans are lost: ").count(), 1, "of several batches: {log}");
}
