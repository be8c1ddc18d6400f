//! `fanfare cancel`: ends a fan-out without waiting for any more of its targets.

use std::collections::BTreeMap;

use clap::Args;
use fanfare::{Accepted, CancelError, Cancellation, Cid, EndedBy, RunId};
use fanfare_protocol::counted;
use serde::Serialize;

use crate::exit::{self, Exit, Failure, print, print_json};
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(after_help = "\
Targets that have not responded fail, with `cancelled` as the exception, and the callbacks are
invoked with what there is. Workers do not begin with them any more, and what runs for them is
told to end. Says on standard output what it came upon, a line for each run; where none of the
CID is open any more, for the latest ten that have ended. To cancel again changes nothing. Where a
fan-out has ended before without all of its targets, its outcome stays as it is, and workers are
told to drop what is left of it.

It takes a coordinator that holds the fan-out. Where all answer within 5 s and none knows it, nothing is
cancelled; where some do not, it is unknown.

Examples:
  fanfare cancel 01a21a8364fd77369b3971990fa1a5cb
  fanfare cancel nightly-7 --run 4ccd5b05ab9b4cc38f20f82bfb58dfc3 --json

Exit codes:
  0  cancelled, or it had ended before
  1  not cancelled: no coordinator knows it, runs, or may take the request
  2  bad input: nobody was asked
  3  no broker: nobody was asked
  5  unknown whether cancelled: cancel again to know")]
pub(crate) struct CancelArguments {
    /// The correlation ID, as `fanfare invoke` prints it. All fan-outs with it that are open are cancelled
    #[arg(value_name = "CID")]
    cid: Cid,

    /// Only the fan-out of this run. One that has ended long ago can then be told from one that waits for a coordinator
    #[arg(long, value_name = "RUN")]
    run: Option<RunId>,

    /// Prints one line of JSON in place of the text
    #[arg(long)]
    json: bool,
}

/// What a cancel came upon.
#[derive(Serialize)]
struct Ended<'a> {
    run: &'a RunId,
    #[serde(flatten)]
    cancellation: &'a Cancellation,
}

pub(crate) async fn run(arguments: CancelArguments, settings: &Settings) -> Result<Exit, Failure> {
    let CancelArguments { cid, run, json } = arguments;
    let fanfare = settings.fanfare("cancel")?;
    let ended = match run {
        Some(run) => fanfare.cancel(&Accepted { cid, run }).await.map(|ended| [(run, ended)].into()),
        None => fanfare.cancel_all(cid).await,
    };
    let outcome = match ended {
        Ok(ended) => told(&ended, json),
        Err(error) if matches!(error, CancelError::Unprepared(_) | CancelError::NotSent(_)) => {
            let failure = exit::without_broker(&fanfare).await;
            Err(failure.unwrap_or_else(|| not_cancelled(error)))
        }
        Err(error) => Err(not_cancelled(error)),
    };
    fanfare.close().await;
    outcome
}

fn told(ended: &BTreeMap<RunId, Cancellation>, json: bool) -> Result<Exit, Failure> {
    if json {
        let fan_outs = ended.iter().map(|(run, cancellation)| Ended { run, cancellation });
        print_json(&BTreeMap::from([("fan_outs", fan_outs.collect::<Vec<_>>())]))?;
        return Ok(Exit::Done);
    }
    for (run, cancellation) in ended {
        print(format_args!("{run} {}", shown(cancellation)))?;
    }
    Ok(Exit::Done)
}

fn shown(cancellation: &Cancellation) -> String {
    let Cancellation { responded, missing, ended_by } = *cancellation;
    let responded =
        format!("{responded} of {} had responded", counted(responded + missing, "target", "targets"));
    match ended_by {
        Some(EndedBy::Cancel) => format!("cancelled: {responded}"),
        Some(by) => {
            format!("ended before, by {by}: {responded}; workers are told to drop what is left")
        }
        None => format!("ended before: {responded}"),
    }
}

fn not_cancelled(error: CancelError) -> Failure {
    let exit = match &error {
        CancelError::Invalid(_) => Exit::BadInput,
        error if error.is_unreachable() => Exit::NoBroker,
        CancelError::Unanswered { .. }
        | CancelError::Silent { .. }
        | CancelError::Unconfirmed { .. }
        | CancelError::Lost { .. } => Exit::Unknown,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cancel_came_upon_is_one_line() {
        let shown = |missing, ended_by| shown(&Cancellation { responded: 2, missing, ended_by });
        assert_eq!(shown(1, Some(EndedBy::Cancel)), "cancelled: 2 of 3 targets had responded");
        assert_eq!(
            shown(1, Some(EndedBy::Deadline)),
            "ended before, by deadline: 2 of 3 targets had responded; workers are told to drop what is left"
        );
        assert_eq!(
            shown(1, Some(EndedBy::Deletion)),
            "ended before, by deletion: 2 of 3 targets had responded; workers are told to drop what is left"
        );
        assert_eq!(shown(0, None), "ended before: 2 of 2 targets had responded");
    }
}
