//! Values from outside in error messages.

use std::borrow::Cow;

/// Characters of a value that are repeated.
const CHARS: usize = 120;

/// A value for an error message, in quotes and with what a terminal would act upon escaped. The end of a long one is left out.
///
/// ```
/// use fanfare_protocol::quoted;
///
/// assert_eq!(quoted("a\n"), r#""a\n""#);
/// assert!(quoted(&"x".repeat(100_000)).ends_with(r#"xxx"... (100000 bytes)"#));
/// ```
#[must_use]
pub fn quoted(value: &str) -> String {
    match start(value) {
        None => format!("{value:?}"),
        Some(start) => format!("{start:?}... ({} bytes)", value.len()),
    }
}

/// A value for an error message that quotes it by other means. The end of a long one is left out.
#[must_use]
pub fn shortened(value: &str) -> Cow<'_, str> {
    match start(value) {
        None => value.into(),
        Some(start) => format!("{start}... ({} bytes)", value.len()).into(),
    }
}

/// The start of a value that is too long.
fn start(value: &str) -> Option<&str> {
    value.char_indices().nth(CHARS).map(|(end, _)| &value[..end])
}
