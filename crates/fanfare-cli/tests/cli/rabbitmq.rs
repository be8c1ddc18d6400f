//! The commands together, on RabbitMQ.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Ended, PATIENCE, Running, broker, eventually_seen, fanfare, run, split};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A coordinator and a worker under a prefix of their own.
struct Pool {
    directory: TempDir,
    prefix: String,
    coordinator: Running,
    worker: Running,
}

impl Pool {
    fn start(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let prefix = format!("cli-{name}-{}", std::process::id());
        let settings = format!(
            "broker = \"{}\"\nprefix = \"{prefix}\"\n\
             [services.\"t.program\"]\nexec = [\"sh\", \"-c\", \"cat; test $FANFARE_KEY != bad || {{ echo broken >&2; exit 3; }}\"]\nretry = {{ attempts = 1 }}\n\
             [services.\"t.told\"]\nexec = [\"sh\", \"-c\", 'printf %s \"$FANFARE_METADATA\"']\n\
             [services.\"t.slow\"]\nexec = [\"sh\", \"-c\", \"touch started; for i in $(seq 600); do test -e go && exit; sleep 0.1; done\"]\n",
            broker()
        );
        fs::write(directory.path().join("fanfare.toml"), settings).unwrap();
        let coordinator = Running::start(directory.path(), &["coordinator"], "coordinator started");
        let worker = Running::start(directory.path(), &["worker"], "service=t.slow");
        Self { directory, prefix, coordinator, worker }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn invoke(&self, arguments: &[&str]) -> Ended {
        run(self.path(), &[&["invoke", "--source", "test"], arguments].concat())
    }
}

#[test]
fn invocations_end_with_the_exit_codes_that_the_help_promises() {
    let pool = Pool::start("exits");

    let ended =
        pool.invoke(&["--cid", "c-1", "--target", "helpers.echo=1.50", "--on-final", "helpers.input-logger"]);
    assert_eq!((ended.exit, ended.stdout.as_str(), ended.stderr.as_str()), (0, "c-1\n", ""));

    let ended = pool.invoke(&["--target", "k@t.program=[1.50]", "--target", "helpers.echo", "--wait", "1m"]);
    assert_eq!(ended.exit, 0, "{ended:?}");
    assert!(ended.stdout.contains("\"response\":[1.50]"), "{}", ended.stdout);
    let payload: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(payload["source"], "test");
    assert_eq!(payload["data"].as_object().unwrap().len(), 2);

    let ended = pool.invoke(&["--cid", "c-bad", "--target", "bad@t.program", "--wait"]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert!(ended.stdout.contains("failed with exit status: 3: broken"), "{}", ended.stdout);
    assert!(ended.stderr.contains("1 of 1 target failed"), "{}", ended.stderr);

    let ended = pool.invoke(&["--target", "t.told", "--metadata", "tenant=a", "--wait"]);
    assert!(ended.stdout.contains("\"response\":{\"tenant\":\"a\"}"), "{ended:?}");

    let ended = pool.invoke(&["--target", "nobody", "--wait"]);
    assert_eq!((ended.exit, ended.stdout.as_str()), (2, ""));
    let remedy = "no worker serves `nobody`: start one, or give --declare-missing";
    assert!(ended.stderr.contains(remedy), "{}", ended.stderr);

    let ended = pool.invoke(&["--target", "t.slow", "--cid", "c-2", "--wait", "10ms"]);
    assert_eq!((ended.exit, ended.stdout.as_str()), (6, ""));
    assert!(ended.stderr.contains("c-2"), "{}", ended.stderr);

    let ended =
        pool.invoke(&["--parallel", "--target", "helpers.echo", "--on-target", "helpers.input-logger"]);
    assert_eq!((ended.exit, ended.stdout.lines().count()), (0, 1));

    let ended = pool.invoke(&["--wait"]);
    assert_eq!(ended.exit, 0, "a fan-out without targets ends at once: {ended:?}");

    fs::write(pool.path().join("go"), "").unwrap();
    let (_, log) = pool.worker.stop(Signal::TERM);
    let failed: Vec<&str> = log.lines().filter(|line| line.contains("a target failed")).collect();
    let [failed] = failed[..] else { panic!("the one that failed is told once: {log}") };
    for expected in
        ["WARN", "service=t.program", "cid=c-bad", "message_id=\"c-bad/0\"", "exit status: 3: broken"]
    {
        assert!(failed.contains(expected), "{expected}: {failed}");
    }
}

#[test]
fn cancel_ends_with_the_exit_codes_that_its_help_promises() {
    let pool = Pool::start("cancel");
    let cancel = |cid: &str| run(pool.path(), &["cancel", cid]);
    let invoked = pool.invoke(&[
        "--target",
        "nobody",
        "--declare-missing",
        "--cid",
        "c-1",
        "--on-final",
        "helpers.echo",
    ]);
    assert_eq!(invoked.exit, 0, "{invoked:?}");
    for time in ["first", "second"] {
        let ended = cancel("c-1");
        assert_eq!((ended.exit, ended.stderr.as_str()), (0, ""), "{time}");
        assert!(ended.stdout.ends_with(" cancelled: 0 of 1 target had responded\n"), "{time}: {ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1, "{time}: {ended:?}");
    }
    pool.invoke(&["--target", "helpers.echo", "--cid", "c-2", "--wait"]).succeeds();
    let ended = cancel("c-2");
    assert_eq!(ended.exit, 0, "{ended:?}");
    assert!(ended.stdout.ends_with(" ended before: 1 of 1 target had responded\n"), "{ended:?}");
    let run_id = ended.stdout.split(' ').next().unwrap();
    let again = run(pool.path(), &["cancel", "c-2", "--run", run_id]);
    assert_eq!((again.exit, &again.stdout), (0, &ended.stdout));
    let again = run(pool.path(), &["cancel", "c-2", "--json"]);
    let expected = format!(
        "{{\"fan_outs\":[{{\"run\":\"{run_id}\",\"responded\":1,\"missing\":0,\"ended_by\":null}}]}}\n"
    );
    assert_eq!((again.exit, again.stdout), (0, expected));
    let ended = cancel("c-3");
    assert_eq!((ended.exit, ended.stdout.as_str()), (1, ""));
    assert!(
        ended.stderr.contains("no coordinator knows a fan-out c-3 (one has answered"),
        "{}",
        ended.stderr
    );
    let Pool { directory, coordinator, .. } = pool;
    assert_eq!(coordinator.stop(Signal::TERM).0, Some(0));
    let ended = run(directory.path(), &["cancel", "c-1"]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert!(
        ended.stderr.contains("no coordinator can be asked under the prefix `cli-cancel"),
        "{}",
        ended.stderr
    );
}

/// Runs a command until what it prints is as wanted.
fn until(pool: &Pool, arguments: &[&str], wanted: impl Fn(&Ended) -> bool) -> Ended {
    eventually_seen(&arguments.join(" "), || run(pool.path(), arguments), wanted)
}

#[test]
fn an_operator_sees_what_is_open_why_and_what_has_ended() {
    let pool = Pool::start("operator");
    let targets = ["--target", "nobody", "--target", "helpers.echo", "--target", "bad@t.program"];
    let others = ["--declare-missing", "--cid", "c-1", "--on-final", "helpers.input-logger"];
    pool.invoke(&[&targets[..], &others].concat()).succeeds();
    let ended = until(&pool, &["status"], |ended| ended.stdout.contains("2/3"));
    assert_eq!((ended.exit, ended.stderr.as_str(), ended.stdout.lines().count()), (0, "", 2), "{ended:?}");
    let row = ended.stdout.lines().nth(1).unwrap();
    assert!(row.starts_with("c-1  ") && row.ends_with("waits for targets"), "{row}");
    let status: Value = serde_json::from_str(&run(pool.path(), &["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["fan_outs"][0]["cid"], &status["fan_outs"][0]["failed"]), (&"c-1".into(), &1.into()));
    assert_eq!(run(pool.path(), &["status", "--source", "other"]).stdout.lines().count(), 1);

    let ended = run(pool.path(), &["explain", "c-1"]);
    assert_eq!(ended.exit, 0, "{ended:?}");
    for expected in [
        "2 of 3 targets are done, 1 of them failed",
        "  missing  nobody  nobody  waits for a worker",
        "  failed  bad  t.program  ",
        "-> no worker consumes `",
        &format!("start one, as with `fanfare worker --service nobody --prefix {}`", pool.prefix),
    ] {
        assert!(ended.stdout.contains(expected), "{expected}: {}", ended.stdout);
    }
    let ended = run(pool.path(), &["explain", "c-2"]);
    assert_eq!((ended.exit, ended.stdout.lines().count()), (1, 1), "{ended:?}");
    assert!(ended.stdout.starts_with("-> no coordinator knows c-2"), "{}", ended.stdout);

    let run_id = status["fan_outs"][0]["run"].as_str().unwrap();
    let ended = run(pool.path(), &["cancel", "c-2", "--run", run_id]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert!(ended.stderr.contains(&format!("run {run_id} has another CID")), "{}", ended.stderr);
    assert_eq!(run(pool.path(), &["cancel", "c-1", "--run", run_id]).exit, 0);
    let ended = until(&pool, &["status", "--ended"], |ended| ended.stdout.contains("c-1"));
    assert!(ended.stdout.lines().nth(1).unwrap().ends_with("ago  cancel"), "{}", ended.stdout);
}

#[test]
fn parked_messages_are_listed_shown_put_back_and_dropped() {
    let pool = Pool::start("parked");
    let none = run(pool.path(), &["parked", "list"]);
    assert_eq!((none.exit, none.stdout.lines().count()), (0, 1), "{none:?}");
    // A callback that fails.
    let parallel = ["--parallel", "--target", "bad@helpers.echo", "--cid", "c-1", "--on-target", "t.program"];
    pool.invoke(&parallel).succeeds();
    let ended = until(&pool, &["parked", "list"], |ended| ended.stdout.lines().count() == 2);
    let row = ended.stdout.lines().nth(1).unwrap();
    assert!(row.contains("  t.program  c-1  t.program failed: "), "{row}");
    let id = row.split(' ').next().unwrap();

    let ended = run(pool.path(), &["parked", "show", id]);
    assert_eq!(ended.exit, 0, "{ended:?}");
    assert!(
        ended.stdout.contains("type: fanfare.callback\n")
            && ended.stdout.contains("\"target\":\"helpers.echo\"")
    );
    let shown: Value =
        serde_json::from_str(&run(pool.path(), &["parked", "show", id, "--json"]).stdout).unwrap();
    assert_eq!((&shown["parked"]["id"], &shown["body"]["target"]), (&id.into(), &"helpers.echo".into()));
    let ended = run(pool.path(), &["parked", "show", "0"]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert!(ended.stderr.contains("no parked message has the ID \"0\""), "{}", ended.stderr);

    // It fails again, and is parked again.
    let ended = run(pool.path(), &["parked", "replay", "--service", "t.program"]);
    assert_eq!((ended.exit, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert_eq!(ended.stdout, format!("{id} back in {}.service.t.program\n", pool.prefix));
    let ended = until(&pool, &["parked", "list", "--json"], |ended| ended.stdout.contains("\"matching\":1,"));
    let again: Value = serde_json::from_str(&ended.stdout).unwrap();
    let again = again["messages"][0]["id"].as_str().unwrap();
    let none = "no parked message that is meant, of those that could be looked at, has the ID \"0\"";
    for ids in [&["purge", "0"][..], &["replay", "0"]] {
        let ended = run(pool.path(), &[&["parked"], ids].concat());
        assert_eq!((ended.exit, ended.stdout.as_str()), (1, ""), "{ended:?}");
        assert!(ended.stderr.contains("no parked message"), "{}", ended.stderr);
    }
    let ended = run(pool.path(), &["parked", "purge", again, "0", "--reason", "t.program failed"]);
    assert_eq!((ended.exit, ended.stdout.lines().count()), (1, 1), "{ended:?}");
    assert!(ended.stdout.starts_with(&format!("{again} dropped: ")), "{}", ended.stdout);
    assert!(ended.stderr.contains(none), "{}", ended.stderr);
    let ended = run(pool.path(), &["parked", "purge", "--all"]);
    assert_eq!((ended.exit, ended.stdout.as_str()), (1, ""), "there is none any more: {ended:?}");
}

#[test]
fn doctor_finds_a_running_system_well_and_a_stopped_one_not() {
    let pool = Pool::start("doctor");
    // Through a whole fan-out, so that every queue is declared.
    pool.invoke(&["--target", "helpers.echo", "--wait", "1m"]).succeeds();
    let ended = run(pool.path(), &["doctor"]);
    assert_eq!(ended.exit, 0, "{ended:?}");
    for expected in [
        "ok      broker: RabbitMQ ".to_owned(),
        "ok      permission to read (consume): granted".to_owned(),
        format!("ok      queue {}.service.t.program: there, with the right arguments", pool.prefix),
        "ok      coordinators: there".to_owned(),
        format!("ok      exchange {}.coordinators: there, and heard", pool.prefix),
        format!("ok      exchange {}.workers: there, and heard", pool.prefix),
    ] {
        assert!(ended.stdout.contains(&expected), "{expected}: {}", ended.stdout);
    }
    let ended = run(pool.path(), &["doctor", "--json"]);
    assert_eq!((ended.exit, ended.stdout.lines().count()), (0, 1), "{ended:?}");
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    let first = &told["findings"][0];
    assert_eq!(
        (&first["verdict"], &first["what"], &first["remedy"]),
        (&"ok".into(), &"broker".into(), &Value::Null)
    );
    let Pool { directory, coordinator, .. } = pool;
    assert_eq!(coordinator.stop(Signal::TERM).0, Some(0));
    let ended = run(directory.path(), &["doctor"]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert!(ended.stdout.contains("WRONG   coordinators: none"), "{}", ended.stdout);
}

#[test]
fn second_signal_ends_a_worker_that_still_waits_for_its_services() {
    let Pool { directory, mut worker, .. } = {
        let pool = Pool::start("second");
        let started = pool.path().join("started");
        pool.invoke(&["--target", "t.slow", "--on-final", "helpers.echo"]).succeeds();
        let deadline = Instant::now() + PATIENCE;
        while !started.exists() {
            assert!(Instant::now() < deadline, "the service does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        pool
    };
    worker.signal(Signal::TERM, "a second signal ends this at once");
    // The service goes on for longer than anybody waits here.
    let (exit, log) = worker.stop(Signal::TERM);
    assert_eq!(exit, Some(130), "{log}");
    drop(directory);
}

#[test]
fn wrong_password_and_wrong_virtual_host_are_exit_code_3_of_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let url = broker();
    let (scheme, credentials, host, path) = split(&url);
    let password = format!("{scheme}://guest:wrong@{host}{path}");
    let virtual_host = format!("{scheme}://{credentials}{host}/nowhere");
    for broker in [&password, &virtual_host] {
        for command in [
            &["demo"][..],
            &["doctor"],
            &["worker"],
            &["coordinator"],
            &["invoke", "--target", "helpers.echo", "--wait"],
            &["invoke", "--target", "helpers.echo", "--on-final", "helpers.echo"],
        ] {
            let ended = run(directory.path(), &[command, &["--broker", broker]].concat());
            assert_eq!(ended.exit, 3, "{command:?}: {ended:?}");
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(said.contains("check user, password and virtual host"), "{command:?}: {said}");
        }
    }
}

#[test]
fn nobody_begins_with_a_user_id_that_is_not_the_login() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = format!("cli-user-{}", std::process::id());
    let invoke = ["invoke", "--declare-missing", "--target", "helpers.echo", "--on-final", "helpers.echo"];
    for (command, exit) in [(&["coordinator"][..], 1), (&["worker"], 1), (&invoke, 4), (&["doctor"], 1)] {
        let settings = ["--broker", &broker(), "--prefix", &prefix, "--user-id", "somebody"];
        let ended = run(directory.path(), &[command, &settings].concat());
        assert_eq!(ended.exit, exit, "{command:?}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        for expected in ["user_id property set to 'somebody' but", "set it to this login, or leave it out"] {
            assert!(said.contains(expected), "{command:?}: {said}");
        }
    }
}

#[test]
fn both_signals_stop_gracefully() {
    let pool = Pool::start("signals");
    let (exit, log) = pool.worker.stop(Signal::INT);
    assert!(exit == Some(0) && log.contains("the worker has stopped"), "{exit:?} {log}");
    let (exit, log) = pool.coordinator.stop(Signal::TERM);
    assert_eq!(exit, Some(0), "{log}");
}

/// A wrong one, so that it can be told from everything else; it goes to the broker all the same.
#[test]
fn password_with_special_characters_appears_in_no_output_however_it_is_given() {
    const PASSWORD: &str = "SECRETp%4/?#[@]: \"'ü";
    const ENCODED: &str = "SECRETp%254%2F%3F%23%5B%40%5D%3A%20%22%27%C3%BC";
    let directory = tempfile::tempdir().unwrap();
    let address = broker().rsplit_once('@').map_or_else(broker, |(_, host)| format!("amqp://{host}"));
    let with = |credentials: &str| address.replacen("://", &format!("://{credentials}@"), 1);
    let (whole, without) = (with(&format!("guest:{ENCODED}")), with("guest"));
    let file = directory.path().join("password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let check = |given: &str, variables: &[(&str, &str)], settings: &str| {
        fs::write(directory.path().join("fanfare.toml"), settings).unwrap();
        let mut command = fanfare(directory.path());
        command.args(["--log", "trace"]).args(given.split_whitespace()).envs(variables.iter().copied());
        let ended: Ended = command.output().unwrap().into();
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_ne!(ended.exit, 0, "the password is wrong: {said}");
        assert!(
            said.contains("user, password and virtual host") || said.contains("ACCESS_REFUSED"),
            "{said}"
        );
        assert!(!said.contains("SECRET"), "{said}");
    };
    for command in ["doctor", "invoke --target helpers.echo --wait 1s"] {
        check(&format!("{command} --broker {whole}"), &[], "");
        check(command, &[("FANFARE_BROKER", &whole)], "");
        check(command, &[], &format!("broker = \"{whole}\""));
        let password_file = file.to_str().unwrap();
        check(&format!("{command} --broker {without} --broker-password-file {password_file}"), &[], "");
        check(command, &[("FANFARE_BROKER", &without), ("FANFARE_BROKER_PASSWORD_FILE", password_file)], "");
        check(command, &[], &format!("broker = \"{without}\"\nbroker_password_file = \"{password_file}\""));
    }
}
