//! `fanfare bench`: how many fan-outs a broker bears, beside what it does without Fanfare.
//!
//! Publisher, workers and coordinators are processes of their own, and so is the raw limit, each this program with a [`Role`].
//! One case after the other runs in rounds: Fanfare for a while, then the limits, so that both meet the same machine.

mod case;
mod memory;
mod plot;
mod process;
mod publisher;
mod raw;
mod report;
mod role;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use fanfare::{Fanfare, ServiceName};
use serde::Deserialize;

use self::case::{ANSWER_BYTES, Case, MOST_TARGETS, ON_FINAL, TARGET};
use self::process::{Process, Usage};
use self::report::{Outcome, Report, Roles, Round};
use self::role::{Load, Order, Part, Role, Serving, now, play};
use crate::configuration::Aggregation;
use crate::durations;
use crate::exit::{Exit, Failure, print, say};
use crate::numbers;
use crate::settings::Settings;
use crate::signals::Signals;

/// The largest payload: what an answer may have is about half of a message.
const MOST_BYTES: usize = 1_000_000;
/// On-target callbacks, which the benchmark does not need many of.
const MOST_ON_TARGET: usize = 10;
const MOST_WORKERS: usize = 64;
const LONGEST_ROUND_SECONDS: u64 = 600;
/// A target that takes longer would leave nothing to measure.
const LONGEST_SERVICE: Duration = Duration::from_secs(10);
/// The length of the round before the first that counts.
const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
For each case it tells fan-outs and targets per second, how long `invoke` takes and how long
after the last result the final callback comes, under full load and with one fan-out at a time,
and CPU time and peak memory of each role; and beside them the raw limit of the same broker in the same minute: the same messages through
plain lapin, and the coming and going of as many queues, where each fan-out has one. The ratio is what Fanfare reaches of
that. Only ratios can be compared between machines and days. docs/performance.md explains it.

Queues have a prefix of their own and are deleted at the end. All of it takes about a quarter of
an hour with the defaults.

Examples:
  fanfare bench --broker amqp://localhost
  fanfare bench --widths 10,100 --payload 100 --on-target 0 --rounds 5
  fanfare bench --modes per-cid,shared --shards 4 --widths 2,10,100 --payload 100 --on-target 0
  fanfare bench --widths 100 --workers 1,2,4,8 --concurrency 4 --service-time 20ms
  fanfare bench --json bench.json --plot docs/bench

Exit codes: 0 done; 1 it could not be measured; 2 bad input; 3 no broker")]
pub(crate) struct BenchArguments {
    /// Targets of a fan-out, divided by commas: each 1 to 30,000
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = numbers::parse::<usize>,
        default_values_t = [1, 2, 10, 100, 1_000, 10_000])]
    widths: Vec<usize>,

    /// Bytes of a request and of its answer, divided by commas. Where a final payload has no room for as much, answers are shorter
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = numbers::parse_any::<usize>,
        default_values_t = [100, 10_000])]
    payload: Vec<usize>,

    /// On-target callbacks, divided by commas
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = numbers::parse_any::<usize>,
        default_values_t = [0, 1])]
    on_target: Vec<usize>,

    /// Rounds of each case, of which the medians are told
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = numbers::parse::<usize>)]
    rounds: usize,

    /// Seconds that a round invokes for; the limits take as long together, and so does what is measured one at a time
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = numbers::parse::<u64>)]
    seconds: u64,

    /// Where results are gathered, divided by commas; shared needs --shards
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_values_t = [Aggregation::PerCid])]
    modes: Vec<Aggregation>,

    /// Processes that run workers, divided by commas: each 1 to 64
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1])]
    workers: Vec<usize>,

    /// How long a target takes, such as 20ms; no time where it is not given
    #[arg(long, value_name = "TIME", value_parser = durations::parse)]
    service_time: Option<Duration>,

    /// Invocations that run at a time in each of them, of every service
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = numbers::parse::<usize>)]
    concurrency: usize,

    /// Processes that run coordinators
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = numbers::parse::<usize>)]
    coordinators: usize,

    /// Measures how much memory a worker and a coordinator take instead, in some minutes
    #[arg(long, conflicts_with_all = ["widths", "payload", "on_target", "rounds", "seconds", "workers", "service_time",
        "coordinators", "plot", "beside"])]
    memory: bool,

    /// Writes all figures to a file as JSON; to standard output, in place of the tables, where it is -
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draws ratios and rates into this folder, as SVG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,

    /// Draws into that folder what others did with the same targets too: a file with a line of JSON for each of them and each width, such
    /// as {"name": "Celery", "width": 10, "fan_outs_per_s": 38.4}
    #[arg(long, value_name = "FILE", requires = "plot")]
    beside: Option<PathBuf>,

    /// The broker's process on this machine, whose CPU time and memory are to be told too
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,

    /// What this process is to be, of those that the benchmark starts
    #[arg(long, hide = true)]
    role: Option<Role>,
}

