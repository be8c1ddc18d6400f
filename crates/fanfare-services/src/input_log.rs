//! What `helpers.input-logger` writes.

use fanfare_worker::Context;

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
        payload
    );
}
