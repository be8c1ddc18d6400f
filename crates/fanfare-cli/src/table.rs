//! Columns for a terminal.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::Duration;

use fanfare_protocol::quoted;
use rustix::termios;

/// What stands between two columns.
const GAP: &str = "  ";
/// Characters that are left of a column that is cut.
const FEWEST: usize = 6;

/// Cells of text as lines, each column as wide as its widest cell.
pub(crate) fn lines(rows: &[Vec<String>]) -> Vec<String> {
    fitted(rows, None, &[])
}

/// The same, below a header, in lines of so many characters. The columns with these names are cut for that, the widest first. Where
/// that is not enough, a row takes as few lines as it can.
pub(crate) fn fitted(rows: &[Vec<String>], most: Option<usize>, may_be_cut: &[&str]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..columns).map(widest).collect();
    let is_cut = |column: usize| {
        rows.first()
            .and_then(|header| header.get(column))
            .is_some_and(|name| may_be_cut.contains(&name.as_str()))
    };
    let gaps = GAP.len() * columns.saturating_sub(1);
    let fewest = |(column, &width): (usize, &usize)| if is_cut(column) { width.min(FEWEST) } else { width };
    let least = widths.iter().enumerate().map(fewest).sum::<usize>() + gaps;
    let most = most.map(|most| least.div_ceil(most) * most);
    while most.is_some_and(|most| widths.iter().sum::<usize>() + gaps > most) {
        let cut = widths.iter_mut().enumerate().filter(|(column, _)| is_cut(*column));
        let Some(widest) = cut.map(|(_, width)| width).max() else { break };
        *widest -= 1;
    }
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", cut(cell, *width)));
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn cut(cell: &str, width: usize) -> Cow<'_, str> {
    match cell.char_indices().nth(width) {
        None => cell.into(),
        Some(_) => cell.chars().take(width - 1).chain(['…']).collect::<String>().into(),
    }
}

/// How many characters a line of the terminal has that standard output is. None where it is none.
pub(crate) fn terminal_width() -> Option<usize> {
    let columns = termios::tcgetwinsize(io::stdout()).ok()?.ws_col;
    (columns > 0).then(|| columns.into())
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
    fn widest_of_the_columns_that_may_be_is_cut_until_a_row_fits() {
        let rows = [["CID", "FROM", "REASON"], ["a-long-one", "price.quote", "ünknown service"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let row = |most| fitted(&rows, most, &["FROM", "REASON"]).swap_remove(1);
        let whole = "a-long-one  price.quote  ünknown service";
        assert_eq!(row(None), whole);
        assert_eq!(row(Some(40)), whole);
        assert_eq!(row(Some(37)), "a-long-one  price.quote  ünknown ser…");
        assert_eq!(row(Some(32)), "a-long-one  price.qu…  ünknown …");
        assert_eq!(row(Some(26)), "a-long-one  price…  ünkno…");
        assert_eq!(row(Some(25)), whole, "it takes two lines all the same");
        assert_eq!(row(Some(13)), "a-long-one  price…  ünkno…", "what may not be cut stays whole");
        assert!(fitted(&[], Some(1), &["CID"]).is_empty());
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
