//! Fanfare beside what people use for the same today: Celery's chords and BullMQ's flows, on one machine in one run.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::process::{self, Group};
use crate::{environment, interrupt, say};

const WIDTHS: &str = "2,10,100";
const PAYLOAD_BYTES: u64 = 100;
const SECONDS: &str = "5";
/// How long a client may take to download on a slow line.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
/// How long one peer may take to be measured.
const LIMIT: Duration = Duration::from_secs(300);
const START_LIMIT: Duration = Duration::from_secs(20);

/// What is told of one width.
#[derive(Deserialize)]
struct Figures {
    width: u64,
    fan_outs_per_s: f64,
    invoke_ms: f64,
    fan_in_ms: f64,
}

type ByWidth = BTreeMap<u64, Figures>;

/// A Redis of its own, which appends to a file that it syncs once a second.
struct Redis {
    _server: Group,
    url: String,
}

/// What Celery and BullMQ did.
pub(crate) struct Peers {
    celery: ByWidth,
    bullmq: ByWidth,
}

impl Peers {
    /// Measures them, one after the other.
    pub(crate) fn measure(broker: &str) -> Result<Self> {
        let (python, modules) = (provide_celery()?, provide_bullmq()?);
        let redis = Redis::start()?;
        say("measuring Celery");
        let folder = environment::root().join("bench/peers");
        let python = |program: &str| {
            let mut command = Command::new(python.join(program));
            command.current_dir(folder.join("celery"));
            command.env("PEERS_BROKER", broker).env("PEERS_REDIS", &redis.url);
            command
        };
        let mut worker = python("celery");
        worker.args(["-A", "fanout", "worker", "--loglevel", "ERROR"]);
        worker.args(["--without-gossip", "--without-mingle", "--without-heartbeat"]);
        let celery = measured(&mut worker, python("python").arg("bench.py"))?;
        say("measuring BullMQ");
        let node = |script: &str| {
            let mut command = Command::new("node");
            command.arg(script).current_dir(folder.join("bullmq"));
            command.env("NODE_PATH", &modules).env("PEERS_REDIS", &redis.url);
            command
        };
        let bullmq = measured(&mut node("worker.cjs"), &mut node("bench.cjs"))?;
        Ok(Self { celery, bullmq })
    }

    /// What `fanfare bench --beside` reads.
    pub(crate) fn lines(&self) -> String {
        let of = |name: &'static str, figures: &ByWidth| {
            let line = |figures: &Figures| {
                let Figures { width, fan_outs_per_s, .. } = figures;
                json!({ "name": name, "width": width, "fan_outs_per_s": fan_outs_per_s }).to_string() + "\n"
            };
            figures.values().map(line).collect::<String>()
        };
        of("Celery", &self.celery) + &of("BullMQ", &self.bullmq)
    }

    /// One table of them and of Fanfare, whose figures are given as `fanfare bench --json` writes them, of the widths that were measured of
    /// all three.
    pub(crate) fn table(&self, figures: &str) -> Result<String> {
        let report: Value = serde_json::from_str(figures)?;
        let cases = report["cases"].as_array().context("the figures have no cases")?;
        let is_alike = |case: &&Value| case["payload"] == PAYLOAD_BYTES && case["on_target"] == 0;
        let of = |aggregation: &str| {
            gathering(cases.iter().filter(is_alike).filter(|case| case["aggregation"] == aggregation))
        };
        table(&[of("shared")?, of("per-cid")?], &self.celery, &self.bullmq)
    }
}

/// Runs a peer's worker and what drives it, and returns what that prints.
fn measured(worker: &mut Command, driver: &mut Command) -> Result<ByWidth> {
    let _worker = Group::spawn(worker.stdout(Stdio::null()))?;
    let output = process::output(driver.args([WIDTHS, &PAYLOAD_BYTES.to_string(), SECONDS]), LIMIT)?;
    let figures = output.lines().map(|line| Ok(serde_json::from_str::<Figures>(line)?));
    figures.map(|figures| figures.map(|figures| (figures.width, figures))).collect()
}

/// What was measured of Fanfare where results are gathered in one way.
struct Gathering {
    figures: ByWidth,
    /// By width, in fan-outs per second: the limit of the broker, and where queues come and go that of used ones too.
    limits: BTreeMap<u64, [f64; 2]>,
}

