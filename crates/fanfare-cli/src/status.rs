//! `fanfare status`: which fan-outs are open, or have ended lately.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use fanfare::{
    AskError, Cid, EndedBy, Environment, FanOutState, FanOutStatus, Fanfare, Heard, Roll, ServiceName, Sort,
    Source, Status, StatusQuery, System, WireTime,
};

use crate::durations;
use crate::exit::{Exit, Failure, is_read, print, print_json, say};
use crate::management::{Management, ManagementUrl};
use crate::settings::Settings;
use crate::signals::Signals;
use crate::silent::{self, Unheard};
use crate::table;

/// Clears a terminal.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, Args)]
#[command(after_help = "\
Asks all coordinators, which have 3 s. Where one that the broker knows does not answer, a line on
standard error says so, and who has answered: what the other holds is missing. RabbitMQ's management
API tells its name, where that answers; --watch knows it, where it has answered before. Fan-outs that
wait for a coordinator are known to none; `fanfare doctor` counts them.

On a terminal, long sources and states are cut to fit its width, and so are runs where no two of those
shown have the same CID; --json and `fanfare explain CID` show them whole. A CID is never cut.

Examples:
  fanfare status
  fanfare status --sort failed --min-age 10m --service image.resize
  fanfare status --watch
  fanfare status --ended --source orders.intake --json

Exit codes: 0 told; 1 no coordinator tells; 2 bad input; 3 no broker")]
pub(crate) struct StatusArguments {
    /// Those that have ended lately, the latest first, in place of those that are open: each coordinator remembers 1000
    #[arg(long)]
    ended: bool,

    /// Only those that this source invoked
    #[arg(long, value_name = "NAME")]
    source: Option<Source>,

    /// Only those whose CID begins so
    #[arg(long, value_name = "PREFIX")]
    cid: Option<String>,

    /// Only those with a target of this service
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,

    /// Only those that were invoked so long ago, or longer
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    min_age: Option<Duration>,

    /// Which come first: the oldest (with --ended the latest to end), those with most missing or most failed targets, those
    /// whose deadline is next, or by source or CID
    #[arg(long, value_parser = sort(), default_value = Sort::Age.as_str(), value_name = "BY")]
    sort: Sort,

    /// How many are shown, 1000 at the most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,

    /// RabbitMQ's management API, which alone tells who does not answer [default: port 15672 of the broker, unless that is
    /// reached through TLS]
    #[arg(long, env = "FANFARE_MANAGEMENT", value_name = "URL")]
    management: Option<ManagementUrl>,

    /// Shows it again and again, this far apart
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "2s",
        value_parser = durations::parse
    )]
    watch: Option<Duration>,

    /// Prints one line of JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// Takes the word of an order.
fn sort() -> impl TypedValueParser<Value = Sort> {
    let named = |word: String| Sort::ALL.into_iter().find(|sort| sort.as_str() == word);
    PossibleValuesParser::new(Sort::ALL.map(Sort::as_str))
        .map(move |word| named(word).expect("it is one of them"))
}

pub(crate) async fn run(arguments: StatusArguments, settings: &Settings) -> Result<Exit, Failure> {
    let StatusArguments { ended, source, cid, service, min_age, sort, limit, management, watch, json } =
        arguments;
    let query = StatusQuery {
        ended,
        source,
        cid_prefix: cid,
        service,
        min_age_s: min_age.map(|age| age.as_secs()),
        lately: false,
        sort,
        limit: limit.into(),
    };
    let fanfare = settings.fanfare("status")?;
    let management = settings.management(management.as_ref())?;
    let asking = Asking { fanfare: &fanfare, query: &query, json, management: management.as_ref() };
    let outcome = match watch {
        None => asking.tell("", &mut Roll::default()).await,
        Some(pause) => tokio::select! {
            () = Signals::listen()?.first() => Ok(Exit::Done),
            ended = asking.keep_telling(pause) => ended,
        },
    };
    fanfare.close().await;
    outcome
}

/// What is asked, and how it is told.
struct Asking<'a> {
    fanfare: &'a Fanfare,
    query: &'a StatusQuery,
    json: bool,
    management: Option<&'a Management>,
}

