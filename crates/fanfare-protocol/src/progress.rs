use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::{Malformed, Manifest, header};

/// How far a fan-out has come: what a coordinator tells a waiting caller who wants to know, now and then.
///
/// Nothing depends on it. One may be lost, and the next one makes up for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Targets whose result counts, whether they succeeded or failed.
    pub responded: usize,
    /// All targets.
    pub targets: usize,
}

impl Progress {
    /// The message as the caller's queue takes it.
    #[must_use]
    pub fn encode(&self, manifest: &Manifest) -> Message {
        let id = format!("{}/progress", manifest.cid);
        let mut message = Message::of(header::TYPE_PROGRESS, &manifest.cid, id, crate::result::to_json(self));
        message.headers.insert(header::RUN, manifest.run);
        message
    }

    /// Decodes the body.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        crate::result::from_json("progress", &message.body)
    }
}
