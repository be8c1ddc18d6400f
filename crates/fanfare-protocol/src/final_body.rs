//! The final payload of a fan-out on its way out.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::payload::list_or_empty_string;
use crate::{Manifest, TargetResult, limits};

/// The final payload of a fan-out, as it travels. Cheap to clone: it shares the results with whoever holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinalBody {
    /// In the callback message itself.
    Whole(Bytes),
    /// In messages of its own, which the callback message refers to.
    Parts(Parts),
}

/// A final payload that is too large for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    head: Bytes,
    entries: Arc<[Entry]>,
    /// Bytes that a part gathers.
    most: usize,
}

/// A target's key, in JSON, and its result.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    key: Bytes,
    result: Bytes,
}

impl Entry {
    /// Bytes of the entry in an object.
    fn len(&self) -> usize {
        self.key.len() + ":".len() + self.result.len()
    }

    fn write(&self, to: &mut BytesMut) {
        to.put_slice(&self.key);
        to.put_u8(b':');
        to.put_slice(&self.result);
    }
}

/// Bytes of an object of these entries.
fn object_len(entries: &[Entry]) -> usize {
    let commas = entries.len().saturating_sub(1);
    "{}".len() + commas + entries.iter().map(Entry::len).sum::<usize>()
}

fn write_object(entries: &[Entry], to: &mut BytesMut) {
    to.put_u8(b'{');
    for (n, entry) in entries.iter().enumerate() {
        if n > 0 {
            to.put_u8(b',');
        }
        entry.write(to);
    }
    to.put_u8(b'}');
}

impl FinalBody {
    /// Bytes of the largest message that it needs.
    #[must_use]
    pub fn largest(&self) -> usize {
        match self {
            Self::Whole(body) => body.len(),
            Self::Parts(parts) => parts.cuts().map(object_len).fold(parts.head.len(), usize::max),
        }
    }

    /// All of it in one piece.
    #[must_use]
    pub fn joined(&self) -> Bytes {
        match self {
            Self::Whole(body) => body.clone(),
            Self::Parts(parts) => whole(&parts.head, &parts.entries),
        }
    }
}

impl Parts {
    /// What is in the callback message: the payload without its `data`.
    #[must_use]
    pub const fn head(&self) -> &Bytes {
        &self.head
    }

    /// Bytes of the payload as one message would have had it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        whole_len(&self.head, &self.entries)
    }

    /// The bodies of the parts, in their order, each put together when it is asked for: objects of entries of `data`. One
    /// gathers [`limits::PART_BYTES`] at most, or has a single entry.
    pub fn bodies(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.cuts().map(|entries| {
            let mut body = BytesMut::with_capacity(object_len(entries));
            write_object(entries, &mut body);
            body.freeze()
        })
    }

    fn cuts(&self) -> impl Iterator<Item = &[Entry]> {
        let mut rest = &self.entries[..];
        std::iter::from_fn(move || {
            let first = rest.first()?;
            let mut bytes = "{}".len() + first.len();
            let more = rest[1..].iter().take_while(|entry| {
                bytes += ",".len() + entry.len();
                bytes <= self.most
            });
            let (part, behind) = rest.split_at(1 + more.count());
            rest = behind;
            Some(part)
        })
    }
}

const DATA: &str = ",\"data\":";

fn whole_len(head: &Bytes, entries: &[Entry]) -> usize {
    head.len() + DATA.len() + object_len(entries)
}

fn whole(head: &Bytes, entries: &[Entry]) -> Bytes {
    let mut body = BytesMut::with_capacity(whole_len(head, entries));
    // The brace that ends the head comes after the data.
    body.put_slice(&head[..head.len() - 1]);
    body.put_slice(DATA.as_bytes());
    write_object(entries, &mut body);
    body.put_u8(b'}');
    body.freeze()
}

/// Puts the final payload of a fan-out together from result bodies, which go in as they are.
#[derive(Debug)]
pub struct FinalPayloadBuilder<'a> {
    manifest: &'a Manifest,
    results: Vec<Bytes>,
}