pub(crate) async fn run(mut arguments: BenchArguments, settings: &Settings) -> Result<Exit, Failure> {
    if let Some(role) = arguments.role.take() {
        return play(role, arguments.serving(), settings).await;
    }
    let cases = arguments.cases().map_err(Failure::bad_input)?;
    let others = arguments.others().map_err(Failure::bad_input)?;
    raw::uri(settings)?;
    let signals = Signals::listen()?;
    let prefix = format!("bench-{:x}", now());
    if arguments.modes.contains(&Aggregation::Shared) && settings.shards == 0 {
        return Err(Failure::bad_input(anyhow!(
            "--modes shared needs to know how many shards: give --shards 4"
        )));
    }
    let fanfare = settings.connected_apart("bench", &prefix, Aggregation::PerCid).await?;
    let measured = tokio::select! {
        measured = figures(&arguments, cases, &others, &fanfare, settings.shards) => measured,
        () = signals.first() => Err(anyhow!("interrupted")),
    };
    clear(&fanfare, settings.shards).await;
    fanfare.close().await;
    let published = measured.and_then(|figures| arguments.publish(&figures));
    published.map(|()| Exit::Done).map_err(|error| Failure::new(Exit::Failed, error))
}

/// What another system did with fan-outs of one width.
#[derive(Debug, Deserialize)]
struct Other {
    name: String,
    width: usize,
    fan_outs_per_s: f64,
}

/// What was measured, for people and for programs.
struct Figures {
    tables: String,
    json: String,
    plots: Vec<(&'static str, String)>,
}

async fn figures(
    arguments: &BenchArguments,
    cases: Vec<Case>,
    others: &[Other],
    fanfare: &Fanfare,
    shards: u32,
) -> Result<Figures> {
    if arguments.memory {
        let [aggregation] = arguments.modes[..] else {
            bail!("--memory measures one of --modes: give per-cid or shared");
        };
        let memory = memory::measure(fanfare, aggregation).await?;
        let json = serde_json::to_string_pretty(&memory)?;
        return Ok(Figures { tables: memory.to_string(), json, plots: Vec::new() });
    }
    let report = measure(arguments, cases, fanfare, shards).await?;
    let json = serde_json::to_string_pretty(&report)?;
    Ok(Figures { tables: report.to_string(), json, plots: plot::of(&report, others) })
}

impl BenchArguments {
    fn serving(&self) -> Serving {
        let service_time = self.service_time.unwrap_or_default();
        Serving { concurrency: self.concurrency, service_time }
    }

    /// Every combination of what was asked for.
    fn cases(&self) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for &aggregation in &self.modes {
            for &payload in &self.payload {
                for &on_target in &self.on_target {
                    for &width in &self.widths {
                        let case = |&workers| Case { aggregation, width, payload, on_target, workers };
                        cases.extend(self.workers.iter().map(case));
                    }
                }
            }
        }
        let outside = |flag: &str, value: u64, least: u64, most: u64| {
            anyhow!("--{flag} {value} is not allowed: give {least} to {most}")
        };
        let bounds = |flag: &str, values: &[usize], least: usize, most: usize| match values
            .iter()
            .find(|value| !(least..=most).contains(value))
        {
            Some(value) => Err(outside(flag, *value as u64, least as u64, most as u64)),
            None => Ok(()),
        };
        bounds("widths", &self.widths, 1, MOST_TARGETS)?;
        bounds("payload", &self.payload, ANSWER_BYTES, MOST_BYTES)?;
        bounds("on-target", &self.on_target, 0, MOST_ON_TARGET)?;
        bounds("workers", &self.workers, 1, MOST_WORKERS)?;
        if let Some(longer) = self.service_time.filter(|time| *time > LONGEST_SERVICE) {
            return Err(anyhow!(
                "--service-time {longer:?} is not allowed: give {LONGEST_SERVICE:?} at most"
            ));
        }
        if self.seconds > LONGEST_ROUND_SECONDS {
            return Err(outside("seconds", self.seconds, 1, LONGEST_ROUND_SECONDS));
        }
        Ok(cases)
    }

    /// What others did.
    fn others(&self) -> Result<Vec<Other>> {
        let Some(file) = &self.beside else { return Ok(Vec::new()) };
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let of = |line| {
            serde_json::from_str(line).with_context(|| {
                format!("--beside: {line:?} is not an object with a name, a width and fan_outs_per_s")
            })
        };
        text.lines().map(of).collect()
    }

