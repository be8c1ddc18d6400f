//! The dashboard, with a real Prometheus that scrapes a real coordinator and a real worker.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::http::get;
use crate::monitor::Asked;
use crate::support::eventually;

const SERVICES: &str = r#"
[services."t.fine"]
exec = ["cat"]
[services."t.broken"]
exec = ["sh", "-c", "exit 3"]
"#;

/// What Grafana puts in the place of its variable: here some scrapes, of one a second.
const RATE_INTERVAL: &str = "10s";

/// A Prometheus of its own, ended with the test.
struct Prometheus {
    server: Child,
    address: String,
    _folder: TempDir,
}

impl Prometheus {
    /// None where this run is told to do without, which it says.
    fn scraping(targets: &[String]) -> Option<Self> {
        if std::env::var_os("FANFARE_TEST_NO_PROMETHEUS").is_some() {
            #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
            {
                println!(
                    "left out: FANFARE_TEST_NO_PROMETHEUS is set, so there is nobody to ask the dashboard's questions"
                );
            }
            return None;
        }
        let program = std::env::var("FANFARE_TEST_PROMETHEUS")
            .expect("this test runs a Prometheus: run `cargo xtask test`, or set FANFARE_TEST_NO_PROMETHEUS");
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- {{job_name: fanfare, static_configs: [{{targets: {targets:?}}}]}}\n"
        );
        fs::write(&settings, text).unwrap();
        let mut server = Command::new(program)
            .arg(format!("--config.file={}", settings.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = log.find_map(|line| {
            let (_, at) = line.split_once("msg=\"Listening on\" address=")?;
            at.split(' ').next().map(str::to_owned)
        });
        std::thread::spawn(move || log.for_each(drop));
        let address = address.expect("it says where it listens");
        eventually("Prometheus is ready", || get(&address, "/-/ready").status == 200);
        Some(Self { server, address, _folder: folder })
    }

    /// The values that a question comes to; none that are no numbers.
    fn ask(&self, question: &str) -> Vec<f64> {
        let escaped: String = question.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = get(&self.address, &format!("/api/v1/query?query={escaped}"));
        assert_eq!(answer.status, 200, "{question}: {}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        let series = answer["data"]["result"].as_array().unwrap().iter();
        let values = series.map(|series| series["value"][1].as_str().unwrap().parse::<f64>().unwrap());
        values.filter(|value| !value.is_nan()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn every_panel_of_the_dashboard_finds_data() {
    let asked = Asked::start("prometheus", SERVICES, "t.fine");
    let addresses = [asked.coordinator.address(), asked.worker.address()];
    let Some(prometheus) = Prometheus::scraping(&addresses) else { return };
    eventually("both are scraped", || prometheus.ask("sum(up)") == [2.0]);

    let dashboard: Value =
        serde_json::from_str(include_str!("../../../../deploy/grafana/dashboards/fanfare.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let questions: Vec<(String, String)> = panels
        .flat_map(|panel| panel["targets"].as_array().unwrap().iter().map(move |target| (panel, target)))
        .map(|(panel, target)| {
            let question = target["expr"].as_str().unwrap().replace("$__rate_interval", RATE_INTERVAL);
            (panel["title"].as_str().unwrap().to_owned(), question)
        })
        .collect();
    assert!(questions.len() > 20, "{questions:?}");
    let targets = ["--target", "t.fine=1", "--target", "t.broken", "--on-target", "helpers.input-logger"];
    let invocation = [&targets[..], &["--on-final", "helpers.input-logger"]].concat();
    for (title, question) in questions {
        eventually(&format!("{title}: {question}"), || {
            if !prometheus.ask(&question).is_empty() {
                return true;
            }
            // A rate needs something that goes on.
            asked.invoke(&invocation).succeeds();
            false
        });
    }
    let failed = "max(fanfare_coordinator_results_total{outcome=\"failed\"}) > 0";
    eventually(failed, || prometheus.ask(failed).len() == 1);
}
