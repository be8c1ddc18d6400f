use std::fmt::Display;

/// A number with what is counted by it, in a sentence for people.
///
/// ```
/// use fanfare_protocol::counted;
///
/// assert_eq!(counted(1, "message waits", "messages wait"), "1 message waits");
/// assert_eq!(counted(0, "message waits", "messages wait"), "0 messages wait");
/// ```
#[must_use]
pub fn counted<N: PartialEq + From<u8> + Display>(count: N, one: &str, many: &str) -> String {
    let what = if count == N::from(1) { one } else { many };
    format!("{count} {what}")
}
