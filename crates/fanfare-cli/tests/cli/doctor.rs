//! What `fanfare doctor` finds, and whom `fanfare status` and `explain` miss, on RabbitMQ with its management API.

use rustix::process::Signal;

use crate::management::Management;
use crate::monitor::Asked;
use crate::support::{Ended, broker, eventually_seen, run, split};

const SERVICES: &str = "[services.\"t.fine\"]\nexec = [\"cat\"]\n";

#[test]
fn doctor_ends_with_the_exit_codes_that_its_help_promises() {
    let Some(management) = Management::of_the_broker() else { return };
    let asked = Asked::start("doctor", SERVICES, "t.fine");
    let doctor =
        |arguments: &[&str]| asked.run(&[&["doctor", "--management", &management.url], arguments].concat());
    let until = |what: &str, wanted: fn(&Ended) -> bool| eventually_seen(what, || doctor(&[]), wanted);
    let told = |ended: &Ended, exit: i32, lines: &[&str]| {
        assert_eq!((ended.exit, ended.stderr.as_str()), (exit, ""), "{ended:?}");
        for line in lines {
            assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
        }
    };
    // Through a whole fan-out, so that every queue is declared.
    asked.invoke(&["--target", "t.fine", "--wait", "1m"]).succeeds();

    let well = doctor(&[]);
    told(&well, 0, &["ok      permission to write", "ok      coordinators: there", "ok      policies: none"]);
    assert!(!well.stdout.contains("WRONG") && !well.stdout.contains("denied"), "{}", well.stdout);

    // RabbitMQ tells of a policy some seconds after it is set.
    let (name, pattern) = (asked.prefix(), format!("^{}\\\\.fanin$", asked.prefix()));
    let policy = management.policy(name, &pattern, r#"{"message-ttl":86400000}"#);
    let losing = until("the policy is found", |ended| ended.stdout.contains("message-ttl"));
    told(
        &losing,
        1,
        &[
            &format!("WRONG   policy `{name}` on queue {name}.fanin: message-ttl loses what waits so long\n"),
            "-> take the setting out of the policy, or narrow the policy's pattern",
        ],
    );
    drop(policy);
    until("nothing is wrong any more", |ended| ended.exit == 0);

    // No fan-out is open.
    for (kind, definition, expected) in [
        ("agg", r#"{"max-length":1000}"#, "once it is there: max-length drops the oldest messages"),
        ("payload", r#"{"message-ttl":1000}"#, "once it is there: message-ttl loses what waits so long"),
    ] {
        let _policy = management.policy(name, &format!("^{name}\\\\.{kind}\\\\."), definition);
        let losing = doctor(&[]);
        told(&losing, 1, &[&format!("WRONG   policy `{name}` on queue {name}.{kind}."), expected]);
    }

    // No fan-out is open.
    for (kind, definition, expected) in [
        ("agg", r#"{"max-length":1000}"#, "max-length drops the oldest messages"),
        ("payload", r#"{"message-ttl":1000}"#, "message-ttl loses what waits so long"),
    ] {
        let _policy = management.policy(name, &format!("^{name}\\\\.{kind}\\\\."), definition);
        let losing = doctor(&[]);
        told(&losing, 1, &[&format!("WRONG   policy `{name}` on queue {name}.{kind}."), expected]);
    }

    let elsewhere = format!("{name}-elsewhere");
    told(
        &doctor(&["--prefix", &elsewhere]),
        1,
        &[
            &format!("note    queue {elsewhere}.fanin: not there yet"),
            &format!(
                "WRONG   coordinators: none\n        -> start one, since no fan-out ends without: fanfare coordinator --prefix {elsewhere}\n"
            ),
        ],
    );

    let _user = management.user(name, "of-this-test-only");
    let url = broker();
    let (scheme, _, host, path) = split(&url);
    let stranger = format!("{scheme}://{name}:of-this-test-only@{host}{path}");
    // In a variable: the doctor warns of a password among the arguments.
    let as_stranger = |arguments: &[&str]| -> Ended {
        asked.command(arguments).env("FANFARE_BROKER", &stranger).output().unwrap().into()
    };
    let denied = as_stranger(&["doctor", "--management", &management.url]);
    told(
        &denied,
        5,
        &[
            "denied  permission to configure (declare queues): could not try: ",
            &format!("user '{name}' lacks the right to configure on queue '{name}.fanin'"),
            &format!("denied  exchange {name}.coordinators: could not look: "),
            "unknown policies: the management API",
        ],
    );
    assert!(!denied.stdout.contains("WRONG"), "{}", denied.stdout);
    let parked = as_stranger(&["parked", "list"]);
    assert_eq!((parked.exit, parked.stdout.as_str()), (5, ""), "though nothing is parked: {parked:?}");
    // That of the queue which whoever looks has meanwhile comes first.
    for expected in [format!("user '{name}' lacks the right to "), format!(" on queue '{name}.parked")] {
        assert!(parked.stderr.contains(&expected), "{expected}: {}", parked.stderr);
    }

    told(&run(asked.path(), &["doctor", "--broker", "amqp://127.0.0.1:9"]), 3, &["WRONG   broker: "]);
}

#[test]
fn coordinator_that_does_not_answer_is_named_as_long_as_it_does_not() {
    let Some(management) = Management::of_the_broker() else { return };
    let asked = Asked::start("silent", SERVICES, "t.fine");
    let other = asked.another_coordinator();
    let status = || asked.run(&["status", "--management", &management.url]);
    let until = |what: &str, wanted: &dyn Fn(&Ended) -> bool| {
        let ended = eventually_seen(what, status, wanted);
        assert_eq!((ended.exit, ended.stdout.lines().count()), (0, 1), "{ended:?}");
        ended.stderr
    };
    let heard = until("both answer", &|ended| ended.stderr.is_empty());
    assert_eq!(heard, "");

    other.send(Signal::STOP);
    let silent = format!(":{} did not answer\n", other.id());
    // RabbitMQ tells of a consumer some seconds after it has come.
    let warned = until("the one that stands still is named", &|ended| ended.stderr.contains(&silent));
    assert_eq!(warned.matches("warning: coordinator ").count(), 1, "the other is not: {warned}");
    assert!(
        warned.starts_with("warning: ") && warned.contains("what the others hold is missing here"),
        "{warned}"
    );

    for asks in [&["status"][..], &["explain", "c-1"]] {
        let told = asked.run(&[asks, &["--json", "--management", &management.url]].concat());
        let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
        let unheard = told["coordinators"]["unheard"].as_array().unwrap();
        assert!(unheard.len() == 1, "{told}");
        assert!(unheard[0].as_str().unwrap().ends_with(&format!(":{}", other.id())), "{told}");
    }
    let unknown = ["explain", "c-1", "--management"];
    let explained = asked.run(&[&unknown[..], &[&management.url]].concat());
    assert!(explained.exit == 5 && explained.stderr.ends_with(&silent), "{explained:?}");
    assert_eq!(explained.stderr.lines().count(), 1, "the other is not: {explained:?}");
    for expected in ["-> 1 of 2 coordinators did not answer in time", "one that has not may hold it"] {
        assert!(explained.stdout.contains(expected), "{expected}: {}", explained.stdout);
    }
    let nameless = asked.run(&[&unknown[..], &["http://127.0.0.1:9"]].concat());
    let unnamed =
        "warning: who did not answer is not known: the management API at http://127.0.0.1:9 does not tell";
    assert!(nameless.exit == 5 && nameless.stderr.starts_with(unnamed), "{nameless:?}");

    other.send(Signal::CONT);
    until("it answers again", &|ended| ended.stderr.is_empty());
    let explained = asked.run(&[&unknown[..], &[&management.url]].concat());
    assert_eq!((explained.exit, explained.stderr.as_str()), (1, ""), "all tell, and none knows it");
}
