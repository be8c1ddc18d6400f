//! `demo.file-stats` agrees with the real `wc` and `sha256sum`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use fanfare_services::FileStats;

/// What a program answers when it is given bytes.
fn output(program: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("POSIXLY_CORRECT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// Newer versions of `wc` take bytes that cannot be printed for words.
fn wc_counts_what_cannot_be_printed() -> bool {
    output("wc", &["-w"], b"\x01").trim() != "0"
}

fn check(what: &str, bytes: &[u8]) {
    let stats = FileStats::read(&mut &bytes[..]).unwrap();
    let sha256 = output("sha256sum", &[], bytes);
    assert_eq!(stats.sha256, sha256.split_whitespace().next().unwrap(), "SHA-256 of {what}");
    let wc = output("wc", &["-l", "-w", "-c"], bytes);
    let numbers: Vec<u64> = wc.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(vec![stats.lines, stats.words, stats.bytes], numbers, "lines, words and bytes of {what}");
}

#[test]
fn text_counts_as_wc_says() {
    for text in [
        "",
        "\n",
        "one",
        "one two\nthree",
        " \t\u{b}\u{c}\r\n",
        "Grüße, 世界 — привет\n",
        "no\u{a0}break\u{202f}spaces\u{2007}and\u{2060}joiner",
        "ideographic\u{3000}space\u{205f}and\u{1680}ogham\u{2003}em",
        "mongolian\u{180e}separator zero\u{200b}width \u{200b} \u{feff}",
        "e\u{301}\u{301} \u{301}",
        "🦀 👩‍👩‍👧 🇩🇪",
    ] {
        check(&format!("{text:?}"), text.as_bytes());
    }
}

#[test]
fn sources_count_as_wc_says() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let stats = FileStats::of(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(FileStats::read(&mut &bytes[..]).unwrap(), stats);
        check(&path.display().to_string(), &bytes);
    }
}

#[test]
fn binary_files_count_as_wc_says() {
    if wc_counts_what_cannot_be_printed() {
        // Then this wc follows another rule for such files, and the expected numbers are those of the documented one.
        let stats = FileStats::read(&mut &b"\x00\xff a\x00b \xe2\x80 \n"[..]).unwrap();
        assert_eq!((stats.lines, stats.words), (1, 1));
        return;
    }
    check("every byte", &(0..=255).collect::<Vec<u8>>());
    check("a character cut at the end", b"a \xe2\x80");
    check(
        "overlong and surrogate forms",
        b"\xc0\x80 \xe0\x80\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xf8\x88\x80\x80\x80",
    );
    check("separators", "a\u{2028}b\u{2029}c \u{85} \u{2028}".as_bytes());
    // A generator with a fixed seed (xorshift64), so that a failure can be repeated.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    for round in 0..20 {
        let bytes: Vec<u8> = (0..200_000).map(|_| noise()).collect();
        check(&format!("noise, round {round}"), &bytes);
    }
    // Much white space among two-byte sequences, many of which are not assigned.
    let bytes: Vec<u8> = (0..200_000)
        .flat_map(|_| match noise() % 4 {
            0 => vec![b' '],
            1 => vec![noise()],
            _ => vec![0xc2 + noise() % 30, 0x80 + noise() % 64],
        })
        .collect();
    check("noise of two-byte sequences", &bytes);
}