    /// Writes what was asked for.
    fn publish(&self, figures: &Figures) -> Result<()> {
        let Figures { tables, json, plots } = figures;
        match &self.json {
            Some(file) if file.as_os_str() == "-" => print(json)?,
            Some(file) => {
                print(tables)?;
                fs::write(file, format!("{json}\n"))
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            None => print(tables)?,
        }
        if let Some(folder) = &self.plot {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            for (name, plot) in plots {
                let file = folder.join(name);
                fs::write(&file, plot).with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Ok(())
    }
}

async fn measure(
    arguments: &BenchArguments,
    cases: Vec<Case>,
    fanfare: &Fanfare,
    shards: u32,
) -> Result<Report> {
    let mut outcomes = Vec::new();
    let count = cases.len();
    for (index, case) in cases.into_iter().enumerate() {
        let Case { aggregation, width, payload, on_target, workers } = case;
        let number = index + 1;
        say(format_args!(
            "{number} of {count}: {aggregation}, width {width}, {payload} bytes, {on_target} on-target, {workers} workers"
        ));
        outcomes.push(measure_case(arguments, case, fanfare).await?);
    }
    Ok(Report {
        fanfare: env!("CARGO_PKG_VERSION"),
        broker: Report::broker(&fanfare.broker().server().await?),
        machine: machine(),
        shards,
        service_time_ms: arguments.serving().service_time.as_millis(),
        concurrency: arguments.concurrency,
        coordinators: arguments.coordinators,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        cases: outcomes,
    })
}

async fn measure_case(arguments: &BenchArguments, case: Case, fanfare: &Fanfare) -> Result<Outcome> {
    let prefix = fanfare.names().prefix().to_string();
    let broker = arguments.broker_pid;
    let start = |part| Process::start(&Role { part, prefix: prefix.clone(), case, broker });
    let mut publisher = start(Part::Publisher)?;
    let workers = (0..case.workers).map(|_| start(Part::Worker)).collect::<Result<Vec<_>>>()?;
    let coordinators =
        (0..arguments.coordinators).map(|_| start(Part::Coordinator)).collect::<Result<Vec<_>>>()?;
    let mut raw = Process::start(&Role { part: Part::Raw, prefix: format!("{prefix}-raw"), case, broker })?;
    let length = Duration::from_secs(arguments.seconds);
    if let Some(broker) = broker {
        Usage::reset_peak(broker);
    }
    let mut rounds = Vec::new();
    for round in 0..=arguments.rounds {
        let warming_up = round == 0;
        let length = if warming_up { WARM_UP } else { length };
        let used = |of: &[Process]| of.iter().map(Process::usage).collect::<Vec<_>>();
        let broker = || broker.and_then(Usage::of).unwrap_or_default();
        let before = (publisher.usage(), used(&workers), used(&coordinators), broker());
        let full = Order { load: Load::Full, length };
        let measured = publisher.round(full).await?;
        let usage = Roles {
            publisher: Usage::between(&[before.0], &[publisher.usage()]),
            worker: Usage::between(&before.1, &used(&workers)),
            coordinator: Usage::between(&before.2, &used(&coordinators)),
            broker: Usage::between(&[before.3], &[broker()]),
        };
        let limits = raw.round(full).await?;
        let one = Order { load: Load::One, length: length / 2 };
        let (alone, hops) = (publisher.round(one).await?, raw.round(one).await?);
        if !warming_up {
            rounds.push(Round { measured, limits, alone, hops, usage });
        }
    }
    for process in [publisher, raw].into_iter().chain(workers).chain(coordinators) {
        process.stop().await;
    }
    Ok(Outcome::of(case, &rounds))
}

/// Deletes the queues that the processes have declared and left.
async fn clear(fanfare: &Fanfare, shards: u32) {
    let names = fanfare.names();
    let on_target = (1..=MOST_ON_TARGET).map(case::on_target_name);
    let services = [TARGET, ON_FINAL, memory::HELD].map(str::to_owned).into_iter().chain(on_target);
    let services = services.filter_map(|name| Some(names.service(&ServiceName::new(name).ok()?)));
    let shards = (0..shards).map(|number| names.shard(number));
    for queue in services.chain(shards).chain([names.fanin(), names.dead(), names.parked(), names.full()]) {
        if let Err(error) = fanfare.broker().delete(&queue.name).await {
            tracing::warn!(queue = queue.name, %error, "not deleted");
        }
    }
}

/// Processors, as far as the system tells.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{processors} processors, {}", model.map_or("of an unknown model", |(_, model)| model))
}
