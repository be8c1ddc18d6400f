//! `--targets`: a dictionary, a list, or JSON lines.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::target::Given;

/// Bytes that a file of targets may have.
const MOST_BYTES: u64 = 1024 * 1024 * 1024;

/// Reads the file, or standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<Given>> {
    let (name, text) = if path == Path::new("-") {
        ("standard input".to_owned(), text_of(io::stdin().lock()))
    } else {
        (format!("{path:?}"), File::open(path).map_err(Into::into).and_then(text_of))
    };
    let text = text.with_context(|| format!("cannot read the targets from {name}"))?;
    parse(&text).with_context(|| format!("the targets of {name}"))
}

fn text_of(reader: impl Read) -> Result<String> {
    let mut text = String::new();
    let read = reader.take(MOST_BYTES + 1).read_to_string(&mut text)? as u64;
    if read > MOST_BYTES {
        bail!("there are more than {MOST_BYTES} bytes: split the fan-out");
    }
    Ok(text)
}

/// Reads what such a file holds.
pub(super) fn parse(text: &str) -> Result<Vec<Given>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.trim_start().chars().next() {
        None => bail!("there are none: write {{}} for a fan-out without targets"),
        Some('[') => list(text),
        Some('{') if is_lines(text) => lines(text),
        Some('{') => dictionary(text),
        Some(_) => bail!("they begin neither with {{ nor with [: give a dictionary, a list or JSON lines"),
    }
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

fn list(text: &str) -> Result<Vec<Given>> {
    let entries: Vec<Entry> = serde_json::from_str(text)?;
    let numbered = entries.into_iter().zip(1..);
    numbered.map(|(entry, number)| entry.check().with_context(|| format!("target {number}"))).collect()
}

/// Whether one object follows the other, or the only one is a target and no dictionary of targets.
fn is_lines(text: &str) -> bool {
    let mut objects = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let Some(Ok(first)) = objects.next() else { return false };
    objects.next().is_some() || serde_json::from_str::<Entry>(first.get()).is_ok()
}

fn lines(text: &str) -> Result<Vec<Given>> {
    let numbered = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let parse = |line: &str| serde_json::from_str::<Entry>(line).map_err(within_line)?.check();
    numbered.map(|(line, number)| parse(line).with_context(|| format!("line {number}"))).collect()
}

/// The parser takes every line for the first, so that only its column says anything.
fn within_line(error: serde_json::Error) -> anyhow::Error {
    let (text, place) = (error.to_string(), format!(" at line 1 column {}", error.column()));
    anyhow!("{} at column {}", text.strip_suffix(&place).unwrap_or(&text), error.column())
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
        let targets = parse(text).map_err(|error| format!("{error:#}"))?;
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
            ("{\"service\":\"s\"}\n{\"service\":\"\"}", "line 2: service name \"\" is not allowed"),
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
