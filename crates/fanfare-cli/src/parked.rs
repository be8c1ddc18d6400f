//! `fanfare parked`: what was kept for a person.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use fanfare::{
    BrokerError, Cid, Environment, Fanfare, LookError, Parked, ParkedMessages, ParkedQuery, Replayed,
    ServiceName, System, WireTime,
};
use fanfare_protocol::{HeaderValue, Message, Properties, quoted};
use serde_json::{Value, json};

use crate::durations;
use crate::exit::{self, Exit, Failure, print, print_json, say};
use crate::numbers;
use crate::settings::Settings;
use crate::table::{self, plain};

/// Bytes of a body that are shown beside the headers.
const BODY_SHOWN: usize = 4096;

#[derive(Debug, Args)]
#[command(after_help = "\
A message is parked where nothing else can be done with it: a callback whose service fails, a
message that cannot be read, a request that kills its workers. To list or show them changes
nothing. `replay` puts each back where it came from, with all of its attempts before it, and takes
it away here when its queue has confirmed it. One looks at a time: who comes second waits, for 10 s at most.
On a terminal, `list` cuts reasons and queues to fit its width; `show` and --json have all of them.

Examples:
  fanfare parked list
  fanfare parked list --service order.enriched --min-age 1h --json
  fanfare parked show 1f0c9d2b7a6e5f43
  fanfare parked replay --service order.enriched
  fanfare parked purge 1f0c9d2b7a6e5f43

Exit codes: 0 done; 1 some were not put back, or there is none such; 2 bad input; 3 no broker;
5 not known: this user may not look at what is parked, or somebody else is looking")]
pub(crate) struct ParkedArguments {
    #[command(subcommand)]
    command: ParkedCommand,
}

#[derive(Debug, Subcommand)]
enum ParkedCommand {
    /// Lists them, in the order in which they were parked
    List {
        #[command(flatten)]
        filter: Filter,
        /// How many are shown
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = numbers::parse::<usize>)]
        limit: usize,
        /// Prints one line of JSON in place of the table
        #[arg(long)]
        json: bool,
    },
    /// Shows all of one
    Show {
        /// As `list` shows it
        #[arg(value_name = "ID")]
        id: String,
        /// Prints one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Puts them back where they came from
    Replay {
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Drops them for good
    Purge {
        #[command(flatten)]
        chosen: Chosen,
    },
}

/// Which are meant.
#[derive(Debug, Default, Args)]
struct Filter {
    /// Only those from the queue of this service
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,

    /// Only those whose reason has these words in it, in the same letters
    #[arg(long, value_name = "WORDS", value_parser = words)]
    reason: Option<String>,

    /// Only those with this correlation ID
    #[arg(long, value_name = "CID")]
    cid: Option<Cid>,

    /// Only those that were parked so long ago, or longer
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    min_age: Option<Duration>,
}

/// Which are to be changed: some are to be named, or all.
#[derive(Debug, Args)]
struct Chosen {
    /// As `list` shows them
    #[arg(value_name = "ID")]
    ids: Vec<String>,

    #[command(flatten)]
    filter: Filter,

    /// All that there are
    #[arg(long, conflicts_with_all = ["ids", "service", "reason", "cid", "min_age"])]
    all: bool,

    /// Prints one line of JSON for each
    #[arg(long)]
    json: bool,
}

/// Words that not every reason has in it.
fn words(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err(format!(
            "{} is in every reason: give words of the reason that is meant, or no --reason",
            quoted(text)
        )),
        false => Ok(text.to_owned()),
    }
}

impl From<Filter> for ParkedQuery {
    fn from(filter: Filter) -> Self {
        let Filter { service, reason, cid, min_age } = filter;
        Self { service, reason, cid, min_age, ..Self::default() }
    }
}

impl Chosen {
    fn query(self) -> Result<ParkedQuery, Failure> {
        let Filter { service, reason, cid, min_age } = &self.filter;
        let is_filtered = service.is_some() || reason.is_some() || cid.is_some() || min_age.is_some();
        if self.ids.is_empty() && !is_filtered && !self.all {
            return Err(Failure::bad_input(anyhow!(
                "nothing says which parked messages are meant: give IDs as `fanfare parked list` shows them, a filter such as \
                 --service, or --all"
            )));
        }
        Ok(ParkedQuery { ids: self.ids.into_iter().collect(), ..self.filter.into() })
    }
}

pub(crate) async fn run(arguments: ParkedArguments, settings: &Settings) -> Result<Exit, Failure> {
    let fanfare = settings.fanfare("parked")?;
    let outcome = match arguments.command {
        ParkedCommand::List { filter, limit, json } => list(&fanfare, &filter.into(), limit, json).await,
        ParkedCommand::Show { id, json } => show(&fanfare, &id, json).await,
        ParkedCommand::Replay { chosen } => replay(&fanfare, chosen).await,
        ParkedCommand::Purge { chosen } => purge(&fanfare, chosen).await,
    };
    fanfare.close().await;
    outcome
}

