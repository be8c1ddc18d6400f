//! Bad input is refused with exit code 2, before any broker is needed, and says what was meant.

use crate::support::{Ended, fanfare, run, run_with_input};

/// Nothing listens on the port of discarded messages.
const NO_BROKER: &str = "amqp://me:hunter2@127.0.0.1:9";

fn check(arguments: &[&str], exit: i32, expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    let ended = run(directory.path(), arguments);
    assert_eq!(ended.exit, exit, "{arguments:?}: {ended:?}");
    assert!(ended.stderr.contains(expected), "{arguments:?}: {}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "", "{arguments:?}");
}

fn check_invoke(arguments: &[&str], exit: i32, expected: &str) {
    check(&[&["invoke", "--broker", NO_BROKER], arguments].concat(), exit, expected);
}

#[test]
fn cancel_of_what_is_no_cid_is_bad_input_and_without_a_broker_nobody_is_asked() {
    check(&["cancel", "a b", "--broker", NO_BROKER], 2, "CID \"a b\" is not allowed");
    check(&["cancel", "a", "--run", "b", "--broker", NO_BROKER], 2, "--run");
    check(&["cancel", "a", "--broker", NO_BROKER], 3, "127.0.0.1:9");
}

#[test]
fn invocation_that_breaks_a_rule_is_bad_input_even_without_a_broker() {
    for (arguments, expected) in [
        (&["--target", "a b"][..], "service name \"a b\" is not allowed"),
        (&["--target", "a=hello", "--wait"], "is not JSON (a string needs its quotes)"),
        (&["--source", "a/b"], "source \"a/b\" is not allowed"),
        (&["--on-final", "a,b c"], "service name \"b c\" is not allowed"),
        (&["--cid", ""], "CID \"\" is not allowed: it is empty"),
        (&["--target", "a"], "a fan-out without a final callback: give --on-final, --wait, or --parallel"),
        (&["--target", "a", "--parallel"], "without an on-target callback: give --on-target"),
        (
            &["--parallel", "--on-target", "b", "--on-final", "c"],
            "a parallel execution has no final callbacks: leave out --parallel, or --on-final c",
        ),
        (&["--parallel", "--on-target", "b", "--wait"], "'--parallel' cannot be used with '--wait"),
        (
            &["--target", "a", "--target", "a", "--wait"],
            "two targets have the key \"a\": give one of them another, as in --target KEY@SERVICE",
        ),
        (
            &["--on-final", "b", "--metadata", "x"],
            "\"x\" is not allowed: write NAME=VALUE, as in --metadata tenant=shop",
        ),
        (
            &["--on-final", "b", "--metadata", "x=1", "--metadata", "y=1", "--metadata", "x=2"],
            "two of --metadata have the name \"x\": give each name once",
        ),
        (&["--wait", "soon"], "\"soon\" is no duration"),
        (&["--target", "a", "--deadline", "never", "--wait"], "write it as 500ms, 30s, 5m or 1h, or none"),
        (&["--target", "a", "--deadline", "0s", "--wait"], "give 1 ms to 365 days"),
        (
            &["--target", "a", "--until-succeeded", "2", "--wait"],
            "completion when 2 of 1 targets have succeeded",
        ),
        (&["--target", "a", "--until-responded", "0", "--wait"], "completion when 0 targets have responded"),
        (&["--target", "a", "--max-failed", "1", "--wait"], "give fewer than 1"),
        (&["--target", "a", "--max-failed", "110%", "--wait"], "give 0% or more, and less than 100%"),
        (&["--targets", "no-such-file"], "cannot read the targets from \"no-such-file\""),
    ] {
        check_invoke(arguments, 2, expected);
    }
}

#[test]
fn all_mistakes_that_can_be_seen_at_once_are_told_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let told = |arguments: &[&str], input: &[u8]| {
        std::fs::write(directory.path().join("targets"), input).unwrap();
        let ended = run(directory.path(), &[&["invoke", "--broker", NO_BROKER], arguments].concat());
        assert_eq!((ended.exit, ended.stdout.as_str()), (2, ""), "{ended:?}");
        ended.stderr
    };
    assert_eq!(
        told(
            &[
                "--target",
                "a",
                "--target",
                "a",
                "--metadata",
                "x=1",
                "--metadata",
                "x=2",
                "--max-failed",
                "9"
            ],
            b""
        ),
        "error: two of --metadata have the name \"x\": give each name once\n\
         error: a fan-out without a final callback: give --on-final, --wait, or --parallel with --on-target\n\
         error: two targets have the key \"a\": give one of them another, as in --target KEY@SERVICE\n\
         error: completion when more than 9 of 2 targets have failed: give fewer than 2\n"
    );
    let said = told(
        &["--targets", "targets", "--until-succeeded", "2"],
        b"{\"service\":\"\"}\n{\"service\":\"s\"}\n{\"service\":\"t\",\"key\":1}\n",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, expected) in
        lines.iter().zip(["line 1: service name \"\"", "line 3: ", "without a final callback"])
    {
        assert!(line.starts_with("error: ") && line.contains(expected), "{said}");
    }
    assert_eq!(
        told(&["--targets", "targets", "--wait"], b"{\"service\":\"s\"}\n{\"service\":\"t\xff\"}"),
        "error: cannot read the targets from \"targets\": line 2 has bytes that are not UTF-8, which JSON is written in: save \
         them as UTF-8\n"
    );
}

