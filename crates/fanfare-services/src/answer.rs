//! What a program or an HTTP server answered, as JSON.

use serde_json::value::RawValue;

/// Characters of an answer that is not JSON which its error quotes.
const QUOTED_CHARS: usize = 200;

/// An answer that is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("{error}; it begins with {start:?}")]
pub struct NotJson {
    error: serde_json::Error,
    start: String,
}

/// Reads an answer. One that holds nothing but white space is `null`: not everything that is done has something to tell.
pub(crate) fn parse(bytes: &[u8]) -> Result<Box<RawValue>, NotJson> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(RawValue::NULL.to_owned());
    }
    serde_json::from_slice(bytes).map_err(|error| NotJson { error, start: start_of(bytes) })
}

/// The first characters of a text, for an error message.
pub(crate) fn start_of(bytes: &[u8]) -> String {
    // A character has at most four bytes.
    let start = &bytes[..bytes.len().min(4 * QUOTED_CHARS)];
    String::from_utf8_lossy(start).trim().chars().take(QUOTED_CHARS).collect()
}