async fn list(fanfare: &Fanfare, query: &ParkedQuery, limit: usize, json: bool) -> Result<Exit, Failure> {
    let found = reached(fanfare, fanfare.operator().parked(query, limit).await).await?;
    if json {
        print_json(&found)?;
    } else {
        let now = WireTime::from(System.now());
        listed(&found, now, table::terminal_width()).into_iter().try_for_each(print)?;
    }
    if found.unseen > 0 {
        let unseen = found.unseen;
        say(format_args!(
            "warning: {unseen} more were not looked at: they are too many, or somebody else holds them"
        ));
    }
    Ok(Exit::Done)
}

fn listed(found: &ParkedMessages, now: WireTime, width: Option<usize>) -> Vec<String> {
    let header = ["ID", "AGE", "FROM", "CID", "REASON"].map(str::to_owned).to_vec();
    let rows = found.messages.iter().map(|parked| {
        let age = parked.parked_at.and_then(|at| (now.to_utc() - at.to_utc()).to_std().ok());
        let from = parked.service.as_ref().map(ToString::to_string).or_else(|| parked.from.clone());
        let cid = parked.cid.as_ref().map(ToString::to_string);
        let or_none = |text: Option<String>| text.map_or_else(|| "-".to_owned(), |text| plain(&text));
        vec![
            parked.id.clone(),
            or_none(age.map(table::rounded)),
            or_none(from),
            or_none(cid),
            plain(&parked.reason),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let mut lines = table::fitted(&rows, width, &["FROM", "REASON"]);
    match found.matching.saturating_sub(found.messages.len()) {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    lines
}

async fn show(fanfare: &Fanfare, id: &str, json: bool) -> Result<Exit, Failure> {
    let found = reached(fanfare, fanfare.operator().parked_message(id).await).await?;
    let Some((parked, message)) = found else {
        let none = anyhow!(
            "no parked message has the ID {}: `fanfare parked list` shows those that there are",
            quoted(id)
        );
        return Err(Failure::new(Exit::Failed, none));
    };
    if json {
        print_json(&whole(&parked, &message))?;
    } else {
        print(shown(&parked, &message))?;
    }
    Ok(Exit::Done)
}

/// Everything, for a program.
fn whole(parked: &Parked, message: &Message) -> Value {
    let headers = message.headers.iter().map(|(name, value)| (name.to_owned(), header(value)));
    let headers: serde_json::Map<String, Value> = headers.collect();
    let body = serde_json::from_slice(&message.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&message.body).into_owned()));
    json!({ "parked": parked, "headers": headers, "body": body })
}

fn header(value: &HeaderValue) -> Value {
    match value {
        HeaderValue::Text(text) | HeaderValue::Other(text) => Value::String(text.to_string()),
        HeaderValue::Int(number) => Value::from(*number),
        HeaderValue::Bool(value) => Value::from(*value),
        HeaderValue::Table(table) => {
            table.iter().map(|(name, value)| (name.to_owned(), header(value))).collect()
        }
        HeaderValue::List(list) => list.iter().map(header).collect(),
    }
}

fn shown(parked: &Parked, message: &Message) -> String {
    let mut text = format!("reason: {}\n", plain(&parked.reason));
    let Properties { kind, correlation_id, message_id, app_id, .. } = &message.properties;
    let parked_at = parked.parked_at.map(|at| at.to_string());
    let properties = [
        ("from", parked.from.as_deref()),
        ("parked at", parked_at.as_deref()),
        ("type", kind.as_deref()),
        ("correlation_id", correlation_id.as_deref()),
        ("message_id", message_id.as_deref()),
        ("app_id", app_id.as_deref()),
    ];
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{}: {}", plain(name), plain(value)).expect("a String takes everything");
    };
    for (name, value) in properties {
        if let Some(value) = value {
            line(name, value);
        }
    }
    for (name, value) in message.headers.iter() {
        let value = header(value);
        line(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str());
    }
    let body = String::from_utf8_lossy(&message.body[..message.body.len().min(BODY_SHOWN)]);
    let rest = match message.body.len().saturating_sub(BODY_SHOWN) {
        0 => String::new(),
        more => format!(" ... and {more} bytes more, which --json shows"),
    };
    text + "\n" + &plain(&body) + &rest
}

async fn replay(fanfare: &Fanfare, chosen: Chosen) -> Result<Exit, Failure> {
    let (json, ids) = (chosen.json, chosen.ids.clone());
    let replayed = reached(fanfare, fanfare.operator().replay(&chosen.query()?).await).await?;
    let mut stayed = 0;
    for Replayed { parked, outcome } in &replayed {
        let error = outcome.as_ref().err().map(|error| plain(&error.to_string()));
        stayed += usize::from(error.is_some());
        if json {
            print_json(&json!({ "parked": parked, "replayed": error.is_none(), "error": error }))?;
        } else {
            let from = parked.from.as_deref().map(plain).unwrap_or_default();
            let done =
                error.map_or_else(|| format!("back in {from}"), |error| format!("stays parked: {error}"));
            print(format_args!("{} {done}", parked.id))?;
        }
    }
    let unknown = unknown(&ids, replayed.iter().map(|replayed| &replayed.parked));
    match (replayed.len(), stayed) {
        (0, _) => Err(none_such()),
        (all, 1..) => Err(Failure::new(Exit::Failed, anyhow!("{stayed} of {all} stay parked"))),
        _ => unknown,
    }
}

async fn purge(fanfare: &Fanfare, chosen: Chosen) -> Result<Exit, Failure> {
    let (json, ids) = (chosen.json, chosen.ids.clone());
    let purged = reached(fanfare, fanfare.operator().purge(&chosen.query()?).await).await?;
    for parked in &purged {
        if json {
            print_json(parked)?;
        } else {
            print(format_args!("{} dropped: {}", parked.id, plain(&parked.reason)))?;
        }
    }
    if purged.is_empty() { Err(none_such()) } else { unknown(&ids, purged.iter()) }
}

/// Whether each of these was found.
fn unknown<'a>(ids: &[String], found: impl Iterator<Item = &'a Parked>) -> Result<Exit, Failure> {
    let found: BTreeSet<&str> = found.map(|parked| parked.id.as_str()).collect();
    let unknown: BTreeSet<&str> = ids.iter().map(String::as_str).filter(|id| !found.contains(id)).collect();
    if unknown.is_empty() {
        return Ok(Exit::Done);
    }
    let unknown: Vec<String> = unknown.into_iter().map(quoted).collect();
    Err(Failure::new(
        Exit::Failed,
        anyhow!(
            "no parked message that is meant, of those that could be looked at, has the ID {}: `fanfare parked list` shows them",
            unknown.join(" or ")
        ),
    ))
}

