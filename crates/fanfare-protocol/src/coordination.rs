use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::message::Message;
use crate::name::{Cid, RunId, TargetKey};
use crate::{Malformed, Manifest, TraceParent, header};

/// Results that a coordinator wrote back to the aggregation queue in one message, so that it can ack the originals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Drawn by the coordinator that wrote it; the same in all checkpoints of its hold on the fan-out.
    pub coordinator: RunId,
    /// Counts the checkpoints of that coordinator's hold, from 0.
    pub number: u64,
    /// Whether the on-target callbacks of these results are confirmed in their queues. Where they are not, whoever
    /// takes the fan-out over publishes them.
    pub called: bool,
    /// The results, in the order in which they counted.
    pub entries: Vec<CheckpointEntry>,
}

/// One result in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// The target's key.
    pub key: TargetKey,
    /// The result's body, byte for byte.
    pub body: Bytes,
    /// The target's span.
    pub traceparent: Option<TraceParent>,
}

impl CheckpointEntry {
    /// Bytes that it takes up in a checkpoint, at most.
    fn bytes(&self) -> usize {
        /// Field names and marks; the same around a `traceparent`, and that.
        const AROUND: usize = r#",{"key":"","result":}"#.len();
        const TRACED: usize = r#","traceparent":"""#.len() + 55;
        // A key's control characters are excluded, so escaping at most doubles it.
        self.body.len() + 2 * self.key.as_str().len() + AROUND + self.traceparent.map_or(0, |_| TRACED)
    }

    fn write(&self, to: &mut Vec<u8>) {
        debug_assert!(crate::result::is_json(&self.body), "a result that was not validated");
        to.extend(br#"{"key":"#);
        to.extend(crate::result::to_json(&self.key));
        to.extend(br#","result":"#);
        to.extend(&self.body);
        if let Some(traceparent) = &self.traceparent {
            to.extend(br#","traceparent":"#);
            to.extend(crate::result::to_json(traceparent));
        }
        to.push(b'}');
    }
}

#[derive(Serialize)]
struct CheckpointHead {
    coordinator: RunId,
    number: u64,
    called: bool,
}

#[derive(Deserialize)]
struct CheckpointBody<'a> {
    #[serde(deserialize_with = "crate::name::id")]
    coordinator: RunId,
    number: u64,
    called: bool,
    #[serde(borrow, deserialize_with = "crate::object::list")]
    results: Vec<EntryBody<'a>>,
}

#[derive(Deserialize)]
struct EntryBody<'a> {
    key: TargetKey,
    #[serde(borrow)]
    result: &'a RawValue,
    #[serde(default, deserialize_with = "TraceParent::read")]
    traceparent: Option<TraceParent>,
}

impl Checkpoint {
    /// The message as the aggregation queue takes it. The bodies of its entries go in as they are, and are not validated again: only what
    /// [`TargetResult::from_body`](crate::TargetResult::from_body) accepts may be put into one, without white space around it.
    #[must_use]
    pub fn encode(&self, manifest: &Manifest) -> Message {
        let Self { coordinator, number, called, entries } = self;
        let head = CheckpointHead { coordinator: *coordinator, number: *number, called: *called };
        let mut body = crate::result::to_json(&head);
        body.reserve_exact(
            entries.iter().map(CheckpointEntry::bytes).sum::<usize>() + r#","results":[]}"#.len(),
        );
        // The brace that ends the head comes after the results.
        body.pop();
        body.extend(br#","results":["#);
        for (n, entry) in entries.iter().enumerate() {
            if n > 0 {
                body.push(b',');
            }
            entry.write(&mut body);
        }
        body.extend(b"]}");
        let id = format!("{}/checkpoint/{}/{}", manifest.cid, self.coordinator, self.number);
        let mut message = Message::of(header::TYPE_CHECKPOINT, &manifest.cid, id, body);
        message.headers.insert(header::RUN, manifest.run);
        message
    }

    /// The number of a checkpoint that this coordinator wrote, which has its results and need not decode them.
    #[must_use]
    pub fn number_of(message: &Message, coordinator: RunId) -> Option<u64> {
        Written::number_of(message, coordinator)
    }

    /// Decodes the body of a checkpoint.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        let body: CheckpointBody<'_> = crate::result::from_json("checkpoint", &message.body)?;
        let entry = |entry: EntryBody<'_>| CheckpointEntry {
            key: entry.key,
            body: message.body.slice_ref(entry.result.get().as_bytes()),
            traceparent: entry.traceparent,
        };
        Ok(Self {
            coordinator: body.coordinator,
            number: body.number,
            called: body.called,
            entries: body.results.into_iter().map(entry).collect(),
        })
    }
}

/// A place in an aggregation queue. A coordinator that takes over writes one, and emits nothing until it reads it back:
/// all that its predecessor left lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Drawn afresh for every fence.
    #[serde(deserialize_with = "crate::name::id")]
    pub token: RunId,
}