impl Asking<'_> {
    async fn keep_telling(&self, pause: Duration) -> Result<Exit, Failure> {
        let mut roll = Roll::default();
        let before = if !self.json && io::stdout().is_terminal() { CLEAR } else { "" };
        loop {
            // A coordinator may be restarted while somebody watches.
            match self.tell(before, &mut roll).await {
                Err(failure) if failure.exit == Exit::BadInput => return Err(failure),
                Err(failure) => _ = failure.report(),
                Ok(_) => {}
            }
            if !is_read() {
                return Ok(Exit::Done);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn tell(&self, before: &str, roll: &mut Roll) -> Result<Exit, Failure> {
        let told = self.fanfare.operator().status(self.query).await;
        let heard = told.as_ref().map(|status| status.coordinators.heard.clone()).unwrap_or_default();
        let known = roll.call(heard, WireTime::from(System.now()));
        let remembered: Vec<_> = known.into_iter().filter(|heard| !heard.answers).collect();
        let say_remembered = || {
            for Heard { name, last_utc, .. } in &remembered {
                say(format_args!("warning: coordinator {name} has not answered since {last_utc} UTC"));
            }
        };
        let mut status = match told {
            Ok(status) => status,
            Err(error @ AskError::NoAnswer { .. }) if !remembered.is_empty() => {
                say_remembered();
                return Err(Failure::new(Exit::Failed, error));
            }
            Err(error) => return Err(silent::not_told(self.fanfare, self.management, error).await),
        };
        let unheard = match status.coordinators.silent {
            Some(count) if count > remembered.len() => {
                silent::unheard(self.fanfare, self.management, &status.coordinators.heard).await
            }
            _ => Unheard::Nobody,
        };
        if status.coordinators.silent != Some(0) {
            let remembered = remembered.iter().map(|heard| &heard.name);
            let names = unheard.names().into_iter().flatten().chain(remembered);
            status.coordinators.unheard = names.cloned().collect();
        }
        if self.json {
            print_json(&status)?;
        } else {
            let now = WireTime::from(System.now());
            let lines = shown(&status, self.query.ended, now, table::terminal_width());
            print(format_args!("{before}{}", lines.join("\n")))?;
        }
        if let Some(shortfall) = status.coordinators.shortfall() {
            say(format_args!("warning: {shortfall}; what the others hold is missing here"));
        }
        unheard.say();
        say_remembered();
        Ok(Exit::Done)
    }
}

fn shown(status: &Status, ended: bool, now: WireTime, width: Option<usize>) -> Vec<String> {
    let last = if ended { ["ENDED", "BY"] } else { ["DEADLINE", "STATE"] };
    let header = ["CID", "RUN", "SOURCE", "AGE", "DONE", "FAILED"].into_iter().chain(last);
    let rows: Vec<Vec<String>> = std::iter::once(header.map(str::to_owned).collect())
        .chain(status.fan_outs.iter().map(|fan_out| row(fan_out, now)))
        .collect();
    // A run is to be copied only where several have the same CID.
    let cids: BTreeSet<&Cid> = status.fan_outs.iter().map(|fan_out| &fan_out.cid).collect();
    let may_be_cut: &[&str] = match cids.len() == status.fan_outs.len() {
        true => &["RUN", "SOURCE", "STATE", "BY"],
        false => &["SOURCE", "STATE", "BY"],
    };
    let mut lines = table::fitted(&rows, width, may_be_cut);
    match status.matching.saturating_sub(status.fan_outs.len()) {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    lines
}

fn row(fan_out: &FanOutStatus, now: WireTime) -> Vec<String> {
    let FanOutStatus { cid, run, source, req_ts_utc, targets, done, failed, deadline_utc, state } = fan_out;
    let since = |time: WireTime| (now.to_utc() - time.to_utc()).to_std().unwrap_or_default();
    let last = match state {
        FanOutState::Ended { ended_utc, ended_by, .. } => [
            format!("{} ago", table::rounded(since(*ended_utc))),
            ended_by.map_or_else(|| "all targets".to_owned(), |by: EndedBy| by.to_string()),
        ],
        state => {
            let left = deadline_utc.map(|at| (at.to_utc() - now.to_utc()).to_std().ok());
            let deadline = match left {
                Some(Some(left)) => format!("in {}", table::rounded(left)),
                Some(None) => "passed".to_owned(),
                None => "none".to_owned(),
            };
            [deadline, state_shown(state).to_owned()]
        }
    };
    let first = [
        cid.to_string(),
        run.to_string(),
        source.to_string(),
        table::rounded(since(*req_ts_utc)),
        format!("{done}/{targets}"),
        failed.to_string(),
    ];
    first.into_iter().chain(last).collect()
}

/// What a fan-out waits for, in a word.
pub(crate) const fn state_shown(state: &FanOutState) -> &'static str {
    match state {
        FanOutState::Opening => "waits for its queue",
        FanOutState::Gathering => "waits for targets",
        FanOutState::Calling => "publishes callbacks",
        FanOutState::Ending => "ends",
        FanOutState::Ended { .. } => "ended",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fanfare::Coordinators;

    use super::*;

    fn time(seconds: u64) -> WireTime {
        WireTime::from_timestamp(seconds).unwrap()
    }

    fn status(fan_outs: Vec<FanOutStatus>, matching: usize) -> Status {
        let coordinators = Coordinators {
            answered: 1,
            refused: 0,
            silent: None,
            heard: BTreeMap::new(),
            unheard: BTreeSet::new(),
        };
        Status { matching, fan_outs, lately: BTreeMap::new(), coordinators }
    }

    fn fan_out(state: FanOutState, deadline: Option<u64>) -> FanOutStatus {
        FanOutStatus {
            cid: Cid::new("c-1").unwrap(),
            run: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            source: Source::new("shop").unwrap(),
            req_ts_utc: time(1_000),
            targets: 3,
            done: 2,
            failed: 1,
            deadline_utc: deadline.map(time),
            state,
        }
    }

    #[test]
    fn open_fan_outs_are_a_table_and_those_left_out_are_counted() {
        let fan_outs = vec![
            fan_out(FanOutState::Gathering, Some(1_150)),
            fan_out(FanOutState::Calling, Some(1_000)),
            fan_out(FanOutState::Opening, None),
        ];
        assert_eq!(
            shown(&status(fan_outs, 5), false, time(1_090), None),
            [
                "CID  RUN                               SOURCE  AGE      DONE  FAILED  DEADLINE  STATE",
                "c-1  0123456789abcdef0123456789abcdef  shop    1m 30s  2/3   1       in 1m     waits for targets",
                "c-1  0123456789abcdef0123456789abcdef  shop    1m 30s  2/3   1       passed    publishes callbacks",
                "c-1  0123456789abcdef0123456789abcdef  shop    1m 30s  2/3   1       none      waits for its queue",
                "and 2 more",
            ]
            .map(|line| line.replace("AGE      ", "AGE     "))
        );
    }

    #[test]
    fn run_is_cut_for_a_narrow_terminal_only_where_the_cid_tells_fan_outs_apart() {
        let one = || fan_out(FanOutState::Gathering, None);
        let row = |fan_outs: Vec<_>| shown(&status(fan_outs, 0), false, time(1_090), Some(86)).swap_remove(1);
        let cut = "c-1  0123456789abcdef01234…  shop    1m 30s  2/3   1       none      waits for targets";
        assert_eq!(row(vec![one()]), cut);
        let whole = row(vec![one(), one()]);
        assert!(whole.starts_with("c-1  0123456789abcdef0123456789abcdef  shop  "), "{whole}");
        assert!(whole.ends_with("  waits …"), "{whole}");
    }

    #[test]
    fn those_that_have_ended_tell_when_and_by_what() {
        let ended = |by| FanOutState::Ended { ended_utc: time(1_060), missing: 1, ended_by: by };
        let fan_outs = vec![fan_out(ended(Some(EndedBy::Deadline)), None), fan_out(ended(None), None)];
        let lines = shown(&status(fan_outs, 2), true, time(1_090), None);
        assert!(lines[0].ends_with("FAILED  ENDED    BY"), "{lines:?}");
        assert!(lines[1].ends_with("1       30s ago  deadline"), "{lines:?}");
        assert!(lines[2].ends_with("1       30s ago  all targets"), "{lines:?}");
    }
}
