//! `fanfare explain`: what each missing target of a fan-out waits for.

use clap::Args;
use fanfare::{
    Cid, Environment, Explanation, FanOutState, MissingFrom, QueueNames, RunId, System, Told, Whereabouts,
    WireTime,
};
use fanfare_protocol::counted;

use crate::exit::{Exit, Failure, print};
use crate::management::ManagementUrl;
use crate::settings::Settings;
use crate::silent;
use crate::status::state_shown;
use crate::table::{self, plain, rounded};

#[derive(Debug, Args)]
#[command(after_help = "\
Asks coordinators which targets are missing, workers which of them they run or are to run again,
and looks at the queues of their services and at the parked messages; where no coordinator knows
the fan-out, also at its shard, if --shards says how many there are. Those who are asked have
3 s each. Nothing is changed. Below the targets stands what to do, marked with ->. A coordinator
that the broker knows and that does not answer is named, where RabbitMQ's management API tells who
it is: it may hold a fan-out that the others do not know.

Examples:
  fanfare explain 01a21a8364fd77369b3971990fa1a5cb
  fanfare explain nightly-7 --run 4ccd5b05ab9b4cc38f20f82bfb58dfc3 --json

Exit codes: 0 told; 1 no coordinator tells, or all tell and none knows it; 2 bad input; 3 no broker;
5 none of those that tell knows it, and one that does not may")]
pub(crate) struct ExplainArguments {
    /// The correlation ID, as `fanfare invoke` prints it
    #[arg(value_name = "CID")]
    cid: Cid,

    /// Only the fan-out of this run
    #[arg(long, value_name = "RUN")]
    run: Option<RunId>,

    /// How many missing targets of each fan-out are shown, 1000 at the most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,

    /// RabbitMQ's management API, which alone tells who does not answer [default: port 15672 of the broker, unless that is
    /// reached through TLS]
    #[arg(long, env = "FANFARE_MANAGEMENT", value_name = "URL")]
    management: Option<ManagementUrl>,

    /// Prints one line of JSON in place of the text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: ExplainArguments, settings: &Settings) -> Result<Exit, Failure> {
    let ExplainArguments { cid, run, limit, management, json } = arguments;
    let fanfare = settings.fanfare("explain")?;
    let management = settings.management(management.as_ref())?;
    let outcome = match settings.operator(&fanfare).explain(&cid, run, limit.into()).await {
        Ok(mut explanation) => {
            let unheard = silent::missing(&fanfare, management.as_ref(), &explanation.coordinators).await;
            explanation.coordinators.unheard = unheard.names().cloned().unwrap_or_default();
            let outcome = told(&explanation, fanfare.names(), json);
            unheard.say();
            outcome
        }
        Err(error) => Err(silent::not_told(&fanfare, management.as_ref(), error).await),
    };
    fanfare.close().await;
    outcome
}

fn told(explanation: &Explanation, names: &QueueNames, json: bool) -> Result<Exit, Failure> {
    let advice = explanation.advice(names);
    if json {
        let mut value =
            serde_json::to_value(explanation).map_err(|error| Failure::new(Exit::Failed, error))?;
        value["advice"] = advice.into();
        print(value)?;
    } else {
        shown(explanation, &advice, System.now().into()).into_iter().try_for_each(print)?;
    }
    Ok(match explanation.coordinators.are_all() {
        _ if !explanation.fan_outs.is_empty() => Exit::Done,
        true => Exit::Failed,
        false => Exit::Unknown,
    })
}

fn shown(explanation: &Explanation, advice: &[String], now: WireTime) -> Vec<String> {
    let mut lines = Vec::new();
    for fan_out in &explanation.fan_outs {
        lines.extend(of_fan_out(fan_out, handed(explanation), now));
    }
    more(explanation.matching, explanation.fan_outs.len(), "fan-outs", &mut lines);
    lines.extend(advice.iter().map(|advice| format!("-> {}", plain(advice))));
    lines
}

fn of_fan_out(fan_out: &Told, handed: &str, now: WireTime) -> Vec<String> {
    let Told { status, missing, failures, .. } = fan_out;
    let since = |time: WireTime| rounded((now.to_utc() - time.to_utc()).to_std().unwrap_or_default());
    let (cid, run, source, age) = (&status.cid, status.run, &status.source, since(status.req_ts_utc));
    let how = match status.state {
        FanOutState::Ended { ended_utc, ended_by, .. } => {
            let by = ended_by.map(|by| format!(" by {by}")).unwrap_or_default();
            format!("ended {} ago{by}", since(ended_utc))
        }
        state => {
            let deadline = status.deadline_utc.map(|at| format!(", at the latest until {at} UTC"));
            format!("{}{}", state_shown(&state), deadline.unwrap_or_default())
        }
    };
    let (done, targets, failed) = (status.done, status.targets, status.failed);
    let mut lines = vec![
        format!("{cid} run {run}, invoked by {source} {age} ago: {how}"),
        format!("{done} of {} done, {failed} of them failed", counted(targets, "target is", "targets are")),
    ];
    let rows: Vec<Vec<String>> = missing.iter().map(|target| row(target, handed, now)).collect();
    lines.extend(table::lines(&rows).into_iter().map(|line| format!("  {line}")));
    more(targets.saturating_sub(done), missing.len(), "missing targets", &mut lines);
    let rows = failures.iter().map(|failed| {
        vec![
            "failed".to_owned(),
            plain(failed.key.as_str()),
            failed.service.to_string(),
            plain(&failed.exception),
        ]
    });
    lines.extend(table::lines(&rows.collect::<Vec<_>>()).into_iter().map(|line| format!("  {line}")));
    more(failed, failures.len(), "failed targets", &mut lines);
    lines
}

