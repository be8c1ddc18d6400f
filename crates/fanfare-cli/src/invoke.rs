//! `fanfare invoke`: one fan-out or parallel execution.

mod completion;
mod file;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use fanfare::{Cid, Fanfare, Fanout, FinalPayload, InvokeError, ServiceName, Source, Target, WaitError};
use indicatif::{ProgressBar, ProgressStyle};

use crate::durations::{self, Limit};
use crate::exit::{EXIT_CODES, Exit, Failure, print, say};
use crate::settings::Settings;

/// How long `--wait` waits unless it says: for good, since every fan-out has a deadline unless that was turned off.
const FOR_GOOD: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Failed targets that are named on standard error.
const NAMED_FAILURES: usize = 10;

#[derive(Debug, Args)]
#[command(after_help = format!("\
Writes the CID to standard output, or with --wait the final payload as JSON, and nothing else.

Examples:
  fanfare invoke --target 'price.quote={{\"item\":\"shoe\"}}' --on-final order.enriched
  fanfare invoke --target 'north@stock.check=1' --target 'south@stock.check=2' --wait 30s
  fanfare invoke --source night --targets all.jsonl --parallel --on-target audit.log
  fanfare invoke --source night --targets - --on-final report.write < all.json
  fanfare invoke --targets replicas.json --until-succeeded 2 --max-failed 1 --wait
  fanfare invoke --targets all.jsonl --max-failed 10% --deadline 2h --on-final report.write

