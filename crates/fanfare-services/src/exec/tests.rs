use std::time::Instant;

use super::*;

fn shell(script: &str) -> ExecService {
    ExecService::new(["sh", "-c", script]).unwrap()
}

async fn run(service: &ExecService, input: impl Into<Bytes>) -> Result<String, ExecError> {
    service.run(input.into(), &[]).await.map(|answer| answer.get().to_owned())
}

/// Waits until a condition holds, with a deadline.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_alive(pid: &str) -> bool {
    // A zombie whose parent has not looked yet is dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn payload_goes_in_and_answer_comes_out() {
    assert_eq!(run(&shell("cat"), r#"{"a":1.50}"#).await.unwrap(), r#"{"a":1.50}"#);
}

#[tokio::test]
async fn no_output_answers_null() {
    assert_eq!(run(&shell("cat >/dev/null; echo"), "1").await.unwrap(), "null");
}

#[tokio::test]
async fn exit_code_and_standard_error_are_in_the_failure() {
    let error = run(&shell("echo '{}'; echo no such image >&2; exit 3"), "1").await.unwrap_err();
    assert_eq!(error.to_string(), "`sh` failed with exit status: 3: no such image");
}

#[tokio::test]
async fn only_the_last_of_much_standard_error_is_kept() {
    let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo the reason >&2; exit 1";
    let error = run(&shell(script), "1").await.unwrap_err().to_string();
    assert!(error.ends_with("the reason"), "{error}");
    assert!(error.len() < 2 * STDERR_TAIL_BYTES, "{} bytes", error.len());
}

#[tokio::test]
async fn large_payload_through_a_program_that_writes_while_it_reads_does_not_block() {
    let payload = format!("[{}1]", "1,".repeat(1_000_000));
    assert_eq!(run(&shell("cat"), payload.clone()).await.unwrap(), payload);
}

#[tokio::test]
async fn program_need_not_read_its_input() {
    let payload = format!("[{}1]", "1,".repeat(1_000_000));
    assert_eq!(run(&shell("exec <&-; echo 7"), payload).await.unwrap(), "7");
}

#[tokio::test]
async fn output_that_is_not_json_is_a_failure_that_quotes_it() {
    let error = run(&shell("echo hello; echo look here >&2"), "1").await.unwrap_err();
    let ExecError::NotJson { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().ends_with(r#"it begins with "hello""#), "{source}");
    assert!(error.to_string().ends_with("look here"), "{error}");
}

#[tokio::test]
async fn endless_output_is_cut_off() {
    let error = run(&shell("cat /dev/zero"), "1").await.unwrap_err();
    assert!(matches!(error, ExecError::TooMuchOutput { .. }), "{error}");
}

#[tokio::test]
async fn unknown_program_is_named() {
    let service = ExecService::new(["no-such-program-here"]).unwrap();
    let error = run(&service, "1").await.unwrap_err();
    assert_eq!(error.to_string(), "`no-such-program-here` cannot be started");
}

#[tokio::test]
async fn time_out_kills_the_program_and_what_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let service = shell("sleep 600 & echo $! > child; echo $$ > parent; wait")
        .directory(directory.path())
        .timeout(Duration::from_secs(2));
    let error = run(&service, "1").await.unwrap_err();
    assert_eq!(error.to_string(), "`sh` did not end within 2s and was killed");
    for file in ["parent", "child"] {
        let pid = std::fs::read_to_string(directory.path().join(file)).unwrap();
        eventually("all of the group is killed", || !is_alive(pid.trim())).await;
    }
}

#[tokio::test]
async fn cancelled_invocation_kills_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let service = shell("echo $$ > pid.new; mv pid.new pid; exec sleep 600").directory(directory.path());
    let running = tokio::spawn(async move { run(&service, "1").await });
    eventually("the program starts", || pid.exists()).await;
    running.abort();
    let pid = std::fs::read_to_string(pid).unwrap();
    eventually("the program is killed", || !is_alive(pid.trim())).await;
}

#[tokio::test]
async fn what_a_program_leaves_in_the_background_does_not_hold_up_its_answer() {
    assert_eq!(run(&shell("sleep 600 & echo 1"), "1").await.unwrap(), "1");
}

#[tokio::test]
async fn payload_cannot_become_part_of_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let service = ExecService::new(["cat"]).unwrap().directory(directory.path());
    let payload = r#""$(touch here); `touch here`; | touch here""#;
    assert_eq!(run(&service, payload).await.unwrap(), payload);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn variables_of_the_context_reach_the_program() {
    let service = shell(r#"printf '"%s %s"' "$FANFARE_CID" "$GREETING""#).variable("GREETING", "hello");
    let answer = service.run(Bytes::from_static(b"1"), &[("FANFARE_CID", "c1".to_owned())]).await.unwrap();
    assert_eq!(answer.get(), r#""c1 hello""#);
}

#[test]
fn variables_that_can_hold_a_password_are_not_passed_on() {
    let service = shell("true").variable("FANFARE_MANAGEMENT", "its own");
    let command = service.command(&[]);
    let changed: BTreeMap<_, _> = command.as_std().get_envs().collect();
    assert_eq!(changed.get(std::ffi::OsStr::new("FANFARE_BROKER")), Some(&None));
    assert_eq!(changed[std::ffi::OsStr::new("FANFARE_MANAGEMENT")], Some("its own".as_ref()));
    let service = shell("true");
    let command = service.command(&[]);
    let removed: Vec<_> = command.as_std().get_envs().filter(|(_, value)| value.is_none()).collect();
    assert_eq!(removed, [("FANFARE_BROKER".as_ref(), None), ("FANFARE_MANAGEMENT".as_ref(), None)]);
}

#[test]
fn command_without_a_program_is_refused() {
    assert_eq!(ExecService::new([""; 0]), Err(EmptyCommand));
    assert_eq!(ExecService::new([""]), Err(EmptyCommand));
}

#[tokio::test]
async fn exit_code_65_says_that_the_input_is_wrong_and_no_other_does() {
    for (code, fatal) in [(1, false), (64, false), (65, true), (66, false)] {
        let error = run(&shell(&format!("exit {code}")), "1").await.unwrap_err();
        assert_eq!(error.is_fatal(), fatal, "{code}");
    }
    assert!(!run(&shell("kill -9 $$"), "1").await.unwrap_err().is_fatal());
}