fn gathering<'a>(cases: impl Iterator<Item = &'a Value>) -> Result<Gathering> {
    let mut gathering = Gathering { figures: BTreeMap::new(), limits: BTreeMap::new() };
    for case in cases {
        let number = |value: &Value| value.as_f64().with_context(|| format!("a figure is missing in {case}"));
        let width = case["width"].as_u64().context("a case has no width")?;
        let of_width = Figures {
            width,
            fan_outs_per_s: number(&case["fan_outs_per_s"])?,
            invoke_ms: number(&case["alone"]["invoke"]["p50_ms"])?,
            fan_in_ms: number(&case["alone"]["fan_in"]["p50_ms"])?,
        };
        gathering.figures.insert(width, of_width);
        let limit = [number(&case["limit_per_s"])?, number(&case["limit_of_used_queues_per_s"])?];
        gathering.limits.insert(width, limit);
    }
    Ok(gathering)
}

fn table([shared, per_cid]: &[Gathering; 2], celery: &ByWidth, bullmq: &ByWidth) -> Result<String> {
    let mut table = "| width | | Fanfare, shared | Fanfare, per-CID | Celery | BullMQ | raw limit: shared; per-CID with empty \
                     queues, with used ones |\n|--:|---|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for (width, [empty, used]) in per_cid.limits.iter().filter(|(width, _)| celery.contains_key(width)) {
        let missing = || format!("nothing was measured of width {width}");
        let of = |peer: &'_ ByWidth| -> Result<[f64; 3]> {
            let figures = peer.get(width).with_context(missing)?;
            Ok([figures.fan_outs_per_s, figures.invoke_ms, figures.fan_in_ms])
        };
        let columns = [of(&shared.figures)?, of(&per_cid.figures)?, of(celery)?, of(bullmq)?];
        let [of_shards, _] = shared.limits.get(width).with_context(missing)?;
        let limit = format!("{of_shards:.1}; {empty:.1}, {used:.1}");
        let rows = [
            ("fan-outs/s", limit.as_str()),
            ("invoke ms, one at a time", ""),
            ("fan-in ms, one at a time", ""),
        ];
        for (row, (what, limit)) in rows.into_iter().enumerate() {
            let figures = columns.map(|column| format!("{:.1}", column[row])).join(" | ");
            table += &format!("| {width} | {what} | {figures} | {limit} |\n");
        }
    }
    Ok(table)
}

/// Where all that the peers need is installed.
fn folder() -> PathBuf {
    environment::target().join("peers")
}

/// Installs Celery, and returns the folder of its programs.
fn provide_celery() -> Result<PathBuf> {
    let (folder, programs) = (folder().join("python"), folder().join("python/bin"));
    let requirements = environment::root().join("bench/peers/celery/requirements.txt");
    if !environment::works("python3", &["-c", "import ensurepip, venv"]) && environment::can_install() {
        environment::install(&["python3", "python3-venv"])?;
    }
    process::output(Command::new("python3").args(["-m", "venv"]).arg(folder), INSTALL_LIMIT)
        .context("no Python: install python3 and python3-venv")?;
    let mut pip = Command::new(programs.join("python"));
    pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements);
    process::output(&mut pip, INSTALL_LIMIT).context("cannot install Celery")?;
    Ok(programs)
}

/// Installs BullMQ, and returns the folder of its modules.
fn provide_bullmq() -> Result<PathBuf> {
    let folder = folder().join("node");
    if !(environment::works("node", &["--version"]) && environment::works("npm", &["--version"]))
        && environment::can_install()
    {
        environment::install(&["nodejs", "npm"])?;
    }
    fs::create_dir_all(&folder)?;
    fs::copy(environment::root().join("bench/peers/bullmq/package.json"), folder.join("package.json"))?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-package-lock", "--prefix"]).arg(&folder);
    process::output(&mut npm, INSTALL_LIMIT).context("cannot install BullMQ: it needs nodejs and npm")?;
    Ok(folder.join("node_modules"))
}

impl Redis {
    fn start() -> Result<Self> {
        if !environment::works("redis-server", &["--version"]) && environment::can_install() {
            environment::install(&["redis-server"])?;
        }
        let (folder, port) = (folder().join("redis"), environment::free_port()?);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"]).arg(&folder);
        let server = Group::spawn(command.stdout(Stdio::null())).context("install redis-server")?;
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            interrupt::check()?;
            ensure!(server.is_running() && started.elapsed() < START_LIMIT, "Redis does not start");
            thread::sleep(process::POLL);
        }
        Ok(Self { _server: server, url: format!("redis://127.0.0.1:{port}/0") })
    }
}
