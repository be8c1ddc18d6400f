//! A fan-out as its trace shows it.

use std::collections::BTreeSet;

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
    assert_eq!(asked.invoke(&[&targets[..], &callbacks].concat()).exit, 0);

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