impl<'a> FinalPayloadBuilder<'a> {
    /// Starts the payload of a fan-out.
    #[must_use]
    pub fn new(manifest: &'a Manifest) -> Self {
        Self { manifest, results: Vec::with_capacity(manifest.targets.len()) }
    }

    /// Adds the result of the next target, in the manifest's order: a body that [`TargetResult::from_body`] accepts. It goes in as it
    /// is but for white space around it, and is not validated again.
    pub fn push(&mut self, body: &Bytes) {
        debug_assert!(crate::result::is_json(body), "a result that was not validated");
        self.results.push(body.slice_ref(body.trim_ascii()));
    }

    /// What the final callbacks receive: whole where it has at most `large` bytes, and otherwise in parts.
    ///
    /// A result for which alone a message of `most` bytes ([`limits::MESSAGE_BYTES`] unless the broker takes less) has no room is
    /// replaced by a failed one that says so. The outcome depends on the results alone, so every coordinator comes to the
    /// same bytes.
    #[must_use]
    pub fn finish(&self, large: usize, most: usize) -> FinalBody {
        debug_assert_eq!(self.results.len(), self.manifest.targets.len(), "one result for each target");
        let targets = self.manifest.targets.iter().enumerate().zip(&self.results);
        let entries: Vec<Entry> = targets
            .map(|((place, target), result)| {
                let key = Bytes::from(crate::result::to_json(&target.key));
                let entry = Entry { key, result: result.clone() };
                let bytes = object_len(std::slice::from_ref(&entry));
                if bytes <= most {
                    return entry;
                }
                match self.left_out(place, bytes, most) {
                    Some(result) if result.len() < entry.result.len() => Entry { result, ..entry },
                    _ => entry,
                }
            })
            .collect();
        let head = self.head();
        if whole_len(&head, &entries) <= large.min(most) {
            return FinalBody::Whole(whole(&head, &entries));
        }
        FinalBody::Parts(Parts {
            head,
            entries: entries.into(),
            most: limits::PART_BYTES.min(large).min(most),
        })
    }

    /// The failed result that takes the place of one for which there is no room.
    fn left_out(&self, place: usize, bytes: usize, most: usize) -> Option<Bytes> {
        let result = TargetResult::from_body(&self.results[place]).ok()?;
        let exception = match &result.exception {
            Some(exception) => shortened(exception).to_owned(),
            None => format!(
                "the response was left out: with its key the result has {bytes} bytes, and a message holds {most}"
            ),
        };
        let failed = TargetResult {
            source: self.manifest.source.to_string(),
            target: self.manifest.targets[place].service.to_string(),
            response: crate::result::null(),
            ok: false,
            exception: Some(exception),
            cid: self.manifest.cid.clone(),
            ..result
        };
        Some(crate::result::to_json(&failed).into())
    }

    /// The payload without its `data`.
    fn head(&self) -> Bytes {
        #[derive(Serialize)]
        struct Head<'a> {
            source: &'a str,
            req_ts_utc: crate::WireTime,
            #[serde(with = "list_or_empty_string")]
            on_target: Vec<String>,
            on_final: Vec<&'a str>,
        }
        let head = Head {
            source: self.manifest.source.as_str(),
            req_ts_utc: self.manifest.req_ts_utc,
            on_target: self.manifest.on_target.iter().map(ToString::to_string).collect(),
            on_final: self.manifest.on_final.iter().map(AsRef::as_ref).collect(),
        };
        crate::result::to_json(&head).into()
    }
}

/// The start of a text that takes at most so many bytes in JSON as leave room for all else in a small message.
fn shortened(text: &str) -> &str {
    const BYTES: usize = 150;
    let in_json = |c: char| match c {
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    };
    let mut bytes = 0;
    let end = text.char_indices().find(|(_, c)| {
        bytes += in_json(*c);
        bytes > BYTES
    });
    end.map_or(text, |(end, _)| &text[..end])
}