fn none_such() -> Failure {
    let none =
        anyhow!("no parked message is meant by that: `fanfare parked list` shows those that there are");
    Failure::new(Exit::Failed, none)
}

/// What the broker answered. Where there is none, the error says so.
pub(crate) async fn reached<T>(fanfare: &Fanfare, answer: Result<T, LookError>) -> Result<T, Failure> {
    let error = match answer {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    if let Some(failure) = exit::without_broker(fanfare).await {
        return Err(failure);
    }
    Err(match error {
        LookError::Broker(error @ BrokerError::Unreachable(_)) => Failure::no_broker(&error),
        LookError::Busy { .. } | LookError::Broker(BrokerError::Denied(_)) => {
            Failure::new(Exit::Unknown, error)
        }
        error => Failure::new(Exit::Failed, error),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn message() -> Message {
        let at = WireTime::from_timestamp(1_000).unwrap();
        let message = Message { body: "{\"a\":1}".into(), ..Message::default() };
        message.parked("fanfare.service.price.quote", "no\u{1b}[2J price", at, Uuid::from_u128(1))
    }

    fn parked() -> Parked {
        Parked {
            id: "1f0c9d2b7a6e5f43".to_owned(),
            reason: "no\u{1b}[2J price".to_owned(),
            parked_at: WireTime::from_timestamp(1_000),
            from: Some("fanfare.service.price.quote".to_owned()),
            service: ServiceName::new("price.quote").ok(),
            kind: String::new(),
            cid: None,
            run: None,
            message_id: None,
            bytes: 7,
        }
    }

    #[test]
    fn those_that_are_parked_are_a_table_and_those_left_out_are_counted() {
        let found = ParkedMessages { matching: 3, unseen: 0, others: 0, messages: vec![parked()] };
        assert_eq!(
            listed(&found, WireTime::from_timestamp(1_061).unwrap(), None),
            [
                "ID                AGE    FROM         CID  REASON",
                "1f0c9d2b7a6e5f43  1m 1s  price.quote  -    no\\u{1b}[2J price",
                "and 2 more",
            ]
        );
    }

    #[test]
    fn all_of_one_is_shown_without_what_a_terminal_would_act_upon() {
        let text = shown(&parked(), &message());
        assert!(
            text.starts_with("reason: no\\u{1b}[2J price\nfrom: fanfare.service.price.quote\n"),
            "{text}"
        );
        assert!(
            text.contains("\nparked at: 1970-01-01 00:16:40\n") && text.ends_with("\n\n{\"a\":1}"),
            "{text}"
        );
        let value = whole(&parked(), &message());
        assert_eq!((&value["body"]["a"], &value["parked"]["bytes"]), (&json!(1), &json!(7)));
        assert_eq!(value["headers"]["fanfare-reason"], "no\u{1b}[2J price");
    }
    #[test]
    fn no_words_choose_nothing() {
        for text in ["", " "] {
            assert!(words(text).unwrap_err().contains("is in every reason"));
        }
        assert_eq!(words("no price"), Ok("no price".to_owned()));
    }
}
