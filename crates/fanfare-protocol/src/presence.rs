use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::name::{Cid, RunId};
use crate::{Malformed, header};

/// What a coordinator tells all others, so that they share the shards among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Drawn by the coordinator when it started.
    #[serde(deserialize_with = "crate::name::id")]
    pub coordinator: RunId,
    /// How many shards there are, as far as it knows.
    pub shards: u32,
    /// Whether it is about to stop, and is to be given none.
    pub leaving: bool,
}

impl Presence {
    /// The message as the coordinators' exchange takes it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let of = Cid::new(self.coordinator.to_string()).expect("hexadecimal digits keep the rules for a CID");
        let id = format!("{of}/presence");
        Message::of(header::TYPE_PRESENCE, &of, id, crate::result::to_json(self))
    }

    /// Decodes the body of a presence.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        crate::result::from_json("presence", &message.body)
    }
}
