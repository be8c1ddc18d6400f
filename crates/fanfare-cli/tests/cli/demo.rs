//! The demo agrees with `find`, `wc` and `sha256sum`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::{Ended, fanfare, run};
use serde_json::Value;

/// A folder with everything that is awkward about files.
fn awkward(directory: &Path) {
    fs::create_dir_all(directory.join("sub/größe/空")).unwrap();
    for (name, content) in [
        (&b"plain.txt"[..], &b"one two\nthree\n"[..]),
        (b"empty", b""),
        (b"no newline at the end", b"a b"),
        (b"sub/line\nbreak", b"1\n2\n"),
        (b"sub/not utf-8 \xff", "gr\u{fc}\u{df}e \u{2014} aus\u{a0}K\u{f6}ln\n".as_bytes()),
        (b"sub/not utf-8 \xfe", b"\xff\xfe\x00a b\n"),
        ("sub/größe/空/文件 🦀.txt".as_bytes(), "世界 \u{3000} x\n".as_bytes()),
    ] {
        fs::write(directory.join(OsStr::from_bytes(name)), content).unwrap();
    }
    let deep = directory.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("long path"), b"x y z\n").unwrap();
    symlink(directory.join("plain.txt"), directory.join("link to a file")).unwrap();
    symlink(directory.join("sub"), directory.join("link to a folder")).unwrap();
    let made = Command::new("mkfifo").arg(directory.join("pipe")).status().unwrap();
    assert!(made.success());
}

/// What a shell says.
fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("POSIXLY_CORRECT")
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn check(directory: &Path, arguments: &[&str]) {
    let ended = run(directory, &[&["demo", "--json"], arguments].concat());
    assert_eq!(ended.exit, 0, "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let number = |name: &str| report["totals"][name].as_u64().unwrap();
    let wc = shell(directory, "find . -type f -exec cat {} + | wc");
    let bytes = shell(directory, "find . -type f -exec cat {} + | wc -c");
    assert_eq!(number("bytes"), bytes.trim().parse::<u64>().unwrap());
    assert_eq!(number("lines"), wc.split_whitespace().next().unwrap().parse::<u64>().unwrap());
    // Word counts add up file by file, not over what the files make when they are joined.
    let words = shell(directory, "find . -type f -exec sh -c 'for f; do wc -w < \"$f\"; done' sh {} +");
    assert_eq!(number("words"), words.lines().map(|n| n.trim().parse::<u64>().unwrap()).sum::<u64>());
    let files = shell(directory, "find . -type f -printf x");
    assert_eq!(number("files"), files.len() as u64);
    let digests = shell(directory, "find . -type f -exec sha256sum -b -z {} + | tr '\\0\\n' '\\n_'");
    let mut expected: Vec<&str> = digests.lines().map(|line| &line[..64]).collect();
    let mut seen: Vec<&str> =
        report["files"].as_array().unwrap().iter().map(|file| file["sha256"].as_str().unwrap()).collect();
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected);
    // Each path leads to its file again.
    for file in report["files"].as_array().unwrap() {
        let bytes: Vec<u8> = match &file["path"] {
            Value::String(path) => path.as_bytes().to_vec(),
            bytes => serde_json::from_value(bytes.clone()).unwrap(),
        };
        let size = fs::metadata(directory.join(OsStr::from_bytes(&bytes))).unwrap().len();
        assert_eq!(Some(size), file["bytes"].as_u64());
    }
}

#[test]
fn awkward_files_count_as_the_usual_tools_say() {
    let directory = tempfile::tempdir().unwrap();
    awkward(directory.path());
    check(directory.path(), &[]);
}

#[test]
fn more_files_than_one_fan_out_takes_are_all_counted() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..5_003 {
        fs::write(directory.path().join(number.to_string()), "x ".repeat(number % 7)).unwrap();
    }
    check(directory.path(), &["."]);
}

#[test]
fn folder_without_files_is_a_fan_out_without_targets() {
    let directory = tempfile::tempdir().unwrap();
    let ended = run(directory.path(), &["demo"]);
    assert_eq!(ended.exit, 0, "{ended:?}");
    assert!(ended.stdout.trim_end().ends_with("total of 0 files"), "{}", ended.stdout);
}

#[test]
fn table_has_totals_and_the_five_largest_files() {
    let directory = tempfile::tempdir().unwrap();
    for number in 1..=7 {
        fs::write(directory.path().join(format!("file-{number}")), "x\n".repeat(number)).unwrap();
    }
    let ended = run(directory.path(), &["demo", "."]);
    let lines: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let largest: Vec<&str> = lines[1..6].iter().map(|line| line[4]).collect();
    assert_eq!(largest, ["./file-7", "./file-6", "./file-5", "./file-4", "./file-3"]);
    assert_eq!(lines[6][3..], ["and", "2", "smaller", "files"]);
    assert_eq!(lines[7], ["28", "28", "56", "total", "of", "7", "files"]);
    assert_eq!(ended.stderr, "", "nothing is drawn where standard error is no terminal");
}

#[test]
fn path_from_the_environment_is_shown_as_a_person_would_type_it() {
    let directory = tempfile::tempdir().unwrap();
    let here = fs::canonicalize(directory.path()).unwrap();
    fs::create_dir(here.join("sub")).unwrap();
    fs::write(here.join("sub/file"), "x\n").unwrap();
    let ended: Ended =
        fanfare(&here).arg("demo").env("FANFARE_DEMO_PATH", here.join("sub")).output().unwrap().into();
    assert_eq!(ended.exit, 0, "{ended:?}");
    assert!(ended.stdout.contains("  sub/file\n"), "{}", ended.stdout);
}

#[test]
fn file_that_cannot_be_read_is_a_failed_target_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("good"), "x\n").unwrap();
    // Not even root can read this one, and it is a regular file all the same.
    let unreadable = Path::new("/proc/self/mem");
    let ended = run(directory.path(), &["demo", unreadable.to_str().unwrap(), "--json"]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    let report: BTreeMap<String, Value> = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["failed"][0]["path"], "/proc/self/mem");
    let reason = report["failed"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("cannot read \"/proc/self/mem\": "), "{reason}");
    assert_eq!(report["totals"]["files"], 0);
    assert_eq!(ended.stderr, "", "it is told once");
}

#[test]
fn path_that_does_not_exist_is_bad_input() {
    let directory = tempfile::tempdir().unwrap();
    let ended = run(directory.path(), &["demo", "nowhere"]);
    assert_eq!((ended.exit, ended.stdout.as_str()), (2, ""));
    assert_eq!(ended.stderr, "error: cannot look at \"nowhere\": No such file or directory (os error 2)\n");
}

#[test]
fn rabbitmq_says_the_same_as_memory() {
    let directory = tempfile::tempdir().unwrap();
    awkward(directory.path());
    let in_memory = run(directory.path(), &["demo", "."]);
    let broker = crate::support::broker();
    let on_rabbitmq = run(directory.path(), &["demo", ".", "--broker", &broker]);
    assert_eq!((on_rabbitmq.exit, on_rabbitmq.stderr.as_str()), (0, ""));
    assert_eq!(on_rabbitmq.stdout, in_memory.stdout);
}
