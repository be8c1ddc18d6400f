//! What `helpers.input-logger` writes.

use fanfare_worker::Context;

/// Characters of a payload that `helpers.input-logger` logs; what is longer is cut.
pub const LOGGED_CHARS: usize = 2_000;

/// Logs all that a service is given, at level `info`.
pub(crate) fn log(context: &Context, payload: &str) {
    let metadata: Vec<String> =
        context.metadata().iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    tracing::info!(
        channel = %context.channel(),
        cid = %context.cid(),
        run = %context.run(),
        source = %context.source(),
        key = context.key().map(tracing::field::display),
        message_id = context.message_id(),
        attempt = context.attempt(),
        metadata = metadata.join(" "),
        bytes = payload.len(),
        "{}",
        shortened(payload)
    );
}

fn shortened(payload: &str) -> String {
    match payload.char_indices().nth(LOGGED_CHARS) {
        None => payload.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes in all)", &payload[..end], payload.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_payload_is_cut_between_characters() {
        let long = "ä".repeat(LOGGED_CHARS + 1);
        assert_eq!(shortened(&long), format!("{}... (4002 bytes in all)", "ä".repeat(LOGGED_CHARS)));
        assert_eq!(shortened(&long[2..]), long[2..]);
    }
}
