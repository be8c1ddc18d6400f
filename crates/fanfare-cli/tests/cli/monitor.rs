//! What workers and coordinators tell about themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::get;
use crate::proxy::Proxy;
use crate::support::{Ended, Running, broker, eventually, fanfare, split};

/// A coordinator and a worker that can be asked.
pub(crate) struct Asked {
    directory: TempDir,
    prefix: String,
    pub(crate) coordinator: Running,
    pub(crate) worker: Running,
    variables: Vec<(&'static str, String)>,
}

impl Asked {
    /// `services` is the part of the settings file that names them; the worker is ready when it serves the one of that name.
    pub(crate) fn start(name: &str, services: &str, ready: &str) -> Self {
        Self::start_with(name, services, ready, &[])
    }

    /// The same, with variables for all that is run.
    pub(crate) fn start_with(
        name: &str,
        services: &str,
        ready: &str,
        variables: &[(&'static str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let prefix = format!("ask-{name}-{}", std::process::id());
        let settings = format!("broker = \"{}\"\nprefix = \"{prefix}\"\n{services}", broker());
        fs::write(directory.path().join("fanfare.toml"), settings).unwrap();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let start = |role: &[&str], ready: &str| {
            let mut command = fanfare(directory.path());
            command.args(role).args(["--listen", "127.0.0.1:0"]).envs(variables.clone());
            Running::spawn(command, ready)
        };
        let coordinator = start(&["coordinator"], "coordinator started");
        let worker = start(&["worker", "--log-format", "json"], &format!("\"service\":\"{ready}\""));
        Self { coordinator, worker, directory, prefix, variables }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn another_coordinator(&self) -> Running {
        Running::spawn(self.command(&["coordinator"]), "coordinator started")
    }

    pub(crate) fn invoke(&self, arguments: &[&str]) -> Ended {
        self.run(&[&["invoke", "--source", "test"], arguments].concat())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = fanfare(self.path());
        command.args(arguments).envs(self.variables.clone());
        command
    }
}

const SERVICES: &str = r#"
[services."t.fine"]
exec = ["cat"]
[services."t.broken"]
exec = ["sh", "-c", "echo no such item >&2; exit 3"]
retry = { attempts = 2 }
"#;

/// The samples of a scrape, by series and labels as they are written.
fn samples(address: &str) -> BTreeMap<String, f64> {
    let scrape = get(address, "/metrics");
    assert_eq!(scrape.status, 200);
    let lines = scrape.body.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The labels of the series that docs/telemetry.md has.
fn documented() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let page = include_str!("../../../../docs/telemetry.md");
    let rows = page.lines().filter(|line| line.starts_with("| `fanfare_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        // A label stands before its values, which follow a colon.
        let labels = cells[3].split(": ").next().unwrap().split('`').skip(1).step_by(2);
        (cells[1].trim_matches('`'), labels.collect())
    })
    .collect()
}

#[test]
fn what_happened_is_counted_in_series_that_are_documented() {
    let asked = Asked::start("metrics", SERVICES, "t.fine");
    let targets = ["--target", "one@t.fine=1", "--target", "two@t.fine=2", "--target", "t.broken"];
    let callbacks = ["--on-target", "helpers.input-logger", "--on-final", "helpers.input-logger"];
    let ended = asked.invoke(&[&targets[..], &callbacks, &["--wait", "1m"]].concat());
    assert_eq!(ended.exit, 1, "{ended:?}");

    let (coordinator, worker) = (asked.coordinator.address(), asked.worker.address());
    let callbacks = "fanfare_worker_runs_total{service=\"helpers.input-logger\",outcome=\"ok\"}";
    eventually("all callbacks have run", || samples(&worker).get(callbacks) == Some(&4.0));
    let ended = "fanfare_coordinator_fan_outs_ended_total{by=\"responses\"}";
    eventually("the fan-out has ended", || samples(&coordinator)[ended] == 1.0);
    let (of_coordinator, of_worker) = (samples(&coordinator), samples(&worker));
    for (series, value) in [
        ("fanfare_coordinator_fan_outs_open", 0.0),
        ("fanfare_coordinator_fan_outs_taken_total{hold=\"first\"}", 1.0),
        ("fanfare_coordinator_fan_in_seconds_count", 1.0),
        ("fanfare_coordinator_results_total{outcome=\"ok\"}", 2.0),
        ("fanfare_coordinator_results_total{outcome=\"failed\"}", 1.0),
        ("fanfare_coordinator_callbacks_total{kind=\"on_target\"}", 3.0),
        ("fanfare_coordinator_callbacks_total{kind=\"on_final\"}", 1.0),
        ("fanfare_coordinator_callbacks_total{kind=\"waiter\"}", 1.0),
        ("fanfare_broker_publishes_in_flight", 0.0),
        ("fanfare_broker_connections_lost_total", 0.0),
    ] {
        assert_eq!(of_coordinator.get(series), Some(&value), "{series}");
    }
    for (series, value) in [
        ("fanfare_worker_runs_total{service=\"t.fine\",outcome=\"ok\"}", 2.0),
        ("fanfare_worker_runs_total{service=\"t.broken\",outcome=\"retried\"}", 1.0),
        ("fanfare_worker_runs_total{service=\"t.broken\",outcome=\"failed\"}", 1.0),
        ("fanfare_worker_run_seconds_count{service=\"t.broken\"}", 2.0),
        ("fanfare_worker_running{service=\"t.fine\"}", 0.0),
    ] {
        assert_eq!(of_worker.get(series), Some(&value), "{series}");
    }

    let documented = documented();
    let mut seen = BTreeSet::new();
    for series in of_coordinator.keys().chain(of_worker.keys()) {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let name = of_histogram.filter(|name| documented.contains_key(name)).unwrap_or(name);
        let labels: BTreeSet<&str> = labels
            .split("\",")
            .filter_map(|label| Some(label.split_once('=')?.0))
            .filter(|label| *label != "le")
            .collect();
        assert_eq!(documented.get(name), Some(&labels), "{series}");
        seen.insert(name);
    }
    let documented: BTreeSet<&str> = documented.into_keys().collect();
    assert_eq!(seen, documented, "every series begins when its process starts");

    let (_, log) = asked.worker.stop(Signal::TERM);
    let failure = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let failure = failure.into_iter().find(|event| event["message"] == "a target failed").unwrap();
    let span = &failure["span"];
    assert_eq!(
        (&span["service"], &span["key"], &span["attempt"]),
        (&"t.broken".into(), &"t.broken".into(), &2.into())
    );
    assert_eq!(span["cid"], failure["cid"]);
}

#[test]
fn process_is_not_ready_and_says_why_while_its_broker_is_away_and_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let url = broker();
    let (scheme, credentials, address, path) = split(&url);
    let proxy = Proxy::cut_off(address);
    let through = format!("{scheme}://{credentials}{}{path}", proxy.address);
    let prefix = format!("ready-{}", std::process::id());
    for role in ["coordinator", "worker"] {
        let arguments = [role, "--listen", "127.0.0.1:0", "--broker", &through, "--prefix", &prefix];
        let running = Running::start(directory.path(), &arguments, "serving metrics");
        let address = running.address();
        let ready = || get(&address, "/readyz");
        let is_away = || {
            let answer = ready();
            answer.status == 503 && answer.body.contains("the broker cannot be reached")
        };
        assert!(is_away(), "{:?}", ready());
        assert_eq!(get(&address, "/healthz").status, 200);
        proxy.restore();
        eventually("it is ready once it reaches the broker", || ready().status == 200);
        assert_eq!((get(&address, "/healthz").status, &*ready().body), (200, "ok\n"));
        proxy.cut();
        eventually("it is not ready once the broker is away", is_away);
        assert_eq!(get(&address, "/healthz").status, 200);
        proxy.restore();
        eventually("it is ready again", || ready().status == 200);
        let lost = samples(&address)["fanfare_broker_connections_lost_total"];
        assert!(lost >= 1.0, "{lost}");
        proxy.cut();
    }
}
