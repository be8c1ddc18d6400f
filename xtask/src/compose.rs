//! Brings up docker-compose.yml as a user would, under a name of its own, and invokes through it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{environment, process, say};

/// A first build compiles everything in release mode on whatever cores there are.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// Bringing up includes a pull of the broker's image.
const UP_LIMIT: Duration = Duration::from_secs(300);

const INVOKE_LIMIT: Duration = Duration::from_secs(90);

const DOWN_LIMIT: Duration = Duration::from_secs(120);

/// A compose project that is taken down, with its volumes, when this is dropped.
struct Project {
    name: String,
    ports: [u16; 2],
}

/// Builds, brings up, invokes, checks the answer and takes down.
pub(crate) fn run() -> Result<()> {
    ensure!(environment::works("docker", &["info"]), "the compose test needs a running Docker engine");
    ensure!(
        environment::works("docker", &["compose", "version"]),
        "the compose test needs Docker Compose: install the package docker-compose-plugin"
    );
    let ports = [environment::free_port()?, environment::free_port()?];
    let project = Project { name: format!("fanfare-test-{}", std::process::id()), ports };
    let outcome = project.bring_up().and_then(|()| project.invoke());
    if outcome.is_err() {
        process::show(&mut project.compose(&["logs", "--no-color", "--tail", "60"]), INVOKE_LIMIT);
    }
    outcome?;
    say("the compose file works: every target was served and the answer came back");
    Ok(())
}

impl Project {
    fn compose(&self, arguments: &[&str]) -> Command {
        let [amqp, management] = self.ports.map(|port| port.to_string());
        let mut command = Command::new("docker");
        command
            .current_dir(environment::root())
            .args(["compose", "--project-name", &self.name, "--profile", "tools"])
            .args(arguments)
            .envs([("FANFARE_AMQP_PORT", amqp), ("FANFARE_MANAGEMENT_PORT", management)]);
        command
    }

    fn bring_up(&self) -> Result<()> {
        say("building the image");
        process::run(&mut self.compose(&["build"]), BUILD_LIMIT)?;
        say("bringing up RabbitMQ, two coordinators and two workers");
        let up = ["up", "--detach", "--wait", "--scale", "worker=2", "coordinator", "worker"];
        process::run(&mut self.compose(&up), UP_LIMIT)
    }

    /// Invokes one service under two keys and checks what comes back.
    fn invoke(&self) -> Result<()> {
        let targets = ["--target", r#"helpers.echo={"a":1}"#, "--target", r#"second@helpers.echo={"a":2}"#];
        let run = ["run", "--rm", "-T", "publisher", "--source", "demo"];
        let arguments = [&run[..], &targets, &["--wait", "30s"]].concat();
        let answer = process::output(&mut self.compose(&arguments), INVOKE_LIMIT)?;
        check(&answer).with_context(|| format!("unexpected answer: {answer}"))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let down = ["down", "--volumes", "--remove-orphans", "--timeout", "5"];
        process::clean_up(&mut self.compose(&down), DOWN_LIMIT);
    }
}

/// Checks the final payload of the two targets.
fn check(answer: &str) -> Result<()> {
    let payload: Value = serde_json::from_str(answer).context("this is not JSON")?;
    ensure!(payload["source"] == "demo", "the source is not `demo`");
    ensure!(payload["on_target"] == "", "there are on-target callbacks that nobody asked for");
    let results = payload["data"].as_object().context("`data` is not an object")?;
    ensure!(results.len() == 2, "there are {} results for two targets", results.len());
    for key in ["helpers.echo", "second"] {
        let result = results.get(key).with_context(|| format!("no result of `{key}`"))?;
        if result["ok"] != json!(true) || result["target"] != "helpers.echo" {
            bail!("`{key}` did not answer");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn answer_must_hold_every_target() {
        let result = r#"{"target":"helpers.echo","ok":true}"#;
        let payload = |data| format!(r#"{{"source":"demo","on_target":"","on_final":[],"data":{data}}}"#);
        check(&payload(format!(r#"{{"helpers.echo":{result},"second":{result}}}"#))).unwrap();
        check(&payload(format!(r#"{{"helpers.echo":{result}}}"#))).unwrap_err();
        check(&payload(r#"{"helpers.echo":{},"second":{}}"#.to_owned())).unwrap_err();
    }
}