fn more(all: usize, shown: usize, what: &str, lines: &mut Vec<String>) {
    if all > shown {
        lines.push(format!("  and {} more {what}", all - shown));
    }
}

/// Where a target is that is in no queue, and that no worker tells of.
fn handed(explanation: &Explanation) -> &'static str {
    let may_be_retried = explanation.retries_waiting != Some(0);
    match (explanation.workers_unasked.is_none(), may_be_retried) {
        (true, false) => "was handed to a worker that does not say that it runs it",
        (true, true) => {
            "was handed to a worker that does not say that it runs it, or waits for another attempt"
        }
        (false, false) => "was handed to a worker",
        (false, true) => "was handed to a worker, or waits for another attempt",
    }
}

fn row(target: &MissingFrom, handed: &str, now: WireTime) -> Vec<String> {
    let since = |time: WireTime| rounded((now.to_utc() - time.to_utc()).to_std().unwrap_or_default());
    let at = match &target.whereabouts {
        Whereabouts::Running { worker, since_utc, attempt } => {
            let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
            format!("runs at {} for {}{again}", plain(worker), since(*since_utc))
        }
        Whereabouts::Retrying { until_utc, attempt, exception } => {
            format!("runs again at {until_utc} UTC; attempt {attempt} failed: {}", plain(exception))
        }
        Whereabouts::Parked { id, reason } => format!("parked as {id}: {}", plain(reason)),
        Whereabouts::NoQueue => "its service has no queue".to_owned(),
        Whereabouts::Queued => "waits for a worker".to_owned(),
        Whereabouts::Elsewhere => "is not in its service's queue, which nobody consumes".to_owned(),
        Whereabouts::Handed => handed.to_owned(),
        _ => "nobody tells".to_owned(),
    };
    vec!["missing".to_owned(), plain(target.target.key.as_str()), target.target.service.to_string(), at]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use fanfare::{Coordinators, FailedTarget, FanOutStatus, MissingTarget, ServiceName, Source, TargetKey};

    use super::*;

    fn time(seconds: u64) -> WireTime {
        WireTime::from_timestamp(seconds).unwrap()
    }

    fn missing(place: usize, whereabouts: Whereabouts) -> MissingFrom {
        let target = MissingTarget {
            place,
            key: TargetKey::new(format!("k-{place}")).unwrap(),
            service: ServiceName::new("price.quote").unwrap(),
        };
        MissingFrom { target, whereabouts }
    }

    fn explanation(missing: Vec<MissingFrom>) -> Explanation {
        let status = FanOutStatus {
            cid: Cid::new("c").unwrap(),
            run: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            source: Source::new("shop").unwrap(),
            req_ts_utc: time(1_000),
            targets: 9,
            done: 1,
            failed: 1,
            deadline_utc: Some(time(2_000)),
            state: FanOutState::Gathering,
        };
        let failures = vec![FailedTarget {
            key: TargetKey::new("bad").unwrap(),
            service: ServiceName::new("stock.check").unwrap(),
            exception: "no\nstock".to_owned(),
        }];
        Explanation {
            cid: status.cid.clone(),
            run: None,
            matching: 1,
            fan_outs: vec![Told { status, missing, responded: vec![], failures }],
            queues: BTreeMap::new(),
            workers_unasked: None,
            manifests_waiting: Some(0),
            shard: None,
            retries_waiting: None,
            parked: Vec::new(),
            parked_unseen: None,
            coordinators: Coordinators {
                answered: 1,
                refused: 0,
                silent: Some(0),
                heard: BTreeMap::new(),
                unheard: BTreeSet::new(),
            },
        }
    }

    #[test]
    fn each_missing_target_has_a_line_that_says_where_it_is() {
        let running =
            Whereabouts::Running { worker: "host:7".to_owned(), since_utc: time(1_030), attempt: 2 };
        let retrying =
            Whereabouts::Retrying { until_utc: time(1_200), attempt: 1, exception: "no price".to_owned() };
        let all =
            explanation(vec![missing(1, running), missing(2, retrying), missing(3, Whereabouts::Queued)]);
        assert_eq!(
            shown(&all, &["start a worker".to_owned()], time(1_060)),
            [
                "c run 0123456789abcdef0123456789abcdef, invoked by shop 1m ago: waits for targets, at the latest until 1970-01-01 00:33:20 UTC",
                "1 of 9 targets are done, 1 of them failed",
                "  missing  k-1  price.quote  runs at host:7 for 30s, attempt 2",
                "  missing  k-2  price.quote  runs again at 1970-01-01 00:20:00 UTC; attempt 1 failed: no price",
                "  missing  k-3  price.quote  waits for a worker",
                "  and 5 more missing targets",
                "  failed  bad  stock.check  no\\nstock",
                "-> start a worker",
            ]
        );
    }
}
