//! One line of the doctor's.

use std::fmt;

use serde::Serialize;

/// What is to be thought of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, but somebody should look at it.
    Warn,
    /// It does not work.
    Wrong,
    /// The broker does not tell.
    Unknown,
    /// It could not be looked at, since the user may not.
    Denied,
}

/// What was looked at, what was found, and what to do about it.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    what: String,
    found: String,
    remedy: Option<String>,
}

impl Finding {
    pub(super) fn new(verdict: Verdict, what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { verdict, what: what.into(), found: found.into(), remedy: None }
    }

    /// The user may not do what would show, for lack of the right that the reason names.
    pub(super) fn denied(what: impl Into<String>, could_not: &str, reason: &str) -> Self {
        Self::new(Verdict::Denied, what, format!("could not {could_not}: {reason}"))
            .remedy("it may well be as it should: see with a user who has that right")
    }

    /// Adds what to do.
    pub(super) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warn => "warn",
            Verdict::Wrong => "WRONG",
            Verdict::Unknown => "unknown",
            Verdict::Denied => "denied",
        };
        write!(f, "{verdict:<8}{}: {}", self.what, self.found)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n        -> {remedy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedy_stands_below_what_it_is_for() {
        let finding = Finding::new(Verdict::Warn, "queue a", "2 messages wait").remedy("start a worker");
        assert_eq!(finding.to_string(), "warn    queue a: 2 messages wait\n        -> start a worker");
    }

    #[test]
    fn each_finding_of_a_program_s_has_the_same_fields() {
        let json = |finding| serde_json::to_string(&finding).unwrap();
        assert_eq!(
            json(Finding::new(Verdict::Wrong, "queue a", "gone").remedy("start a worker")),
            r#"{"verdict":"wrong","what":"queue a","found":"gone","remedy":"start a worker"}"#
        );
        assert_eq!(
            json(Finding::new(Verdict::Ok, "queue a", "there")),
            r#"{"verdict":"ok","what":"queue a","found":"there","remedy":null}"#
        );
    }
}
