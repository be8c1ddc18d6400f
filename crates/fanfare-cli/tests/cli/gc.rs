//! `fanfare gc` on RabbitMQ with its management API.

use std::fs;

use fanfare::{Cid, Fanfare};
use fanfare_protocol::Message;
use rustix::process::Signal;

use crate::management::Management;
use crate::monitor::Asked;
use crate::support::{broker, eventually, eventually_seen};

const SERVICES: &str = r#"
[services."t.waits"]
exec = ["sh", "-c", "while test -e fanfare.toml -a ! -e go; do sleep 0.02; done; cat"]
"#;

#[tokio::test]
async fn queue_that_no_fan_out_owns_is_told_of_first_and_then_removed_and_no_other() {
    let Some(Management { url: management, .. }) = Management::of_the_broker() else { return };
    let asked = Asked::start("gc", SERVICES, "t.waits");
    let open = ["--cid", "open", "--target", "t.waits", "--on-final", "helpers.input-logger"];
    asked.invoke(&open).succeeds();
    // As a publisher leaves it that dies before its manifest is out.
    let publisher = Fanfare::builder(broker()).prefix(asked.prefix()).connect().await.unwrap();
    let run = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let leftover = publisher.names().aggregation(&Cid::new("crashed").unwrap(), run);
    publisher.broker().declare(&leftover).await.unwrap();
    let gc = |arguments: &[&str]| asked.run(&[&["gc", "--management", &management], arguments].concat());

    eventually("no fan-out waits for its coordinator", || gc(&[]).exit == 0);
    let told = gc(&[]);
    assert_eq!((told.exit, told.stdout), (0, format!("{} (0 messages)\n", leftover.name)));
    assert!(told.stderr.starts_with("1 queue would be removed"), "{}", told.stderr);
    assert!(publisher.broker().exists(&leftover.name).await.unwrap(), "to tell removes nothing");

    let json = |removed| {
        format!(
            "{{\"queues\":[{{\"name\":\"{}\",\"messages\":0,\"removed\":{removed},\"error\":null}}]}}\n",
            leftover.name
        )
    };
    assert_eq!(gc(&["--json"]).stdout, json(false));

    let removed = gc(&["--yes", "--min-age", "100ms", "--json"]);
    assert_eq!((removed.exit, removed.stdout), (0, json(true)));
    assert!(!publisher.broker().exists(&leftover.name).await.unwrap());
    let none = gc(&[]);
    assert_eq!((none.exit, none.stderr.as_str()), (0, "no aggregation queue is without a fan-out\n"));
    assert_eq!(gc(&["--json"]).stdout, "{\"queues\":[]}\n");

    // The parts of a payload, as a coordinator leaves them that dies before its callback is out.
    let parts = publisher.names().payload(&Cid::new("crashed").unwrap(), run, run);
    publisher.broker().declare(&parts).await.unwrap();
    publisher.broker().publish(&parts.name, Message::default()).await.unwrap();
    eventually("the parts have been idle for a second", || {
        gc(&["--payloads", "1s"]).stdout.contains(&parts.name)
    });
    let told = gc(&["--payloads", "1s", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(
        (&told["payloads"][0]["name"], told["payloads"].as_array().unwrap().len()),
        (&parts.name.as_str().into(), 1)
    );
    let young = gc(&["--payloads", "1day"]);
    assert_eq!((young.exit, young.stdout.as_str()), (0, ""));
    assert!(
        young.stderr.starts_with("0 queues of large payloads have been idle for 1day"),
        "{}",
        young.stderr
    );
    assert!(publisher.broker().exists(&parts.name).await.unwrap(), "none is removed");
    publisher.broker().delete(&parts.name).await.unwrap();

    fs::write(asked.path().join("go"), "").unwrap();
    eventually("the open fan-out ends with its result", || {
        asked.run(&["status", "--ended", "--json"]).stdout.contains("\"done\":1,\"failed\":0")
    });
    publisher.close().await;
}

#[tokio::test]
async fn nothing_is_told_of_while_a_coordinator_is_silent_and_that_one_is_named() {
    let Some(Management { url: management, .. }) = Management::of_the_broker() else { return };
    let asked = Asked::start("gc-silent", SERVICES, "t.waits");
    let other = asked.another_coordinator();
    let publisher = Fanfare::builder(broker()).prefix(asked.prefix()).connect().await.unwrap();
    let run = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let leftover = publisher.names().aggregation(&Cid::new("crashed").unwrap(), run);
    publisher.broker().declare(&leftover).await.unwrap();
    let gc = || asked.run(&["gc", "--management", &management]);
    eventually("both answer, and the queue is told of", || gc().stdout.contains(&leftover.name));

    other.send(Signal::STOP);
    let silent = format!(":{} did not answer\n", other.id());
    let ended =
        eventually_seen("the one that stands still is named", gc, |ended| ended.stderr.contains(&silent));
    assert_eq!((ended.exit, ended.stdout.as_str()), (1, ""));
    let reason = "error: whose queues these are cannot be told: 1 of 2 coordinators did not answer in time";
    assert!(ended.stderr.contains(reason), "{}", ended.stderr);
    publisher.broker().delete(&leftover.name).await.unwrap();
    publisher.close().await;
}