A file of targets is one of
  {{\"price.quote\": {{\"item\": \"shoe\"}}, \"tax.rate\": null}}
  [{{\"key\": \"north\", \"service\": \"stock.check\", \"request\": \"shoe\"}}, ...]
  the objects of such a list, one a line; key and request can be left out

{EXIT_CODES}"))]
pub(crate) struct InvokeArguments {
    /// Who invokes: a service, or this program
    #[arg(long, env = "FANFARE_SOURCE", value_name = "NAME", default_value = "fanfare-cli")]
    source: Source,

    /// A target; repeatable. JSON is null where it is left out, the key is the service's name
    #[arg(long = "target", value_name = "[KEY@]SERVICE[=JSON]")]
    targets: Vec<target::Given>,

    /// A file of targets, or - for standard input
    #[arg(long = "targets", value_name = "FILE|-")]
    file: Option<PathBuf>,

    /// A service that is invoked when all targets have completed; repeatable, or divided by commas
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    on_final: Vec<ServiceName>,

    /// A service that is invoked each time a target completes; repeatable, or divided by commas
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    on_target: Vec<ServiceName>,

    /// The correlation ID [default: a fresh one]
    #[arg(long, value_name = "CID")]
    cid: Option<Cid>,

    /// What targets and callbacks are told beside their payloads; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,

    /// After how long targets that have not answered count as failed, or none [default: 24h]
    #[arg(long, env = "FANFARE_DEADLINE", value_name = "DURATION|none")]
    deadline: Option<Limit>,

    #[command(flatten)]
    completion: completion::CompletionArguments,

    /// Fan-outs that may wait for a coordinator; where so many do, this one is not accepted [default: 10000]
    #[arg(long, env = "FANFARE_MOST_WAITING", value_name = "N")]
    most_waiting: Option<u64>,

    /// A parallel execution: on-target callbacks, and no final ones
    #[arg(long, conflicts_with = "wait")]
    parallel: bool,

    /// Declares the queues of services that no worker has declared yet, instead of refusing them
    #[arg(long)]
    declare_missing: bool,

    /// Waits for the final payload, and not longer than this where it is given
    #[arg(long, value_name = "DURATION", num_args = 0..=1, value_parser = durations::parse)]
    wait: Option<Option<Duration>>,
}

pub(crate) async fn run(arguments: InvokeArguments, settings: &Settings) -> Result<Exit, Failure> {
    let targets = targets(&arguments).map_err(Failure::bad_input)?;
    // It connects when it is first used, so that what is wrong with the input is found where there is no broker too.
    let fanfare = settings.invoker(arguments.most_waiting)?;
    let wait = arguments.wait.map(|wait| wait.unwrap_or(FOR_GOOD));
    let wanted = arguments.completion.until_succeeded;
    let fanout = fanout(&fanfare, arguments, targets);
    let outcome = match wait {
        None => invoke(fanout).await,
        Some(timeout) => wait_for(fanout, timeout, wanted).await,
    };
    let outcome = match outcome {
        Err(failure) if failure.exit == Exit::NoBroker => Err(unreachable(&fanfare, failure).await),
        outcome => outcome,
    };
    fanfare.close().await;
    outcome
}

/// Says why no broker can be reached, where that can be learnt.
pub(crate) async fn unreachable(fanfare: &Fanfare, failure: Failure) -> Failure {
    match fanfare.broker().server().await {
        Err(reason) => Failure::new(Exit::NoBroker, reason),
        Ok(_) => failure,
    }
}

fn targets(arguments: &InvokeArguments) -> anyhow::Result<Vec<Target>> {
    let mut targets: Vec<Target> = arguments.targets.iter().map(to_target).collect();
    if let Some(path) = &arguments.file {
        targets.extend(file::read(path)?.iter().map(to_target));
    }
    Ok(targets)
}

/// The target, with its JSON byte for byte.
fn to_target(given: &target::Given) -> Target {
    Target::raw(&given.service, given.request.get().as_bytes().to_vec()).key(&given.key)
}

fn fanout(fanfare: &Fanfare, arguments: InvokeArguments, targets: Vec<Target>) -> Fanout {
    let InvokeArguments {
        source,
        on_final,
        on_target,
        cid,
        metadata,
        deadline,
        completion,
        parallel,
        declare_missing,
        ..
    } = arguments;
    let mut fanout = if parallel { fanfare.parallel(source) } else { fanfare.fanout(source) };
    fanout = targets.into_iter().fold(fanout, Fanout::add).on_final(on_final).on_target(on_target);
    fanout = metadata.into_iter().fold(fanout, |fanout, (name, value)| fanout.metadata(name, value));
    if let Some(cid) = cid {
        fanout = fanout.cid(cid);
    }
    fanout = match deadline {
        Some(Limit::After(deadline)) => fanout.deadline(deadline),
        Some(Limit::Never) => fanout.without_deadline(),
        None => fanout,
    };
    fanout = completion.rules().fold(fanout, Fanout::complete_when);
    if declare_missing { fanout.declare_missing() } else { fanout }
}

async fn invoke(fanout: Fanout) -> Result<Exit, Failure> {
    let accepted = fanout.invoke().await.map_err(not_invoked)?;
    print(accepted.cid)?;
    Ok(Exit::Done)
}

async fn wait_for(fanout: Fanout, timeout: Duration, wanted: Option<usize>) -> Result<Exit, Failure> {
    let spinner = spinner();
    let outcome = fanout.invoke_and_wait(timeout).await;
    spinner.finish_and_clear();
    let payload = outcome.map_err(|error| match error {
        WaitError::Invoke(error) => not_invoked(error),
        error => Failure::new(Exit::TimedOut, error),
    })?;
    print(serde_json::to_string(&payload).map_err(|error| Failure::new(Exit::Failed, error))?)?;
    Ok(told_failures(&payload, wanted))
}

/// Shown where standard error is a terminal. How many targets have completed is not known here: only the coordinator counts.
fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} waiting for all targets, {elapsed}");
    let spinner = ProgressBar::new_spinner().with_style(style.expect("the template is well formed"));
    spinner.enable_steady_tick(TICK);
    spinner
}

/// Tells of the targets that failed. They are no failure of the whole where as many succeeded as were wanted.
fn told_failures(payload: &FinalPayload, wanted: Option<usize>) -> Exit {
    let failed = payload.failures().count();
    if failed == 0 {
        return Exit::Done;
    }
    say(format_args!("{failed} of {} targets failed:", payload.data.len()));
    for failure in payload.failures().take(NAMED_FAILURES) {
        say(format_args!("  {failure}"));
    }
    if failed > NAMED_FAILURES {
        say(format_args!("  and {} more", failed - NAMED_FAILURES));
    }
    let succeeded = payload.data.len() - failed;
    if wanted.is_some_and(|wanted| succeeded >= wanted) { Exit::Done } else { Exit::Failed }
}

pub(crate) fn not_invoked(error: InvokeError) -> Failure {
    let exit = match &error {
        InvokeError::Invalid(_) => Exit::BadInput,
        error if error.is_unreachable() => Exit::NoBroker,
        InvokeError::Unknown { .. } => Exit::Unknown,
        _ => Exit::NotAccepted,
    };
    Failure::new(exit, error)
}

fn pair(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once('=').ok_or_else(|| anyhow!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