#[test]
fn bad_line_of_targets_is_named_by_its_number() {
    let directory = tempfile::tempdir().unwrap();
    let input = "{\"service\":\"a\"}\n{\"service\":\"b\"\n";
    let ended = run_with_input(
        directory.path(),
        &["invoke", "--broker", NO_BROKER, "--targets", "-", "--wait"],
        input,
    );
    assert_eq!(ended.exit, 2, "{ended:?}");
    assert!(ended.stderr.contains("the targets of standard input: line 2: EOF"), "{}", ended.stderr);
}

#[test]
fn no_broker_is_exit_code_3_and_its_password_is_not_shown() {
    check_invoke(&["--target", "a", "--wait"], 3, "me:***@127.0.0.1:9");
    check_invoke(&["--target", "a", "--wait"], 3, "check that RabbitMQ runs");
    let directory = tempfile::tempdir().unwrap();
    let ended = run(directory.path(), &["doctor", "--broker", NO_BROKER]);
    assert_eq!(ended.exit, 3, "{ended:?}");
    assert!(ended.stdout.starts_with("WRONG   broker: the broker cannot be reached: "), "{}", ended.stdout);
    assert!(!ended.stdout.contains("hunter2"), "{}", ended.stdout);
    assert!(ended.stdout.contains("warn    password: it is in the command line"), "{}", ended.stdout);
}

#[test]
fn memory_is_refused_by_all_but_the_demo_with_the_reason_and_a_remedy() {
    for command in [&["worker"][..], &["coordinator"], &["doctor"], &["invoke", "--target", "a", "--wait"]] {
        check(&[command, &["--broker", "memory://"]].concat(), 2, "memory:// is a broker inside one process");
    }
}

#[test]
fn url_that_is_none_is_refused_without_its_password() {
    check(
        &["worker", "--broker", "http://me:hunter2@localhost"],
        2,
        "it must start with amqp:// or amqps://",
    );
    check(&["demo", "--broker", "amqp:/me:hunter2@localhost"], 2, "is no broker address");
}

#[test]
fn settings_file_with_a_mistake_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("fanfare.toml"), "prefix = \"shop\"\n[worker]\nconcurency = 4\n")
        .unwrap();
    let ended = run(directory.path(), &["demo"]);
    assert_eq!(ended.exit, 2, "{ended:?}");
    let expected = "error: fanfare.toml:3:1: unknown field `concurency`, did you mean `concurrency`?\n";
    assert_eq!(ended.stderr, expected);
    check(&["demo", "--config", "no-such.toml"], 2, "cannot read the settings file \"no-such.toml\"");
}

