//! When a fan-out is complete before all targets have responded.

use std::str::FromStr;

use clap::Args;
use fanfare::Completion;
use fanfare_protocol::quoted;

use crate::numbers;

/// The rule that is met first completes the fan-out.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Completion before all targets have responded")]
pub(super) struct CompletionArguments {
    /// Complete when so many targets have succeeded; with --wait, that many are a success
    #[arg(long, value_name = "N", value_parser = numbers::parse_any::<usize>)]
    pub(super) until_succeeded: Option<usize>,

    /// Complete when so many targets have responded, whether they succeeded or failed
    #[arg(long, value_name = "N", value_parser = numbers::parse_any::<usize>)]
    until_responded: Option<usize>,

    /// Complete when more targets than this have failed: a number, 0 for the first failure, or a share such as 10%
    #[arg(long, value_name = "N|PERCENT%")]
    max_failed: Option<Failures>,
}

impl CompletionArguments {
    pub(super) fn rules(&self) -> impl Iterator<Item = Completion> {
        let failed = self.max_failed.map(|failures| match failures {
            Failures::Count(count) => Completion::failed_above(count),
            Failures::Percent(percent) => Completion::failed_share_above(percent / 100.0),
        });
        let succeeded = self.until_succeeded.map(Completion::succeeded);
        [succeeded, self.until_responded.map(Completion::responded), failed].into_iter().flatten()
    }
}

/// Failures that are borne.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Failures {
    Count(usize),
    Percent(f64),
}

impl FromStr for Failures {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let neither = || format!("{} is neither a number of targets nor a share such as 10%", quoted(text));
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Count).map_err(|_| neither()),
            Some(percent) => match percent.trim_end().parse() {
                Ok(percent) if (0.0..100.0).contains(&percent) => Ok(Self::Percent(percent)),
                Ok(_) => Err(format!("{} is no share: give 0% or more, and less than 100%", quoted(text))),
                Err(_) => Err(neither()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_a_number_or_a_share() {
        assert_eq!("0".parse(), Ok(Failures::Count(0)));
        assert_eq!("0%".parse(), Ok(Failures::Percent(0.0)));
        assert_eq!("12.5 %".parse(), Ok(Failures::Percent(12.5)));
        for (text, expected) in [
            ("", "neither a number"),
            ("-1", "neither a number"),
            ("0.1", "neither a number"),
            ("x%", "neither a number"),
            ("100%", "less than 100%"),
            ("-1%", "0% or more"),
            ("NaN%", "is no share"),
        ] {
            let error = text.parse::<Failures>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
