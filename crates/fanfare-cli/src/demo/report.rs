//! What the demo found out, as a table and as JSON.

use std::fmt;

use std::path::{Path, PathBuf};

use fanfare::FinalPayload;
use fanfare::services::{FilePath, FileStats};
use serde::{Serialize, Serializer};

use super::files::{Entry, Missed};

/// The largest files that are listed.
const LARGEST: usize = 5;
/// Failures that the table lists. The JSON lists all.
const FAILURES_SHOWN: usize = 20;

/// The counts of all files.
#[derive(Debug)]
pub(super) struct Report<'a> {
    counted: Vec<(&'a Entry, FileStats)>,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    #[serde(serialize_with = "exact")]
    path: PathBuf,
    reason: String,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    files: u64,
    lines: u64,
    words: u64,
    bytes: u64,
}

impl<'a> Report<'a> {
    /// The report of no files yet, but of folders that could not be read.
    pub(super) fn new(missed: &[Missed]) -> Self {
        let failed = |missed: &Missed| Failed { path: missed.path.clone(), reason: missed.reason.clone() };
        Self { counted: Vec::new(), failed: missed.iter().map(failed).collect() }
    }

    /// Adds what a fan-out found out about some files.
    pub(super) fn add(&mut self, files: &'a [Entry], payload: &FinalPayload) {
        for file in files {
            match payload.get(file.key.as_str()) {
                Ok(stats) => self.counted.push((file, stats)),
                Err(error) => {
                    let reason =
                        payload.data.get(file.key.as_str()).and_then(|result| result.exception.clone());
                    let reason = reason.unwrap_or_else(|| error.to_string());
                    self.failed.push(Failed { path: file.path.clone(), reason });
                }
            }
        }
    }

    /// Whether every file was counted.
    pub(super) const fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// All of it, for programs. A path is a string, or the list of its bytes where it is not UTF-8, as in a request of
    /// demo.file-stats.
    pub(super) fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct File<'a> {
            #[serde(serialize_with = "exact")]
            path: &'a Path,
            #[serde(flatten)]
            stats: &'a FileStats,
        }
        #[derive(Serialize)]
        struct Whole<'a> {
            totals: Totals,
            largest: Vec<File<'a>>,
            failed: &'a [Failed],
            files: Vec<File<'a>>,
        }
        fn file<'a>((entry, stats): &'a (&Entry, FileStats)) -> File<'a> {
            File { path: &entry.path, stats }
        }
        let whole = Whole {
            totals: self.totals(),
            largest: self.largest().into_iter().map(file).collect(),
            failed: &self.failed,
            files: self.counted.iter().map(file).collect(),
        };
        serde_json::to_string_pretty(&whole).expect("names and numbers are JSON")
    }

    fn totals(&self) -> Totals {
        self.counted.iter().fold(Totals::default(), |totals, (_, stats)| Totals {
            files: totals.files + 1,
            lines: totals.lines + stats.lines,
            words: totals.words + stats.words,
            bytes: totals.bytes + stats.bytes,
        })
    }

    /// By size, and by name among equals.
    fn largest(&self) -> Vec<&(&'a Entry, FileStats)> {
        let mut all: Vec<_> = self.counted.iter().collect();
        all.sort_by_key(|(entry, stats)| (std::cmp::Reverse(stats.bytes), &entry.path));
        all.truncate(LARGEST);
        all
    }
}

/// Every byte of the path, whatever it is.
fn exact<P: AsRef<Path>, S: Serializer>(path: &P, serializer: S) -> Result<S::Ok, S::Error> {
    FilePath::from(path.as_ref()).serialize(serializer)
}

/// A path as a terminal can bear it: as it is, or in quotes and with escapes where anything in it needs one.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Quotes and backslashes need none.
        let quoted = |path: &str| path.replace('\\', r"\\").replace('\'', r"\'").replace('"', r#"\""#);
        match self.0.to_str().filter(|path| path.escape_debug().to_string() == quoted(path)) {
            Some(path) => f.write_str(path),
            None => write!(f, "{:?}", self.0),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.totals();
        writeln!(f, "{:>12} {:>12} {:>15}  {:64}  file", "lines", "words", "bytes", "sha256")?;
        for (entry, stats) in self.largest() {
            let FileStats { lines, words, bytes, sha256 } = stats;
            writeln!(f, "{lines:>12} {words:>12} {bytes:>15}  {sha256:64}  {}", Shown(&entry.path))?;
        }
        let Totals { files, lines, words, bytes } = totals;
        let rest = totals.files.saturating_sub(LARGEST as u64);
        if rest > 0 {
            writeln!(f, "{:>12} {:>12} {:>15}  {:64}  and {rest} smaller files", "...", "...", "...", "")?;
        }
        let many = if files == 1 { "file" } else { "files" };
        write!(f, "{lines:>12} {words:>12} {bytes:>15}  {:64}  total of {files} {many}", "")?;
        if self.failed.is_empty() {
            return Ok(());
        }
        write!(f, "\n\n{} failed:", self.failed.len())?;
        for Failed { path, reason } in self.failed.iter().take(FAILURES_SHOWN) {
            write!(f, "\n  {}: {reason}", Shown(path))?;
        }
        match self.failed.len().saturating_sub(FAILURES_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more, which --json lists"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn paths_are_exact_for_programs_and_safe_for_terminals() {
        for (path, json, shown) in [
            (&b"a b/gr\xc3\xb6\xc3\x9fe"[..], "\"a b/größe\"", "a b/größe"),
            ("it's \\ e\u{301}".as_bytes(), "\"it's \\\\ e\u{301}\"", "it's \\ e\u{301}"),
            (b"line\nbreak", "\"line\\nbreak\"", "\"line\\nbreak\""),
            (b"\x1b[2J", "\"\\u001b[2J\"", "\"\\u{1b}[2J\""),
            ("\u{202e}txt".as_bytes(), "\"\u{202e}txt\"", "\"\\u{202e}txt\""),
            (b"a\xff", "[97,255]", "\"a\\xFF\""),
        ] {
            let failed = Failed { path: PathBuf::from(OsStr::from_bytes(path)), reason: String::new() };
            let expected = format!("{{\"path\":{json},\"reason\":\"\"}}");
            assert_eq!(serde_json::to_string(&failed).unwrap(), expected);
            assert_eq!(Shown(&failed.path).to_string(), shown);
        }
    }
}