#[test]
fn value_that_breaks_a_rule_is_refused_with_its_line_by_every_command() {
    let directory = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("[worker]\nconcurrency = 0\n", "2:15: 0 is not allowed: give 1 or more"),
        ("[coordinator]\nrenewal = \"0s\"\n", "2:11: \"0s\" is not allowed: give 1 ms to 365 days"),
        ("\n[services.\"a b\"]\n", "2:11: service name \"a b\" is not allowed"),
        ("[services.a]\nexec = []\n", "2:8: the command is empty: give the program and its arguments"),
        (
            "[services.a]\nhttp = \"stock/check\"\n",
            "2:8: \"stock/check\" is not a URL: give http://host/path",
        ),
        (
            "\n[services.a]\nexec = [\"x\"]\nhttp = \"http://y\"\n",
            "2:1: a service has either `exec` or `http`",
        ),
        ("broker = \"localhost\"\n", "1:10: "),
        ("shards = 1025\n", "1:10: 1025 is not allowed: give 1 to 1024"),
    ] {
        std::fs::write(directory.path().join("fanfare.toml"), text).unwrap();
        for command in [&["demo"][..], &["worker"], &["coordinator"], &["doctor"], &["invoke", "--wait"]] {
            let ended = run(directory.path(), command);
            assert_eq!(ended.exit, 2, "{command:?}: {ended:?}");
            assert!(ended.stderr.starts_with(&format!("error: fanfare.toml:{expected}")), "{}", ended.stderr);
        }
    }
}

#[test]
fn renewal_of_the_file_that_the_consumer_timeout_would_overtake_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("fanfare.toml"), "\n[coordinator]\nrenewal = \"20m\"\n").unwrap();
    let ended = run(directory.path(), &["coordinator"]);
    let expected =
        "error: fanfare.toml:3:11: 1200s with a consumer_timeout of 1800s is not allowed: it must be below";
    assert!(ended.exit == 2 && ended.stderr.contains(expected), "{ended:?}");
}

#[test]
fn number_that_is_too_small_is_refused_by_its_flag() {
    let none = "0 is not allowed: give 1 or more";
    check(&["worker", "--concurrency", "0"], 2, &format!("'0' for '--concurrency <N>': {none}"));
    check(&["coordinator", "--channels", "0"], 2, &format!("'0' for '--channels <N>': {none}"));
    let renewal = "--renewal 1200s with a consumer_timeout of 1800s is not allowed: it must be below half";
    check(&["coordinator", "--renewal", "20m"], 2, renewal);
    check(&["coordinator", "--accept-user", "a"], 2, "--accept-user a is not allowed: it needs user_id");
    check(&["coordinator", "--renewal", "0s"], 2, "\"0s\" is not allowed: give 1 ms to 365 days");
}

#[test]
fn what_is_no_number_is_refused_with_the_range() {
    check(
        &["worker", "--prefetch", "70000"],
        2,
        "\"70000\" is not allowed: give a whole number from 1 to 65535",
    );
    check(&["coordinator", "--channels", "x"], 2, "\"x\" is not allowed: give a whole number, 1 or more");
    check(&["worker", "--redelivery-limit=-1"], 2, "give a whole number from 0 to 4294967295");
    check(&["status", "--limit", "0"], 2, "0 is not in 1..=1000");
    let shards = "invalid value '1025' for '--shards <N>': \"1025\" is not allowed: give a whole number from 1 to 1024";
    check(&["status", "--shards", "1025"], 2, shards);
}

