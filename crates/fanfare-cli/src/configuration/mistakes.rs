//! What is wrong with `fanfare.toml`, where, and what was meant.

use std::fmt::Write;
use std::path::PathBuf;

use fanfare_protocol::shortened;
use toml::de::DeTable;

use crate::table::{abridged, shown};

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error("cannot read the settings file {}", shown(path))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: {mistake}", path.display())]
    Mistake { path: PathBuf, line: usize, column: usize, mistake: String },
}

/// The file as it is written, to say where in it something is.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl Source {
    pub(super) fn mistake(&self, offset: usize, mistake: String) -> ConfigurationError {
        let (line, column) = position(&self.text, offset);
        ConfigurationError::Mistake { path: self.path.clone(), line, column, mistake }
    }

    /// Where the value of a key begins, or the table that it should be in.
    pub(super) fn offset(&self, key: &[&str]) -> usize {
        let document = DeTable::parse(&self.text).ok();
        let (mut offset, mut table) = (0, document.as_ref().map(toml::Spanned::get_ref));
        for name in key {
            let Some(value) = table.and_then(|table| table.get(*name)) else { break };
            offset = value.span().start;
            table = value.get_ref().as_table();
        }
        offset
    }
}

/// Line and column, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The parser's message, without the names of Rust's types, and with what was meant by a name that is not known.
pub(super) fn in_plain_words(message: &str) -> String {
    let numbers = [("u16", "a whole number up to 65535"), ("u32", "a whole number up to 4294967295")];
    let others = [("usize", "a whole number"), ("u64", "a whole number")];
    let message = message.trim();
    for (name, meant) in numbers.into_iter().chain(others) {
        if let Some(found) = message.strip_suffix(&format!("expected {name}")) {
            return format!("{}expected {meant}", abridged(found));
        }
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.starts_with("unknown field"), names.next()) else {
        return abridged(message).into_owned();
    };
    let expected: Vec<&str> = names.collect();
    let mut mistake = format!("unknown field `{}`", shortened(unknown));
    match closest(unknown, expected.iter().copied()) {
        Some(meant) => write!(mistake, ", did you mean `{meant}`?").expect("a String takes everything"),
        None => {
            write!(mistake, "; the fields here are {}", expected.join(", "))
                .expect("a String takes everything");
        }
    }
    mistake
}

/// The name that was probably meant by one that is not known.
pub(crate) fn closest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below it, two names have too little in common (1 is equality).
    const SIMILAR: f64 = 0.75;
    let likenesses = known.map(|name| (name, strsim::jaro_winkler(unknown, name)));
    let (name, likeness) = likenesses.max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (likeness >= SIMILAR).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;

    #[test]
    fn mistakes_are_refused_with_their_line_and_what_was_meant() {
        for (text, expected) in [
            (
                "[worker]\nconcurency = 4",
                "fanfare.toml:2:1: unknown field `concurency`, did you mean `concurrency`?",
            ),
            (
                "prefix = \"a\"\n\n[workers]\n",
                "fanfare.toml:3:2: unknown field `workers`, did you mean `worker`?",
            ),
            (
                "[tls]\nxyz = 1",
                "fanfare.toml:2:1: unknown field `xyz`; the fields here are ca_certificate, client_certificate, client_key",
            ),
            (
                "prefix = \"a b\"",
                "fanfare.toml:1:10: prefix \"a b\" is not allowed: ' ' is not one of A-Z a-z 0-9 . _ : -",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
        for (text, line, expected) in [
            ("\n[worker]\nconcurrency = \"4\"", 3, "expected a whole number"),
            ("[worker]\nconcurrency = 0", 2, "0 is not allowed: give 1 or more"),
            ("[services.a]\nexec = [\"x\"]\nprefetch = 0", 3, "0 is not allowed: give 1 or more"),
            ("[stock.a]\nconcurrency = 0", 2, "0 is not allowed: give 1 or more"),
            ("[coordinator]\nprefetch = 70000", 2, "`70000`, expected a whole number up to 65535"),
            ("[coordinator]\nrenewal = \"0s\"", 2, "\"0s\" is not allowed: give 1 ms to 365 days"),
            ("[publisher]\ndeadline = \"2y\"", 2, "\"2y\" is not allowed: give 1 ms to 365 days, or none"),
            ("[worker]\nshutdown_deadline = \"5 parsecs\"", 2, "is no duration"),
            ("[publisher]\ndeadline = \"never\"", 2, "write it as 500ms, 30s, 5m or 1h, or none"),
            ("[services.a]\nexec = [\"x\"]\nhttp = \"http://y\"", 1, "this one has both"),
            ("\n[services.a]\ntimeout = \"5s\"", 2, "needs `exec"),
            (
                "[services.a]\nexec = [\"x\"]\nenv = { \"A=B\" = \"c\" }",
                1,
                "\"A=B\" in `env` is no name of a variable",
            ),
            ("[services.a]\nexec = [\"x\"]\nenv = { \"\" = \"c\" }", 1, "is no name of a variable"),
            (
                "[services.a]\nexec = [\"x\"]\nenv = { A = \"\\u0000\" }",
                1,
                "the value of \"A\" in `env` holds NUL",
            ),
            ("[services.a]\nexec = [\"x\"]\ntimout = \"5s\"", 3, "did you mean `timeout`?"),
            ("\n[services.\"a b\"]\nexec = [\"x\"]", 2, "service name \"a b\" is not allowed"),
            ("[stock.a]\nretry = { attempt = 5 }", 2, "did you mean `attempts`?"),
            ("broker = 5", 1, "expected a URL or a list of URLs"),
            ("[worker\n", 1, ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.starts_with(&format!("fanfare.toml:{line}:")) && error.contains(expected),
                "{error}"
            );
        }
    }
}
