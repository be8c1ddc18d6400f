use serde::Deserialize;

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// A line of text for each event.
    #[default]
    Text,
    /// A JSON object a line for each event, with the fields of its span.
    Json,
}
