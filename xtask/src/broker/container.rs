//! A broker in a container.

use std::fmt::Display;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{End, Instance};
use crate::{environment, process, say};

/// The image of the newest RabbitMQ that the tests are run on.
const IMAGE: &str = "rabbitmq:4-management";

/// Names another image, of an older or newer RabbitMQ.
const IMAGE_VARIABLE: &str = "FANFARE_TEST_IMAGE";

/// A pull that takes longer has no registry to pull from, or a line that makes the package the better way.
const PULL_LIMIT: Duration = Duration::from_secs(120);

/// What any other command of the engine may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A container engine that runs and has the image.
pub(super) struct Engine {
    program: &'static str,
    image: String,
}

/// A container that is removed, with its data, when this is dropped.
pub(super) struct Container {
    program: &'static str,
    name: String,
    port: u16,
    management: u16,
}

/// Whether the environment names the image, so that no other way will do.
pub(super) fn image_is_chosen() -> bool {
    environment::variable(IMAGE_VARIABLE).is_some()
}

impl Engine {
    pub(super) fn find() -> Result<Self> {
        let image = environment::variable(IMAGE_VARIABLE).unwrap_or_else(|| IMAGE.to_owned());
        let Some(program) =
            ["docker", "podman"].into_iter().find(|program| environment::works(program, &["info"]))
        else {
            bail!("no container engine runs: neither `docker info` nor `podman info` succeeds");
        };
        if !environment::works(program, &["image", "inspect", &image]) {
            let limit = PULL_LIMIT.as_secs();
            say(format_args!("{program} does not have {image}: pulling it, for {limit} s at most"));
            process::run(Command::new(program).args(["pull", "--quiet", &image]), PULL_LIMIT)
                .with_context(|| format!("{program} cannot pull {image}"))?;
        }
        Ok(Self { program, image })
    }

    pub(super) fn start(&self) -> Result<Container> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("fanfare-test-{}-{nth}", std::process::id());
        // The value exists before the container does, so that nothing stays where starting fails half-way.
        let (port, management) = (environment::free_port()?, environment::free_port()?);
        let container = Container { program: self.program, name, port, management };
        let mut run = Command::new(self.program);
        // Not `--rm`: with it, Docker sometimes removes a container that it is asked to restart.
        run.args(["run", "--detach", "--pull=never", "--name", &container.name])
            .args(["--label", "fanfare.test=true", "--ulimit", "nofile=20000:20000"])
            .args(["--publish", &format!("127.0.0.1:{}:5672", container.port)])
            .args(["--publish", &format!("127.0.0.1:{}:15672", container.management), &self.image]);
        process::output_undisturbed(&mut run, LIMIT)?;
        Ok(container)
    }
}

impl Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a {} container of {}", self.program, self.image)
    }
}

impl Container {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(arguments);
        command
    }
}

impl Instance for Container {
    fn port(&self) -> u16 {
        self.port
    }

    fn management(&self) -> Option<u16> {
        Some(self.management)
    }

    fn check_running(&mut self) -> Result<()> {
        let mut inspect = self.command(&["inspect", "--format", "{{.State.Status}}", &self.name]);
        let status = process::output(&mut inspect, LIMIT)?;
        ensure!(status.trim() == "running", "the container {} is {}", self.name, status.trim());
        Ok(())
    }

    fn check_ports(&self) -> Result<()> {
        let check = ["exec", &self.name, "rabbitmq-diagnostics", "-q", "check_port_connectivity"];
        process::output(&mut self.command(&check), LIMIT).map(drop)
    }

    fn end(&mut self, end: End) -> Result<()> {
        let end: &[&str] = match end {
            End::Stopped => &["stop", "-t", "5"],
            End::Killed => &["kill"],
        };
        process::output_undisturbed(self.command(end).arg(&self.name), LIMIT).map(drop)
    }

    fn start_again(&mut self) -> Result<()> {
        process::output_undisturbed(&mut self.command(&["start", &self.name]), LIMIT).map(drop)
    }

    fn control(&self) -> String {
        format!("{} exec {} rabbitmqctl", self.program, self.name)
    }

    fn pid(&self) -> Option<u32> {
        let mut inspect = self.command(&["inspect", "--format", "{{.State.Pid}}", &self.name]);
        process::output(&mut inspect, LIMIT).ok()?.trim().parse().ok()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        process::clean_up(&mut self.command(&["rm", "--force", "--volumes", &self.name]), LIMIT);
    }
}