#[test]
fn value_of_a_variable_that_is_refused_is_blamed_on_the_variable() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], name: &str, value: &str| {
        let ended: Ended =
            fanfare(directory.path()).args(arguments).env(name, value).output().unwrap().into();
        assert_eq!(ended.exit, 2, "{ended:?}");
        ended.stderr
    };
    let variable = "FANFARE_WORKER_CONCURRENCY";
    let expected = "invalid value '0' for 'FANFARE_WORKER_CONCURRENCY': 0 is not allowed: give 1 or more";
    let said = refused(&["worker"], variable, "0");
    assert!(said.contains(expected), "{said}");
    let said = refused(&["worker", "--concurrency", "0"], variable, "0");
    assert!(said.contains("'0' for '--concurrency <N>'"), "the flag goes before the variable: {said}");
    let said = refused(&["doctor"], "FANFARE_QUEUE_TYPE", "stream");
    assert!(said.contains("invalid value 'stream' for 'FANFARE_QUEUE_TYPE'"), "{said}");
}

#[test]
fn nothing_that_a_terminal_would_act_upon_is_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let (clear, title) = ("\u{1b}[2J", "\u{1b}]0;owned\u{7}");
    for arguments in [
        &["status", "--limit", clear][..],
        &["status", "--sort", title],
        &["status", "--source", clear],
        &["invoke", "--metadata", clear],
        &["demo", "--queue-type", "a\r\u{9b}31mb"],
        &[clear],
        &["status", &format!("--{title}")],
        &["status", title],
    ] {
        let ended = run(directory.path(), arguments);
        assert_eq!(ended.exit, 2, "{ended:?}");
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains("\\u{"), "{}", ended.stderr);
        assert!(!ended.stderr.chars().any(|c| c.is_control() && c != '\n'), "{ended:?}");
    }
    let ended: Ended =
        fanfare(directory.path()).arg("demo").env("FANFARE_QUEUE_TYPE", clear).output().unwrap().into();
    let expected = "invalid value '\\u{1b}[2J' for 'FANFARE_QUEUE_TYPE'";
    assert!(ended.stderr.contains(expected) && !ended.stderr.contains('\u{1b}'), "{ended:?}");
}

#[test]
fn url_of_a_management_api_that_is_none_is_refused_before_anything_is_asked() {
    for command in ["doctor", "gc"] {
        let arguments = [command, "--broker", NO_BROKER, "--management", "nonsense"];
        check(&arguments, 2, "it is not the URL of a management API: give http://HOST:PORT");
    }
}

#[test]
fn parked_messages_are_changed_only_where_it_is_said_which() {
    for command in ["replay", "purge"] {
        let said = "give IDs as `fanfare parked list` shows them, a filter such as --service, or --all";
        check(&["parked", command, "--broker", NO_BROKER], 2, said);
        check(&["parked", command, "--all", "--cid", "c", "--broker", NO_BROKER], 2, "--all");
        check(&["parked", command, "--all", "--broker", NO_BROKER], 3, "127.0.0.1:9");
    }
}

#[test]
fn operators_without_a_broker_are_told_so() {
    for command in [
        &["status"][..],
        &["explain", "c"],
        &["parked", "list"],
        &["gc", "--management", "http://127.0.0.1:9"],
    ] {
        check(&[command, &["--broker", NO_BROKER]].concat(), 3, "127.0.0.1:9");
    }
}

#[test]
fn misspelt_variable_is_a_warning_and_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let ended: Ended =
        fanfare(directory.path()).arg("demo").env("FANFARE_BROKR", "amqp://x").output().unwrap().into();
    assert_eq!(ended.exit, 0, "{ended:?}");
    let expected = "warning: FANFARE_BROKR is no setting, and does nothing: did you mean FANFARE_BROKER?\n";
    assert_eq!(ended.stderr, expected);
}

#[test]
fn worker_is_told_which_services_there_are() {
    check(&["worker", "--service", "nobody"], 2, "there are helpers.echo, helpers.input-logger");
    check(
        &["worker", "--service", "demo.file-stats"],
        2,
        "write [stock.\"demo.file-stats\"] into fanfare.toml",
    );
    check(&["worker", "--no-stock"], 2, "there is no service to run");
}
