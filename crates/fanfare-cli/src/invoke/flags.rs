//! What is wrong with an invocation, in the words of the command line.

use anyhow::{Error, anyhow};
use fanfare::{Failure, Invalid, InvokeError};

/// Several mistakes in one, each told as an error of its own.
pub(super) fn together(mistakes: &[Error]) -> Error {
    let mistakes: Vec<String> = mistakes.iter().map(|mistake| format!("{mistake:#}")).collect();
    anyhow!(mistakes.join("\nerror: "))
}

/// The mistakes, with the flags that put them right where the library names its own methods.
pub(super) fn in_flags(invalid: Invalid) -> Vec<Error> {
    match invalid {
        Invalid::Several(all) => all.into_iter().map(one_in_flags).collect(),
        one => vec![one_in_flags(one)],
    }
}

fn one_in_flags(invalid: Invalid) -> Error {
    match invalid {
        Invalid::DuplicateKey { key } => anyhow!(
            "two targets have the key {:?}: give one of them another, as in --target KEY@SERVICE",
            key.as_str()
        ),
        Invalid::NoFinalCallback => {
            anyhow!(
                "a fan-out without a final callback: give --on-final, --wait, or --parallel with --on-target"
            )
        }
        Invalid::NoOnTargetCallback => {
            anyhow!(
                "a parallel execution without an on-target callback: give --on-target, or leave out --parallel"
            )
        }
        Invalid::FinalCallbackOfParallel(callback) => {
            anyhow!(
                "a parallel execution has no final callbacks: leave out --parallel, or --on-final {callback}"
            )
        }
        unserved @ Invalid::Unserved(_) => {
            anyhow!("{}", unserved.to_string().replace("pass declare_missing", "give --declare-missing"))
        }
        other => other.into(),
    }
}

/// The same for what was not accepted.
pub(super) fn in_flags_of_failure(error: InvokeError) -> Error {
    match error {
        InvokeError::NotAccepted { source: Failure::Busy { waiting, most }, .. } => anyhow!(
            "the invocation was not accepted, so no callback will come; nothing was sent: {waiting} fan-outs wait for a \
             coordinator, and {most} is the most: try again later, start more coordinators, or give a higher --most-waiting"
        ),
        other => other.into(),
    }
}
