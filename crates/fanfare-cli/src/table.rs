//! Columns for a terminal.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use fanfare_protocol::quoted;

/// Cells of text as lines, each column as wide as its widest cell.
pub(crate) fn lines(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Text of others, in one line and without what a terminal would act upon.
pub(crate) fn plain(text: &str) -> String {
    let bearable = |c: char| match c {
        '\'' | '"' | '\\' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(bearable).collect()
}

/// A path for an error message.
pub(crate) fn shown(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// What a parser says, without the middle where it repeats something long.
pub(crate) fn abridged(message: &str) -> Cow<'_, str> {
    /// Characters that are left at each end.
    const CHARS: usize = 200;
    let start = message.char_indices().nth(CHARS).map(|(end, _)| &message[..end]);
    let end = message.char_indices().rev().nth(CHARS - 1).map(|(start, _)| &message[start..]);
    match (start, end) {
        (Some(start), Some(end)) if start.len() + end.len() < message.len() => {
            format!("{start}... ({} bytes) ...{end}", message.len()).into()
        }
        _ => message.into(),
    }
}

/// A duration to the second, in its two largest units.
pub(crate) fn rounded(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [["CID", "DONE"], ["long-one", "1"], ["é", "10"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(lines(&rows), ["CID       DONE", "long-one  1", "é         10"]);
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped() {
        assert_eq!(plain("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
    }

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        assert_eq!(abridged("unknown field `x` at line 1"), "unknown field `x` at line 1");
        let message = format!("unknown field `{}` at line 1", "é".repeat(50_000));
        let short = abridged(&message);
        assert!(short.starts_with("unknown field `é") && short.ends_with("é` at line 1"), "{short}");
        assert!(short.contains("é... (100026 bytes) ...é") && short.chars().count() < 500, "{short}");
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(rounded(Duration::from_millis(90_061_900)), "1day 1h");
        assert_eq!(rounded(Duration::from_millis(300)), "0s");
    }
}
