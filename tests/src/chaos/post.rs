use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::proxy::Proxy;
use super::{ChaosBroker, Journal};
use crate::oracle::{Disturbance, Event, Role};

/// The last part of the name of the file that a process's log goes to.
pub(super) const OUTPUT: &str = "stderr";

/// How long a process that was asked to stop may take. It is killed then: less than it would give itself, so that it is
/// known whose stop was cut short.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A place for one process, in which another takes over when it is gone. It has a way to the broker of its own.
#[derive(Debug)]
pub(super) struct Post {
    role: Role,
    name: String,
    arguments: Vec<String>,
    proxy: Proxy,
    /// Processes that it has had.
    processes: usize,
    /// Connections that there were before the process.
    before: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(Child),
    Stopping(Child, Instant),
    /// Nobody is there before this.
    Vacant(Instant),
}

/// What all processes are told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) program: &'a Path,
    pub(super) folder: &'a Path,
    pub(super) broker: &'a ChaosBroker,
    pub(super) prefix: &'a str,
}

impl Post {
    /// A post that nobody has taken yet.
    pub(super) async fn new(
        role: Role,
        number: usize,
        arguments: Vec<String>,
        broker: &ChaosBroker,
    ) -> Result<Self> {
        let word = word(role);
        let proxy = Proxy::start(broker.address()?).await?;
        let name = format!("{word}-{number}");
        Ok(Self {
            role,
            name,
            arguments,
            proxy,
            processes: 0,
            before: 0,
            state: State::Vacant(Instant::now()),
        })
    }

    pub(super) const fn role(&self) -> Role {
        self.role
    }

    /// Whether a process is there that was not asked to stop.
    pub(super) const fn runs(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    pub(super) const fn is_vacant(&self) -> bool {
        matches!(self.state, State::Vacant(_))
    }

    /// Starts a process where it is time for one.
    pub(super) fn fill(&mut self, scene: &Scene<'_>) -> Result<()> {
        if !matches!(self.state, State::Vacant(until) if until <= Instant::now()) {
            return Ok(());
        }
        self.processes += 1;
        let process = self.process();
        let output = scene.folder.join(format!("{process}.{OUTPUT}"));
        let output = File::create(&output).with_context(|| format!("cannot create {}", output.display()))?;
        let mut command = Command::new(scene.program);
        command
            .args(["--broker", &scene.broker.url_by(self.proxy.port())?, "--prefix", scene.prefix])
            .arg(word(self.role))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true);
        if self.role != Role::Coordinator {
            command.arg("--chaos").arg(scene.folder).args(["--process", &process]);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", scene.program.display()))?;
        self.before = self.proxy.accepted();
        self.state = State::Running(child);
        Ok(())
    }

    /// Looks after the process: one that was asked to stop may have, and no other ends by itself.
    pub(super) fn look(&mut self, journal: &Journal) -> Result<()> {
        let process = self.process();
        match &mut self.state {
            State::Running(child) => match child.try_wait()? {
                None => Ok(()),
                Some(status) => anyhow::bail!("{process} has ended by itself: {status}"),
            },
            State::Stopping(child, until) => match child.try_wait()? {
                None if Instant::now() < *until => Ok(()),
                None => self.kill(journal, Disturbance::StopCutShort, Instant::now()),
                Some(status) => {
                    // One that was asked before it could listen to signals has not come to do anything.
                    let too_early = status.signal() == Some(Signal::TERM.as_raw())
                        && self.proxy.accepted() == self.before;
                    ensure!(
                        status.success() || too_early,
                        "{process} was asked to stop, and failed: {status}"
                    );
                    self.state = State::Vacant(Instant::now());
                    Ok(())
                }
            },
            State::Vacant(_) => Ok(()),
        }
    }

    /// Kills the process, and leaves the post vacant until then.
    pub(super) fn kill(&mut self, journal: &Journal, how: Disturbance, until: Instant) -> Result<()> {
        let process = self.process();
        if let State::Running(child) | State::Stopping(child, _) = &mut self.state {
            let event = Event::Disturbed { role: self.role, name: process, how };
            journal.write(event)?;
            child.start_kill()?;
            // It is reaped by the runtime, once it is gone.
            self.state = State::Vacant(until);
        }
        Ok(())
    }

    /// Asks the process to stop, as an orchestrator would.
    pub(super) fn stop(&mut self) -> Result<()> {
        if let State::Running(child) = &self.state
            && let Some(id) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        {
            kill_process(id, Signal::TERM)?;
            let until = Instant::now() + STOP_LIMIT;
            if let State::Running(child) = std::mem::replace(&mut self.state, State::Vacant(until)) {
                self.state = State::Stopping(child, until);
            }
        }
        Ok(())
    }

    /// Drops the process's connections: the `nth`, or all.
    pub(super) fn cut(&self, journal: &Journal, nth: Option<usize>) -> Result<()> {
        if self.proxy.connections() == 0 {
            return Ok(());
        }
        let event = Event::Disturbed { role: self.role, name: self.process(), how: Disturbance::Cut };
        journal.write(event)?;
        match nth {
            Some(nth) => self.proxy.drop_one(nth),
            None => self.proxy.drop_all(),
        }
        Ok(())
    }

    fn process(&self) -> String {
        format!("{}.{}", self.name, self.processes)
    }
}

const fn word(role: Role) -> &'static str {
    match role {
        Role::Publisher => "publisher",
        Role::Worker => "worker",
        Role::Coordinator => "coordinator",
        Role::Broker => "broker",
    }
}
