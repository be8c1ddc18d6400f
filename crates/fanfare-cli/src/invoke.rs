//! `fanfare invoke`: one fan-out or parallel execution.

mod completion;
mod file;
mod flags;
mod target;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use fanfare::{Cid, Fanfare, Fanout, FinalPayload, InvokeError, ServiceName, Source, Target, WaitError};
use fanfare_protocol::{counted, quoted};
use indicatif::{ProgressBar, ProgressStyle};
use tracing::Instrument;

use crate::durations::{self, Limit};
use crate::exit::{EXIT_CODES, Exit, Failure, print, say, without_broker};
use crate::numbers;
use crate::settings::Settings;
use crate::table::plain;

/// How long `--wait` waits unless it says: for good, since every fan-out has a deadline unless that was turned off.
const FOR_GOOD: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How often the time that has passed is drawn.
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
    #[arg(long, env = "FANFARE_MOST_WAITING", value_name = "N", value_parser = numbers::parse::<u64>)]
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

pub(crate) async fn run(mut arguments: InvokeArguments, settings: &Settings) -> Result<Exit, Failure> {
    let (targets, mut mistakes) = targets(&arguments);
    if !mistakes.is_empty() {
        // How many targets there are to be is not known.
        arguments.completion = completion::CompletionArguments::default();
    }
    mistakes.extend(check_metadata(&arguments.metadata).err());
    let (width, wanted) = (targets.len(), arguments.completion.until_succeeded);
    // It connects when it is first used, so that what is wrong with the input is found where there is no broker too.
    let fanfare = settings.invoker(arguments.most_waiting)?;
    let wait = arguments.wait.map(|wait| wait.unwrap_or(FOR_GOOD));
    let fanout = match fanout(&fanfare, arguments, targets).check(wait.is_some()) {
        Ok(fanout) if mistakes.is_empty() => fanout,
        Ok(_) => return Err(Failure::bad_input(flags::together(&mistakes))),
        Err(invalid) => {
            mistakes.extend(flags::in_flags(invalid));
            return Err(Failure::bad_input(flags::together(&mistakes)));
        }
    };
    let span = tracing::info_span!("invoke");
    let outcome = match wait {
        None => invoke(&fanfare, fanout).instrument(span).await,
        Some(timeout) => wait_for(&fanfare, fanout, timeout, width, wanted).instrument(span).await,
    };
    fanfare.close().await;
    outcome
}

/// A name that is given twice is a mistake: one of the values would be lost.
fn check_metadata(metadata: &[(String, String)]) -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    match metadata.iter().find(|(name, _)| !names.insert(name)) {
        Some((name, _)) => bail!("two of --metadata have the name {}: give each name once", quoted(name)),
        None => Ok(()),
    }
}

/// The targets, and what is wrong with those of the file.
fn targets(arguments: &InvokeArguments) -> (Vec<Target>, Vec<anyhow::Error>) {
    let (read, mistakes) = match arguments.file.as_deref().map(file::read) {
        None => Default::default(),
        Some(Ok(read)) => (read, Vec::new()),
        Some(Err(mistakes)) => (Vec::new(), mistakes),
    };
    (arguments.targets.iter().chain(&read).map(to_target).collect(), mistakes)
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

async fn invoke(fanfare: &Fanfare, fanout: Fanout) -> Result<Exit, Failure> {
    match fanout.invoke().await {
        Ok(accepted) => print(accepted.cid)?,
        Err(error) => return Err(not_invoked(fanfare, error).await),
    }
    Ok(Exit::Done)
}

async fn wait_for(
    fanfare: &Fanfare,
    fanout: Fanout,
    timeout: Duration,
    targets: usize,
    wanted: Option<usize>,
) -> Result<Exit, Failure> {
    let bar = progress_bar(targets);
    let fanout = if bar.is_hidden() {
        fanout
    } else {
        let bar = bar.clone();
        fanout.on_progress(move |responded| bar.set_position(responded as u64))
    };
    let outcome = fanout.invoke_and_wait(timeout).await;
    bar.finish_and_clear();
    let payload = match outcome {
        Ok(payload) => payload,
        Err(WaitError::Invoke(error)) => return Err(not_invoked(fanfare, error).await),
        Err(error) => return Err(Failure::new(Exit::TimedOut, error)),
    };
    print(serde_json::to_string(&payload).map_err(|error| Failure::new(Exit::Failed, error))?)?;
    Ok(told_failures(&payload, wanted))
}

/// Draws where standard error is a terminal, and nowhere else.
///
/// Only the coordinator knows how many targets have responded. An on-target callback could not tell: it is a service, whose name
/// every callback and payload would show, and whose messages would be parked once nobody waits. So the coordinator is asked for
/// the number, which it sends to the queue that the answer comes to.
fn progress_bar(targets: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} targets, {elapsed}");
    let bar = ProgressBar::new(targets as u64).with_style(style.expect("the template is well formed"));
    bar.enable_steady_tick(TICK);
    bar
}

/// Tells of the targets that failed. They are no failure of the whole where as many succeeded as were wanted.
fn told_failures(payload: &FinalPayload, wanted: Option<usize>) -> Exit {
    let failed = payload.failures().count();
    if failed == 0 {
        return Exit::Done;
    }
    say(format_args!("{failed} of {} failed:", counted(payload.data.len(), "target", "targets")));
    for failure in payload.failures().take(NAMED_FAILURES) {
        let lines = failure.to_string().lines().map(plain).collect::<Vec<_>>();
        say(format_args!("  {}", lines.join("\n    ")));
    }
    if failed > NAMED_FAILURES {
        say(format_args!("  and {} more", failed - NAMED_FAILURES));
    }
    let succeeded = payload.data.len() - failed;
    if wanted.is_some_and(|wanted| succeeded >= wanted) { Exit::Done } else { Exit::Failed }
}

/// What an invocation failed of: where nothing was sent, that may be that there is no broker to be had.
pub(crate) async fn not_invoked(fanfare: &Fanfare, error: InvokeError) -> Failure {
    let nothing_sent = matches!(error, InvokeError::NotAccepted { requests_sent: false, .. });
    if nothing_sent && let Some(failure) = without_broker(fanfare).await {
        return failure;
    }
    match error {
        InvokeError::Invalid(invalid) => Failure::bad_input(flags::together(&flags::in_flags(invalid))),
        error if error.is_unreachable() => Failure::new(Exit::NoBroker, error),
        InvokeError::Unknown { .. } => Failure::new(Exit::Unknown, error),
        error => Failure::new(Exit::NotAccepted, flags::in_flags_of_failure(error)),
    }
}

fn pair(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        anyhow!("{} is not allowed: write NAME=VALUE, as in --metadata tenant=shop", quoted(text))
    })?;
    Ok((name.to_owned(), value.to_owned()))
}
