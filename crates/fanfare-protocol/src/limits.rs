//! Limits of the protocol, each with its unit and its reason.

/// Characters in a service name, a source or a CID. An AMQP short string holds 255 bytes, and a callback's
/// `message_id` holds a CID and a service name.
pub const NAME_CHARS: usize = 100;
/// Bytes in a target's key, which travels in a header and is compared as a short string.
pub const KEY_BYTES: usize = 255;
/// Characters in the prefix of queue names.
pub const PREFIX_CHARS: usize = 32;
/// Bytes of keys and values together in the caller's metadata.
pub const METADATA_BYTES: usize = 4 * 1024;
/// Bytes of headers that a parked message keeps, about. All headers travel in one frame, which holds 128 KiB unless an
/// operator says otherwise, and a stranger's message may have filled it: with what parking adds, it could not be sent.
pub const PARKED_HEADER_BYTES: usize = 64 * 1024;
/// Bytes of one message body. RabbitMQ 4 refuses messages above 16 MiB; what is left is for headers.
pub const MESSAGE_BYTES: usize = 16 * 1024 * 1024 - 64 * 1024;
/// Bytes of one result's body. A larger one completes its target as failed. Half of [`MESSAGE_BYTES`], so that a
/// checkpoint that holds one result always fits into a message.
pub const RESULT_BYTES: usize = MESSAGE_BYTES / 2;
/// Bytes of results that a worker puts into one message: one frame, of 128 KiB unless an operator says otherwise. More gain
/// nothing, and one that is larger travels alone.
pub const BUNDLE_BYTES: usize = 120 * 1024;
/// Results in one message. It bounds what a message can grow to when it is read.
pub const BUNDLED: usize = 1_000;
/// Bytes of a message beside which its receiver takes others while a queue does not take what follows from it. Thousands of them are held
/// then: a service with the default prefetch holds some 150 MB at the most, which are request, response, and what is published of it.
pub const HELD_BYTES: usize = 16 * 1024;
/// Bytes of results that one checkpoint gathers before it is left alone.
pub const CHECKPOINT_BYTES: usize = MESSAGE_BYTES / 2;
/// Bytes that a part of a final payload gathers, where that travels in parts: enough for the cost of a message not to matter, and
/// little to hold for whoever reads one after the other.
pub const PART_BYTES: usize = 1024 * 1024;
/// Targets of one fan-out: what its manifest can list within [`MESSAGE_BYTES`] with keys of ordinary length.
pub const TARGETS: usize = 100_000;
/// Shards that one prefix can have. Each is a quorum queue; as many as a broker has cores are plenty.
pub const SHARDS: u32 = 1_024;
/// Callbacks of one kind in one fan-out.
pub const CALLBACKS: usize = 100;
/// Levels of arrays and objects in a payload or a response. Parsers give up at some depth, and some of them crash: Ruby's
/// stops at 100 levels, `serde_json` at 128, Python's near 1,000. A receiver of a final payload, which has
/// [`PAYLOAD_LEVELS`] more, is to be able to parse it whole.
pub const NESTING: usize = 96;
/// Levels that a final payload puts around each response: itself, `data` and the result.
pub const PAYLOAD_LEVELS: usize = 3;
/// Spans that a final callback links to: those of so many targets, the first ones of the manifest.
pub const LINKS: usize = 128;
/// Fan-outs, or targets of one fan-out, that one answer to an operator tells of: as much as a person can look through, and
/// far from [`MESSAGE_BYTES`].
pub const TOLD: usize = 1_000;
/// Fan-outs that have ended lately, and failures, of which an answer to an operator who watches tells.
pub const LATELY: usize = 50;
/// Services that such an answer names. Whoever watches looks at the queue of each.
pub const SERVICES_TOLD: usize = 50;
/// Failed targets of one fan-out that an answer to an operator tells of, which are longer: with their exceptions.
pub const FAILURES_TOLD: usize = 100;
/// Characters of an exception in an answer to an operator.
pub const EXCEPTION_TOLD_CHARS: usize = 500;
/// Fan-outs with one CID that an answer to an operator explains.
pub const EXPLAINED: usize = 10;
