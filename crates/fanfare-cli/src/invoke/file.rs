//! `--targets`: a dictionary, a list, or JSON lines.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::target::Given;
use crate::table::{abridged, shown};

/// Bytes that a file of targets may have.
const MOST_BYTES: u64 = 1024 * 1024 * 1024;
/// Mistakes that are told.
const MOST_MISTAKES: usize = 10;

/// Reads the file, or standard input for `-`.
///
/// # Errors
/// What is wrong with them: the first ten mistakes, where they can be seen at once.
pub(super) fn read(path: &Path) -> Result<Vec<Given>, Vec<Error>> {
    let (name, text) = if path == Path::new("-") {
        ("standard input".to_owned(), text_of(io::stdin().lock()))
    } else {
        (shown(path), File::open(path).map_err(Into::into).and_then(text_of))
    };
    let text = text.with_context(|| format!("cannot read the targets from {name}"));
    let text = text.map_err(|mistake| vec![mistake])?;
    let located = |mistake: Error| mistake.context(format!("the targets of {name}"));
    parse(&text).map_err(|mistakes| mistakes.into_iter().map(located).collect())
}

fn text_of(reader: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    let read = reader.take(MOST_BYTES + 1).read_to_end(&mut bytes)? as u64;
    if read > MOST_BYTES {
        bail!("there are more than {MOST_BYTES} bytes: split the fan-out");
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        anyhow!("line {line} has bytes that are not UTF-8, which JSON is written in: save them as UTF-8")
    })
}

/// Reads what such a file holds.
pub(super) fn parse(text: &str) -> Result<Vec<Given>, Vec<Error>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let one = |mistake| vec![mistake];
    match text.trim_start().chars().next() {
        None => Err(one(anyhow!("there are none: write {{}} for a fan-out without targets"))),
        Some('[') => all(list(text).map_err(one)?),
        Some('{') if is_lines(text) => all(lines(text)),
        Some('{') => dictionary(text).map_err(one),
        Some(_) => Err(one(anyhow!(
            "they begin neither with {{ nor with [: give a dictionary, a list or JSON lines"
        ))),
    }
}

/// All of them, or what is wrong with the first that are refused.
fn all(read: impl Iterator<Item = Result<Given>>) -> Result<Vec<Given>, Vec<Error>> {
    let (mut targets, mut mistakes) = (Vec::new(), Vec::new());
    for target in read {
        match target {
            Ok(target) => targets.push(target),
            Err(mistake) => mistakes.push(mistake),
        }
        if mistakes.len() == MOST_MISTAKES {
            break;
        }
    }
    if mistakes.is_empty() { Ok(targets) } else { Err(mistakes) }
}

/// One target of a list or of JSON lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: Option<String>,
    service: String,
    request: Option<Box<RawValue>>,
}

impl Entry {
    fn check(self) -> Result<Given> {
        Given::new(self.key.as_deref(), &self.service, self.request)
    }
}

fn list(text: &str) -> Result<impl Iterator<Item = Result<Given>>> {
    let entries: Vec<Entry> =
        serde_json::from_str(text).map_err(|error| anyhow!("{}", abridged(&error.to_string())))?;
    let numbered = entries.into_iter().zip(1..);
    Ok(numbered.map(|(entry, number)| entry.check().with_context(|| format!("target {number}"))))
}

/// Whether one object follows the other, or the only one is a target and no dictionary of targets.
fn is_lines(text: &str) -> bool {
    let mut objects = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let Some(Ok(first)) = objects.next() else { return false };
    objects.next().is_some() || serde_json::from_str::<Entry>(first.get()).is_ok()
}

fn lines(text: &str) -> impl Iterator<Item = Result<Given>> {
    let numbered = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let parse = |line: &str| serde_json::from_str::<Entry>(line).map_err(within_line)?.check();
    numbered.map(move |(line, number)| parse(line).with_context(|| format!("line {number}")))
}

/// The parser takes every line for the first, so that only its column says anything.
fn within_line(error: serde_json::Error) -> anyhow::Error {
    let (text, place) = (error.to_string(), format!(" at line 1 column {}", error.column()));
    anyhow!("{} at column {}", abridged(text.strip_suffix(&place).unwrap_or(&text)), error.column())
}

fn dictionary(text: &str) -> Result<Vec<Given>> {
    /// In the order in which they are written.
    struct Targets(Vec<Given>);

    impl<'de> Deserialize<'de> for Targets {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(InOrder).map(Self)
        }
    }

    struct InOrder;

    impl<'de> Visitor<'de> for InOrder {
        type Value = Vec<Given>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a dictionary of services and requests")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Given>, A::Error> {
            let (mut targets, mut seen) = (Vec::new(), BTreeSet::new());
            while let Some(service) = map.next_key::<String>()? {
                let target = Given::new(None, &service, None).map_err(A::Error::custom)?;
                if !seen.insert(service.clone()) {
                    return Err(A::Error::custom(format_args!(
                        "`{service}` is there twice: give a list, in which each target can have a key of its own"
                    )));
                }
                targets.push(target.with_request(map.next_value()?));
            }
            Ok(targets)
        }
    }

    Ok(serde_json::from_str::<Targets>(text)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        let shown = |mistakes: Vec<Error>| mistakes.iter().map(|mistake| format!("{mistake:#}\n")).collect();
        let targets = parse(text).map_err(|mistakes| -> String { shown(mistakes) })?;
        Ok(targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn dictionary_keeps_its_order_and_its_bytes() {
        assert_eq!(shown("{\"b\": {\"x\": 1.0}, \"a\": null}").unwrap(), "b@b={\"x\": 1.0} a@a=null");
        assert_eq!(shown(" {} ").unwrap(), "");
    }

    #[test]
    fn list_and_lines_are_the_same() {
        let first = "{\"key\":\"k\",\"service\":\"s\",\"request\":[1]}";
        let second = "{\"service\":\"t\"}";
        let expected = "k@s=[1] t@t=null";
        assert_eq!(shown(&format!("[{first},\n{second}]")).unwrap(), expected);
        assert_eq!(shown(&format!("{first}\n\n{second}\n")).unwrap(), expected);
        assert_eq!(shown(&format!("\u{feff}{first}\r\n{second}")).unwrap(), expected);
        assert_eq!(shown(second).unwrap(), "t@t=null");
        assert_eq!(shown("[]").unwrap(), "");
    }

    #[test]
    fn mistakes_say_where_they_are() {
        for (text, expected) in [
            ("", "there are none"),
            ("5", "neither with { nor with ["),
            ("{\"a\": 1,\n \"b\": }", "line 2"),
            ("{\"a\": 1, \"b\": 2, \"a\": 3}", "`a` is there twice"),
            ("{\"a b\": 1}", "service name \"a b\" is not allowed"),
            ("{\"service\":\"s\"}\n{\"servce\":\"s\"}", "line 2: unknown field `servce`"),
            ("{\"service\":\"s\"}\n{\"service\":\"s\"} x", "line 2: trailing characters at column"),
            ("{\"servce\":\"s\"}\n{\"service\":\"s\"}", "line 1: unknown field `servce`"),
            ("{\"service\":\"\"}\n{\"service\":\"s\"}\n{", "line 3: EOF"),
            ("{\"service\":\"s\"}\n{\"service\":\"\"}\n{", "line 2: service name \"\" is not allowed"),
            (
                "[{\"service\":\"s\"},{\"service\":\"s\",\"key\":\"\"}]",
                "target 2: target key \"\" is not allowed",
            ),
            ("[{\"service\":\"s\",\"payload\":1}]", "unknown field `payload`"),
        ] {
            let error = shown(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
