//! Invokes a draft in a way that the oracle can judge: it is told before and after.

use anyhow::Result;
use fanfare_publisher::{Accepted, Fanout, InvokeError, WaitError};

use super::Journal;
use super::mix::Draft;
use crate::oracle::{Event, Outcome};

/// Writes down that a fan-out is about to be invoked, and returns it. Its CID is its name where none is given.
pub(super) fn announce(
    journal: &Journal,
    fanout: Fanout,
    draft: &Draft,
    invocation: &str,
    cid: Option<&str>,
) -> Result<Fanout> {
    // Names of processes and invocations are divided by a slash, which a CID may not hold.
    let cid = cid.unwrap_or(invocation).replace('/', ".");
    journal.write(Event::Invoking { invocation: invocation.to_owned(), plan: draft.plan(&cid) })?;
    Ok(draft.complete(fanout, invocation, &cid))
}

/// Writes down what became of it.
pub(super) fn returned(
    journal: &Journal,
    invocation: &str,
    outcome: &Result<Accepted, InvokeError>,
) -> Result<()> {
    let outcome = match outcome {
        Ok(accepted) => Outcome::Accepted { run: accepted.run.to_string() },
        Err(error) => outcome_of(error),
    };
    journal.write(Event::Returned { invocation: invocation.to_owned(), outcome })
}

/// Writes down why a wait brought no payload. Whoever waits in vain knows that the fan-out was accepted.
pub(super) fn waited(journal: &Journal, invocation: &str, error: &WaitError) -> Result<()> {
    let outcome = match error {
        WaitError::Invoke(error) => outcome_of(error),
        WaitError::TimedOut { run, .. } | WaitError::Lost { run, .. } | WaitError::Malformed { run, .. } => {
            Outcome::Accepted { run: run.to_string() }
        }
        // What a later version may add tells nothing.
        _ => return Ok(()),
    };
    journal.write(Event::Returned { invocation: invocation.to_owned(), outcome })
}

fn outcome_of(error: &InvokeError) -> Outcome {
    match error {
        InvokeError::Unknown { run, .. } => Outcome::Unknown { run: run.to_string() },
        _ => Outcome::NotAccepted,
    }
}
