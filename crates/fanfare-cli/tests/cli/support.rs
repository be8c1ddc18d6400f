//! Runs the `fanfare` binary as a user does.

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary in a folder of its own, without any settings of this environment.
pub(crate) fn fanfare(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    let settings = std::env::vars_os().map(|(name, _)| name);
    for name in settings.filter(|name| name.as_encoded_bytes().starts_with(b"FANFARE_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").current_dir(directory).stdin(Stdio::null());
    command
}

/// What a run ended with.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Fails, and shows what was written, unless all went well.
    #[track_caller]
    pub(crate) fn succeeds(&self) {
        assert_eq!(self.exit, 0, "{self:?}");
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            exit: output.status.code().expect("it is not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs the binary with arguments.
pub(crate) fn run(directory: &Path, arguments: &[&str]) -> Ended {
    fanfare(directory).args(arguments).output().unwrap().into()
}

/// Runs the binary with arguments and standard input.
pub(crate) fn run_with_input(directory: &Path, arguments: &[&str], input: &str) -> Ended {
    let mut command = fanfare(directory);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// The broker of the tests.
pub(crate) fn broker() -> String {
    std::env::var("FANFARE_TEST_BROKER").expect("set FANFARE_TEST_BROKER or run `cargo xtask test`")
}

/// A broker's URL in parts: its scheme, its user and password with an `@` if it has any, its host and port, and the rest.
pub(crate) fn split(url: &str) -> (&str, &str, String, &str) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (credentials, rest) = rest.split_at(rest.rfind('@').map_or(0, |at| at + 1));
    let (broker, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let port = if broker.contains(':') { "" } else { ":5672" };
    (scheme, credentials, format!("{broker}{port}"), path)
}

/// The lines that a process logs, read as they come: a pipe that nobody reads is full some time, and then the process stands still.
struct Log {
    lines: Receiver<String>,
}

impl Log {
    fn of(stderr: ChildStderr) -> Self {
        let (read, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            loop {
                let mut line = String::new();
                if stderr.read_line(&mut line).unwrap() == 0 || read.send(line).is_err() {
                    return;
                }
            }
        });
        Self { lines }
    }

    /// What there is up to the first line that says something, which is waited for.
    fn until(&self, said: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(said) {
            let line = self.lines.recv();
            seen += &line.unwrap_or_else(|_| panic!("it ended before {said:?}: {seen}"));
        }
        seen
    }
}

/// A worker or coordinator in the background, killed with the test.
pub(crate) struct Running {
    child: Child,
    log: Log,
    /// What it logged until it was ready.
    beginning: String,
}

impl Running {
    /// Starts the binary and waits until a line of its log says that it is ready.
    pub(crate) fn start(directory: &Path, arguments: &[&str], ready: &str) -> Self {
        let mut command = fanfare(directory);
        command.args(arguments);
        Self::spawn(command, ready)
    }

    /// Starts what it is given and waits in the same way.
    pub(crate) fn spawn(mut command: Command, ready: &str) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Log::of(child.stderr.take().unwrap());
        let beginning = log.until(ready);
        Self { child, log, beginning }
    }

    /// Where it is asked about itself, as its log says.
    pub(crate) fn address(&self) -> String {
        let at = self.beginning.find("127.0.0.1:").expect("it was told to listen");
        self.beginning[at..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect()
    }

    /// Sends a signal and waits until a line of the log tells what it led to.
    pub(crate) fn signal(&mut self, signal: Signal, led_to: &str) {
        self.send(signal);
        self.log.until(led_to);
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn send(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Sends a signal, waits for the end, and gives back the exit code and the rest of the log.
    pub(crate) fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        self.send(signal);
        let rest = self.log.lines.iter().collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), rest);
            }
            assert!(Instant::now() < deadline, "it does not stop: {rest}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a condition holds, looking every few milliseconds.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_seen(what, condition, |&holds| holds);
}

/// Looks every few milliseconds until what it sees is as wanted, and returns that.
pub(crate) fn eventually_seen<T: Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if wanted(&seen) {
            return seen;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} for this in vain: {what}; seen last: {seen:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