impl Fence {
    /// The message as the aggregation queue takes it.
    #[must_use]
    pub fn encode(&self, manifest: &Manifest) -> Message {
        let id = format!("{}/fence/{}", manifest.cid, self.token);
        let mut message = Message::of(header::TYPE_FENCE, &manifest.cid, id, crate::result::to_json(self));
        message.headers.insert(header::RUN, manifest.run);
        message
    }

    /// The message as a shard takes it: a mark for all fan-outs in it.
    ///
    /// # Panics
    /// Where `shard` is not the name of a shard.
    #[must_use]
    pub fn encode_in_shard(&self, shard: &str) -> Message {
        let id = format!("{shard}/fence/{}", self.token);
        Message::of(header::TYPE_FENCE, &of_shard(shard), id, crate::result::to_json(self))
    }

    /// Decodes the body of a fence.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        crate::result::from_json("fence", &message.body)
    }
}

/// A fence that nobody waits for: its token is the run. Its confirm tells who wrote it that what it has read before is on the broker's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The hold that wrote it.
    pub coordinator: RunId,
    /// Counts its marks.
    pub number: u64,
    /// Whether it is as large as what RabbitMQ keeps apart.
    pub is_padded: bool,
}

#[derive(Serialize)]
struct MarkBody {
    token: RunId,
    coordinator: RunId,
    number: u64,
    /// Spaces.
    #[serde(skip_serializing_if = "String::is_empty")]
    padding: String,
}

impl Mark {
    /// Bytes of a message from which on RabbitMQ keeps it in the store of its virtual host, and no longer among its queue's own
    /// (`queue_index_embed_msgs_below`). The confirm of one that lies there says that smaller ones before it are kept, too; that of a smaller
    /// one says nothing of larger ones.
    const BYTES: usize = 4_096;

    /// The message as the aggregation queue takes it.
    #[must_use]
    pub fn encode(&self, manifest: &Manifest) -> Message {
        let Self { coordinator, number, is_padded } = *self;
        let padding = if is_padded { " ".repeat(Self::BYTES) } else { String::new() };
        let body = MarkBody { token: manifest.run, coordinator, number, padding };
        let id = format!("{}/mark/{coordinator}/{number}", manifest.cid);
        let mut message = Message::of(header::TYPE_FENCE, &manifest.cid, id, crate::result::to_json(&body));
        message.headers.insert(header::RUN, manifest.run);
        message
    }

    /// The number of a mark that this coordinator wrote.
    #[must_use]
    pub fn number_of(message: &Message, coordinator: RunId) -> Option<u64> {
        Written::number_of(message, coordinator)
    }
}

/// By which a coordinator knows what it wrote itself.
#[derive(Deserialize)]
struct Written {
    coordinator: RunId,
    number: u64,
}

impl Written {
    fn number_of(message: &Message, coordinator: RunId) -> Option<u64> {
        let written: Self = crate::result::from_json("message", &message.body).ok()?;
        (written.coordinator == coordinator).then_some(written.number)
    }
}

/// What lies in an aggregation queue from before its manifest to its deletion. A broker that is killed over that deletion can bring
/// the queue back without its messages: a queue without its sentinel is one whose fan-out has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sentinel;

impl Sentinel {
    /// The message as the aggregation queue takes it.
    #[must_use]
    pub fn encode(cid: &Cid, run: RunId) -> Message {
        let mut message = Message::of(header::TYPE_SENTINEL, cid, format!("{cid}/sentinel"), "{}");
        message.headers.insert(header::RUN, run);
        message
    }
}

/// The record, in a shard, that fan-outs have ended: all their callbacks are confirmed. It is there before their manifests are
/// acked, so that a stray copy of one is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The hold on the shard in which it was written.
    #[serde(deserialize_with = "crate::name::id")]
    pub coordinator: RunId,
    /// Counts the records of that hold, from 0.
    pub number: u64,
    /// The fan-outs, in the order in which they ended.
    #[serde(deserialize_with = "crate::object::list")]
    pub ended: Vec<EndedRun>,
}

/// A fan-out that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRun {
    /// The run.
    pub run: RunId,
    /// Milliseconds that it had ended before, when this was written.
    pub age_ms: u64,
}

impl Ended {
    /// The message as a shard takes it.
    ///
    /// # Panics
    /// Where `shard` is not the name of a shard.
    #[must_use]
    pub fn encode(&self, shard: &str) -> Message {
        let id = format!("{shard}/ended/{}/{}", self.coordinator, self.number);
        Message::of(header::TYPE_ENDED, &of_shard(shard), id, crate::result::to_json(self))
    }

    /// Decodes the body of a record.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        crate::result::from_json("record", &message.body)
    }
}

/// What stands for the CID in messages that belong to a whole shard.
fn of_shard(shard: &str) -> Cid {
    Cid::new(shard).expect("the name of a shard keeps the rules for a CID")
}
