use std::fmt;
use std::str::FromStr;

use serde::{Deserializer, Serialize, Serializer};

use crate::{HeaderValue, Message, header, limits};

/// A span of a distributed trace, as the header `traceparent` of W3C's Trace Context names it.
///
/// Nothing depends on it: what is no such name is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, which is not zero.
    pub trace: [u8; 16],
    /// The span in it, which is not zero.
    pub span: [u8; 8],
    /// Flags; the lowest says that the trace is recorded.
    pub flags: u8,
}

/// It does not name a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no traceparent: give 00-<32 hex>-<16 hex>-<2 hex>, and neither of the first two all zeros")]
pub struct InvalidTraceParent;

impl TraceParent {
    /// What the header of a message names.
    #[must_use]
    pub fn of(message: &Message) -> Option<Self> {
        message.text(header::TRACEPARENT)?.parse().ok()
    }

    /// The spans that a message links to.
    #[must_use]
    pub fn links_of(message: &Message) -> Vec<Self> {
        let Some(HeaderValue::List(links)) = message.headers.get(header::LINKS) else { return Vec::new() };
        let link = |value: &HeaderValue| match value {
            HeaderValue::Text(text) => text.parse().ok(),
            _ => None,
        };
        links.iter().take(limits::LINKS).filter_map(link).collect()
    }

    /// Reads the field of a message's body leniently.
    pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(crate::result::text(deserializer)?.and_then(|text| text.parse().ok()))
    }
}

impl Message {
    /// The same message, under a span.
    #[must_use]
    pub fn traced(self, parent: Option<TraceParent>) -> Self {
        match parent {
            Some(parent) => self.with_header(header::TRACEPARENT, parent.to_string()),
            None => self,
        }
    }

    /// The same message, with links to spans: [`limits::LINKS`] at most.
    #[must_use]
    pub fn linked(mut self, links: &[TraceParent]) -> Self {
        if !links.is_empty() {
            let links = links.iter().take(limits::LINKS).map(|link| HeaderValue::from(link.to_string()));
            self.headers.insert(header::LINKS, HeaderValue::List(links.collect()));
        }
        self
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let mut fields = text.split('-');
        let mut field = |digits: usize| {
            let field = fields.next().filter(|field| field.len() == digits)?;
            let is_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            field.bytes().all(is_hex).then(|| u128::from_str_radix(field, 16).ok()).flatten()
        };
        let (version, trace, span, flags) = (field(2), field(32), field(16), field(2));
        let more = fields.next().is_some();
        match (version, trace, span, flags) {
            (Some(version @ 0..=0xfe), Some(trace @ 1..), Some(span @ 1..), Some(flags))
                if version > 0 || !more =>
            {
                let (span, flags) = (span.to_be_bytes(), flags.to_be_bytes());
                let span = span[8..].try_into().expect("8 of 16 bytes");
                Ok(Self { trace: trace.to_be_bytes(), span, flags: flags[15] })
            }
            _ => Err(InvalidTraceParent),
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read_again_and_a_later_version_by_what_it_shares() {
        assert_eq!(PARENT.parse::<TraceParent>().unwrap().to_string(), PARENT);
        let later = PARENT.replacen("00", "cc", 1) + "-what-comes-later";
        assert_eq!(later.parse::<TraceParent>().unwrap().to_string(), PARENT);
    }

    #[test]
    fn what_names_no_span_is_passed_over() {
        for wrong in [
            "",
            "00",
            "00-0-0-0",
            &PARENT.replacen("00", "ff", 1),
            &PARENT.to_uppercase(),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &format!("{PARENT}-"),
            &PARENT.replace('f', "+"),
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(InvalidTraceParent), "{wrong}");
            let message = Message::default().with_header(header::TRACEPARENT, wrong);
            assert_eq!(TraceParent::of(&message), None);
        }
    }

    #[test]
    fn message_links_to_so_many_spans_and_no_more() {
        let link: TraceParent = PARENT.parse().unwrap();
        let message = Message::default().linked(&vec![link; limits::LINKS + 1]);
        assert_eq!(TraceParent::links_of(&message), vec![link; limits::LINKS]);
        assert_eq!(TraceParent::links_of(&Message::default().linked(&[])), []);
    }
}
