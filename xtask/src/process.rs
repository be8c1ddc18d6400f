//! Runs other programs so that none of them, nor anything that they start, outlives this one.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Signal, WaitId, WaitIdOptions};

use crate::interrupt;

/// How often a wait looks again. Short against everything that is waited for here.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// How long a program may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What a RabbitMQ node needs, and no more: Erlang sizes its tables by this limit, and some machines have it
/// at a thousand million.
const OPEN_FILES: u64 = 20_000;

/// A program in a process group of its own, which is ended as a whole when this is dropped.
///
/// The group also keeps a Ctrl-C at the terminal from reaching the program before this process has decided
/// what to end first.
pub(crate) struct Group {
    child: Child,
    name: String,
    ended: bool,
}

impl Group {
    /// Starts `command`, without standard input.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        Ok(Self { child, name, ended: false })
    }

    /// Waits until the program ends, and then ends what it left behind. Without a `limit` it may take for ever.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<ExitStatus> {
        self.wait_while(interrupt::check, limit)
    }

    /// Like [`wait`](Self::wait), but a signal to this process doesn't shorten it.
    fn settle(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.wait_while(|| Ok(()), Some(limit))
    }

    fn wait_while(&mut self, check: impl Fn() -> Result<()>, limit: Option<Duration>) -> Result<ExitStatus> {
        let started = Instant::now();
        while self.is_running() {
            check()?;
            if limit.is_some_and(|limit| started.elapsed() >= limit) {
                bail!("`{}` took longer than {} s", self.name, limit.unwrap_or_default().as_secs());
            }
            thread::sleep(POLL);
        }
        self.stop(Duration::ZERO)
    }

    /// Whether the program itself still runs. It is not reaped here, so that its number stays its own.
    pub(crate) fn is_running(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !self.ended && matches!(rustix::process::waitid(WaitId::Pid(self.pid()), look), Ok(None))
    }

    /// Asks the group to end, kills what is left of it after `grace`, and reaps the program.
    pub(crate) fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        if !self.ended {
            let asked = Instant::now();
            if !grace.is_zero() {
                self.signal(Signal::TERM);
            }
            while self.is_running() && asked.elapsed() < grace {
                thread::sleep(POLL);
            }
            self.signal(Signal::KILL);
            self.ended = true;
        }
        self.child.wait().with_context(|| format!("cannot wait for `{}`", self.name))
    }

    /// Only called before the program is reaped, when the group's number can't have passed to a stranger.
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.pid(), signal);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.stop(GRACE);
    }
}

/// Runs `command` to its end, which it must reach within `limit`, and fails where the command does.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let line = shown(command);
    let status = Group::spawn(command)?.wait(Some(limit))?;
    if status.success() { Ok(()) } else { bail!("`{line}` failed: {status}") }
}

/// Like [`run`], and returns what the command prints on standard output. Where it fails, the error holds what
/// it printed on standard error.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<String> {
    captured(command, |group| group.wait(Some(limit)))
}

/// Like [`output`], for what must not be broken off half-way: a signal to this process waits for it.
pub(crate) fn output_undisturbed(command: &mut Command, limit: Duration) -> Result<String> {
    captured(command, |group| group.settle(limit))
}

fn captured(command: &mut Command, wait: impl FnOnce(&mut Group) -> Result<ExitStatus>) -> Result<String> {
    let line = shown(command);
    let mut group = Group::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdout = collect(group.child.stdout.take());
    let stderr = collect(group.child.stderr.take());
    let status = wait(&mut group)?;
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    if status.success() { Ok(stdout) } else { bail!("`{line}` failed: {status}: {}", stderr.trim()) }
}

/// Runs a command of a clean-up: quietly, after a signal too, and whatever it says.
pub(crate) fn clean_up(command: &mut Command, limit: Duration) {
    if let Ok(mut group) = Group::spawn(command.stdout(Stdio::null()).stderr(Stdio::null())) {
        let _ = group.settle(limit);
    }
}

/// Runs a command whose output helps to explain a failure, if it can be had in time.
pub(crate) fn show(command: &mut Command, limit: Duration) {
    if let Ok(mut group) = Group::spawn(command.stdout(std::io::stderr())) {
        let _ = group.settle(limit);
    }
}

/// Raises the limit on open files for everything that is started from here: brokers of fan-outs need many.
pub(crate) fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES)));
    if rustix::process::setrlimit(Resource::Nofile, limit).is_err() {
        crate::say("cannot raise the limit on open files; wide tests may bring the broker down");
    }
}

/// Reads a pipe on a thread of its own, so that a program that fills one pipe never waits for the other.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
